"""Panoptic segmentation (Kirillov et al. 2018, arXiv:1801.00868): instances and a label map -> one segment per pixel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

THINGS = 0  # the label of all things in the label maps of Panoptic FPN
ALL_THINGS = "things"  # its name


class Segment(NamedTuple):
    """label: of the instance for things, of the label map for stuff. area: in pixels. score, instance (index in `Instances`):
    None for stuff."""

    id: int
    label: int
    thing: bool
    area: int
    score: float | None = None
    instance: int | None = None


class Panoptic(NamedTuple):
    """ids (H, W) int32: the id of each pixel's segment, from 1; 0 for none. segments: ordered by id."""

    ids: np.ndarray
    segments: list[Segment]


def merge(
    masks: Iterable[tuple[tuple[int, int], np.ndarray]],
    scores: Sequence[float] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    semantic: np.ndarray,
    *,
    overlap: float = 0.5,
    stuff_area: int = 4096,
    things: Collection[int] = (THINGS,),
) -> Panoptic:
    """Instances by descending score, then stuff on the remaining pixels (Kirillov et al. 2018, section 7; like detectron2).

    masks: per instance a corner (y, x) and a crop (h, w) bool, in the order of `scores`, which descend. semantic (H, W) uint8.
    An instance gets those of its pixels that are still free; it is dropped if more than the fraction `overlap` of its pixels
    are taken, or all.
    Stuff with fewer than `stuff_area` pixels and the labels in `things` are dropped.
    """
    ids = np.zeros(semantic.shape, np.int32)
    segments: list[Segment] = []
    for row, (((y, x), crop), score, label) in enumerate(zip(masks, scores, labels, strict=True)):
        region = ids[y : y + crop.shape[0], x : x + crop.shape[1]]
        area = int(np.count_nonzero(crop))
        free = crop & (region == 0)
        num_free = int(np.count_nonzero(free))
        if not num_free or (area - num_free) / area > overlap:
            continue
        number = len(segments) + 1
        region[free] = number
        segments.append(Segment(number, int(label), True, num_free, float(score), row))
    free = ids == 0
    areas = np.bincount(semantic[free], minlength=256)
    for label in np.unique(semantic):  # 255 is unlabelled
        if label in things or label == 255 or areas[label] < stuff_area or not areas[label]:
            continue
        number = len(segments) + 1
        ids[free & (semantic == label)] = number
        segments.append(Segment(number, int(label), False, int(areas[label])))
    return Panoptic(ids, segments)


def encode_ids(ids: np.ndarray) -> np.ndarray:
    """(H, W) of integers below 2**24 -> the pixels of COCO's panoptic PNGs, (H, W, 3) uint8: id = R + 256 G + 65536 B."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
