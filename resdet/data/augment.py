"""Any albumentations transforms on a picture and its objects together, reproducibly.

Objects travel as bitmaps, the one form that every geometric transform handles; photometric transforms see the picture
alone. Each transform draws from a stream of its own: `Compose(seed=)` would give all of them the same one.
"""

from __future__ import annotations

import difflib
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resdet.data.index import Objects, Polygons
from resdet.errors import UserError, listed
from resdet.masks import Rle, crop_bitmap, decode_rle

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it would ask the network for a newer version


class Augmentations:
    """entries: [{"name": "RandomBrightnessContrast", "p": 0.5, …}, …], in order; containers take `transforms: […]`.

    Raises one `UserError` that lists every unknown name, unknown argument and wrong value.
    """

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        import albumentations  # takes a second: only where something is to be augmented

        problems: list[str] = []
        transforms = [_build(entry, problems) for entry in entries]
        if problems:
            raise listed("data.train.augmentations:", problems)
        self.compose = albumentations.Compose(transforms)
        self.transforms = list(_leaves(self.compose))
        self.geometric = any(isinstance(t, albumentations.DualTransform) for t in self.transforms)

    def __call__(self, image: np.ndarray, objects: Objects, seed: Sequence[int]) -> tuple[np.ndarray, Objects]:
        """image (H, W, 3) uint8 and its objects -> the same, transformed; objects that left the picture are gone.

        `seed`: integers that name this draw; the same ones give the same result anywhere.
        """
        for k, transform in enumerate(self.transforms):
            stream = np.random.default_rng([*seed, k])
            transform.set_random_state(stream, random.Random(int(stream.integers(2**63))))
        if not self.geometric or not len(objects.labels):
            return self._checked(self.compose(image=image)["image"]), objects
        bitmaps = [to_bitmap(objects, g, (image.shape[0], image.shape[1])) for g in range(len(objects.labels))]
        result = self.compose(image=image, masks=bitmaps)
        return self._checked(result["image"]), _moved(objects, bitmaps, result["masks"])

    def _checked(self, image: np.ndarray) -> np.ndarray:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            names = ", ".join(type(t).__name__ for t in self.transforms)
            raise UserError(
                f"data.train.augmentations ({names}): the picture must stay (H, W, 3) uint8; "
                "leave out Normalize, ToFloat and ToTensorV2, the model does that"
            )
        return np.ascontiguousarray(image)


def to_bitmap(objects: Objects, g: int, size: tuple[int, int]) -> np.ndarray:
    """Object g as (H, W) uint8 of 0 and 1; its filled box where it has no mask."""
    from pycocotools import mask as coco_mask

    segmentation = objects.segmentations[g]
    if isinstance(segmentation, dict):
        return decode_rle(segmentation, *size)
    if segmentation:
        bitmap: np.ndarray = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(segmentation, *size)))
        if bitmap.any():
            return bitmap
    bitmap = np.zeros(size, np.uint8)
    x1, y1 = np.floor(objects.boxes[g, :2]).astype(int)
    x2, y2 = np.ceil(objects.boxes[g, 2:]).astype(int)
    bitmap[y1:y2, x1:x2] = 1
    return bitmap


def _moved(objects: Objects, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> Objects:
    """Boxes and masks from the transformed bitmaps. An object that no transform touched keeps its exact outline."""
    boxes, labels = [], []
    segmentations: list[Polygons | Rle | None] = []
    for g, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.shape == new.shape and np.array_equal(old, new):
            boxes.append(objects.boxes[g])
            segmentations.append(objects.segmentations[g])
        else:
            ys, xs = np.flatnonzero(new.any(1)), np.flatnonzero(new.any(0))
            if not len(ys):
                continue
            boxes.append(np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32))
            segmentations.append(None if objects.segmentations[g] is None else {"bitmap": np.asarray(new)})
        labels.append(objects.labels[g])
    return Objects(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64).reshape(-1), segmentations)


def crop_any(segmentation: Polygons | Rle, box: np.ndarray, size: tuple[int, int], side: int) -> np.ndarray:
    """A bitmap or an RLE mask -> (side, side) uint8 crop of its box."""
    assert isinstance(segmentation, dict)
    bitmap = segmentation.get("bitmap")
    return crop_bitmap(bitmap if isinstance(bitmap, np.ndarray) else decode_rle(segmentation, *size), box, side)


def _build(entry: Any, problems: list[str]) -> Any:
    import albumentations as A

    arguments = dict(entry) if isinstance(entry, dict) else {}
    name = arguments.pop("name", None)
    found = getattr(A, str(name), None)
    if not (isinstance(found, type) and issubclass(found, A.BasicTransform | A.BaseCompose)):
        known = [n for n in dir(A) if isinstance(getattr(A, n), type)]
        near = difflib.get_close_matches(str(name), known, n=1)
        problems.append(f"{name!r} is no albumentations transform" + (f"; did you mean {near[0]}?" if near else ""))
        return None
    if "transforms" in arguments:
        arguments["transforms"] = [_build(inner, problems) for inner in arguments["transforms"]]
    if problems:
        return None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not valid for transform.*")
            return found(**arguments)
    except (TypeError, ValueError, UserWarning) as error:
        problems.append(f"{name}: {' '.join(str(error).split())}")
        return None


def _leaves(transform: Any) -> Iterator[Any]:
    """Every transform, containers included: those draw which of theirs to apply."""
    yield transform
    for inner in getattr(transform, "transforms", ()):
        yield from _leaves(inner)
