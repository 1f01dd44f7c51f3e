"""R-CNNs in checkpoints: tensors by our names -> the `model` section that builds modules of their shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from resdet.checkpoints import cascade
from resdet.checkpoints.backbones import architecture
from resdet.checkpoints.rtdetr import layers_hint
from resdet.checkpoints.semantic import panoptic_section
from resdet.checkpoints.stem import input_channels
from resdet.config import ModelConfig, RCNNConfig, RTDETRConfig, find_config
from resdet.errors import UserError


def rcnn_section(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The nested `model` section. Raises `KeyError`, `IndexError` or `StopIteration` if tensors are missing."""
    is_cascade, masks_per_stage = cascade.is_cascade(weights), any(k.startswith("heads.box.masks.") for k in weights)
    if is_cascade:
        weights = cascade.first_stage(weights)
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    rpn_only = not has_heads(weights) and "rpn.objectness.weight" in weights
    classes = 1 if rpn_only else len(weights["heads.box.classifier.bias"]) - 1
    values: dict[str, Any] = {
        "num_classes": classes,
        # Not "none", which would say that the backbone is random.
        "backbone": {**architecture(backbone), "weights": "in the checkpoint", "frozen_stages": 2},
        "rpn": {"num_convs": _count(weights, r"rpn\.convs\.(\d)\.")},
        "box": None if rpn_only else _box_section(weights, classes),
    }
    if is_cascade:
        del values["box"]["class_agnostic"]
        values["cascade"] = {"mask_heads": "each" if masks_per_stage else "one"}
    if "fpn.lateral.0.conv.weight" in weights:
        channels = weights["fpn.lateral.0.conv.weight"].shape[0]
        values["fpn"] = {"channels": channels, "norm": _norm(weights, "fpn.lateral.0.norm")}
    else:
        values |= _single_level(weights, values)
    if (channels := input_channels(weights)) != 3:
        values["input"] = {"channels": channels}
    if "heads.mask.coarse.logits.weight" in weights:
        values["mask"] = {"point_rend": _point_rend_section(weights, classes)}
    elif "heads.mask.logits.weight" in weights:
        values["mask"] = {
            "num_convs": _count(weights, r"heads\.mask\.convs\.(\d)\."),
            "width": weights["heads.mask.upsample.weight"].shape[1],
            "norm": _norm(weights, "heads.mask.convs.0.norm"),
            "class_agnostic": classes > 1 and len(weights["heads.mask.logits.bias"]) == 1,
        }
    if "heads.keypoint.logits.weight" in weights:
        width, num_keypoints = weights["heads.keypoint.logits.weight"].shape[:2]  # a transposed convolution
        values["keypoint"] = {
            "num_keypoints": num_keypoints,
            "num_convs": _count(weights, r"heads\.keypoint\.convs\.(\d)\."),
            "width": width,
            "norm": _norm(weights, "heads.keypoint.convs.0.norm"),
        }
    if "heads.semantic.logits.weight" in weights:
        values["semantic"] = panoptic_section(weights)
    return values


def has_heads(weights: dict[str, Tensor]) -> bool:
    return any(name.startswith("heads.") for name in weights)


def fit_hint(weights: dict[str, Tensor], config: ModelConfig) -> str:
    """The changes that would make a config fit these weights, and a shipped config that does; "" if that is unclear."""
    if isinstance(config, RTDETRConfig):
        return layers_hint(weights, config)
    if not isinstance(config, RCNNConfig):
        return ""
    try:
        section = rcnn_section(weights)
    except (KeyError, IndexError, StopIteration):
        return ""
    ours = dict(_leaves(config.model_dump()))
    changes = []
    for part in ("names", "category_ids"):  # of the data
        section.get("semantic", {}).pop(part, None)
    for key, value in _leaves({k: v for k, v in section.items() if k != "num_classes"}):
        if key not in ("backbone.weights", "backbone.frozen_stages", "backbone.norm") and ours.get(key) != value:
            changes.append(f"model.{key}={value}")
    changes += [
        f"model.{part}=null"
        for part in ("box", "mask", "keypoint", "cascade", "semantic")
        if getattr(config, part) and section.get(part) is None
    ]
    name = section["backbone"]["name"].replace("resnext101_32x8d", "x101").replace("resnet", "r")
    name += {"fpn": "", "c4": "_c4", "c5": "_dc5"}[section.get("neck", "fpn")]
    kind = "keypointrcnn" if "keypoint" in section else "maskrcnn" if "mask" in section else "fasterrcnn"
    kind = f"cascade_{kind}" if "cascade" in section else kind
    kind = kind if section["box"] else "rpn"
    shipped = f"configs/{kind}_{name}.yaml"
    try:
        find_config(shipped)
    except UserError:
        shipped = ""
    fits = f"; compare {shipped}" if shipped else ""
    return f"the file's model needs {' '.join(changes)}{fits}" if changes else ""


def _box_section(weights: dict[str, Tensor], classes: int) -> dict[str, Any]:
    return {
        "trunk": "4conv1fc" if "heads.box.trunk.convs.0.conv.weight" in weights else "2fc",
        "width": weights["heads.box.classifier.weight"].shape[1],
        "norm": _norm(weights, "heads.box.trunk.convs.0.norm"),
        "class_agnostic": classes > 1 and len(weights["heads.box.regressor.bias"]) == 4,
    }


def _point_rend_section(weights: dict[str, Tensor], classes: int) -> dict[str, Any]:
    return {
        "side": int((len(weights["heads.mask.coarse.logits.bias"]) // classes) ** 0.5),
        "width": weights["heads.mask.coarse.logits.weight"].shape[1],
        "num_fc": _count(weights, r"heads\.mask\.coarse\.fcs\.(\d)\."),
        "point_width": weights["heads.mask.point.fcs.0.weight"].shape[0],
        "point_num_fc": _count(weights, r"heads\.mask\.point\.fcs\.(\d)\."),
    }


def _single_level(weights: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Any]:
    """The sections of a model without FPN: whether the RPN is on c4 or c5 follows from its input channels."""
    basic = values["backbone"]["name"] in ("resnet18", "resnet34")
    channels = weights["rpn.convs.0.weight"].shape[1]
    neck = {256: "c4", 512: "c5"}[channels] if basic else {1024: "c4", 2048: "c5"}[channels]
    found: dict[str, Any] = {"neck": neck}
    if neck == "c5":  # dilated in every published detector
        found["backbone"] = {**values["backbone"], "c5_dilation": 2}
    elif (
        values["box"]
        and "heads.box.trunk.fc1.weight" not in weights
        and "heads.box.trunk.convs.0.conv.weight" not in weights
    ):
        found["box"] = {"trunk": "res5", "class_agnostic": values["box"]["class_agnostic"]}
    return found


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    """How many different numbers the group of `pattern` takes in the names."""
    return len({m[1] for m in (re.match(pattern, name) for name in weights) if m})


def _norm(weights: dict[str, Tensor], prefix: str) -> str:
    if f"{prefix}.weight" not in weights:
        return "none"
    return "bn" if f"{prefix}.running_mean" in weights else "gn"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
