"""One-stage detectors in checkpoints: tensors -> the `model` section, architecture from shapes and numerics."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from resdet.checkpoints.backbones import architecture
from resdet.checkpoints.dense_names import NAMES, Kind, anchors_of
from resdet.checkpoints.names import Source
from resdet.checkpoints.numerics import add_detectron2_input, add_mmdetection_input, mmdetection_config
from resdet.checkpoints.stem import input_channels, input_section
from resdet.config import DenseConfig, RetinaNetConfig, YOLOFConfig, merged, parse_config
from resdet.errors import UserError
from resdet.migration.mmdetection import one_stage

# torchvision truncates sizes to integers.
TORCHVISION_SIZES = [int(size * 2 ** (i / 3)) for size in (32, 64, 128, 256, 512) for i in range(3)]


def section_of(
    weights: dict[str, Tensor], kind: Kind, source: Source, raw: dict[str, Tensor], meta: dict[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    """-> (the nested `model` section, notes on what was inferred from what).

    weights: by our names. raw: by their names in the file. meta: the file's other content.
    Raises `UserError` for models that resdet cannot build, `KeyError` if tensors are missing.
    """
    shapes = architecture_of(weights, kind)
    if source == "torchvision":
        found, notes = _torchvision(shapes, kind, raw)
    elif source == "detectron2":
        found, notes = _detectron2(shapes, raw)
    else:
        found, notes = _mmdetection(shapes, kind, mmdetection_config(meta), path)
    found["input"] = input_section(found["input"], input_channels(weights))
    _check_against_shapes(found, weights, kind, path)
    return found, notes


def architecture_of(weights: dict[str, Tensor], kind: Kind) -> dict[str, Any]:
    """The section that builds modules of these shapes. Raises `KeyError`."""

    def count(tower: str) -> int:
        return len({m[1] for m in (re.match(rf"head\.{tower}\.convs\.(\d)\.", name) for name in weights) if m})

    def norm(prefix: str) -> str:
        if f"{prefix}.weight" not in weights:
            return "none"
        return "bn" if f"{prefix}.running_mean" in weights else "gn"

    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    head: dict[str, Any] = {"norm": norm("head.class_tower.convs.0.norm")}
    found: dict[str, Any] = {
        "kind": kind,
        "num_classes": len(weights["head.classifier.bias"]) // anchors_of(weights, kind),
        "backbone": {**architecture(backbone), "weights": "in the checkpoint", "frozen_stages": 2},
        "head": head,
    }
    if kind == "yolof":
        head |= {"class_convs": count("class_tower"), "box_convs": count("box_tower")}
        width, channels = weights["fpn.blocks.0.conv1.conv.weight"].shape[:2]
        found["encoder"] = {"channels": channels, "width": width, "norm": norm("fpn.lateral.norm")}
        return found
    channels, c5 = weights["fpn.output.0.conv.weight"].shape[0], weights["fpn.lateral.2.conv.weight"].shape[1]
    from_c5 = weights["fpn.top.p6.weight"].shape[1] == c5 != channels
    found["fpn"] = {
        "channels": channels, "norm": norm("fpn.lateral.0.norm"), "p6_from": "c5" if from_c5 else "p5"
    }  # fmt: skip
    head["num_convs"] = count("class_tower")
    if kind == "fcos":
        head |= {"bias": "head.class_tower.convs.0.conv.bias" in weights, "scales": "head.scales.0" in weights}
    if kind == "gfl":
        head["farthest"] = len(weights["head.regressor.bias"]) // 4 - 1
    return found


def _torchvision(found: dict[str, Any], kind: Kind, raw: dict[str, Tensor]) -> tuple[dict[str, Any], list[str]]:
    backbone, head = found["backbone"], found["head"]
    v2 = kind == "retinanet" and head["norm"] == "gn"
    if "backbone.body.bn1.num_batches_tracked" in raw:
        backbone["norm"] = "bn"
    # The frozen batch norms of RetinaNet's V1 COCO weights have an epsilon of zero, like those of the R-CNNs.
    frozen = kind == "retinanet" and backbone["norm"] == "frozen_bn" and backbone["name"] == "resnet50"
    backbone["norm_eps"] = 0.0 if frozen else 1e-5
    found["input"] = {"resize": "torch", "rounding": "floor"}
    found["fpn"]["relu"] = True
    head["empty"] = "keep"
    if kind == "fcos":
        found["points"] = {"offset": 0.0, "grid_stride": True}
        head |= {"weighted": False, "score": "mean", "score_threshold": 0.2, "nms_threshold": 0.6}
        return found, ["torchvision's builder"]
    found["anchors"] = {"sizes": TORCHVISION_SIZES, "offset": 0.0, "rounded": True, "grid_stride": True}
    head |= {"divisor": "image", "box_loss": "giou" if v2 else "l1", "max_detections": 300}
    return found, [f"torchvision's {'V2' if v2 else 'V1'} builder, judging by the norms in its towers"]


def _detectron2(found: dict[str, Any], raw: dict[str, Tensor]) -> tuple[dict[str, Any], list[str]]:
    found |= {"input": {"resize": "pillow"}, "anchors": {"offset": 0.0}, "fold_norm": False}
    found["head"] |= {"empty": "drop_last", "clip": "last"}
    return found, add_detectron2_input(found, raw)


def _mmdetection(
    shapes: dict[str, Any], kind: Kind, config: dict[str, Any], path: Path
) -> tuple[dict[str, Any], list[str]]:
    model = config.get("model") or {}
    section = one_stage(model, f"{path}: the config in it") if model else _usual(shapes, kind)
    if section.get("kind") != kind:
        raise UserError(
            f"{path}: its tensors are named like those of mmdetection's {NAMES[kind]}, but its config describes a "
            f"{model.get('type')}, which resdet does not have"
        )
    section["backbone"] = {}  # from the shapes; for its style see below
    found = merged(section, shapes)
    note = add_mmdetection_input(found, config, style="caffe" if kind in ("fcos", "yolof") else "pytorch")
    return found, [note, f"the numerics of the head from {'the config' if model else 'the usual config'}"]


def _usual(shapes: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """The section of mmdetection's published config, for files without a config."""
    found: dict[str, Any] = {"kind": kind, "fold_norm": False}
    if kind == "fcos":
        improved = shapes["head"]["bias"]
        first = {"distances": "exp", "centerness_on": "class", "radius": None, "box_loss": "iou", "nms_threshold": 0.5}
        return {**found, "head": {} if improved else first}
    found["anchors"] = {"offset": 0.0}
    if kind == "retinanet":
        found |= {"head": {"clamp_shrink": True}, "fpn": {"relu": False}}
    return found


def _check_against_shapes(found: dict[str, Any], weights: dict[str, Tensor], kind: Kind, path: Path) -> None:
    """Raises `UserError` if the tensors have another number of anchors or dilated blocks than the section, since their sizes or
    dilations do not follow from shapes."""
    model = parse_config({"model": found}, str(path)).model
    assert isinstance(model, DenseConfig)
    anchors = anchors_of(weights, kind)
    if isinstance(model, RetinaNetConfig | YOLOFConfig):
        levels = 1 if kind == "yolof" else 5
        usual = len(model.anchors.sizes) // levels * len(model.anchors.ratios)
        if usual != anchors:
            raise UserError(
                f"{path}: its {NAMES[kind]} has {anchors} anchors per location instead of the usual {usual}, and the file does "
                "not say which sizes and ratios they have"
            )
    if isinstance(model, YOLOFConfig):
        blocks = len({name.split(".")[2] for name in weights if name.startswith("fpn.blocks.")})
        if len(model.encoder.dilations) != blocks:
            raise UserError(
                f"{path}: its encoder has {blocks} blocks instead of the usual ones with dilations {model.encoder.dilations}, "
                "and the file does not say which dilations it has"
            )
