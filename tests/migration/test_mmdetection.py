"""mmdetection's configs become ours: files with bases, flat text of versions 2 and 3, and the text in a checkpoint."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resdet import cli
from resdet.config import Config, load_config
from resdet.errors import UserError
from resdet.migration.convert import migrate_file, migrate_text
from resdet.migration.keys import Kind, flat
from resdet.migration.report import Migration, to_yaml

MODEL = """
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, pad_mask=True, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    rpn_head=dict(type='RPNHead', in_channels=256, feat_channels=256,
        anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    roi_head=dict(type='StandardRoIHead',
        bbox_roi_extractor=dict(type='SingleRoIExtractor', out_channels=256, featmap_strides=[4, 8, 16, 32],
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),
        bbox_head=dict(type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=1024, roi_feat_size=7, num_classes=80,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False, loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        mask_roi_extractor=dict(type='SingleRoIExtractor', out_channels=256, featmap_strides=[4, 8, 16, 32],
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0)),
        mask_head=dict(type='FCNMaskHead', num_convs=4, in_channels=256, conv_out_channels=256, num_classes=80,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3,
                match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5,
                match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=28, pos_weight=-1, debug=False)),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5)))
"""
DATA = """
data_root = 'data/coco/'
train_pipeline = [dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True), dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id',))]
train_dataloader = dict(batch_size=2, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True), batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(type='CocoDataset', data_root=data_root, ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'), filter_cfg=dict(filter_empty_gt=True, min_size=32), pipeline=train_pipeline))
val_dataloader = dict(batch_size=1, dataset=dict(type='CocoDataset', data_root=data_root, test_mode=True,
    ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017/'), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file=data_root + 'annotations/instances_val2017.json', metric=['bbox', 'segm'])
"""
SCHEDULE = """
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001))
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
load_from = None
"""
EPOCH = 7330  # ceil(117 266 images with objects / 16)
ALWAYS = {"model.backbone.norm_cfg.requires_grad", "model.train_cfg.rpn.assigner.min_pos_iou"}  # told as not taken


def migrated(folder: Path, text: str = "", images: int | None = None) -> Migration:
    for name, content in {"model": MODEL, "data": DATA, "schedule": SCHEDULE}.items():
        (folder / f"{name}.py").write_text(content)
    (folder / "c.py").write_text(f"_base_ = ['model.py', './data.py', 'schedule.py']\n{text}\n")
    return migrate_file(folder / "c.py", images)


def config_of(migration: Migration, folder: Path) -> Config:
    (folder / "ours.yaml").write_text(to_yaml(migration))
    return load_config(folder / "ours.yaml")


def lost(migration: Migration) -> set[str]:
    return {row.key for row in migration.rows if row.kind is Kind.WARNING}


def test_mask_rcnn_1x_is_our_recipe_but_for_what_is_stated(tmp_path) -> None:
    found = migrated(tmp_path)
    a, b = flat(config_of(found, tmp_path).model_dump()), flat(load_config("configs/maskrcnn_r50.yaml").model_dump())
    assert {key: a[key] for key in a if a[key] != b[key] and key != "data.workers"} == {
        # numerics of mmdetection
        "model.anchors.offset": 0, "model.pool.sampling_ratio": 0, "model.rpn.clamp_shrink": True,
        "model.rpn.rank": "sigmoid", "model.box.empty": "keep", "model.box.clamp_shrink": True,
        "model.box.low_quality": True, "model.fold_norm": False,
        # its schedule is in epochs, of images with objects, at one size
        "train.max_iters": 12 * EPOCH, "train.milestones": [8 * EPOCH, 11 * EPOCH], "train.warmup_iters": 500,
        "train.eval_every": EPOCH, "train.checkpoint_every": EPOCH, "data.min_size": [800], "data.negatives": 0,
        "data.root": Path("data/coco"),
    }  # fmt: skip
    assert lost(found) == ALWAYS
    assert not any(row.kind is Kind.UNKNOWN for row in found.rows)


CAFFE = "model = dict(backbone=dict(norm_cfg=dict(requires_grad=False), style='caffe', init_cfg=dict(type='Pretrained', " \
    "checkpoint='open-mmlab://detectron2/resnet50_caffe')), data_preprocessor=dict(mean=[103.53, 116.28, 123.675], " \
    "std=[1.0, 1.0, 1.0], bgr_to_rgb=False))"  # fmt: skip
GN = "norm_cfg = dict(type='GN', num_groups=32, requires_grad=True)\nmodel = dict(backbone=dict(norm_cfg=norm_cfg), " \
    "neck=dict(norm_cfg=norm_cfg), roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_out_channels=256, " \
    "norm_cfg=norm_cfg), mask_head=dict(norm_cfg=norm_cfg)))"  # fmt: skip


WS = "conv_cfg = dict(type='ConvWS')\nmodel = dict(backbone=dict(conv_cfg=conv_cfg), neck=dict(conv_cfg=conv_cfg), " \
    "roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_cfg=conv_cfg), " \
    "mask_head=dict(conv_cfg=conv_cfg, class_agnostic=True)))"  # fmt: skip


STAGES = """
model = dict(type='CascadeRCNN', roi_head=dict(_delete_=True, type='CascadeRoIHead', num_stages=3,
    stage_loss_weights=[1, 0.5, 0.25],
    bbox_roi_extractor=dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),
    bbox_head=[dict(type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=1024, num_classes=15, reg_class_agnostic=True,
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=stds), loss_cls=dict(type='CrossEntropyLoss'),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0)) for stds in 0]),
    train_cfg=dict(rcnn=[dict(assigner=dict(pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou, match_low_quality=False),
        sampler=dict(num=512)) for iou in 0]))
"""


def written_out(text: str, name: str, values: list[Any]) -> str:
    """The comprehension over a name as a list of its entries, as a config has them."""
    start, end = text.rindex("[dict(", 0, text.index(f" for {name} in 0]")), text.index(f" for {name} in 0]")
    entry = text[start + 1 : end]
    entries = ", ".join(re.sub(rf"={name}\b", f"={value}", entry) for value in values)
    return f"{text[:start]}[{entries}]{text[end + len(f' for {name} in 0]') :]}"


def test_cascades(tmp_path) -> None:
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    text = written_out(written_out(STAGES, "stds", stds), "iou", [0.5, 0.6, 0.75])
    found = migrated(tmp_path, text)
    model = config_of(found, tmp_path).model
    assert model.cascade
    assert model.cascade.model_dump() == {
        "ious": [0.5, 0.6, 0.75], "loss_weights": [1, 0.5, 0.25], "resample": True, "scale_gradients": False,
        "average": "logits", "mask_heads": "one", "delta_weights": [tuple(1 / s for s in one) for one in stds],
    }  # fmt: skip
    assert model.box
    assert (model.mask, model.num_classes, model.box.loss_beta, model.box.low_quality) == (None, 15, 1.0, False)
    assert lost(found) == ALWAYS
    other = migrated(tmp_path, text.replace("num=512", "num=256", 2).replace("num=256", "num=512", 1))
    assert lost(other) - ALWAYS == {"model.train_cfg.rcnn.1.sampler.num"}
    masks = "mask_head=[" + "dict(type='FCNMaskHead', num_convs=3, num_classes=15), " * 3 + "],\n    bbox_head="
    model = config_of(migrated(tmp_path, text.replace("bbox_head=", masks)), tmp_path).model
    assert model.mask
    assert model.cascade
    assert (model.mask.num_convs, model.cascade.mask_heads) == (3, "each")
    with pytest.raises(UserError, match="one box for all classes"):
        migrated(tmp_path, text.replace("reg_class_agnostic=True", "reg_class_agnostic=False"))


def test_the_rpn_alone(tmp_path) -> None:
    text = MODEL.replace("type='MaskRCNN'", "type='RPN'").replace(
        "nms_pre=1000, max_per_img=1000", "nms_pre=1500, max_per_img=900"
    )
    text = text[: text.index("    roi_head=")] + text[text.index("    train_cfg=") :]
    text = text[: text.index("        rpn_proposal=")] + "        ),\n" + text[text.index("    test_cfg=") :]
    text = text[: text.index("        rcnn=dict(score_thr")] + "        ))\n"
    (tmp_path / "rpn.py").write_text(text.replace("iou_threshold=0.7", "iou_threshold=0.6") + DATA + SCHEDULE)
    found = migrate_file(tmp_path / "rpn.py")
    model = config_of(found, tmp_path).model
    assert (model.box, model.mask, model.num_classes, model.pool.sampling_ratio) == (None, None, None, 2)
    assert (model.rpn.pre_nms_predict, model.rpn.post_nms_predict, model.rpn.nms_threshold) == (1500, 900, 0.6)
    assert (model.rpn.rank, model.rpn.clamp_shrink) == ("sigmoid", True)
    assert lost(found) == ALWAYS
    assert not any(row.kind is Kind.UNKNOWN for row in found.rows)


@pytest.mark.parametrize(
    ("text", "expected", "not_taken"),
    [
        (CAFFE, {"model.backbone.stride_in_1x1": True, "model.input.bgr": True, "model.input.std": (1, 1, 1),
                 "model.input.mean": (103.53, 116.28, 123.675), "model.backbone.weights": "resnet50_caffe"},
         {"model.backbone.init_cfg.checkpoint"}),
        (GN, {"model.backbone.norm": "gn", "model.fpn.norm": "gn", "model.box.norm": "gn", "model.mask.norm": "gn",
              "model.box.trunk": "4conv1fc"}, {"optim_wrapper.paramwise_cfg.norm_decay_mult"}),
        (WS, {f"model.{key}.weight_standardization": True for key in ("backbone", "fpn", "box", "mask")}
         | {"model.mask.class_agnostic": True}, set()),
        ("model = dict(backbone=dict(dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False), "
         "stage_with_dcn=(False, True, True, True)))",
         {"model.backbone.deformable": "v2", "model.backbone.deformable_stages": ["c3", "c4", "c5"]}, set()),
        ("model = dict(backbone=dict(type='ResNeXt', depth=101, groups=64, base_width=4))",
         {"model.backbone.name": "resnext101_64x4d"}, set()),
        ("model = dict(roi_head=dict(bbox_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=0.5), num_classes=3), "
         "mask_head=dict(num_classes=3)), test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms', method='gaussian'))))",
         {"model.box.loss_beta": 0.5, "model.num_classes": 3, "model.box.soft_sigma": 0.5}, set()),
        ("train_pipeline = [dict(type='RandomChoiceResize', scales=[(1333, 640), (1333, 800)], keep_ratio=True), "
         "dict(type='RandomCrop', crop_size=(9, 9))]\ntrain_dataloader = dict(dataset=dict(pipeline=train_pipeline))",
         {"data.min_size": [640, 800], "data.flip": 0},
         {f"train_dataloader.dataset.pipeline.RandomCrop.{key}" for key in ("type", "crop_size")}),
        ("train_dataloader = dict(batch_size=2, dataset=dict(_delete_=True, type='RepeatDataset', times=3, dataset=dict("
         "type='CocoDataset', data_root='d', ann_file='annotations/instances_train2017.json', data_prefix=dict(img='im'), "
         "pipeline=[dict(type='RandomResize', scale=[(1333, 798), (1333, 800)], keep_ratio=True)])))",
         {"data.min_size": [798, 799, 800], "train.max_iters": 12 * 21988, "data.train.images": Path("d/im"),
          "data.train.annotations": Path("d/annotations/instances_train2017.json")}, set()),
        ("optim_wrapper = dict(type='AmpOptimWrapper', optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, "
         "weight_decay=.05), clip_grad=dict(max_norm=35, norm_type=2))\ncustom_hooks = [dict(type='EMAHook')]",
         {"train.optimizer": "adamw", "train.lr": 2e-4, "train.amp": "fp16", "train.clip_grad_norm": 35,
          "train.ema_decay": 0.9998}, set()),
        ("train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=900, val_interval=100)\nparam_scheduler = []",
         {"train.max_iters": 900, "train.eval_every": 100, "train.milestones": [], "train.warmup_iters": 0}, set()),
    ],
)  # fmt: skip
def test_its_families_and_options(text: str, expected: dict[str, Any], not_taken: set[str], tmp_path) -> None:
    found = migrated(tmp_path, text)
    values = flat(config_of(found, tmp_path).model_dump())
    assert {key: values[key] for key in expected} == expected
    assert lost(found) - ALWAYS == not_taken


def test_epochs_need_the_number_of_images(tmp_path, monkeypatch) -> None:
    """It is told, known for COCO, or counted in the file; without it the schedule is not taken, and that is told."""
    monkeypatch.chdir(tmp_path)
    other = "train_dataloader = dict(dataset=dict(data_root='mine', ann_file='a.json', data_prefix=dict(img='i')))"
    assert lost(migrated(tmp_path, other)) - ALWAYS >= {
        "train_cfg.max_epochs",
        "param_scheduler.MultiStepLR.milestones",
    }
    assert migrated(tmp_path, other, images=33).values["train"]["max_iters"] == 12 * 3
    (tmp_path / "mine").mkdir()
    content = {"images": [{"id": k} for k in range(40)], "annotations": [{"image_id": k} for k in range(17)]}
    (tmp_path / "mine" / "a.json").write_text(json.dumps(content))
    assert migrated(tmp_path, other).values["train"]["max_iters"] == 12 * 2
    with pytest.raises(UserError, match="--images 0"):
        migrated(tmp_path, other, images=0)


def test_version_2(tmp_path) -> None:
    """As its published checkpoints have it: no preprocessor, data, lr_config, runner, optimizer."""
    model = re.sub(r"data_preprocessor=dict\(.*?\),\n    backbone", "backbone", MODEL, flags=re.DOTALL)
    text = (
        model
        + """
dataset_type = 'CocoDataset'
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
data = dict(samples_per_gpu=2, workers_per_gpu=2,
    train=dict(type='CocoDataset', ann_file='data/coco/annotations/instances_train2017.json',
        img_prefix='data/coco/train2017/', pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize',
        img_scale=[(1333, 640), (1333, 800)], multiscale_mode='value', keep_ratio=True), dict(type='RandomFlip',
        flip_ratio=0.5), dict(type='Normalize', **img_norm_cfg), dict(type='Pad', size_divisor=32),
        dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])]),
    val=dict(type='CocoDataset', ann_file='data/coco/annotations/instances_val2017.json', img_prefix='data/coco/val2017/',
        pipeline=[dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[dict(type='Resize',
        keep_ratio=True)])]))
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=0.001, step=[16, 22])
runner = dict(type='EpochBasedRunner', max_epochs=24)
"""
    )
    found = migrate_text(text, Path("f.pth"))
    values = flat(config_of(found, tmp_path).model_dump())
    expected = {
        "model.input.bgr": True, "model.input.std": (1, 1, 1), "data.min_size": [640, 800], "data.root": Path("data/coco"),
        "train.max_iters": 24 * EPOCH, "train.milestones": [16 * EPOCH, 22 * EPOCH], "train.warmup_iters": 500,
        "train.batch_size": 16, "model.num_classes": 80, "model.mask.num_convs": 4,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert lost(found) == ALWAYS
    assert not any(row.kind is Kind.UNKNOWN for row in found.rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(type='YOLOV3')", "model.type='YOLOV3'"),
        ("model = dict(rpn_head=dict(type='FCOSHead'))", "model.rpn_head.type='FCOSHead'"),
        ("model = dict(neck=dict(type='PAFPN'))", "model.neck.type='PAFPN'"),
        ("model = dict(backbone=dict(type='Res2Net'))", "model.backbone.type='Res2Net'"),
        ("model = dict(backbone=dict(plugins=[1]))", "model.backbone.plugins"),
        ("model = dict(roi_head=dict(bbox_head=dict(norm_cfg=dict(type='LN'))))", "'LN' is not one of resdet's norms"),
    ],
)
def test_what_is_not_built_is_one_error(text: str, message: str, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as error:
        migrated(tmp_path, text)
    assert str(error.value).count("\n  - ") == 1


def test_code_becomes_a_row_and_never_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = migrated(tmp_path, "import os\nos.system('touch MARK')\nmodel = dict(extra=os.system('touch MARK'), "
                               "roi_head=dict(bbox_head=dict(fc_out_channels=int(open('MARK', 'w').write('1')))))")  # fmt: skip
    assert not (tmp_path / "MARK").exists()
    rows = {row.key: row for row in found.rows}
    assert rows["model.extra"].kind is Kind.UNKNOWN
    assert rows["model.roi_head.bbox_head.fc_out_channels"].kind is Kind.WARNING
    assert any("os.system" in key for key in lost(found))
    with pytest.raises(UserError, match="no `model = dict"):
        migrate_text("a = 1", Path("f.pth"))


def test_the_command(tmp_path, capsys, monkeypatch) -> None:
    """A file, a checkpoint's text, and mistakes; what is written loads and is told."""
    migrated(tmp_path)
    out = tmp_path / "new" / "ours.yaml"
    assert cli.main(["convert", "--config", str(tmp_path / "c.py"), str(out)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("mmdetection's config ")
    counts = r"\n\d+ keys: 2 not \(fully\) converted.* \d+ converted, \d+ equal to .*0 unknown\nwritten: "
    assert re.search(counts, told, re.DOTALL)
    assert load_config(out).train.max_iters == 12 * EPOCH
    for arguments, message in (
        (["--config", tmp_path / "gone.yaml", out], "no such config file"),
        (["--config", out, out], "choose another place"),
    ):
        assert cli.main(["convert", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    for arguments in (["--images", "3", "a", "b.safetensors"], ["--config", "a.py", "b.pth"]):
        with pytest.raises(SystemExit):
            cli.main(["convert", *arguments])
    torch = pytest.importorskip("torch")
    torch.save({"meta": {"cfg": MODEL + DATA + SCHEDULE}, "state_dict": {"w": torch.zeros(1)}}, tmp_path / "f.pth")
    assert cli.main(["convert", "--config", str(tmp_path / "f.pth"), str(tmp_path / "from.yaml")]) == 0
    assert load_config(tmp_path / "from.yaml") == load_config(out)
    (tmp_path / "f.pkl").write_bytes(pickle.dumps({"model": {"w": np.zeros(1)}}))
    assert cli.main(["convert", "--config", str(tmp_path / "f.pkl"), str(tmp_path / "no.yaml")]) == 2
    assert "has no config text" in capsys.readouterr().err
