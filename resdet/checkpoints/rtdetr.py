"""RT-DETR in checkpoints of transformers and of its authors -> weights by our names and their `model` section."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from resdet.checkpoints.backbones import architecture
from resdet.checkpoints.numerics import class_names
from resdet.checkpoints.rtdetr_names import AUTHORS, TRANSFORMERS, Table, to_ours
from resdet.checkpoints.stem import input_channels, input_section
from resdet.config import ModelConfig
from resdet.errors import UserError, listed

SIGNS: tuple[tuple[str, str, Table], ...] = (
    ("transformers", r"model\.decoder\.layers\.0\.encoder_attn\.sampling_offsets\.", TRANSFORMERS),
    ("RT-DETR's authors", r"decoder\.decoder\.layers\.0\.cross_attn\.sampling_offsets\.", AUTHORS),
)
AVERAGE = "ema.module."  # prefix of averaged weights in the authors' files
# Keys of transformers' config.json -> ours; and keys that must have the value of all published models.
CONFIG = {
    "encoder_attention_heads": "encoder.heads", "decoder_attention_heads": "decoder.heads", "num_queries": "queries",
    "decoder_offset_scale": "decoder.offset_scale",
    "matcher_class_cost": "matching.class_cost", "matcher_bbox_cost": "matching.box_cost",
    "matcher_giou_cost": "matching.giou_cost", "matcher_alpha": "matching.focal_alpha", "matcher_gamma": "matching.focal_gamma",
    "weight_loss_vfl": "loss.class_weight", "weight_loss_bbox": "loss.box_weight", "weight_loss_giou": "loss.giou_weight",
    "focal_loss_alpha": "loss.alpha", "focal_loss_gamma": "loss.gamma",
    "num_denoising": "denoising.queries", "label_noise_ratio": "denoising.label_noise",
    "box_noise_scale": "denoising.box_noise",
}  # fmt: skip
FIXED: dict[str, Any] = {
    "layer_norm_eps": 1e-5, "batch_norm_eps": 1e-5, "encode_proj_layers": [2], "positional_encoding_temperature": 10000,
    "encoder_activation_function": "gelu", "activation_function": "silu", "decoder_activation_function": "relu",
    "normalize_before": False, "num_feature_levels": 3, "learn_initial_query": False, "with_box_refine": True,
    "feat_strides": [8, 16, 32], "use_focal_loss": True,
}  # fmt: skip


class RTDETRFile(NamedTuple):
    """The content of a checkpoint, see `Recognised`. size: the side of the square input."""

    source: str
    values: dict[str, Any]
    weights: dict[str, Tensor]
    left_over: list[str]
    class_names: list[str]
    category_ids: list[int]
    size: int
    notes: list[str]


def read_rtdetr(raw: dict[str, Tensor], path: Path) -> RTDETRFile | None:
    """The RT-DETR in these tensors; None if there is none. Raises `UserError` for one that resdet cannot build.

    For transformers' files, config.json and preprocessor_config.json in the same folder complete what follows from shapes.
    """
    found = _source(raw)
    if found is None:
        return None
    source, prefix, table = found
    inside = {name.removeprefix(prefix): value for name, value in raw.items() if name.startswith(prefix)}
    weights, left_over = to_ours(inside, table)
    _require_resnet(weights, left_over, path)
    config = _json_beside(path, "config.json") if source == "transformers" else {}
    try:
        values = rtdetr_section(weights, inside)
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: looks like an RT-DETR of {source}, but tensors are missing ({error})") from None
    notes = ["averaged weights (EMA)"] if prefix == AVERAGE else []
    if config:
        _apply_config(values, config, path)
        notes.append("heads, queries and losses from config.json in its folder")
    else:
        notes.append("heads, queries and losses as published, since they do not follow from the file")
    size = 640
    if processor := _json_beside(path, "preprocessor_config.json") if source == "transformers" else {}:
        size = _apply_processor(values, processor, path)
        notes.append("input size and pixel scaling from preprocessor_config.json in its folder")
    names, ids = _classes(values["num_classes"], config)
    return RTDETRFile(source, values, weights, left_over, names, ids, size, notes)


def rtdetr_section(weights: dict[str, Tensor], raw: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """The nested `model` section that builds modules of these shapes, from weights by our names.

    raw: all tensors of the file; the points per level follow from their scales. Raises `KeyError` if tensors are missing.
    """
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    trained = any(k.endswith("num_batches_tracked") for k in backbone)
    width, inner = weights["fpn.input.0.conv.weight"].shape[0], weights["fpn.top_down.0.conv1.conv.weight"].shape[0]
    points = _points(raw or {})
    rows = len(weights["decoder.layers.0.cross_attention.weights.bias"])
    values: dict[str, Any] = {
        "kind": "rtdetr",
        "num_classes": len(weights["queries.score.bias"]),
        # Not "none", which would say that the backbone is random.
        "backbone": {
            **architecture(backbone), "weights": "in the checkpoint", "norm": "bn" if trained else "frozen_bn",
            "frozen_stages": 0 if trained else 1,
        },
        "encoder": {"width": width, "layers": _count(weights, r"fpn\.aifi\.(\d+)\."), "expansion": inner / width},
        "decoder": {
            "width": weights["queries.project.bias"].shape[0], "layers": _count(weights, r"decoder\.layers\.(\d+)\."),
            "ffn": len(weights["decoder.layers.0.linear1.bias"]), "points": points, "heads": max(1, rows // sum(points)),
        },
    }  # fmt: skip
    if values["encoder"]["layers"]:
        values["encoder"]["ffn"] = len(weights["fpn.aifi.0.linear1.bias"])
    if "denoising.embedding.weight" not in weights:
        values["denoising"] = None
    if (channels := input_channels(weights)) != 3:
        values["input"] = input_section({}, channels)
    return values


def _source(names: dict[str, Tensor]) -> tuple[str, str, Table] | None:
    """The source of these names, their prefix (of several copies, that of the averaged one), and their table."""
    for source, sign, table in SIGNS:
        prefixes = [match[1] for match in (re.match(rf"((?:.*\.)?){sign}", name) for name in names) if match]
        if prefixes:
            return source, AVERAGE if AVERAGE in prefixes else prefixes[0], table
    return None


def _require_resnet(weights: dict[str, Tensor], left_over: list[str], path: Path) -> None:
    if "backbone.layer1.0.conv1.weight" not in weights:
        other = next((name for name in left_over if "backbone" in name), "no backbone")
        raise UserError(
            f"{path}: an RT-DETR whose backbone is not a ResNet (its first tensor: {other}), which resdet does not have"
        )
    if "queries.score.bias" in weights and "decoder.scores.0.bias" in weights:
        encoder, decoder = len(weights["queries.score.bias"]), len(weights["decoder.scores.0.bias"])
        if encoder != decoder:
            raise UserError(
                f"{path}: its query selection has {encoder} class(es), its decoder {decoder}: in resdet both have all classes"
            )


def _points(raw: dict[str, Tensor]) -> list[int]:
    """Points per level; for n points on a level, version 2 stores n scales of 1 / n."""
    scales = next((v for k, v in raw.items() if k.endswith(("num_points_scale", "n_points_scale"))), None)
    if scales is None:
        return [4, 4, 4]
    points: list[int] = []
    while sum(points) < len(scales):
        points.append(max(1, round(1 / float(scales[sum(points)]))))
    return points


def _count(weights: dict[str, Tensor], pattern: str) -> int:
    return len({m[1] for m in (re.match(pattern, name) for name in weights) if m})


def _json_beside(path: Path, name: str) -> dict[str, Any]:
    file = path.parent / name
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not an object")
    return content if name != "config.json" or str(content.get("model_type", "")).startswith("rt_detr") else {}


def _apply_config(values: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    """Apply config.json. Raises `UserError` for settings that resdet does not have."""
    problems = [f"{key}={config[key]}" for key, usual in FIXED.items() if key in config and config[key] != usual]
    if problems:
        raise listed(f"{path.parent / 'config.json'}: sets what resdet does not have:", problems)
    if not config.get("num_denoising", 1):
        values["denoising"] = None
    for key, ours in CONFIG.items():
        section, _, name = ours.rpartition(".")
        within = values.setdefault(section, {}) if section else values
        if key in config and within is not None:
            within[name] = config[key]
    if "num_queries" in config:
        values["max_detections"] = config["num_queries"]
    points = config.get("decoder_n_points")
    if points is not None:
        values["decoder"]["points"] = [points] * 3 if isinstance(points, int) else list(points)
    if config.get("decoder_method") == "discrete":
        values["decoder"]["sampling"] = "discrete"
    frozen = config.get("freeze_backbone_batch_norms", True)
    values["backbone"] |= {"norm": "frozen_bn" if frozen else "bn", "frozen_stages": 1 if frozen else 0}


def _apply_processor(values: dict[str, Any], processor: dict[str, Any], path: Path) -> int:
    """Pixel scaling, into `values`. -> the side of the square input. Raises `UserError` for another shape."""
    section = {}
    if processor.get("do_normalize"):
        section = {
            key: [255 * v for v in processor[f"image_{key}"]] for key in ("mean", "std") if f"image_{key}" in processor
        }
    values["input"] = {**values.get("input", {}), **section}
    size = processor.get("size") or {"height": 640, "width": 640}
    if not isinstance(size, dict) or "height" not in size or size["height"] != size.get("width"):
        raise UserError(
            f"{path.parent / 'preprocessor_config.json'}: size={size}: resdet resizes RT-DETR's images to squares only"
        )
    return int(size["height"])


def _classes(count: int, config: dict[str, Any]) -> tuple[list[str], list[int]]:
    """Names and dataset ids by label, from config.json; COCO's for 80 classes without names."""
    given = config.get("id2label")
    names = [str(given.get(str(k), "")) for k in range(count)] if isinstance(given, dict) else []
    if any(re.fullmatch(r"LABEL_\d+|", name) for name in names):
        names = []
    return class_names("mmdetection", count, {"meta": {"CLASSES": names}} if names else {})  # the same conventions


def layers_hint(weights: dict[str, Tensor], config: ModelConfig) -> str:
    """The changes that would make a config fit these weights; "" if that is unclear."""
    try:
        section = rtdetr_section(weights)
    except (KeyError, IndexError):
        return ""
    ours = config.model_dump()
    changes = (
        [f"model.backbone.name={section['backbone']['name']}"]
        if (section["backbone"]["name"] != ours["backbone"]["name"])
        else []
    )
    for part in ("encoder", "decoder"):
        changes += [
            f"model.{part}.{key}={value}"
            for key, value in section[part].items()
            if key in ("width", "layers", "ffn", "expansion") and ours[part][key] != value
        ]
    return f"the model in the file needs {' '.join(changes)}" if changes else ""
