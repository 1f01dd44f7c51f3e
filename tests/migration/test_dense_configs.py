"""Published configs of one-stage detectors, of detectron2 and mmdetection, become the shipped ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from resdet.config import load_config
from resdet.errors import UserError
from resdet.migration.convert import migrate_file, migrate_text
from resdet.migration.keys import Kind, flat
from resdet.migration.report import Migration, to_yaml

RETINANET = """
MODEL:
  META_ARCHITECTURE: "RetinaNet"
  WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
  MASK_ON: False
  BACKBONE: {NAME: "build_retinanet_resnet_fpn_backbone"}
  RESNETS: {DEPTH: 50, OUT_FEATURES: ["res3", "res4", "res5"]}
  ANCHOR_GENERATOR:
    SIZES: !!python/object/apply:eval ["[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"]
  FPN: {IN_FEATURES: ["res3", "res4", "res5"]}
  RETINANET: {IOU_THRESHOLDS: [0.4, 0.5], IOU_LABELS: [0, -1, 1], SMOOTH_L1_LOSS_BETA: 0.0}
DATASETS: {TRAIN: ["coco_2017_train"], TEST: ["coco_2017_val"]}
SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.01, STEPS: [60000, 80000], MAX_ITER: 90000}
INPUT: {MIN_SIZE_TRAIN: [640, 672, 704, 736, 768, 800]}
VERSION: 2
"""
BODY = "backbone=dict(type='ResNet', depth=50, num_stages=4, out_indices={}, frozen_stages=1, norm_cfg=dict(type='BN'), " \
    "norm_eval=True, init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'))"  # fmt: skip
FPN = "neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1, num_outs=5, {})"
HEAD = "bbox_head=dict(type='{}Head', num_classes=80, in_channels=256, stacked_convs=4, feat_channels=256, {})"
OCTAVES = "anchor_generator=dict(type='AnchorGenerator', octave_base_scale={}, scales_per_octave={}, ratios={}, " \
    "strides=[8, 16, 32, 64, 128]), bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], " \
    "target_stds={})"  # fmt: skip
SQUARE = OCTAVES.format(8, 1, [1.0], [0.1, 0.1, 0.2, 0.2])
FOCAL = "loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0)"
GIOU = "loss_bbox=dict(type='GIoULoss', loss_weight={})"
CENTERNESS = "loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)"
TOP9 = "train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1, debug=False)"
IOUS = "train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, " \
    "ignore_iof_thr=-1), sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False)"  # fmt: skip
TESTED = "test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold={}), max_per_img=100)"
MODELS = {
    "RetinaNet": (
        FPN.format("add_extra_convs='on_input'"), IOUS,
        HEAD.format("Retina", f"{OCTAVES.format(4, 3, [0.5, 1.0, 2.0], [1.0] * 4)}, {FOCAL}, "
                    "loss_bbox=dict(type='L1Loss', loss_weight=1.0)"), TESTED.format(0.5),
    ),
    "FCOS": (
        FPN.format("add_extra_convs='on_output', relu_before_extra_convs=True"),
        HEAD.format("FCOS", "strides=[8, 16, 32, 64, 128], norm_on_bbox=True, centerness_on_reg=True, dcn_on_last_conv=False, "
                    f"center_sampling=True, conv_bias=True, {FOCAL}, {GIOU.format(1.0)}, {CENTERNESS}"), TESTED.format(0.6),
    ),
    "ATSS": (
        FPN.format("add_extra_convs='on_output'"), TOP9,
        HEAD.format("ATSS", f"{SQUARE}, {FOCAL}, {GIOU.format(2.0)}, {CENTERNESS}"), TESTED.format(0.6),
    ),
    "GFL": (
        FPN.format("add_extra_convs='on_output'"), TOP9,
        HEAD.format("GFL", f"{SQUARE.partition(', bbox_coder')[0]}, loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, "
                    "beta=2.0, loss_weight=1.0), loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25), reg_max=16, "
                    f"{GIOU.format(2.0)}"), TESTED.format(0.6),
    ),
    "YOLOF": (
        "neck=dict(type='DilatedEncoder', in_channels=2048, out_channels=512, block_mid_channels=128, num_residual_blocks=4, "
        "block_dilations=[2, 4, 6, 8])",
        "bbox_head=dict(type='YOLOFHead', num_classes=80, in_channels=512, reg_decoded_bbox=True, anchor_generator=dict("
        "type='AnchorGenerator', ratios=[1.0], scales=[1, 2, 4, 8, 16], strides=[32]), bbox_coder=dict("
        "type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[1., 1., 1., 1.], add_ctr_clamp=True, "
        f"ctr_clamp=32), {FOCAL}, {GIOU.format(1.0)})",
        "train_cfg=dict(assigner=dict(type='UniformAssigner', pos_ignore_thr=0.15, neg_ignore_thr=0.7), allowed_border=-1, "
        "pos_weight=-1, debug=False)", TESTED.format(0.6),
    ),
}  # fmt: skip
STATED = {  # mmdetection's numerics
    "RetinaNet": {"model.anchors.offset": 0, "model.head.clamp_shrink": True, "model.fpn.relu": False},
    "ATSS": {"model.anchors.offset": 0}, "GFL": {"model.anchors.offset": 0}, "YOLOF": {"model.anchors.offset": 0}, "FCOS": {},
}  # fmt: skip


def differences(found: Migration, shipped: str, folder: Path) -> dict[str, object]:
    (folder / "ours.yaml").write_text(to_yaml(found))
    a, b = (flat(load_config(path).model_dump()) for path in (folder / "ours.yaml", f"configs/{shipped}_r50.yaml"))
    assert a.keys() == b.keys()
    return {key: value for key, value in a.items() if value != b[key]}


def test_detectron2s_retinanet_is_ours_but_for_its_numerics(tmp_path) -> None:
    (tmp_path / "c.yaml").write_text(RETINANET)
    found = migrate_file(tmp_path / "c.yaml")
    assert not any(row.kind is Kind.UNKNOWN for row in found.rows)
    assert [row.key for row in found.rows if row.kind is Kind.WARNING] == ["MODEL.WEIGHTS"]
    assert differences(found, "retinanet", tmp_path) == {
        "model.input.mean": (103.53, 116.28, 123.675), "model.input.std": (1, 1, 1), "model.input.bgr": True,
        "model.input.resize": "pillow", "model.backbone.stride_in_1x1": True, "model.backbone.weights": "R-50.pkl",
        "model.anchors.offset": 0, "model.fold_norm": False, "model.head.empty": "drop_last", "model.head.clip": "last",
        "data.negatives": 0,
    }  # fmt: skip
    sizes = next(line for line in RETINANET.splitlines() if "SIZES" in line)
    (tmp_path / "c.yaml").write_text(RETINANET.replace(sizes, "    SIZES: [[32, 64]]"))  # of every level, to detectron2
    assert flat(migrate_file(tmp_path / "c.yaml").values)["model.anchors.sizes"] == [32, 64] * 5
    (tmp_path / "c.yaml").write_text(RETINANET.replace("RETINANET: {", 'RETINANET: {NORM: "GN", '))
    with pytest.raises(UserError, match=r"MODEL.RETINANET.NORM='GN': resdet supports ''"):
        migrate_file(tmp_path / "c.yaml")


@pytest.mark.parametrize("kind", MODELS)
def test_mmdetections_models_are_ours_but_for_their_numerics(kind: str, tmp_path) -> None:
    body = BODY.format("(3, )" if kind == "YOLOF" else "(0, 1, 2, 3)")
    found = migrate_text(f"model = dict(type='{kind}', {body}, {', '.join(MODELS[kind])})", Path("x.pth"))
    assert not any(row.kind is Kind.UNKNOWN for row in found.rows)
    assert {row.key for row in found.rows if row.kind is Kind.WARNING} <= {"model.backbone.norm_cfg.requires_grad"}
    different = differences(found, kind.lower(), tmp_path)
    assert {k: v for k, v in different.items() if k.startswith("model.")} == {**STATED[kind], "model.fold_norm": False}
