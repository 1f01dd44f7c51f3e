"""A bitmap cropped to its object: memory and time depend on the object's size, not the image's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from resdet.masks import Rle, crop_bitmap, rle_runs


class Patch(NamedTuple):
    """A mask's pixels: `bitmap` (h, w) uint8 of 0 and 1, whose top left pixel is column `x` and row `y` of the image.

    Everything outside is background; `x` and `y` may be negative.
    """

    x: int
    y: int
    bitmap: np.ndarray

    def box(self) -> np.ndarray | None:
        """(4,) float64 XYXY, tight around the foreground pixels; None if there are none."""
        ys, xs = np.flatnonzero(self.bitmap.any(1)), np.flatnonzero(self.bitmap.any(0))
        if not len(ys):
            return None
        return np.array([self.x + xs[0], self.y + ys[0], self.x + xs[-1] + 1, self.y + ys[-1] + 1], np.float64)

    def whole(self, size: tuple[int, int]) -> np.ndarray:
        """As an image of `size` (H, W): uint8 of 0 and 1."""
        image = np.zeros(size, np.uint8)
        height, width = self.bitmap.shape
        image[self.y : self.y + height, self.x : self.x + width] = self.bitmap[: size[0] - self.y, : size[1] - self.x]
        return image

    def crop(self, box: np.ndarray, side: int) -> np.ndarray:
        """The mask cropped to `box` (4,) -> (side, side) uint8, see `crop_bitmap`."""
        padded = np.pad(self.bitmap, 1)  # crop_bitmap repeats the border: it shall be background
        x, y = self.x - 1, self.y - 1
        if not (box[0] < x + padded.shape[1] and box[1] < y + padded.shape[0] and box[2] > x and box[3] > y):
            return np.zeros((side, side), np.uint8)
        return crop_bitmap(padded, box - np.array([x, y, x, y], box.dtype), side)


def patch_of(
    segmentation: Sequence[Sequence[float]] | Rle | Patch | None, box: np.ndarray, size: tuple[int, int]
) -> Patch:
    """An object's mask in an image of `size` (H, W); its filled box where it has none or one thinner than a pixel."""
    if isinstance(segmentation, Patch):
        return segmentation
    if isinstance(segmentation, dict):
        return patch_of_rle(segmentation)
    if segmentation:
        patch = patch_of_polygons(segmentation, size)
        if patch.bitmap.any():
            return patch
    return patch_of_box(box)


def patch_of_rle(rle: Rle) -> Patch:
    """Decode only the rows and columns that hold foreground."""
    height: int = rle["size"][0]  # type: ignore[index]
    ends = np.cumsum(rle_runs(rle["counts"]))
    begin, end = ends[: len(ends) // 2 * 2 : 2], ends[1::2]  # of each run of ones, down the columns
    begin, end = begin[end > begin], end[end > begin]
    if not len(begin):
        return Patch(0, 0, np.zeros((0, 0), np.uint8))
    first, last = int(begin[0]) // height, (int(end[-1]) - 1) // height + 1
    change = np.zeros((last - first) * height + 1, np.int8)
    change[begin - first * height] += 1
    change[end - first * height] -= 1
    columns = np.cumsum(change[:-1], dtype=np.int8).reshape(last - first, height)
    rows = np.flatnonzero(columns.any(0))
    bitmap = np.ascontiguousarray(columns[:, rows[0] : rows[-1] + 1].T).view(np.uint8)
    return Patch(first, int(rows[0]), bitmap)


def patch_of_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Patch:
    """Rasterise polygons (each [x1, y1, x2, y2, …]) within an image of `size` (H, W), as COCO does."""
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    x, y = np.floor(points.min(0)).clip(0, size[::-1]).astype(int)
    x2, y2 = np.ceil(points.max(0)).clip([x, y], size[::-1]).astype(int)
    if x2 == x or y2 == y:
        return Patch(0, 0, np.zeros((0, 0), np.uint8))
    moved = [(np.reshape(p, (-1, 2)) - [x, y]).ravel().tolist() for p in polygons]
    bitmap: np.ndarray = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(moved, int(y2 - y), int(x2 - x))))
    return Patch(int(x), int(y), bitmap)


def patch_of_box(box: np.ndarray) -> Patch:
    """A filled box, rounded outwards to whole pixels."""
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    return Patch(int(x1), int(y1), np.ones((y2 - y1, x2 - x1), np.uint8))
