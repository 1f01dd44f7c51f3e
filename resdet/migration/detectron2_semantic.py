"""detectron2's keys of semantic segmentation -> ours: beside an R-CNN (Panoptic FPN), and alone (SemanticSegmentor)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resdet.migration.detectron2_keys import LEVELS, STAGES, known_norm
from resdet.migration.keys import Leaves, Rule, builds, no_effect, only, sets, take, where

HEAD, MERGING = "MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN."
# What it computes without having keys for it, where there is no R-CNN.
NUMERICS: dict[str, Any] = {"input": {"resize": "pillow"}, "fold_norm": False}


def panoptic(all_: Leaves) -> bool:
    return bool(all_["MODEL.META_ARCHITECTURE"] == "PanopticFPN")


def _head(section: str, num_classes: str) -> dict[str, Rule]:
    """section: of our head. num_classes: our key."""
    return {
        f"{HEAD}NAME": builds("SemSegFPNHead"),
        f"{HEAD}IN_FEATURES": builds(LEVELS, level=2),
        f"{HEAD}COMMON_STRIDE": builds(4, level=2),
        f"{HEAD}NUM_CLASSES": take(num_classes),
        f"{HEAD}CONVS_DIM": take(f"{section}.width"),
        f"{HEAD}NORM": take(f"{section}.norm", lambda v, _: known_norm(v)),
        f"{HEAD}LOSS_WEIGHT": take(f"{section}.loss_weight"),
        f"{HEAD}IGNORE_VALUE": only(255),
    }


# Of an R-CNN; comes before the table of these.
PANOPTIC: Mapping[str, Rule] = {
    key: where(panoptic, rule, "belongs to another architecture")
    for key, rule in {
        **_head("model.semantic", "model.semantic.num_classes"),
        f"{MERGING}INSTANCE_LOSS_WEIGHT": only(1.0, instead="the other losses are not scaled: lower loss_weight and lr"),
        f"{MERGING}COMBINE.OVERLAP_THRESH": only(0.5, instead="in resdet `Instances.panoptic(overlap=…)`"),
        f"{MERGING}COMBINE.STUFF_AREA_LIMIT": only(4096, instead="in resdet `Instances.panoptic(stuff_area=…)`"),
        f"{MERGING}COMBINE.INSTANCES_CONFIDENCE_THRESH": only(0.5, instead="in resdet `Instances.panoptic(score=…)`"),
        f"{MERGING}COMBINE.ENABLED": no_effect("nor in detectron2"),
    }.items()
}  # fmt: skip
ALONE: Mapping[str, Rule] = {
    "MODEL.META_ARCHITECTURE": sets(lambda *_: {"model.kind": "semantic"}),
    "MODEL.BACKBONE.NAME": builds("build_resnet_fpn_backbone"),
    "MODEL.RESNETS.OUT_FEATURES MODEL.FPN.IN_FEATURES": builds(STAGES, level=2),
    **_head("model.head", "model.num_classes"),
    "MODEL.PROPOSAL_GENERATOR.* MODEL.ANCHOR_GENERATOR.* MODEL.RPN.* MODEL.ROI_* MODEL.MASK_ON MODEL.KEYPOINT_ON "
    "MODEL.LOAD_PROPOSALS MODEL.POINT_HEAD.* MODEL.PANOPTIC_FPN.* TEST.DETECTIONS_PER_IMAGE": no_effect(
        "belongs to another architecture"
    ),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": no_effect("there are no objects"),
}
DEFAULTS: dict[str, Any] = {
    f"{HEAD}NAME": "SemSegFPNHead", f"{HEAD}IN_FEATURES": ["p2", "p3", "p4", "p5"], f"{HEAD}IGNORE_VALUE": 255,
    f"{HEAD}NUM_CLASSES": 54, f"{HEAD}CONVS_DIM": 128, f"{HEAD}COMMON_STRIDE": 4, f"{HEAD}NORM": "GN",
    f"{HEAD}LOSS_WEIGHT": 1.0, f"{MERGING}INSTANCE_LOSS_WEIGHT": 1.0, f"{MERGING}COMBINE.ENABLED": True,
    f"{MERGING}COMBINE.OVERLAP_THRESH": 0.5, f"{MERGING}COMBINE.STUFF_AREA_LIMIT": 4096,
    f"{MERGING}COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.5,
}  # fmt: skip
