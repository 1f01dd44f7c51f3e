"""detectron2's configs become ours: the values of its zoo's files, its defaults, and what it may hold that is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from resdet.config import Config, load_config, parse_config
from resdet.config.rcnn import CascadeConfig, KeypointConfig, PointRendConfig
from resdet.errors import UserError
from resdet.migration.convert import migrate_file
from resdet.migration.keys import Kind, flat
from resdet.migration.report import Migration, report, to_yaml

BASE = """
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  BACKBONE: {NAME: "build_resnet_fpn_backbone"}
  RESNETS: {OUT_FEATURES: ["res2", "res3", "res4", "res5"]}
  FPN: {IN_FEATURES: ["res2", "res3", "res4", "res5"]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]], ASPECT_RATIOS: [[0.5, 1.0, 2.0]]}
  RPN:
    IN_FEATURES: ["p2", "p3", "p4", "p5", "p6"]
    PRE_NMS_TOPK_TRAIN: 2000
    PRE_NMS_TOPK_TEST: 1000
    POST_NMS_TOPK_TRAIN: 1000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["p2", "p3", "p4", "p5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: "MaskRCNNConvUpsampleHead", NUM_CONV: 4, POOLER_RESOLUTION: 14}
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.02, STEPS: [60000, 80000], MAX_ITER: 90000}
INPUT:
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
VERSION: 2
"""
# What a config of detectron2 means where ours has another default: numerics, and images without objects left out.
STATED = {
    "model.input.mean": (103.53, 116.28, 123.675), "model.input.std": (1, 1, 1), "model.input.bgr": True,
    "model.input.resize": "pillow", "model.backbone.stride_in_1x1": True, "model.anchors.offset": 0,
    "model.pool.sampling_ratio": 0, "model.rpn.fixed_divisor": True, "model.box.empty": "drop_last",
    "model.fold_norm": False, "data.negatives": 0,
}  # fmt: skip
MSRA = 'WEIGHTS: "detectron2://ImageNetPretrained/MSRA/R-50.pkl"'
ROWS = {
    "mask_rcnn_R_50_FPN_1x": ("{MASK_ON: True}", {}),
    "faster_rcnn_R_101_FPN": ("{RESNETS: {DEPTH: 101}}", {"model.backbone.name": "resnet101", "model.mask": None}),
    "X_101_32x8d": (
        "{MASK_ON: True, PIXEL_STD: [57.375, 57.12, 58.395], "
        "RESNETS: {STRIDE_IN_1X1: False, NUM_GROUPS: 32, WIDTH_PER_GROUP: 8, DEPTH: 101}}",
        {"model.backbone.name": "resnext101_32x8d", "model.backbone.stride_in_1x1": False,
         "model.input.std": (57.375, 57.12, 58.395)},
    ),
    "dconv_c3-c5": (
        "{MASK_ON: True, RESNETS: {DEFORM_ON_PER_STAGE: [False, True, True, True], DEFORM_MODULATED: True}}",
        {"model.backbone.deformable": "v2", "model.backbone.deformable_stages": ["c3", "c4", "c5"]},
    ),
    "scratch_gn": (
        '{MASK_ON: True, WEIGHTS: "", RESNETS: {NORM: "GN", STRIDE_IN_1X1: False}, FPN: {NORM: "GN"}, '
        'BACKBONE: {FREEZE_AT: 0}, ROI_BOX_HEAD: {NUM_CONV: 4, NUM_FC: 1, NORM: "GN"}, ROI_MASK_HEAD: {NORM: "GN"}}',
        {"model.backbone.norm": "gn", "model.fpn.norm": "gn", "model.box.norm": "gn", "model.mask.norm": "gn",
         "model.box.trunk": "4conv1fc", "model.backbone.frozen_stages": 0, "model.backbone.weights": "none",
         "model.backbone.stride_in_1x1": False},
    ),
    "keypoint_rcnn": (
        "{KEYPOINT_ON: True, ROI_HEADS: {NUM_CLASSES: 1}, ROI_BOX_HEAD: {SMOOTH_L1_BETA: 0.5}, "
        "RPN: {POST_NMS_TOPK_TRAIN: 1500}, ROI_KEYPOINT_HEAD: {NUM_KEYPOINTS: 21}}",
        {"model.keypoint": KeypointConfig(num_keypoints=21).model_dump(), "model.mask": None, "model.num_classes": 1,
         "model.box.loss_beta": 0.5, "model.rpn.post_nms_train": 1500},
    ),
    "cls_agnostic": ("{MASK_ON: True, ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}}", {"model.box.class_agnostic": True}),
    "class_agnostic_masks": (
        "{MASK_ON: True, ROI_MASK_HEAD: {CLS_AGNOSTIC_MASK: True}}", {"model.mask.class_agnostic": True}),
    "cascade_mask_rcnn": (
        '{MASK_ON: True, ROI_HEADS: {NAME: "CascadeROIHeads"}, ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}, '
        'ROI_BOX_CASCADE_HEAD: {IOUS: [0.4, 0.6, 0.7]}, RPN: {POST_NMS_TOPK_TRAIN: 2000}}',
        {"model.cascade": CascadeConfig(ious=[0.4, 0.6, 0.7]).model_dump(), "model.rpn.post_nms_train": 2000},
    ),
    "pointrend": (
        '{MASK_ON: True, ROI_HEADS: {NAME: "PointRendROIHeads"}, ROI_MASK_HEAD: {NAME: "CoarseMaskHead", FC_DIM: 512, '
        'NUM_FC: 2, OUTPUT_SIDE_RESOLUTION: 7, IN_FEATURES: ["p2"], POINT_HEAD_ON: True}, '
        'POINT_HEAD: {FC_DIM: 128, NUM_FC: 3, IN_FEATURES: ["p2"], SUBDIVISION_STEPS: 3, NUM_CLASSES: 80}}',
        {"model.mask.point_rend": PointRendConfig(width=512, point_width=128, steps=3).model_dump()},
    ),
    "rpn_R_50_FPN": (
        '{META_ARCHITECTURE: "ProposalNetwork", MASK_ON: True, RPN: {POST_NMS_TOPK_TEST: 2000}}',
        {"model.box": None, "model.mask": None, "model.rpn.post_nms_predict": 2000, "model.num_classes": None,
         "model.pool.sampling_ratio": 2},
    ),
    "Detectron1": (
        '{RPN: {SMOOTH_L1_BETA: 0.1111}, ROI_BOX_HEAD: {SMOOTH_L1_BETA: 1.0, POOLER_SAMPLING_RATIO: 2, '
        'POOLER_TYPE: "ROIAlign"}}',
        {"model.rpn.loss_beta": 0.1111, "model.box.loss_beta": 1.0, "model.pool.aligned": False,
         "model.pool.sampling_ratio": 2, "model.mask": None},
    ),
}  # fmt: skip


def migrated(folder: Path, text: str, base: str = BASE) -> Migration:
    (folder / "Base-RCNN-FPN.yaml").write_text(base)
    (folder / "c.yaml").write_text(f'_BASE_: "Base-RCNN-FPN.yaml"\n{text}\n')
    return migrate_file(folder / "c.yaml")


def config_of(migration: Migration, folder: Path) -> Config:
    (folder / "ours.yaml").write_text(to_yaml(migration))
    return load_config(folder / "ours.yaml")


def differences(one: Config, other: Config) -> dict[str, Any]:
    a, b = flat(one.model_dump()), flat(other.model_dump())
    return {k: a.get(k) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and k != "data.workers"}


@pytest.mark.parametrize("name", ROWS)
def test_the_zoos_families(name: str, tmp_path) -> None:
    """Each equals our own Mask R-CNN recipe but for detectron2's numerics and what the family is about."""
    text, own = ROWS[name]
    found = migrated(tmp_path, f"MODEL: {text}" if "WEIGHTS" in text else f"MODEL: {text[:-1]}, {MSRA}}}")
    expected = load_config("configs/maskrcnn_r50.yaml").model_dump()
    weights = {} if "WEIGHTS" in text else {"model.backbone.weights": "R-50.pkl"}
    for key, value in {**STATED, **weights, **own}.items():
        if key.startswith("model.box.") and "model.box" in own:
            continue
        *parents, last = key.split(".")
        node = expected
        for parent in parents:
            node = node[parent]
        node[last] = value
    assert differences(config_of(found, tmp_path), parse_config(expected)) == {}
    lost = [row.key for row in found.rows if row.kind is Kind.WARNING]
    assert lost == ([] if "WEIGHTS" in text else ["MODEL.WEIGHTS"])
    assert not any(row.kind is Kind.UNKNOWN for row in found.rows)


SINGLE = """
SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.02, STEPS: [210000, 250000], MAX_ITER: 270000}
INPUT: {MIN_SIZE_TRAIN: [640, 672, 704, 736, 768, 800]}
DATASETS: {TRAIN: ["coco_2017_train"], TEST: ["coco_2017_val"]}
"""
SINGLE_LEVEL = {
    "fasterrcnn_r50_c4": "MODEL: {RPN: {PRE_NMS_TOPK_TEST: 6000, POST_NMS_TOPK_TEST: 1000}}",
    "maskrcnn_r50_c4": 'MODEL: {MASK_ON: True, ROI_HEADS: {NAME: "Res5ROIHeads"}}',
    "fasterrcnn_r50_dc5": """
MODEL:
  RESNETS: {OUT_FEATURES: ["res5"], RES5_DILATION: 2}
  RPN: {IN_FEATURES: ["res5"]}
  ROI_HEADS: {NAME: "StandardROIHeads", IN_FEATURES: ["res5"]}
  ROI_BOX_HEAD: {NAME: "FastRCNNConvFCHead", NUM_FC: 2, POOLER_RESOLUTION: 7}""",
}


@pytest.mark.parametrize("name", SINGLE_LEVEL)
def test_bodies_without_fpn_are_our_recipes(name: str, tmp_path) -> None:
    text = SINGLE_LEVEL[name].replace("MODEL: {", f"MODEL: {{{MSRA}, ").replace("MODEL:\n", f"MODEL:\n  {MSRA}\n")
    found = migrated(tmp_path, text, SINGLE)
    expected = load_config(f"configs/{name}.yaml")
    ours = flat(config_of(found, tmp_path).model_dump())
    wanted = flat(expected.model_dump()) | STATED | {"model.backbone.weights": "R-50.pkl"}
    assert {
        k: ours[k] for k in ours if ours[k] != wanted[k] and k not in ("data.workers", "train.max_iters", "output")
    } == {}
    assert [row.key for row in found.rows if row.kind is Kind.WARNING] == ["MODEL.WEIGHTS"]


def test_every_given_key_has_one_row_and_only_differences_are_written(tmp_path) -> None:
    found = migrated(tmp_path, f"MODEL: {{MASK_ON: True, {MSRA}}}\nSOLVER: {{BASE_LR: 0.01}}\nMINE: {{KEY: 3}}")
    given = [row.key for row in found.rows if "their default" not in row.note]
    assert len(given) == len(set(given)) == len(flat(yaml.safe_load(BASE))) + 3  # MASK_ON, WEIGHTS, MINE.KEY
    rows = {row.key: row for row in found.rows}
    assert rows["MINE.KEY"].kind is Kind.UNKNOWN
    assert (rows["SOLVER.BASE_LR"].kind, rows["SOLVER.BASE_LR"].ours) == (Kind.TAKEN, {"train.lr": 0.01})
    assert rows["SOLVER.MAX_ITER"].kind is Kind.SAME  # our default, too
    assert found.values["train"] == {"lr": 0.01}
    text = report(found)
    assert text.index("warning: 1 key(s)") < text.index("\nconverted (") < text.index("equal to the default")
    assert f"{len(found.rows)} keys: 1 not (fully) converted" in text
    assert "1 unknown" in text
    assert to_yaml(found).startswith("# Converted by `resdet convert --config` from detectron2's config ")


def test_schedule_data_and_evaluation(tmp_path) -> None:
    """The keys of its Cityscapes and LVIS files, and some that its users set."""
    found = migrated(tmp_path, f"""
MODEL: {{MASK_ON: on, {MSRA.replace("ImageNetPretrained/MSRA/R-50", "COCO/137849600/model_final_f10217")},
  ROI_HEADS: {{NUM_CLASSES: 8, SCORE_THRESH_TEST: 0.0001, NMS_THRESH_TEST: 0.6}}, RPN: {{CONV_DIMS: [-1, -1]}}}}
INPUT: {{MIN_SIZE_TRAIN: "(640, 643)", MIN_SIZE_TRAIN_SAMPLING: range, MIN_SIZE_TEST: 1024, MAX_SIZE_TRAIN: 2048,
  MAX_SIZE_TEST: 1333, RANDOM_FLIP: vertical, CROP: {{ENABLED: True}}}}
SOLVER: {{MAX_ITER: 24000, STEPS: [18000], IMS_PER_BATCH: 8, WARMUP_ITERS: 100, AMP: {{ENABLED: True}},
  LR_SCHEDULER_NAME: WarmupCosineLR, CLIP_GRADIENTS: {{ENABLED: True, CLIP_TYPE: full_model, CLIP_VALUE: 35.0}}}}
DATASETS:
  TRAIN: ("mine_train",)
DATALOADER: {{SAMPLER_TRAIN: RepeatFactorTrainingSampler, REPEAT_THRESHOLD: 0.001, FILTER_EMPTY_ANNOTATIONS: False}}
TEST: {{EVAL_PERIOD: 8000, DETECTIONS_PER_IMAGE: 300}}
OUTPUT_DIR: runs/city
SEED: 7
""")  # fmt: skip
    values = flat(config_of(found, tmp_path).model_dump())
    expected = {
        "model.weights": "model_final_f10217.pkl", "model.num_classes": 8, "model.box.score_threshold": 0.0001,
        "model.box.nms_threshold": 0.6, "model.box.max_detections": 300, "model.rpn.num_convs": 2,
        "data.min_size": [640, 641, 642, 643, 1024], "data.max_size": 2048, "data.flip": 0,
        "data.train.augmentations": [{"name": "VerticalFlip", "p": 0.5}], "data.repeat_threshold": 0.001,
        "data.negatives": None, "train.max_iters": 24000, "train.batch_size": 8,
        "train.warmup_iters": 100, "train.amp": "fp16", "train.schedule": "cosine", "train.clip_grad_norm": 35,
        "train.eval_every": 8000, "output": Path("runs/city"), "seed": 7,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    lost = {row.key for row in found.rows if row.kind is Kind.WARNING}
    assert lost == {
        "MODEL.WEIGHTS",
        "INPUT.MIN_SIZE_TEST",
        "INPUT.MAX_SIZE_TEST",
        "INPUT.CROP.ENABLED",
        "DATASETS.TRAIN",
    }


def test_datasets_of_keypoints(tmp_path) -> None:
    found = migrated(
        tmp_path, 'DATASETS:\n  TRAIN: ("keypoints_coco_2017_train",)\n  TEST: ("keypoints_coco_2017_val",)'
    )
    for split in ("train", "val"):
        assert found.values["data"][split] == {"split": f"person_keypoints_{split}2017"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: {META_ARCHITECTURE: FCOS}", r"MODEL.META_ARCHITECTURE='FCOS': resdet supports"),
        ("MODEL: {PROPOSAL_GENERATOR: {NAME: PrecomputedProposals}}", "PROPOSAL_GENERATOR.NAME='PrecomputedProposals'"),
        (
            "MODEL: {ROI_HEADS: {NAME: Res5ROIHeads}}",
            "ROI_HEADS.NAME='Res5ROIHeads': resdet supports 'StandardROIHeads'",
        ),
        ("MODEL: {RESNETS: {DEPTH: 77}}", "depths 18, 34, 50, 101, 152"),
        ("MODEL: {ROI_BOX_HEAD: {NUM_CONV: 3}}", "a box head of 3 convolutions"),
        ("SOLVER: {BASE_LR: fast}", "train.lr"),
    ],
)
def test_what_is_not_built_is_one_error(text: str, message: str, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as error:
        migrated(tmp_path, text)
    assert str(error.value).count("\n  - ") == 1


@pytest.mark.parametrize(
    ("base", "text", "message"),
    [
        ("_BASE_: c.yaml", "", "form a circle: c.yaml -> Base-RCNN-FPN.yaml -> c.yaml"),
        ("_BASE_: gone.yaml", "", "gone.yaml: no such config file"),
        ("_BASE_: https://example.org/x.yaml", "", "is not a file"),
        ("- 1", "", "must hold `KEY: value` pairs"),
        ("a: &a [*a]", "", "million values"),
        ("[" * 3000, "", "cannot be read as YAML"),
        ("x: !mine 3", "", "cannot be read as YAML"),
    ],
)
def test_bad_files_are_one_error(base: str, text: str, message: str, tmp_path) -> None:
    with pytest.raises(UserError, match=message):
        migrated(tmp_path, text, base)


def test_values_that_yaml_would_compute_are_read_or_left(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = migrated(
        tmp_path,
        """
SOLVER:
  MAX_ITER: !!python/object/apply:eval ["int(90000 / 2)"]
  IMS_PER_BATCH: !!python/object/apply:eval ["8 * 4"]
TEST:
  EVAL_PERIOD: !!python/object/apply:os.system ["touch MARK"]
""",
    )
    assert found.values["train"]["batch_size"] == 32
    assert "max_iters" not in found.values["train"]
    rows = {row.key: row.kind for row in found.rows}
    assert rows["SOLVER.MAX_ITER"] is Kind.WARNING
    assert not (tmp_path / "MARK").exists()


LAZY = """
from detectron2.config import LazyCall as L
from detectron2.modeling import GeneralizedRCNN
def default_X_scheduler(n):
    return open("MARK", "w")
model = L(GeneralizedRCNN)(
    backbone=L(FPN)(bottom_up=L(ResNet)(freeze_at=0, stages=L(ResNet.make)(depth=101, stride_in_1x1=False, norm="FrozenBN"),
        out_features=["res2", "res3", "res4", "res5"]), out_channels=256),
    proposal_generator=L(RPN)(in_features=["p2", "p3", "p4", "p5", "p6"], pre_nms_topk=(2000, 1000),
        post_nms_topk=(1000, 1000), anchor_generator=L(DefaultAnchorGenerator)(sizes=[[32], [64], [128], [256], [512]],
        aspect_ratios=[0.5, 1.0, 2.0], offset=0.0)),
    roi_heads=L(StandardROIHeads)(num_classes=3, box_in_features=["p2", "p3", "p4", "p5"],
        box_pooler=L(ROIPooler)(output_size=7, sampling_ratio=0), box_head=L(FastRCNNConvFCHead)(conv_dims=[],
        fc_dims=[1024, 1024]), mask_head=L(MaskRCNNConvUpsampleHead)(conv_dims=[256] * 5)),
    pixel_std=[57.375, 57.12, 58.395], secret=open("MARK", "w"))
train = dict(max_iter=270000, init_checkpoint="R-101.pkl", amp=dict(enabled=True))
lr_multiplier = default_X_scheduler(3)
optimizer = L(SGD)(lr=0.01, weight_decay=4e-5)
"""


def test_lazy_configs_as_far_as_their_values_go(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    classes = ", ".join(["FPN", "ResNet", "RPN", "DefaultAnchorGenerator", "StandardROIHeads", "ROIPooler",
                         "FastRCNNConvFCHead", "MaskRCNNConvUpsampleHead", "SGD"])  # fmt: skip
    (tmp_path / "c.py").write_text(f"from detectron2.all import {classes}\n{LAZY}")
    found = migrate_file(tmp_path / "c.py")
    values = flat(config_of(found, tmp_path).model_dump())
    expected = {
        "model.backbone.name": "resnet101", "model.backbone.stride_in_1x1": False, "model.backbone.frozen_stages": 0,
        "model.backbone.weights": "R-101.pkl", "model.num_classes": 3, "model.mask.num_convs": 4, "train.lr": 0.01,
        "model.input.std": (57.375, 57.12, 58.395), "train.max_iters": 270000, "train.milestones": [210000, 250000],
        "train.warmup_iters": 1000, "train.amp": "fp16", "train.weight_decay": 4e-5, "data.flip": 0,
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert {row.key: row.kind for row in found.rows}["model.secret"] is Kind.WARNING
    assert not (tmp_path / "MARK").exists()
