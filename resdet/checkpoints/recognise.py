"""A checkpoint's tensors -> the model that they belong to: source, architecture, numerics, classes.

Shapes tell the architecture. What shapes cannot tell (channel order, pixel scaling, stride placement, RoIAlign, …) is the
source's convention, or stands in the config text that mmdetection stores in its files.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from resdet.checkpoints.files import read_file
from resdet.checkpoints.names import Source, source_of, to_ours
from resdet.config import ModelConfig, load_yaml, parse_config
from resdet.errors import UserError
from resdet.models.resnet import RESNETS, Architecture

CAFFE_MEAN = (103.53, 116.28, 123.675)  # of BGR


@dataclass
class Recognised:
    """A checkpoint in our terms. `notes` say what was found and what was decided, for `report`."""

    path: Path
    source: Source
    model: ModelConfig
    weights: dict[str, Tensor]
    class_names: list[str]
    category_ids: list[int]
    min_size: int = 800
    max_size: int = 1333
    left_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def report(self) -> str:
        """A few lines for people."""
        m = self.model
        kind = "Mask R-CNN" if m.mask else "Faster R-CNN"
        lines = [
            f"{self.path}: {self.source}, {kind}, {m.backbone.name}, {m.num_classes} classes, {len(self.weights)} tensors",
            f"  input: {'BGR' if m.input.bgr else 'RGB'}, mean {list(m.input.mean)}, std {list(m.input.std)}, "
            f"resize {m.input.resize}, {m.input.rounding}; stride in the {'1x1' if m.backbone.stride_in_1x1 else '3x3'}; "
            f"norm {m.backbone.norm}, eps {m.backbone.norm_eps:g}",
            *(f"  {note}" for note in self.notes),
        ]
        if self.left_over:
            lines.append(f"  left over: {len(self.left_over)} ({', '.join(self.left_over[:4])} …)")
        return "\n".join(lines)


def open_checkpoint(path: str | Path) -> Recognised:
    """Read and recognise a detector's checkpoint of torchvision, detectron2, mmdetection or resdet. Raises `UserError`."""
    path = Path(path)
    raw, meta = read_file(path)
    raw = _stripped(raw)
    source = source_of(list(raw))
    if source is None:
        raise UserError(
            f"{path}: not a Faster or Mask R-CNN with FPN of torchvision, detectron2, mmdetection or resdet "
            f"(its first tensors: {', '.join(list(raw)[:3])}); weights of a backbone alone go into model.backbone.weights"
        )
    weights, left_over = to_ours(raw, source)
    if source == "resdet" and isinstance(meta.get("config"), str):
        config = parse_config(load_yaml(meta["config"]), source=f"{path}: its config")
        names, ids = list(meta.get("class_names", [])), list(meta.get("category_ids", []))
        config.model.num_classes = config.model.num_classes or len(names)
        return Recognised(
            path, source, config.model, weights, names, ids, config.data.min_size[-1], config.data.max_size
        )
    try:
        values = _architecture(weights)
    except (KeyError, IndexError, StopIteration) as error:
        raise UserError(
            f"{path}: looks like {source}'s, but tensors are missing or of another kind ({error})"
        ) from None
    notes: list[str] = []
    found = Recognised(path, source, ModelConfig(), weights, [], [], left_over=_worth_telling(left_over), notes=notes)
    _numerics(values, source, weights, meta, found)
    found.model = parse_config({"model": values}, source=str(path)).model
    found.class_names, found.category_ids = _classes(source, values["num_classes"], meta)
    return found


def _stripped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without a prefix that all names share ("module.", "model.") and without averaged copies beside the weights."""
    weights = {k: v for k, v in weights.items() if not k.startswith("ema_")}
    while weights and source_of(list(weights)) is None:
        prefixes = {name.partition(".")[0] for name in weights}
        if len(prefixes) != 1 or not all("." in name for name in weights):
            break
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
    return weights


def _architecture(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The `model` section that builds modules of these shapes."""

    def count(pattern: str) -> int:
        return len({m[1] for m in (re.match(pattern, name) for name in weights) if m})

    def norm(prefix: str) -> str:
        if f"{prefix}.weight" not in weights:
            return "none"
        return "bn" if f"{prefix}.running_mean" in weights else "gn"

    blocks = tuple(count(rf"backbone\.layer{k}\.(\d+)\.") for k in range(1, 5))
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    groups, base_width = 1, 64
    if bottleneck:
        middle = weights["backbone.layer1.0.conv2.weight"]
        groups = middle.shape[0] // middle.shape[1]
        base_width = middle.shape[0] // groups
    wanted = Architecture(bottleneck, blocks, groups, base_width)  # type: ignore[arg-type]
    name = next((name for name, arch in RESNETS.items() if arch == wanted), None)
    if name is None:
        raise KeyError(f"a backbone of {wanted}; known are {', '.join(RESNETS)}")
    classes = len(weights["heads.box.classifier.bias"]) - 1
    four_conv = "heads.box.trunk.convs.0.conv.weight" in weights
    values: dict[str, Any] = {
        "num_classes": classes,
        "backbone": {
            "name": name,
            "weights": "in the checkpoint",  # which is not "none": nothing here is random
            "norm": "frozen_bn" if "backbone.bn1.running_mean" in weights else "gn",
            "frozen_stages": 2,
        },
        "fpn": {"channels": weights["fpn.lateral.0.conv.weight"].shape[0], "norm": norm("fpn.lateral.0.norm")},
        "rpn": {"num_convs": count(r"rpn\.convs\.(\d)\.")},
        "box": {
            "trunk": "4conv1fc" if four_conv else "2fc",
            "width": weights["heads.box.classifier.weight"].shape[1],
            "norm": norm("heads.box.trunk.convs.0.norm"),
        },
    }
    if "heads.mask.logits.weight" in weights:
        values["mask"] = {
            "num_convs": count(r"heads\.mask\.convs\.(\d)\."),
            "width": weights["heads.mask.upsample.weight"].shape[1],
            "norm": norm("heads.mask.convs.0.norm"),
        }
    return values


def _numerics(
    values: dict[str, Any], source: Source, weights: dict[str, Tensor], meta: dict[str, Any], found: Recognised
) -> None:
    """Fill in what shapes cannot tell."""
    backbone, box = values["backbone"], values["box"]
    if source == "resdet":
        return
    if source == "torchvision":
        v2 = values["fpn"]["norm"] == "bn"
        values["input"] = {"resize": "torch", "rounding": "floor"}
        values["anchors"] = {"offset": 0.0, "rounded": True, "grid_stride": True}
        values["rpn"] |= {"min_size": 1e-3, "post_nms_train": 2000, "loss_beta": 1 / 9}
        values["pool"] = {"aligned": False, "sampling_ratio": 2}
        box |= {"min_size": 1e-2, "loss_beta": 1 / 9}
        # The V1 COCO weights were trained with an epsilon of zero; V2 has real batch norm.
        backbone |= {"norm_eps": 1e-5, "norm": "bn"} if v2 else {"norm_eps": 0.0}
        found.notes.append(f"torchvision's {'V2' if v2 else 'V1'} builder, told by the norms in its pyramid")
        if "mask" in values:
            values["mask"]["paste"] = "torchvision"
        return
    values["anchors"] = {"offset": 0.0}
    values["pool"] = {"aligned": True, "sampling_ratio": 0}
    if source == "detectron2":
        grouped = backbone["name"].startswith("resnext")
        values["input"] = {
            "bgr": True, "mean": CAFFE_MEAN, "resize": "pillow",
            "std": (57.375, 57.12, 58.395) if grouped else (1.0, 1.0, 1.0),
        }  # fmt: skip
        backbone["stride_in_1x1"] = not grouped and backbone["norm"] == "frozen_bn" and values["fpn"]["norm"] != "gn"
        box["empty"] = "drop_last"
        found.notes.append("input scaling and stride placement are those of detectron2's model zoo for this backbone")
        return
    text = meta.get("meta", {}).get("cfg") or meta.get("meta", {}).get("config") or ""
    model = _python_literal(text if isinstance(text, str) else "", "model")
    pixels = model.get("data_preprocessor") or _python_literal(text if isinstance(text, str) else "", "img_norm_cfg")
    caffe = model.get("backbone", {}).get("style") == "caffe"
    rgb = bool(pixels.get("bgr_to_rgb", pixels.get("to_rgb", not caffe)))
    values["input"] = {
        "bgr": not rgb,
        "mean": tuple(pixels.get("mean", CAFFE_MEAN if caffe else (123.675, 116.28, 103.53))),
        "std": tuple(pixels.get("std", (1.0, 1.0, 1.0) if caffe else (58.395, 57.12, 57.375))),
    }
    backbone["stride_in_1x1"] = caffe
    box |= {"empty": "keep", "clamp_shrink": True}
    values["rpn"]["clamp_shrink"] = True
    box["low_quality"] = "mask" in values
    told = "the config in the file" if model else "the usual one of the pytorch style: the file has no config"
    found.notes.append(f"input scaling and stride placement from {told}")


def _python_literal(text: str, name: str) -> dict[str, Any]:
    """The value of `name = dict(…)` in Python source, without running it; {} if it is not there or not plain."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if isinstance(statement, ast.Assign) and isinstance(target, ast.Name) and target.id == name:
            value = _value(statement.value)
            return value if isinstance(value, dict) else {}
    return {}


def _value(node: ast.expr) -> Any:
    """dict(…) calls, containers and constants; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {k.arg: _value(k.value) for k in node.keywords if k.arg}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(entry) for entry in node.elts]
    if isinstance(node, ast.Dict):
        return {
            _value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)
        }
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value if isinstance(node.operand.value, int | float) else None
    return node.value if isinstance(node, ast.Constant) else None


def _classes(source: Source, count: int, meta: dict[str, Any]) -> tuple[list[str], list[int]]:
    """(names, dataset category ids), label by label."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    coco: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # with background and gaps, by id
    if source == "torchvision" and count == len(coco) - 1:
        return coco[1:], list(range(1, count + 1))
    dataset = meta.get("meta", {}).get("dataset_meta", {}) if isinstance(meta.get("meta"), dict) else {}
    given = next((dataset[k] for k in ("classes", "CLASSES") if k in dataset), None) or (
        meta["meta"].get("CLASSES") if isinstance(meta.get("meta"), dict) else None
    )
    ids = [k for k, name in enumerate(coco) if name not in ("__background__", "N/A")]
    names = [str(name) for name in given] if given is not None and len(given) == count else None
    if count == len(ids):
        return names or [coco[k] for k in ids], ids
    return names or [f"class {k}" for k in range(count)], list(range(1, count + 1))


def _worth_telling(names: list[str]) -> list[str]:
    """Anchors and pixel means that old files carry are computed here, so their being left over means nothing."""
    return [n for n in names if not re.search(r"pixel_mean|pixel_std|anchor_generator|num_batches_tracked", n)]
