"""A PyTorch dataset of the user's own -> `Source`; its images are read from it when they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from resdet.data.formats.common import Builder, Source
from resdet.errors import UserError
from resdet.masks import encode_bitmap


class TorchDataset(Protocol):
    """What `train(config, dataset=…)` takes, after torchvision's convention for detection.

    dataset[i] -> (image, target)
    image:  (H, W, C) uint8 array, a Pillow image, or a (C, H, W) tensor, uint8 or floating point in 0..1; RGB.
    target: {"boxes": (N, 4) XYXY in pixels, "labels": (N,) indices of `class_names`, and where there are any
            "masks": (N, H, W) bool or 0/1, "keypoints": (N, K, 3) x, y, visibility, "iscrowd": (N,)}
    `keypoint_names`, a list of K names, goes with keypoints. The same index must give the same item every time; it is read in
    worker processes.
    """

    class_names: Sequence[str]

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Any, Mapping[str, Any]]: ...


def source_of(dataset: TorchDataset, split: str, channels: int = 3) -> Source:
    """The annotations of a dataset, for which every item is read once. Raises `UserError` for items of another form."""
    name = f"{type(dataset).__name__} ({split})"
    classes = getattr(dataset, "class_names", None)
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not all(isinstance(c, str) for c in classes):
        raise UserError(f"{name}: needs class_names, a list of the names that its labels index, got {classes!r}")
    if doubled := sorted({c for c in classes if list(classes).count(c) > 1}):
        raise UserError(f"{name}: class_names has {doubled[0]!r} twice")
    builder = Builder(Path(name), Path(name), classes)
    for index in range(len(dataset)):
        item = f"{name}[{index}]"
        image, target = _pair(dataset[index], item)
        if len(target.get("keypoints", ())) and not hasattr(dataset, "keypoint_names"):
            raise UserError(f"{item}: has keypoints, but {name} has no keypoint_names, a list of their names")
        height, width, _ = to_pixels(image, item, channels).shape
        builder.image(Path(name, str(index)), (height, width))
        _add_objects(builder, target, (height, width), item)
    source = builder.source
    if (keypoints := getattr(dataset, "keypoint_names", None)) is not None:
        for category in source.content["categories"]:
            category |= {"keypoints": list(keypoints), "skeleton": []}
    source.read_image = partial(read_item, dataset, name, channels)
    return source


def read_item(dataset: TorchDataset, name: str, channels: int, index: int) -> np.ndarray:
    """The image of `dataset[index]`: (H, W, channels) uint8."""
    return to_pixels(dataset[index][0], f"{name}[{index}]", channels)


def to_pixels(image: Any, item: str, channels: int) -> np.ndarray:
    """-> (H, W, channels) uint8, grey images repeated where 3 are needed. item: what an error calls it. Raises `UserError`."""
    if isinstance(image, torch.Tensor) and image.ndim == 3:
        image = image.permute(1, 2, 0).cpu()
        image = (image * 255).round().clamp(0, 255).byte().numpy() if image.is_floating_point() else image.numpy()
    elif isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise UserError(
                f"{item}: its Pillow image has mode {image.mode}, more than 8 bits: scale it to uint8, as (H, W, C)"
            )
        kept = ("L", "RGB", "RGBA") if channels == 4 else ("L", "RGB")
        image = np.array(image if image.mode in kept else image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.ndim == 2:
        image = image[..., None]
    if not (isinstance(image, np.ndarray) and image.ndim == 3 and image.dtype == np.uint8 and image.size):
        shape = f"{tuple(image.shape)} {image.dtype}" if hasattr(image, "shape") else type(image).__name__
        raise UserError(
            f"{item}: its image must be (H, W, C) uint8, a Pillow image, or a (C, H, W) tensor of uint8 or of floats in 0..1, "
            f"got {shape}"
        )
    if image.shape[2] == 1 and channels == 3:
        image = image.repeat(3, axis=2)
    if image.shape[2] != channels:
        raise UserError(f"{item}: its image has {image.shape[2]} channels, but model.input.channels is {channels}")
    return np.ascontiguousarray(image)


def _pair(item: Any, name: str) -> tuple[Any, Mapping[str, Any]]:
    if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Mapping)):
        raise UserError(f"{name}: must be (image, target) with a dictionary as target, got a {type(item).__name__}")
    if missing := [key for key in ("boxes", "labels") if key not in item[1]]:
        raise UserError(
            f"{name}: its target has no {missing[0]!r}; it has {', '.join(map(repr, item[1])) or 'nothing'}"
        )
    return item[0], item[1]


def _add_objects(builder: Builder, target: Mapping[str, Any], size: tuple[int, int], item: str) -> None:
    classes = list(builder.classes)
    labels = np.asarray(target["labels"])
    count = len(labels)
    shapes = {"boxes": (4,), "labels": (), "masks": size, "keypoints": (-1, 3), "iscrowd": ()}
    given = {}
    for key in (key for key in shapes if key in target):
        array = np.asarray(target[key])
        try:
            given[key] = array.reshape(count, *shapes[key]) if count else array
            fits = not count or array.shape[:1] == (count,)
        except ValueError:
            fits = False
        if not fits:
            raise UserError(f"{item}: {key!r} of {count} labels must be {(count, *shapes[key])}, got {array.shape}")
    for number in range(count):
        label, origin = labels[number].item(), f"{item}, object {number}"
        if label not in range(len(classes)):
            raise UserError(
                f"{origin}: label {label} is no index of class_names (0 to {len(classes) - 1}; the background has none)"
            )
        mask = given["masks"][number] > 0 if "masks" in given else np.zeros(0, bool)
        x0, y0, x1, y1 = given["boxes"][number].tolist()
        builder.object(
            len(builder.source.content["images"]), classes[int(label)], [x0, y0, x1 - x0, y1 - y0], origin,
            encode_bitmap(mask) if mask.any() else None,
            given["keypoints"][number].ravel().tolist() if "keypoints" in given else None,
            crowd="iscrowd" in given and bool(given["iscrowd"][number]),
        )  # fmt: skip
