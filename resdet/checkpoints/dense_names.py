"""Parameter names and layouts of one-stage detectors: torchvision, detectron2, mmdetection <-> ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["retinanet", "fcos", "atss", "gfl", "yolof"]
NAMES: dict[str, str] = {"retinanet": "RetinaNet", "fcos": "FCOS", "atss": "ATSS", "gfl": "GFL", "yolof": "YOLOF"}
RATIOS = 3  # aspect ratios of the nine anchors of every published RetinaNet
NEVER = -100.0  # logit of torchvision's unused first class

# A name that tells the detector, in any source; of several the first.
SIGNS: list[tuple[Kind, str]] = [
    ("fcos", r"head\.regression_head\.bbox_ctrness\.|bbox_head\.(?:conv|fcos)_centerness\."),
    ("atss", r"bbox_head\.atss_cls\."),
    ("gfl", r"bbox_head\.gfl_cls\."),
    ("yolof", r"bbox_head\.object_pred\."),
    ("retinanet", r"head\.classification_head\.cls_logits\.|head\.cls_subnet\.\d|bbox_head\.retina_cls\."),
]


def kind_of(names: Iterable[str]) -> Kind | None:
    """The one-stage detector with these names of another tool; None for other models."""
    names = list(names)
    return next((kind for kind, sign in SIGNS if any(re.match(sign, name) for name in names)), None)


def rows_of(source: str, kind: Kind) -> list[tuple[str, str]]:
    """(pattern at the start of a name, ours), as in `names.TABLES`."""
    if source == "torchvision":
        rows = [
            (r"head\.classification_head\.cls_logits\.", "head.classifier."),
            (r"head\.regression_head\.bbox_reg\.", "head.regressor."),
            (r"head\.regression_head\.bbox_ctrness\.", "head.centerness."),
        ]
        for theirs, ours in (("classification_head", "class_tower"), ("regression_head", "box_tower")):
            for k in range(8):
                conv = rf"conv\.{k}\.0\." if kind == "retinanet" else rf"conv\.{3 * k}\."
                norm = rf"conv\.{k}\.1\." if kind == "retinanet" else rf"conv\.{3 * k + 1}\."
                rows.append((rf"head\.{theirs}\.{conv}", f"head.{ours}.convs.{k}.conv."))
                rows.append((rf"head\.{theirs}\.{norm}", f"head.{ours}.convs.{k}.norm."))
                if kind == "retinanet":  # files of V1 on disk
                    rows.append((rf"head\.{theirs}\.conv\.{2 * k}\.(?=weight|bias)", f"head.{ours}.convs.{k}.conv."))
        return rows
    if source == "detectron2":
        towers = (("cls_subnet", "class_tower"), ("bbox_subnet", "box_tower"))
        return [
            *((rf"head\.{theirs}\.{2 * k}\.", f"head.{ours}.convs.{k}.conv.") for theirs, ours in towers for k in range(8)),
            (r"head\.cls_score\.", "head.classifier."),
            (r"head\.bbox_pred\.", "head.regressor."),
        ]  # fmt: skip
    if source == "mmdetection":
        return MMDETECTION
    return []


_PREDICTORS = {
    "classifier": r"(?:conv_cls|retina_cls|fcos_cls|atss_cls|gfl_cls|cls_score)",
    "regressor": r"(?:conv_reg|retina_reg|fcos_reg|atss_reg|gfl_reg|bbox_pred)",
    "centerness": r"(?:conv_centerness|fcos_centerness|atss_centerness)",
    "objectness": "object_pred",
}
_ENCODER = {
    "lateral_conv": "lateral.conv", "lateral_norm": "lateral.norm", "fpn_conv": "output.conv", "fpn_norm": "output.norm",
}  # fmt: skip
MMDETECTION = [
    (r"bbox_head\.(?:cls_convs|cls_subnet)\.(\d)\.conv\.", r"head.class_tower.convs.\1.conv."),
    (r"bbox_head\.(?:cls_convs|cls_subnet)\.(\d)\.(?:bn|gn)\.", r"head.class_tower.convs.\1.norm."),
    (r"bbox_head\.(?:reg_convs|bbox_subnet)\.(\d)\.conv\.", r"head.box_tower.convs.\1.conv."),
    (r"bbox_head\.(?:reg_convs|bbox_subnet)\.(\d)\.(?:bn|gn)\.", r"head.box_tower.convs.\1.norm."),
    *((rf"bbox_head\.{theirs}\.", f"head.{ours}.") for ours, theirs in _PREDICTORS.items()),
    (r"bbox_head\.scales\.(\d)\.scale", r"head.scales.\1"),
    *((rf"neck\.{theirs}\.", f"fpn.{ours}.") for theirs, ours in _ENCODER.items()),
    (r"neck\.dilated_encoder_blocks\.(\d)\.conv(\d)\.conv\.", r"fpn.blocks.\1.conv\2.conv."),
    (r"neck\.dilated_encoder_blocks\.(\d)\.conv(\d)\.bn\.", r"fpn.blocks.\1.conv\2.norm."),
]  # fmt: skip


def from_first_level(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Number the pyramid's layers from its first level, and name the convolutions above them p6 and p7."""
    count = len({name.split(".")[2] for name in weights if name.startswith("fpn.lateral.")})
    first = min((int(name.split(".")[2]) for name in weights if re.match(r"fpn\.lateral\.\d", name)), default=0)

    def renamed(name: str) -> str:
        match = re.match(r"fpn\.(lateral|output)\.(\d)\.", name)
        if match is None:
            return name
        k = int(match[2]) - first
        place = f"fpn.top.p{k - count + 6}." if k >= count else f"fpn.{match[1]}.{k}."
        rest = name[match.end() :]
        return place + (rest.removeprefix("conv.") if k >= count else rest)

    return {renamed(name): value for name, value in weights.items()}


def to_our_layout(weights: dict[str, Tensor], kind: Kind, source: str) -> dict[str, Tensor]:
    """Reorder the predictors' rows to (size, ratio, class), without background; torchvision and mmdetection have (ratio, size,
    class), and torchvision has an unused first class."""
    result = {name: value.view(()) if name.startswith("head.scales.") else value for name, value in weights.items()}
    for name, value in _by_anchor(weights, kind):
        if source != "detectron2" and kind == "retinanet":
            value = _transposed(value, RATIOS)
        if source == "torchvision" and name.startswith("head.classifier."):
            value = value[:, 1:]
        result[name] = value.flatten(0, 1)
    return result


def to_torchvision_layout(weights: dict[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """The inverse for torchvision; its first class gets the logit `NEVER`."""
    result = dict(weights)
    for name, value in _by_anchor(weights, kind):
        if name.startswith("head.classifier."):
            value = torch.cat([torch.full_like(value[:, :1], NEVER if name.endswith("bias") else 0.0), value], dim=1)
        if kind == "retinanet":
            value = _transposed(value, len(value) // RATIOS)
        result[name] = value.flatten(0, 1)
    return result


def anchors_of(weights: dict[str, Tensor], kind: Kind) -> int:
    """Anchors per location."""
    several = kind in ("retinanet", "yolof") and "head.regressor.bias" in weights
    return len(weights["head.regressor.bias"]) // 4 if several else 1


def _by_anchor(weights: dict[str, Tensor], kind: Kind) -> list[tuple[str, Tensor]]:
    """The predictors' weights and biases by name, (anchors, rows of each, …)."""
    anchors = anchors_of(weights, kind)
    names = [f"head.{layer}.{leaf}" for layer in ("classifier", "regressor") for leaf in ("weight", "bias")]
    there = [(name, weights[name]) for name in names if name in weights]
    return [(name, value.reshape(anchors, -1, *value.shape[1:])) for name, value in there]


def _transposed(value: Tensor, outer: int) -> Tensor:
    """(outer * inner, …) -> (inner * outer, …)."""
    return value.reshape(outer, -1, *value.shape[1:]).transpose(0, 1).flatten(0, 1)
