"""A checkpoint's tensors -> the model that they belong to: source, architecture from shapes, numerics, classes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from resdet.checkpoints import cascade
from resdet.checkpoints.backbones import architecture, recognise_backbone
from resdet.checkpoints.describe import describe
from resdet.checkpoints.files import Contents, read_file, require_finite
from resdet.checkpoints.names import source_of, to_ours
from resdet.checkpoints.numerics import add_numerics, class_names, mmdetection_config
from resdet.checkpoints.stem import input_channels, input_section
from resdet.checkpoints.unsupported import known_but_unsupported
from resdet.class_names import OBJECT
from resdet.config import ModelConfig, RCNNConfig, find_config, frozen_but_random, load_yaml, parse_config
from resdet.errors import UserError, listed
from resdet.keypoints import COCO_EDGES, COCO_NAMES

# In the name of torchvision's older weights of Keypoint R-CNN, whose batch norms have an epsilon, other than V1's.
TORCHVISION_LEGACY_KEYPOINTS = "9f466800"


@dataclass
class Recognised:
    """A checkpoint in our terms.

    values:      the nested `model` section that belongs to the weights: architecture and numerics.
    weights:     by the names of our detector.
    whole:       a detector; False for a backbone alone.
    class_names, category_ids: label by label; empty where the file does not say.
    notes:       what was found and what was decided, for `report`.
    """

    path: Path
    source: str
    values: dict[str, Any]
    weights: dict[str, Tensor]
    whole: bool = True
    class_names: list[str] = field(default_factory=list)
    category_ids: list[int | str | None] = field(default_factory=list)
    min_size: int = 800
    max_size: int = 1333
    pixel_range: tuple[float, float] | None = None  # of images deeper than 8 bits, if it was trained on such
    left_over: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def model(self) -> ModelConfig:
        return parse_config({"model": self.values}, source=str(self.path)).model

    def report(self) -> str:
        """A few lines for people."""
        return describe(self)


def recognise(path: str | Path) -> Recognised:
    """Read and recognise a detector's checkpoint or a backbone's, of any known tool. Raises `UserError`."""
    path = Path(path)
    contents = read_file(path)
    if unsupported := known_but_unsupported(contents.weights):
        raise UserError(f"{path}: holds {unsupported}, which resdet does not have")
    found = _detector(contents, path) or _backbone(contents, path)
    if found is None:
        raise UserError(
            f"{path}: neither a Faster, Mask or Keypoint R-CNN with FPN of torchvision, detectron2, mmdetection or resdet, nor "
            "a residual backbone (looked under any prefix for layer1.0.conv1.weight of torchvision and timm, "
            "res2.0.conv1.weight of detectron2, res2_0_branch2a_w of Caffe2); "
            f"its first tensors: {', '.join(list(contents.weights)[:3])}"
        )
    return found


def open_checkpoint(path: str | Path) -> Recognised:
    """`recognise` a whole detector. Raises `UserError`."""
    found = recognise(path)
    if not found.whole:
        raise UserError(
            f"{path}: holds a backbone alone ({found.source}, {found.model.backbone.name}), which detects nothing yet: "
            f"train a detector from it with model.backbone.weights={path}"
        )
    return found


def open_backbone(path: str | Path) -> Recognised:
    """`recognise` a backbone, by itself or out of a detector. Raises `UserError`."""
    found = recognise(path)
    if not found.whole:
        return found
    keys = ("name", "norm_eps", "deep_stem", "avg_down", "residual", "stride_in_1x1")
    model = found.model.model_dump(include={"input", "backbone"})
    return Recognised(
        found.path,
        f"the backbone of {found.source}'s detector",
        {"input": model["input"], "backbone": {key: model["backbone"][key] for key in keys}},
        {k: v for k, v in found.weights.items() if k.startswith("backbone.")},
        whole=False,
    )


def fit_hint(weights: dict[str, Tensor], config: ModelConfig) -> str:
    """How a config would have to change to fit these weights, and the shipped config that does; "" if that is unclear."""
    if not isinstance(config, RCNNConfig):
        return ""
    try:
        wanted = _architecture(weights)
    except (KeyError, IndexError, StopIteration):
        return ""
    ours = dict(_leaves(config.model_dump()))
    changes = []
    for key, value in _leaves({k: v for k, v in wanted.items() if k != "num_classes"}):
        if key not in ("backbone.weights", "backbone.frozen_stages", "backbone.norm") and ours.get(key) != value:
            changes.append(f"model.{key}={value}")
    changes += [
        f"model.{part}=null"
        for part in ("box", "mask", "keypoint", "cascade")
        if getattr(config, part) and wanted.get(part) is None
    ]
    name = wanted["backbone"]["name"].replace("resnext101_32x8d", "x101").replace("resnet", "r")
    name += {"fpn": "", "c4": "_c4", "c5": "_dc5"}[wanted.get("neck", "fpn")]
    kind = "keypointrcnn" if "keypoint" in wanted else "maskrcnn" if "mask" in wanted else "fasterrcnn"
    kind = f"cascade_{kind}" if "cascade" in wanted else kind
    kind = kind if wanted["box"] else "rpn"
    shipped = f"configs/{kind}_{name}.yaml"
    try:
        find_config(shipped)
    except UserError:
        shipped = ""
    fits = f"; compare {shipped}" if shipped else ""
    return f"the file's model needs {' '.join(changes)}{fits}" if changes else ""


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _backbone(contents: Contents, path: Path) -> Recognised | None:
    try:
        found = recognise_backbone(contents.weights)
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}") from None
    if found is None:
        return None
    require_finite(found.weights, path)
    weights = {f"backbone.{name}": value for name, value in found.weights.items()}
    result = Recognised(
        path, found.origin, found.values, weights, whole=False, left_over=_worth_telling(found.left_over)
    )
    if contents.meta.get("format") == "resdet backbone":  # as `export.save_own` wrote it
        result.source, result.values = "resdet", load_yaml(str(contents.meta["config"]))["model"]
    return result


def _detector(contents: Contents, path: Path) -> Recognised | None:
    match = source_of(contents.weights)
    if match is None:
        return None
    source, prefix = match
    inside = {name[len(prefix) :]: value for name, value in contents.weights.items() if name.startswith(prefix)}
    # Averaged copies beside the weights, in mmdetection's way.
    inside = {name: value for name, value in inside.items() if not name.startswith("ema_")}
    require_finite(inside, path)
    weights, left_over = to_ours(inside, source)
    meta = contents.meta
    found = Recognised(path, source, {}, weights, left_over=_worth_telling(left_over))
    if source == "resdet":
        found.class_names, found.category_ids = _listed(meta.get("class_names")), _listed(meta.get("category_ids"))
        if meta.get("config"):
            config = parse_config(load_yaml(str(meta["config"])), source=f"{path}: its config")
            found.values = config.model.model_dump(mode="json", exclude={"weights"})
            if frozen_but_random(config.model.model_copy(update={"weights": None})):
                found.values["backbone"]["weights"] = "in the checkpoint"  # which came from `model.weights`
            found.values["num_classes"] = found.values["num_classes"] or len(found.class_names)
            found.min_size, found.max_size = config.data.min_size[-1], config.data.max_size
            given = config.data.pixel_range
            found.pixel_range = given if isinstance(given, tuple) else None
            return found
    if cascade.is_cascade(weights):
        stages = cascade.stages_in(mmdetection_config(meta).get("model") or {})
        if problems := cascade.missing(weights, stages):
            raise listed(f"{path}: a Cascade R-CNN of {source}'s, but not a whole one:", problems)
    if not _has_heads(weights) and (others := [n for n in left_over if re.search("(roi|bbox|mask)_head", n)]):
        raise UserError(
            f"{path}: looks like {source}'s, but its heads are of a kind that resdet does not have ({others[0]})"
        )
    try:
        found.values = _architecture(weights)
    except (KeyError, IndexError, StopIteration) as error:
        raise UserError(
            f"{path}: looks like {source}'s, but tensors are missing or of another kind ({error})"
        ) from None
    if source != "resdet":
        channels = found.values.pop("input", {}).get("channels", 3)
        found.notes = add_numerics(found.values, source, inside, meta)
        found.values["input"] = input_section(found.values["input"], channels)
        keypoint = found.values.get("keypoint", {})
        coco_keypoints = keypoint.get("num_keypoints") == len(COCO_NAMES)
        if coco_keypoints:
            keypoint |= {"names": COCO_NAMES, "skeleton": COCO_EDGES}
        if source == "torchvision" and TORCHVISION_LEGACY_KEYPOINTS in path.name:
            found.values["backbone"]["norm_eps"] = 1e-5
        found.class_names, ids = class_names(source, found.values["num_classes"], meta, coco_keypoints=coco_keypoints)
        found.category_ids = list(ids)
        if found.values["box"] is None:
            found.class_names, found.category_ids = [OBJECT], [1]
    return found


def _listed(value: Any) -> list[Any]:
    """A list, also from the JSON text that safetensors' metadata is."""
    if isinstance(value, str):
        value = json.loads(value)
    return list(value or [])


def _architecture(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The `model` section that builds modules of these shapes."""

    def count(pattern: str) -> int:
        return len({m[1] for m in (re.match(pattern, name) for name in weights) if m})

    def norm(prefix: str) -> str:
        if f"{prefix}.weight" not in weights:
            return "none"
        return "bn" if f"{prefix}.running_mean" in weights else "gn"

    in_stages, own_masks = cascade.is_cascade(weights), any(k.startswith("heads.box.masks.") for k in weights)
    if in_stages:
        weights = cascade.first_stage(weights)
    backbone = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    alone = not _has_heads(weights) and "rpn.objectness.weight" in weights
    classes = 1 if alone else len(weights["heads.box.classifier.bias"]) - 1
    four_conv = "heads.box.trunk.convs.0.conv.weight" in weights
    values: dict[str, Any] = {
        "num_classes": classes,
        # The weights are "in the checkpoint", which is not "none": nothing here is random.
        "backbone": {**architecture(backbone), "weights": "in the checkpoint", "frozen_stages": 2},
        "rpn": {"num_convs": count(r"rpn\.convs\.(\d)\.")},
        "box": None
        if alone
        else {
            "trunk": "4conv1fc" if four_conv else "2fc",
            "width": weights["heads.box.classifier.weight"].shape[1],
            "norm": norm("heads.box.trunk.convs.0.norm"),
            "class_agnostic": classes > 1 and len(weights["heads.box.regressor.bias"]) == 4,
        },
    }
    if in_stages:
        del values["box"]["class_agnostic"]
        values["cascade"] = {"mask_heads": "each" if own_masks else "one"}
    if "fpn.lateral.0.conv.weight" in weights:
        values["fpn"] = {"channels": weights["fpn.lateral.0.conv.weight"].shape[0], "norm": norm("fpn.lateral.0.norm")}
    else:
        values |= _single_level(weights, values)
    if (channels := input_channels(weights)) != 3:
        values["input"] = {"channels": channels}
    if "heads.mask.coarse.logits.weight" in weights:
        values["mask"] = {
            "point_rend": {
                "side": int((len(weights["heads.mask.coarse.logits.bias"]) // classes) ** 0.5),
                "width": weights["heads.mask.coarse.logits.weight"].shape[1],
                "num_fc": count(r"heads\.mask\.coarse\.fcs\.(\d)\."),
                "point_width": weights["heads.mask.point.fcs.0.weight"].shape[0],
                "point_num_fc": count(r"heads\.mask\.point\.fcs\.(\d)\."),
            }
        }
    elif "heads.mask.logits.weight" in weights:
        values["mask"] = {
            "num_convs": count(r"heads\.mask\.convs\.(\d)\."),
            "width": weights["heads.mask.upsample.weight"].shape[1],
            "norm": norm("heads.mask.convs.0.norm"),
            "class_agnostic": classes > 1 and len(weights["heads.mask.logits.bias"]) == 1,
        }
    if "heads.keypoint.logits.weight" in weights:
        last = weights["heads.keypoint.logits.weight"]  # of a transposed convolution: inputs first
        values["keypoint"] = {
            "num_keypoints": last.shape[1],
            "num_convs": count(r"heads\.keypoint\.convs\.(\d)\."),
            "width": last.shape[0],
            "norm": norm("heads.keypoint.convs.0.norm"),
        }
    return values


def _single_level(weights: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Any]:
    """The sections of a model without FPN, by the channels that its RPN sees: c4 or c5."""
    basic = values["backbone"]["name"] in ("resnet18", "resnet34")
    channels = weights["rpn.convs.0.weight"].shape[1]
    neck = {256: "c4", 512: "c5"}[channels] if basic else {1024: "c4", 2048: "c5"}[channels]
    found: dict[str, Any] = {"neck": neck}
    if neck == "c5":  # every detector without FPN that is known here dilates it
        found["backbone"] = {**values["backbone"], "c5_dilation": 2}
    elif (
        values["box"]
        and "heads.box.trunk.fc1.weight" not in weights
        and "heads.box.trunk.convs.0.conv.weight" not in weights
    ):
        found["box"] = {"trunk": "res5", "class_agnostic": values["box"]["class_agnostic"]}
    return found


def _has_heads(weights: dict[str, Tensor]) -> bool:
    return any(name.startswith("heads.") for name in weights)


def _worth_telling(names: list[str]) -> list[str]:
    """Anchors and pixel means that old files carry are computed here, so their being left over means nothing."""
    return [n for n in names if not re.search(r"pixel_mean|pixel_std|anchor_generator|num_batches_tracked", n)]
