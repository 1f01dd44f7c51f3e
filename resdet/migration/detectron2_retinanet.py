"""detectron2's keys of RetinaNet -> ours, where they differ from those of its R-CNNs (`detectron2_keys.TABLE`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resdet.migration.detectron2_keys import known_norm
from resdet.migration.keys import Rule, builds, no_effect, only, sets, take

HEAD = "MODEL.RETINANET."
STAGES = ["res3", "res4", "res5"]
# What it computes without having keys for it.
NUMERICS: dict[str, Any] = {
    "input": {"resize": "pillow"},
    "head": {"empty": "drop_last", "clip": "last"},
    "fold_norm": False,
}
TABLE: Mapping[str, Rule] = {
    "MODEL.META_ARCHITECTURE": sets(lambda *_: {"model.kind": "retinanet"}),
    "MODEL.BACKBONE.NAME": builds("build_retinanet_resnet_fpn_backbone"),
    "MODEL.RESNETS.OUT_FEATURES MODEL.FPN.IN_FEATURES": builds(STAGES, level=2),
    "MODEL.FPN.OUT_CHANNELS": take("model.fpn.channels"),
    "MODEL.FPN.NORM": take("model.fpn.norm", lambda v, _: known_norm(v)),
    "MODEL.ANCHOR_GENERATOR.SIZES": take("model.anchors.sizes", lambda v, _: _of_levels(v)),
    f"{HEAD}NUM_CLASSES": take("model.num_classes"),
    f"{HEAD}IN_FEATURES": builds(["p3", "p4", "p5", "p6", "p7"], level=2),
    f"{HEAD}NUM_CONVS": take("model.head.num_convs"),
    f"{HEAD}NORM": builds(""),
    f"{HEAD}IOU_THRESHOLDS": sets(lambda v, _: {"model.head.low": v[0], "model.head.high": v[1]}),
    f"{HEAD}IOU_LABELS": only([0, -1, 1]),
    f"{HEAD}PRIOR_PROB": only(0.01),
    f"{HEAD}BBOX_REG_WEIGHTS": only((1.0, 1.0, 1.0, 1.0)),
    f"{HEAD}BBOX_REG_LOSS_TYPE": take("model.head.box_loss", lambda v, _: {"smooth_l1": "l1", "giou": "giou"}[v]),
    f"{HEAD}SMOOTH_L1_LOSS_BETA": take("model.head.loss_beta"),
    f"{HEAD}FOCAL_LOSS_GAMMA": only(2.0),
    f"{HEAD}FOCAL_LOSS_ALPHA": only(0.25),
    f"{HEAD}SCORE_THRESH_TEST": take("model.head.score_threshold"),
    f"{HEAD}NMS_THRESH_TEST": take("model.head.nms_threshold"),
    f"{HEAD}TOPK_CANDIDATES_TEST": take("model.head.candidates"),
    "TEST.DETECTIONS_PER_IMAGE": take("model.head.max_detections"),
    "MODEL.PROPOSAL_GENERATOR.* MODEL.RPN.* MODEL.ROI_* MODEL.MASK_ON MODEL.KEYPOINT_ON MODEL.LOAD_PROPOSALS": no_effect(
        "belongs to another architecture"
    ),
    "MODEL.POINT_HEAD.*": no_effect("belongs to another architecture"),
}


def _of_levels(sizes: list[list[float]]) -> list[float]:
    """Of p3..p7, fine to coarse: detectron2 takes a single list for every level."""
    return [size for level in (sizes * 5 if len(sizes) == 1 else sizes) for size in level]


DEFAULTS: dict[str, Any] = {
    f"{HEAD}NUM_CLASSES": 80, f"{HEAD}IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"], f"{HEAD}NUM_CONVS": 4,
    f"{HEAD}IOU_THRESHOLDS": [0.4, 0.5], f"{HEAD}IOU_LABELS": [0, -1, 1], f"{HEAD}PRIOR_PROB": 0.01, f"{HEAD}NORM": "",
    f"{HEAD}SCORE_THRESH_TEST": 0.05, f"{HEAD}TOPK_CANDIDATES_TEST": 1000, f"{HEAD}NMS_THRESH_TEST": 0.5,
    f"{HEAD}BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0), f"{HEAD}FOCAL_LOSS_GAMMA": 2.0, f"{HEAD}FOCAL_LOSS_ALPHA": 0.25,
    f"{HEAD}SMOOTH_L1_LOSS_BETA": 0.1, f"{HEAD}BBOX_REG_LOSS_TYPE": "smooth_l1",
}  # fmt: skip
