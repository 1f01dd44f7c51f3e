"""Pipelines, datasets and schedules of an mmdetection config, of versions 2 and 3 -> our values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from resdet.errors import UserError
from resdet.migration import shared
from resdet.migration.keys import Leaves, NotTaken, find

IMAGES = "--images"  # the number of training images, from the command line
COCO_TRAIN = {True: 117_266, False: 118_287}  # train2017; whether images without objects are left out
PANOPTIC = "CocoPanopticDataset"
READ = ("CocoDataset", PANOPTIC, "RepeatDataset", "ClassBalancedDataset")
TRAIN, VAL = ("train_dataloader.", "data.train."), ("val_dataloader.", "data.val.", "data.test.")


def of(splits: Sequence[str], *keys: str) -> str:
    """The patterns of keys in a split's dataset or pipeline, whatever wraps it."""
    return " ".join(f"{split}*{key}" for split in splits for key in keys)


def _get(all_: Leaves, splits: Sequence[str], *keys: str, default: Any = None) -> Any:
    missing = object()
    for pattern in of(splits, *keys).split():
        value = find(all_, pattern, missing)
        if value is not missing:
            return value
    return default


# ---- sizes -----------------------------------------------------------------------------------------------------------


def _short(scale: Sequence[int]) -> int:
    return min(scale)


def training_sizes(all_: Leaves) -> list[int]:
    """The short sides that training draws from. Raises `NotTaken` for other ways to resize."""
    if _get(all_, TRAIN, "pipeline.R*.ratio_range") is not None:
        raise NotTaken("resizing by a random factor is not supported; data.min_size lists short sides to draw from")
    drawn = _get(all_, TRAIN, "pipeline.RandomChoiceResize.scales")
    if drawn is not None:
        return [_short(scale) for scale in drawn]
    scale = _get(all_, TRAIN, "pipeline.R*Resize.scale", "pipeline.Resize.img_scale", "pipeline.Resize.scale")
    if scale is None:
        raise NotTaken("the training pipeline has no known Resize")
    if isinstance(scale[0], int):
        return [_short(scale)]
    low, high = _short(scale[0]), _short(scale[-1])
    if _get(all_, TRAIN, "pipeline.Resize.multiscale_mode") == "value":
        return [_short(one) for one in scale]
    return list(range(min(low, high), max(low, high) + 1))


def _test_scale(all_: Leaves) -> Sequence[int] | None:
    scale: Sequence[int] | None = _get(
        all_, VAL, "pipeline.Resize.scale", "pipeline.MultiScaleFlipAug.img_scale", "pipeline.Resize.img_scale"
    )
    return scale


def training_scale(_: Any, all_: Leaves) -> dict[str, Any]:
    scales = _get(
        all_, TRAIN, "pipeline.RandomChoiceResize.scales", "pipeline.R*Resize.scale", "pipeline.Resize.img_scale",
        "pipeline.Resize.scale",
    )  # fmt: skip
    longest = {max(scale) for scale in ([scales] if isinstance(scales[0], int) else scales)}
    if len(longest) > 1:
        raise NotTaken("each short side has its own longest side; data.max_size is one for all")
    test = _test_scale(all_)
    train = training_sizes(all_)
    return {"data.min_size": shared.sizes(train, _short(test) if test else train[-1]), "data.max_size": longest.pop()}


def test_scale(value: Sequence[int], all_: Leaves) -> dict[str, Any]:
    train = training_sizes(all_)
    taken = shared.test_size(train, _short(value))
    longest = training_scale(None, all_)["data.max_size"]
    if max(value) != longest:
        raise NotTaken(f"evaluation uses the longest side of training ({longest})", taken)
    return taken


def flip(value: Any, all_: Leaves) -> dict[str, Any]:
    if _get(all_, TRAIN, "pipeline.RandomFlip.direction", default="horizontal") != "horizontal":
        raise NotTaken("data.flip is horizontal; data.train.augmentations has VerticalFlip")
    if not isinstance(value, int | float):
        raise NotTaken("data.flip is one probability")
    return {"data.flip": value}


# ---- schedule --------------------------------------------------------------------------------------------------------


def batch_size(all_: Leaves) -> int:
    """Of all processes: as the config states it for scaling its rate, or eight GPUs', for which its configs are made."""
    stated = all_.get("auto_scale_lr.base_batch_size")
    size = stated or 8 * (all_.get("train_dataloader.batch_size") or all_["data.samples_per_gpu"])
    return int(size)


def set_batch_size(_: Any, all_: Leaves) -> dict[str, Any]:
    return {"train.batch_size": batch_size(all_)}


def images(all_: Leaves) -> int:
    """Images per epoch: given by --images, known, or counted in the annotation file. Raises `NotTaken`."""
    times = _get(all_, TRAIN, "times", default=1)
    if IMAGES in all_:
        return int(times) * int(all_[IMAGES])
    name = _get(all_, TRAIN, "ann_file")
    drop_empty = bool(_get(all_, TRAIN, "filter_cfg.filter_empty_gt", "filter_empty_gt", default=True))
    if isinstance(name, str) and PurePosixPath(name).name in ("instances_train2017.json", "panoptic_train2017.json"):
        return int(times) * COCO_TRAIN[drop_empty]
    count = _counted(_joined(all_, TRAIN, name), drop_empty) if isinstance(name, str) else None
    if count is None:
        raise NotTaken("needs the number of training images: pass --images N")
    return int(times) * count


def _counted(path: str, drop_empty: bool) -> int | None:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        owners = {entry["image_id"] for entry in content["annotations"] if not entry.get("iscrowd")}
        if any("segments_info" in entry for entry in content["annotations"]):  # images with things
            things = {category["id"] for category in content["categories"] if category["isthing"]}
            owners = {
                entry["image_id"]
                for entry in content["annotations"]
                if any(segment["category_id"] in things for segment in entry["segments_info"])
            }
        return sum(1 for image in content["images"] if not drop_empty or image["id"] in owners)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def iterations(epochs: float, all_: Leaves) -> int:
    """An epoch ends with an incomplete batch there."""
    return round(epochs * math.ceil(images(all_) / batch_size(all_)))


def by_epoch(all_: Leaves) -> bool:
    kind = all_.get("train_cfg.type") or all_.get("runner.type") or "EpochBased"
    return "Iter" not in str(kind)


def steps(value: Any, all_: Leaves, epochs: bool) -> list[int]:
    """Milestones in epochs or iterations -> in iterations."""
    return [iterations(v, all_) if epochs else v for v in ([value] if isinstance(value, int) else value)]


def often(value: Any, all_: Leaves) -> int:
    """An interval of evaluations or checkpoints."""
    return iterations(value, all_) if by_epoch(all_) else int(value)


# ---- datasets --------------------------------------------------------------------------------------------------------


def _joined(all_: Leaves, splits: Sequence[str], name: str) -> str:
    root = _get(all_, splits, "data_root", default="") or ""
    return str(PurePosixPath(root) / name)


def paths(ours: str, splits: Sequence[str]) -> Any:
    """A converter of the keys that say where a split lies; `data.root` alone where it lies as COCO does."""

    def convert(_: Any, all_: Leaves) -> dict[str, Any]:
        name = _get(all_, splits, "ann_file")
        folder = _get(all_, splits, "data_prefix.img", "img_prefix")
        if not isinstance(name, str) or not isinstance(folder, str):
            raise NotTaken(f"set data.{ours}.images and data.{ours}.annotations")
        kind = _get(all_, splits, "dataset.type", "type", default="CocoDataset")
        if kind not in READ:
            raise NotTaken(f"set data.{ours}: a {kind} is read by data.format")
        annotations, image_folder = (
            PurePosixPath(_joined(all_, splits, name)),
            PurePosixPath(_joined(all_, splits, folder)),
        )
        root, part = image_folder.parent, f"{ours}2017"
        of_kind = "panoptic" if kind == PANOPTIC else "instances"
        if image_folder.name == part and annotations == root / "annotations" / f"{of_kind}_{part}.json":
            return {"data.root": str(root)}
        return {f"data.{ours}.images": str(image_folder), f"data.{ours}.annotations": str(annotations)}

    return convert


def require_images(count: int | None) -> dict[str, Any]:
    if count is not None and count < 1:
        raise UserError(f"--images {count}: must be the number of training images, 1 or more")
    return {} if count is None else {IMAGES: count}
