"""Panoptic FPN and Semantic FPN in configs of detectron2 and mmdetection become the shipped ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_detectron2 import BASE, MSRA, STATED
from test_mmdetection import ALWAYS, DATA, EPOCH, MODEL, SCHEDULE

from resdet.config import load_config
from resdet.errors import UserError
from resdet.migration.convert import migrate_file
from resdet.migration.keys import Kind, flat
from resdet.migration.report import Migration, to_yaml

SEMANTIC_STATED = {
    k: STATED[k] for k in STATED if k.partition(".")[2].partition(".")[0] in ("input", "backbone", "fold_norm")
}
PANOPTIC = f"""
_BASE_: Base-RCNN-FPN.yaml
MODEL:
  META_ARCHITECTURE: "PanopticFPN"
  MASK_ON: True
  {MSRA}
  SEM_SEG_HEAD: {{LOSS_WEIGHT: 0.5}}
DATASETS:
  TRAIN: ("coco_2017_train_panoptic_separated",)
  TEST: ("coco_2017_val_panoptic_separated",)
DATALOADER: {{FILTER_EMPTY_ANNOTATIONS: False}}
"""
SEMANTIC = f"""
_BASE_: Base-RCNN-FPN.yaml
MODEL: {{META_ARCHITECTURE: "SemanticSegmentor", {MSRA}}}
DATASETS: {{TRAIN: ["coco_2017_train_panoptic_stuffonly"], TEST: ["coco_2017_val_panoptic_stuffonly"]}}
"""


def migrated(folder: Path, text: str) -> Migration:
    (folder / "Base-RCNN-FPN.yaml").write_text(BASE)
    (folder / "c.yaml").write_text(text)
    return migrate_file(folder / "c.yaml")


def values_of(migration: Migration, folder: Path) -> dict[str, Any]:
    (folder / "ours.yaml").write_text(to_yaml(migration))
    return flat(load_config(folder / "ours.yaml").model_dump())


def lost(migration: Migration) -> set[str]:
    return {row.key for row in migration.rows if row.kind is Kind.WARNING}


@pytest.mark.parametrize(
    ("text", "shipped", "stated"),
    [(PANOPTIC, "panoptic_fpn_r50", STATED), (SEMANTIC, "semantic_fpn_r50", SEMANTIC_STATED)],
)
def test_detectron2s_zoo_is_our_recipe(text: str, shipped: str, stated: dict[str, Any], tmp_path) -> None:
    found = migrated(tmp_path, text)
    ours = values_of(found, tmp_path)
    expected = flat(load_config(f"configs/{shipped}.yaml").model_dump()) | stated
    expected |= {"model.backbone.weights": "R-50.pkl", "data.negatives": None}
    assert {k: v for k, v in ours.items() if expected[k] != v and k not in ("data.workers", "output")} == {}
    assert ours.keys() == expected.keys()
    assert lost(found) == {"MODEL.WEIGHTS"}
    assert not any(row.kind is Kind.UNKNOWN for row in found.rows)


def test_detectron2s_head_and_merging(tmp_path) -> None:
    head = "NUM_CLASSES: 12, CONVS_DIM: 64, NORM: SyncBN, LOSS_WEIGHT: 0.3, IGNORE_VALUE: 0"
    more = "PANOPTIC_FPN: {INSTANCE_LOSS_WEIGHT: 0.7, COMBINE: {OVERLAP_THRESH: 0.5, STUFF_AREA_LIMIT: 100}}"
    text = PANOPTIC.replace("{LOSS_WEIGHT: 0.5}", f"{{{head}}}\n  {more}").replace(
        "coco_2017_val_panoptic", "my_sem_seg"
    )
    found = migrated(tmp_path, text)
    ours = values_of(found, tmp_path)
    section = {"num_classes": 12, "width": 64, "norm": "sync_bn", "loss_weight": 0.3}
    assert {key: ours[f"model.semantic.{key}"] for key in section} == section
    assert lost(found) == {
        "MODEL.WEIGHTS", "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "DATASETS.TEST",
    }  # fmt: skip
    for key, value in {"NAME": "PointRendSemSegHead", "IN_FEATURES": ["p2"], "COMMON_STRIDE": 8}.items():
        changed = text.replace(head, f"{key}: {json.dumps(value)}")
        with pytest.raises(UserError, match=f"MODEL.SEM_SEG_HEAD.{key}={re.escape(repr(value))}: resdet supports"):
            migrated(tmp_path, changed)


LAZY_BODY = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, FPN, ResNet, RPN, DefaultAnchorGenerator, StandardROIHeads, ROIPooler
from detectron2.modeling import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
model = L(GeneralizedRCNN)(
    backbone=L(FPN)(bottom_up=L(ResNet)(stages=L(ResNet.make)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
        out_features=["res2", "res3", "res4", "res5"]), out_channels=256),
    proposal_generator=L(RPN)(in_features=["p2", "p3", "p4", "p5", "p6"], pre_nms_topk=(2000, 1000),
        post_nms_topk=(1000, 1000), anchor_generator=L(DefaultAnchorGenerator)(sizes=[[32], [64], [128], [256], [512]],
        aspect_ratios=[0.5, 1.0, 2.0], offset=0.0)),
    roi_heads=L(StandardROIHeads)(num_classes=80, box_in_features=["p2", "p3", "p4", "p5"],
        box_pooler=L(ROIPooler)(output_size=7, sampling_ratio=0), box_head=L(FastRCNNConvFCHead)(conv_dims=[],
        fc_dims=[1024, 1024]), mask_head=L(MaskRCNNConvUpsampleHead)(conv_dims=[256] * 5)))
"""
LAZY = """
from detectron2.modeling import PanopticFPN
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from .body import model
model._target_ = PanopticFPN
model.sem_seg_head = L(SemSegFPNHead)(
    input_shape={f: L(ShapeSpec)(stride=s, channels="${....backbone.out_channels}") for f, s in zip(["p2"], [4])},
    ignore_value=255, num_classes=54, conv_dims=96, common_stride=4, loss_weight=0.5, norm="GN")
model.combine_overlap_thresh = 0.4
dataloader = dict(train=dict(dataset=dict(names="coco_2017_train_panoptic_separated", filter_empty=False)))
"""


def test_detectron2s_lazy_config(tmp_path) -> None:
    (tmp_path / "body.py").write_text(LAZY_BODY)
    (tmp_path / "c.py").write_text(LAZY)
    found = migrate_file(tmp_path / "c.py")
    ours = values_of(found, tmp_path)
    expected = {
        "model.semantic.num_classes": 54, "model.semantic.width": 96, "model.semantic.loss_weight": 0.5,
        "model.mask.num_convs": 4, "data.format": "coco_panoptic", "data.negatives": None,
    }  # fmt: skip
    assert {key: ours[key] for key in expected} == expected
    assert {key for key in lost(found) if "sem_seg" in key or "combine" in key} == {"model.combine_overlap_thresh"}


HEAD = """
semantic_head=dict(type='PanopticFPNHead', num_things_classes=80, num_stuff_classes=53, in_channels=256, inner_channels=128,
    start_level=0, end_level=4, norm_cfg=dict(type='GN', num_groups=32, requires_grad=True), conv_cfg=None,
    loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.5)),
panoptic_fusion_head=dict(type='HeuristicFusionHead', num_things_classes=80, num_stuff_classes=53)"""
NMS = "nms=dict(type='nms', iou_threshold=0.4, class_agnostic=True)"
TESTED = {  # by version
    3: f"rcnn=dict(score_thr=0.6, {NMS}, max_per_img=100, mask_thr_binary=0.5), panoptic=dict(mask_overlap=0.5, "
    "stuff_area_limit=4096)",
    2: f"panoptic=dict(score_thr=0.6, max_per_img=100, mask_thr_binary=0.5, mask_overlap=0.5, {NMS}, stuff_area_limit=4096)",
}
PIPELINE = {
    "CocoDataset": "CocoPanopticDataset", "instances_": "panoptic_", "type='LoadAnnotations'": "type='LoadPanopticAnnotations'",
    "dict(type='PackDetInputs')": "dict(type='SegRescale', scale_factor=1 / 4), dict(type='PackDetInputs')",
    "data_prefix=dict(img='train2017/')": "data_prefix=dict(img='train2017/'), seg_prefix=data_root + 'annotations/p/'",
}  # fmt: skip


def of_mmdetection(folder: Path, text: str) -> Migration:
    data = DATA
    for old, new in PIPELINE.items():
        assert old in data
        data = data.replace(old, new)
    for name, content in {"model": MODEL, "data": data, "schedule": SCHEDULE}.items():
        (folder / f"{name}.py").write_text(content)
    (folder / "c.py").write_text(f"_base_ = ['model.py', 'data.py', 'schedule.py']\n{text}")
    return migrate_file(folder / "c.py")


@pytest.mark.parametrize("version", TESTED)
def test_mmdetections_is_our_recipe_but_for_what_is_stated(version: int, tmp_path) -> None:
    found = of_mmdetection(tmp_path, f"model = dict(type='PanopticFPN', {HEAD}, test_cfg=dict({TESTED[version]}))")
    ours, shipped = values_of(found, tmp_path), flat(load_config("configs/panoptic_fpn_r50.yaml").model_dump())
    assert {key: ours[key] for key in ours if ours[key] != shipped[key] and key != "data.workers"} == {
        "model.anchors.offset": 0, "model.pool.sampling_ratio": 0, "model.rpn.clamp_shrink": True,
        "model.rpn.rank": "sigmoid", "model.box.empty": "keep", "model.box.clamp_shrink": True,
        "model.box.low_quality": True, "model.fold_norm": False, "model.box.score_threshold": 0.6,
        "model.box.nms_threshold": 0.4,
        "train.max_iters": 12 * EPOCH, "train.milestones": [8 * EPOCH, 11 * EPOCH], "train.warmup_iters": 500,
        "train.eval_every": EPOCH, "train.checkpoint_every": EPOCH, "data.min_size": [800], "data.negatives": 0,
        "data.root": Path("data/coco"),
    }  # fmt: skip
    part = {2: "panoptic", 3: "rcnn"}[version]
    agnostic, averaged = f"model.test_cfg.{part}.nms.class_agnostic", "model.semantic_head.loss_seg.avg_non_ignore"
    assert lost(found) == {*ALWAYS, agnostic, averaged}
    assert not any(row.kind is Kind.UNKNOWN for row in found.rows)


def test_mmdetections_own_classes(tmp_path) -> None:
    """Things are its last class of pixels and our first; an epoch has the images that show things."""
    (tmp_path / "data" / "coco" / "annotations").mkdir(parents=True)
    segments = [[{"category_id": 7}], [{"category_id": 9}], [{"category_id": 9}, {"category_id": 7}]] * 20
    content = {
        "images": [{"id": k} for k in range(60)], "categories": [{"id": 7, "isthing": 1}, {"id": 9, "isthing": 0}],
        "annotations": [{"image_id": k, "segments_info": some} for k, some in enumerate(segments)],
    }  # fmt: skip
    name = str(tmp_path / "data" / "coco" / "annotations" / "mine.json")
    Path(name).write_text(json.dumps(content))
    head = HEAD.replace("num_stuff_classes=53", "num_stuff_classes=2").replace(
        "loss_weight=0.5", "class_weight=[1.0, 2.0, 3.0]"
    )
    found = of_mmdetection(
        tmp_path, f"model = dict(type='PanopticFPN', {head})\ntrain_dataloader = dict(dataset=dict(ann_file={name!r}))"
    )
    ours = values_of(found, tmp_path)
    assert (ours["model.semantic.num_classes"], ours["model.semantic.class_weights"]) == (3, [3.0, 1.0, 2.0])
    assert ours["train.max_iters"] == 12 * 3  # of 40 images, 16 a step
    assert (ours["data.train.annotations"], ours["data.format"]) == (Path(name), "coco_panoptic")
    for theirs in ("type='PanopticFPNHead'", "type='HeuristicFusionHead'", "end_level=4"):
        changed = re.sub(r"=.*", "=3" if "level" in theirs else "='Other'", theirs)
        with pytest.raises(UserError, match=r"resdet supports"):
            of_mmdetection(tmp_path, f"model = dict(type='PanopticFPN', {HEAD.replace(theirs, changed)})")
