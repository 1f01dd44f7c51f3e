"""mmdetection's keys of Panoptic FPN -> ours, beside those of its Mask R-CNN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resdet.migration import shared
from resdet.migration.keys import Leaves, Rule, builds, find, no_effect, only, sets, take, where
from resdet.migration.mmdetection_backbone import norm

HEAD, FUSION, TESTED = "model.semantic_head.", "model.panoptic_fusion_head.", "*test_cfg.panoptic."
# Of the boxes; version 2 has them under test_cfg.panoptic, and then those under test_cfg.rcnn mean nothing.
OF_BOXES = {
    "score_thr": take("model.box.score_threshold"),
    "nms.iou_threshold": take("model.box.nms_threshold"),
    "max_per_img": take("model.box.max_detections"),
    "mask_thr_binary": only(0.5),
}


def panoptic(all_: Leaves) -> bool:
    return bool(all_.get("model.type") == "PanopticFPN")


def _things(value: Any, all_: Leaves) -> dict[str, Any]:
    return shared.equal(value, all_.get("model.roi_head.bbox_head.num_classes"), "as many as the boxes'")


PANOPTIC: Mapping[str, Rule] = {
    f"{HEAD}type": builds("PanopticFPNHead"),
    f"{HEAD}num_classes": take("model.semantic.num_classes"),
    f"{HEAD}num_stuff_classes": where(
        lambda all_: f"{HEAD}num_classes" not in all_,
        take("model.semantic.num_classes", lambda v, _: v + 1),
        "num_classes counts them, too",
    ),
    f"{HEAD}num_things_classes {FUSION}num_things_classes": sets(_things),
    f"{HEAD}inner_channels": take("model.semantic.width"),
    f"{HEAD}start_level": builds(0, level=2),
    f"{HEAD}end_level": builds(4, level=2),
    f"{HEAD}norm_cfg.type": norm("model.semantic.norm"),
    f"{HEAD}loss_seg.type": only("CrossEntropyLoss"),
    f"{HEAD}loss_seg.ignore_index": only(255),
    f"{HEAD}loss_seg.loss_weight": take("model.semantic.loss_weight"),
    # Things are their last class and our first.
    f"{HEAD}loss_seg.class_weight": take("model.semantic.class_weights", lambda v, _: v and [*v[-1:], *v[:-1]]),
    f"{HEAD}loss_seg.use_sigmoid": only(False),
    f"{HEAD}loss_seg.avg_non_ignore": only(
        True,
        instead="in resdet the loss is at full size, averaged over labelled pixels; in mmdetection at a quarter, over all",
    ),
    f"{FUSION}type": builds("HeuristicFusionHead"),
    f"{FUSION}num_stuff_classes": no_effect("as many as the semantic head's"),
    f"{TESTED}mask_overlap": only(0.5, instead="in resdet `Instances.panoptic(overlap=…)`"),
    f"{TESTED}stuff_area_limit": only(4096, instead="in resdet `Instances.panoptic(stuff_area=…)`"),
    **{TESTED + key: rule for key, rule in OF_BOXES.items()},
    **{
        f"*test_cfg.rcnn.{key}": where(
            lambda all_: find(all_, f"{TESTED}score_thr") is None, rule, "test_cfg.panoptic has its own"
        )
        for key, rule in OF_BOXES.items()
    },
    f"{TESTED}nms.type": only("nms"),
    "*.nms.class_agnostic": only(False, instead="boxes of different classes do not suppress each other"),
    "*data_preprocessor.pad_seg *data_preprocessor.seg_pad_value *data_preprocessor.mask_pad_value": no_effect(),
    "*pipeline*LoadPanopticAnnotations.* *pipeline*SegRescale.*": no_effect(),
    "*seg_prefix *data_prefix.seg": no_effect("the folder beside the JSON, of its name"),
}
DEFAULTS: dict[str, Any] = {
    f"{HEAD}num_stuff_classes": 53,
    f"{HEAD}loss_seg.avg_non_ignore": False,
    f"{HEAD}inner_channels": 128,
    f"{HEAD}norm_cfg.type": "GN",
}
