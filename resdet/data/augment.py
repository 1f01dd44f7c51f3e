"""Any albumentations transforms on an image and its objects together, reproducibly.

The transforms see only the image and record how they moved its pixels; the objects follow at the end (`move.py`).
Each transform has its own random stream: `Compose(seed=)` would give all of them the same one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from resdet.data.geometry import Step, trace
from resdet.data.index import Objects
from resdet.data.move import move_objects
from resdet.data.transforms import build_compose, crop_size, leaves, moves_pixels, spoiled
from resdet.errors import UserError


class AugmentationError(UserError):
    """A transform cannot be applied to an image."""


class _Progress:
    """What a transform may need while it draws its parameters: the objects, itself, and the current image size."""

    objects: Objects
    transform: Any = None
    size: tuple[int, int] = (0, 0)


class Augmentations:
    """entries: [{"name": "RandomBrightnessContrast", "p": 0.5, …}, …], in order; containers take `transforms: […]`.

    Raises one `UserError` that lists every unknown name, unknown argument and wrong value, and every transform that
    cannot work here. swap (K,): for each keypoint the one it becomes where the image is mirrored.
    """

    def __init__(self, entries: Sequence[dict[str, Any]], swap: np.ndarray | None = None) -> None:
        import albumentations as A

        self.compose, self.swap = build_compose(entries), swap
        self.transforms = list(leaves(self.compose))
        self.geometric = any(moves_pixels(t) for t in self.transforms)
        self.progress = _Progress()
        for transform in self.transforms:
            if isinstance(transform, A.BaseCompose):
                transform.is_check_shapes = False  # since masks passed to crops no longer have the image's size
                continue
            transform.update_transform_params = partial(_note_progress, transform, self.progress)
            transform._key2func = {"image": transform.apply}
            if moves_pixels(transform):
                transform._key2func["steps"] = partial(_note_step, transform)

    def __call__(self, image: np.ndarray, objects: Objects, seed: Sequence[int]) -> tuple[np.ndarray, Objects]:
        """image (H, W, C) and its objects -> the same, transformed; objects that left the image are dropped.

        `seed`: integers that identify this draw; equal ones give equal results anywhere.
        Raises `AugmentationError` if a transform fails on this image.
        """
        for k, transform in enumerate(self.transforms):
            stream = np.random.default_rng([*seed, k])
            transform.set_random_state(stream, random.Random(int(stream.integers(2**63))))
        self.progress.objects = objects._replace(label_map=None)
        try:
            result = self.compose(image=image, steps=[])
        except MemoryError:
            raise
        except Exception as error:
            raise self._failure(error) from error
        problem = spoiled(result["image"], image)
        if problem:
            names = ", ".join(type(t).__name__ for t in self.transforms[1:])
            raise AugmentationError(f"data.train.augmentations ({names}) {problem}")
        moved = np.ascontiguousarray(result["image"])
        if result["steps"] and (len(objects.labels) or objects.label_map is not None):
            before, after = (image.shape[0], image.shape[1]), (moved.shape[0], moved.shape[1])
            objects = move_objects(objects, trace(result["steps"], before, after), self.swap)
        return moved, objects

    def try_on(self, size: tuple[int, int], draws: int = 8) -> None:
        """Raise `AugmentationError` if a crop is larger than an image of `size` (H, W), in any of some draws."""
        if any(crop_size(transform) for transform in self.transforms):
            nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])
            for draw in range(draws):
                self(np.zeros((*size, 3), np.uint8), nothing, [draw])

    def _failure(self, error: Exception) -> AugmentationError:
        name = f"data.train.augmentations: {type(self.progress.transform).__name__}"
        height, width = self.progress.size
        needed = crop_size(self.progress.transform)
        if needed and (needed[0] > height or needed[1] > width):
            return AugmentationError(
                f"{name} crops {needed[0]} x {needed[1]} (H x W) from an image of {height} x {width}: put "
                f"{{name: PadIfNeeded, min_height: {needed[0]}, min_width: {needed[1]}}} before it, or crop less"
            )
        reason = " ".join(str(error).split()) or type(error).__name__
        return AugmentationError(f"{name} fails on an image of {height} x {width} (H x W): {reason}")


def _note_progress(transform: Any, progress: _Progress, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Replaces the transform's `update_transform_params`, to pass the objects to the crops that use them."""
    import albumentations as A

    progress.transform, progress.size = transform, data["image"].shape[:2]
    if isinstance(transform, A.BBoxSafeRandomCrop | A.AtLeastOneBBoxRandomCrop | A.CropNonEmptyMaskIfExists):
        boxes = _boxes_now(progress, data["steps"])
        data["bboxes"] = boxes / np.tile(progress.size[::-1], 2)
        if isinstance(transform, A.CropNonEmptyMaskIfExists):
            data["mask"] = np.zeros(progress.size, np.uint8)
            for x1, y1, x2, y2 in boxes.astype(int):
                data["mask"][y1 : y2 + 1, x1 : x2 + 1] = 1
    updated: dict[str, Any] = type(transform).update_transform_params(transform, params, data)
    return updated


def _boxes_now(progress: _Progress, steps: Sequence[Step]) -> np.ndarray:
    """(G, 4) float64 XYXY in the image as it is after `steps`."""
    objects, size = progress.objects, progress.size
    if steps and len(objects.labels):
        objects = move_objects(objects, trace(steps, steps[0].size, size))
    return objects.boxes.astype(np.float64).clip(0, [size[1], size[0]] * 2)


def _note_step(transform: Any, steps: list[Step], **params: Any) -> list[Step]:
    return [*steps, Step(transform, params, (params["shape"][0], params["shape"][1]))]
