"""Semantic heads in checkpoints: tensors by our names -> sections of `model`, and COCO's stuff."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from resdet.checkpoints.backbones import architecture
from resdet.checkpoints.numerics import add_detectron2_input

# The stuff of COCO's panoptic annotations, by category id (https://cocodataset.org/#panoptic-2018).
COCO_STUFF = {
    92: "banner", 93: "blanket", 95: "bridge", 100: "cardboard", 107: "counter", 109: "curtain", 112: "door-stuff",
    118: "floor-wood", 119: "flower", 122: "fruit", 125: "gravel", 128: "house", 130: "light", 133: "mirror-stuff", 138: "net",
    141: "pillow", 144: "platform", 145: "playingfield", 147: "railroad", 148: "river", 149: "road", 151: "roof", 154: "sand",
    155: "sea", 156: "shelf", 159: "snow", 161: "stairs", 166: "tent", 168: "towel", 171: "wall-brick", 175: "wall-stone",
    176: "wall-tile", 177: "wall-wood", 178: "water-other", 180: "window-blind", 181: "window-other", 184: "tree-merged",
    185: "fence-merged", 186: "ceiling-merged", 187: "sky-other-merged", 188: "cabinet-merged", 189: "table-merged",
    190: "floor-other-merged", 191: "pavement-merged", 192: "mountain-merged", 193: "grass-merged", 194: "dirt-merged",
    195: "paper-merged", 196: "food-other-merged", 197: "building-other-merged", 198: "rock-merged", 199: "wall-other-merged",
    200: "rug-merged",
}  # fmt: skip


def is_semantic(weights: dict[str, Tensor]) -> bool:
    """Whether these are of Semantic FPN alone."""
    return "heads.semantic.logits.weight" in weights and not any(name.startswith("rpn.") for name in weights)


def head_section(weights: dict[str, Tensor]) -> dict[str, Any]:
    """What `model.head` of Semantic FPN and `model.semantic` of an R-CNN have in common."""
    width = weights["heads.semantic.logits.weight"].shape[1]
    return {"width": width, "norm": _norm(weights, "heads.semantic.towers.0.convs.0.norm")}


def panoptic_section(weights: dict[str, Tensor]) -> dict[str, Any]:
    """`model.semantic` of an R-CNN; with COCO's names where there are as many classes as COCO's stuff and label 0."""
    classes = len(weights["heads.semantic.logits.bias"])
    section = {"num_classes": classes, **head_section(weights)}
    if classes == len(COCO_STUFF) + 1:
        section |= {"names": list(COCO_STUFF.values()), "category_ids": list(COCO_STUFF)}
    return section


def semantic_section(weights: dict[str, Tensor]) -> dict[str, Any]:
    """`model` of Semantic FPN alone, as detectron2 scales its input. Raises `KeyError` if tensors are missing."""
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    body = architecture(backbone)
    lateral = weights["fpn.lateral.0.conv.weight"]
    return {
        "kind": "semantic",
        "num_classes": len(weights["heads.semantic.logits.bias"]),
        # Not "none", which would say that the backbone is random.
        "backbone": {**body, "weights": "in the checkpoint", "frozen_stages": 2},
        "fpn": {"channels": lateral.shape[0], "norm": _norm(weights, "fpn.lateral.0.norm")},
        "head": head_section(weights),
    }


def add_numerics(values: dict[str, Any], raw: dict[str, Tensor]) -> list[str]:
    """Add detectron2's numerics to the section of Semantic FPN alone, in place -> notes on what was inferred.

    raw: all tensors of the file.
    """
    values |= {"input": {"resize": "pillow"}, "fold_norm": False}
    return add_detectron2_input(values, raw)


def _norm(weights: dict[str, Tensor], prefix: str) -> str:
    if f"{prefix}.weight" not in weights:
        return "none"
    return "bn" if f"{prefix}.running_mean" in weights else "gn"
