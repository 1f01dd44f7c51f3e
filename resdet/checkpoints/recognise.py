"""A checkpoint's tensors -> the model they belong to: source, architecture (from shapes), numerics, classes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from resdet.checkpoints import cascade, dense, dense_names
from resdet.checkpoints.backbones import recognise_backbone
from resdet.checkpoints.describe import describe
from resdet.checkpoints.files import Contents, read_file, require_finite
from resdet.checkpoints.names import source_of, to_ours
from resdet.checkpoints.numerics import add_numerics, class_names, mmdetection_config
from resdet.checkpoints.rcnn import has_heads, rcnn_section
from resdet.checkpoints.rtdetr import read_rtdetr, rtdetr_section
from resdet.checkpoints.semantic import COCO_STUFF, is_semantic, semantic_section
from resdet.checkpoints.semantic import add_numerics as add_semantic_numerics
from resdet.checkpoints.stem import input_section
from resdet.checkpoints.unsupported import known_but_unsupported
from resdet.class_names import OBJECT
from resdet.config import ModelConfig, frozen_but_random, load_yaml, parse_config
from resdet.errors import UserError, listed
from resdet.keypoints import COCO_EDGES, COCO_NAMES
from resdet.panoptic import ALL_THINGS

# In the file name of torchvision's legacy Keypoint R-CNN; unlike the V1 weights, its batch norms have a nonzero epsilon.
TORCHVISION_LEGACY_KEYPOINTS = "9f466800"


@dataclass
class Recognised:
    """A checkpoint in resdet's terms.

    source:      the tool it comes from.
    values:      the nested `model` section of the weights: architecture and numerics.
    weights:     by resdet's parameter names.
    whole:       True for a detector, False for a backbone alone.
    class_names, category_ids: by label; empty if the file does not have them.
    left_over:   names of tensors that were not recognised.
    notes:       what was inferred, and from what, for `report`.
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
        """A summary of a few lines."""
        return describe(self)


def recognise(path: str | Path) -> Recognised:
    """Read and recognise the checkpoint of a detector or a backbone, of any supported tool. Raises `UserError`."""
    path = Path(path)
    contents = read_file(path)
    if not contents.ours and (unsupported := known_but_unsupported(contents.weights)):
        raise UserError(f"{path}: holds {unsupported}, which resdet does not have")
    found = (
        _classifier(contents, path) or _rtdetr(contents, path) or _detector(contents, path) or _backbone(contents, path)
    )
    if found is None:
        raise UserError(
            f"{path}: neither an R-CNN, RetinaNet, FCOS, ATSS, GFL or YOLOF of torchvision, detectron2, mmdetection or resdet, "
            "nor an RT-DETR of transformers or its authors, nor a residual backbone (which has, under any prefix, "
            "layer1.0.conv1.weight in torchvision and timm, "
            "res2.0.conv1.weight in detectron2, res2_0_branch2a_w in Caffe2); "
            f"its first tensors: {', '.join(list(contents.weights)[:3])}"
        )
    return found


def open_checkpoint(path: str | Path) -> Recognised:
    """`recognise` a detector. Raises `UserError`."""
    found = recognise(path)
    if not found.whole:
        raise UserError(
            f"{path}: holds a backbone alone ({found.source}, {found.model.backbone.name}), not a detector: "
            f"train one from it with model.backbone.weights={path}"
        )
    return found


def open_backbone(path: str | Path) -> Recognised:
    """`recognise` a backbone, alone or as part of a detector. Raises `UserError`."""
    found = recognise(path)
    if not found.whole:
        return found
    keys = ("name", "norm_eps", "deep_stem", "avg_down", "project_first", "residual", "stride_in_1x1")
    model = found.model.model_dump(include={"input", "backbone"})
    return Recognised(
        found.path,
        f"the backbone of {found.source}'s detector",
        {"input": model["input"], "backbone": {key: model["backbone"][key] for key in keys}},
        {k: v for k, v in found.weights.items() if k.startswith("backbone.")},
        whole=False,
    )


def _classifier(contents: Contents, path: Path) -> Recognised | None:
    """A classifier of resdet's."""
    weights = {
        name.removeprefix("model."): value
        for name, value in contents.weights.items()
        if re.match(r"(model\.)?(backbone|classifier)\.", name)
    }
    if not contents.meta.get("config") or "classifier.weight" not in weights:
        return None
    require_finite(weights, path)
    return _with_config(Recognised(path, "resdet", {}, weights), contents.meta)


def _with_config(found: Recognised, meta: dict[str, Any]) -> Recognised:
    """With what a checkpoint of resdet's says of itself."""
    found.class_names, found.category_ids = _listed(meta.get("class_names")), _listed(meta.get("category_ids"))
    if meta.get("config"):
        config = parse_config(load_yaml(str(meta["config"])), source=f"{found.path}: its config")
        found.values = config.model.model_dump(mode="json", exclude={"weights"})
        if frozen_but_random(config.model.model_copy(update={"weights": None})):
            found.values["backbone"]["weights"] = "in the checkpoint"  # which came from `model.weights`
        found.values["num_classes"] = found.values["num_classes"] or len(found.class_names)
        found.min_size, found.max_size = config.data.min_size[-1], config.data.max_size
        given = config.data.pixel_range
        found.pixel_range = given if isinstance(given, tuple) else None
    return found


def _rtdetr(contents: Contents, path: Path) -> Recognised | None:
    file = read_rtdetr(contents.weights, path)
    if file is None:
        return None
    require_finite(file.weights, path)
    return Recognised(
        path, file.source, file.values, file.weights, left_over=file.left_over, class_names=file.class_names,
        category_ids=list(file.category_ids), min_size=file.size, notes=file.notes,
    )  # fmt: skip


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
        _with_config(found, meta)
        if found.values:
            return found
    if source != "resdet" and (kind := dense_names.kind_of(inside)):
        try:
            found.values, found.notes = dense.section_of(weights, kind, source, inside, meta, path)
        except (KeyError, IndexError, RuntimeError) as error:
            raise UserError(f"{path}: a {dense_names.NAMES[kind]} of {source}'s, but incomplete ({error})") from None
        found.class_names, ids = class_names(source, found.values["num_classes"], meta)
        found.category_ids = list(ids)
        return found
    if cascade.is_cascade(weights):
        stages = cascade.stages_in(mmdetection_config(meta).get("model") or {})
        if problems := cascade.missing(weights, stages):
            raise listed(f"{path}: an incomplete Cascade R-CNN of {source}'s:", problems)
    if not has_heads(weights) and (others := [n for n in left_over if re.search("(roi|bbox|mask)_head", n)]):
        raise UserError(
            f"{path}: looks like {source}'s, but its heads are of a kind that resdet does not have ({others[0]})"
        )
    alone = is_semantic(weights)
    try:
        if "queries.score.weight" in weights:
            found.values = rtdetr_section(weights)
        else:
            found.values = semantic_section(weights) if alone else rcnn_section(weights)
    except (KeyError, IndexError, StopIteration) as error:
        raise UserError(
            f"{path}: looks like {source}'s, but tensors are missing or of another kind ({error})"
        ) from None
    if source == "detectron2" and alone:
        found.notes = add_semantic_numerics(found.values, inside)
        if found.values["num_classes"] == len(COCO_STUFF) + 1:
            found.class_names, found.category_ids = [ALL_THINGS, *COCO_STUFF.values()], [0, *COCO_STUFF]
    elif source != "resdet":
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
    """A list, or the JSON text of one, as in safetensors' metadata."""
    if isinstance(value, str):
        value = json.loads(value)
    return list(value or [])


def _worth_telling(names: list[str]) -> list[str]:
    """`names` without buffers of old files that are never needed: anchors and pixel means."""
    return [n for n in names if not re.search(r"pixel_mean|pixel_std|anchor_generator|num_batches_tracked", n)]
