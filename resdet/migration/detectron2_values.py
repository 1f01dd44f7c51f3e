"""What the values of detectron2's keys mean, alone and beside others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from resdet.migration import shared
from resdet.migration.keys import Leaves, NotBuilt, NotTaken


def mask_on(all_: Leaves) -> bool:
    return bool(all_["MODEL.MASK_ON"] is True and has_heads(all_))


def has_heads(all_: Leaves) -> bool:
    return bool(all_["MODEL.META_ARCHITECTURE"] != "ProposalNetwork")


def fpn(all_: Leaves) -> bool:
    return bool(all_["MODEL.BACKBONE.NAME"] == "build_resnet_fpn_backbone")


def res5(all_: Leaves) -> bool:
    return bool(all_["MODEL.ROI_HEADS.NAME"] == "Res5ROIHeads")


def cascade(all_: Leaves) -> bool:
    return bool(all_["MODEL.ROI_HEADS.NAME"] == "CascadeROIHeads")


def point_rend(all_: Leaves) -> bool:
    return bool(all_["MODEL.ROI_MASK_HEAD.NAME"] in ("CoarseMaskHead", "PointRendMaskHead"))


def neck(value: Any, all_: Leaves) -> str:
    """An FPN, or the one map that the RPN looks at."""
    if value == "build_resnet_fpn_backbone":
        return "fpn"
    if value != "build_resnet_backbone":
        raise NotBuilt("resdet supports 'build_resnet_fpn_backbone' or 'build_resnet_backbone'")
    level = shared.single(all_["MODEL.RPN.IN_FEATURES"], "one map without an FPN, res4 or res5")
    return str(shared.choice(level, {"res4": "c4", "res5": "c5"}, 1))


def roi_heads(value: Any, all_: Leaves) -> dict[str, Any]:
    known: dict[Any, dict[str, Any]] = {
        "StandardROIHeads": {}, "PointRendROIHeads": {}, "CascadeROIHeads": {"model.cascade": {}}
    }  # fmt: skip
    c4 = not fpn(all_) and list(all_["MODEL.RPN.IN_FEATURES"]) == ["res4"]
    return dict(shared.choice(value, {**known, "Res5ROIHeads": {"model.box.trunk": "res5"}} if c4 else known, 1))


def backbone(_: Any, all_: Leaves) -> str:
    depth, groups, width = (all_[f"MODEL.RESNETS.{k}"] for k in ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP"))
    return shared.backbone_name(depth, groups, width)


def deformable(_: Any, all_: Leaves) -> dict[str, Any]:
    kind = "v2" if all_["MODEL.RESNETS.DEFORM_MODULATED"] else "v1"
    groups = all_["MODEL.RESNETS.DEFORM_NUM_GROUPS"]
    return shared.deformable(kind, all_["MODEL.RESNETS.DEFORM_ON_PER_STAGE"], groups)


def trunk(_: Any, all_: Leaves) -> str:
    return shared.trunk(all_["MODEL.ROI_BOX_HEAD.NUM_CONV"], all_["MODEL.ROI_BOX_HEAD.NUM_FC"])


def train_sizes(all_: Leaves) -> list[int]:
    train = all_["INPUT.MIN_SIZE_TRAIN"]
    train = list(train) if isinstance(train, list | tuple) else [train]
    return list(range(train[0], train[1] + 1)) if all_["INPUT.MIN_SIZE_TRAIN_SAMPLING"] == "range" else train


def flip(value: Any, _: Leaves) -> dict[str, Any]:
    if value == "vertical":
        return {"data.flip": 0.0, "data.train.augmentations": [{"name": "VerticalFlip", "p": 0.5}]}
    return {"data.flip": {"horizontal": 0.5, "none": 0.0}[value]}


def anchor_sizes(value: Any, all_: Leaves) -> list[Any]:
    if not fpn(all_):
        return list(shared.single(value, "anchor sizes of one map"))
    return [shared.single(sizes, "one anchor size per level (sizes [[32], [64], …])", 2) for sizes in value]


def ratios(value: Any, _: Leaves) -> list[float]:
    return (
        list(value[0])
        if all(one == value[0] for one in value)
        else shared.single(value, "the same ratios on all levels")
    )


def datasets(value: Any, _: Leaves) -> dict[str, Any]:
    names = [value] if isinstance(value, str) else list(value)
    if not names or names in (["coco_2017_train"], ["coco_2017_val"]):
        return {}
    if names in (["keypoints_coco_2017_train"], ["keypoints_coco_2017_val"]):
        split = names[0].rpartition("_")[2]
        return {f"data.{split}.split": f"person_keypoints_{split}2017"}
    if len(names) == 1 and re.fullmatch(r"coco_2017_(train|val)_panoptic(_separated|_stuffonly)?", names[0]):
        return {"data.format": "coco_panoptic"}
    if any("sem_seg" in name for name in names):
        raise NotTaken("label maps: set data.root, and data.format to label_maps")
    raise NotTaken("registered by code; set data.train and data.val, images and annotations")


def weights(value: Any, all_: Leaves) -> dict[str, Any]:
    """ImageNet weights are a backbone's, everything else a detector's."""
    if not value:
        frozen = all_["MODEL.BACKBONE.FREEZE_AT"] > 0 or all_["MODEL.RESNETS.NORM"] == "FrozenBN"
        return shared.no_weights(frozen)
    backbone = "ImageNetPretrained" in value or Path(value).stem.startswith(("R-50", "R-101", "X-101", "X-152"))
    return shared.weights(value, "model.backbone.weights" if backbone else "model.weights")


def clipping(value: Any, all_: Leaves) -> dict[str, Any]:
    if not value:
        return {}
    kind = all_["SOLVER.CLIP_GRADIENTS.CLIP_TYPE"]
    if kind != "full_model" or all_["SOLVER.CLIP_GRADIENTS.NORM_TYPE"] != 2:
        raise NotTaken(f"{kind!r} clips each parameter separately; train.clip_grad_norm clips the global norm")
    return {"train.clip_grad_norm": all_["SOLVER.CLIP_GRADIENTS.CLIP_VALUE"]}


def repeats(value: Any, all_: Leaves) -> dict[str, Any]:
    if value == "TrainingSampler":
        return {}
    if value != "RepeatFactorTrainingSampler" or not all_["DATALOADER.REPEAT_THRESHOLD"]:
        raise NotTaken("every image occurs once per epoch, or by data.repeat_threshold")
    return {"data.repeat_threshold": all_["DATALOADER.REPEAT_THRESHOLD"]}
