"""Panoptic segmentation (Kirillov et al. 2018, arXiv:1801.00868): instances and a label map -> one segment for each pixel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

THINGS = 0  # the label that stands for all things in label maps beside instances
ALL_THINGS = "things"  # its name


class Segment(NamedTuple):
    """label: of a thing, the instance's; of stuff, the label map's. area: in pixels. score, instance: None for stuff;
    instance: the row of `Instances`."""

    id: int
    label: int
    thing: bool
    area: int
    score: float | None = None
    instance: int | None = None


class Panoptic(NamedTuple):
    """ids (H, W) int32: the segment of each pixel, 0 for none; segments: by their ids, which count from 1."""

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
    """Instances by falling score, then stuff where none is (Kirillov et al. 2018, section 7; in detectron2's form).

    masks: each a corner (y, x) and a crop (h, w) bool, in the order of `scores`, which fall. semantic (H, W) uint8.
    An instance of whose pixels more than the share `overlap` are taken is left out, another one gets those that are free.
    Stuff of fewer than `stuff_area` pixels is left out, and so are the labels in `things`.
    """
    ids = np.zeros(semantic.shape, np.int32)
    segments: list[Segment] = []
    for row, (((y, x), crop), score, label) in enumerate(zip(masks, scores, labels, strict=True)):
        region = ids[y : y + crop.shape[0], x : x + crop.shape[1]]
        area = int(np.count_nonzero(crop))
        free = crop & (region == 0)
        left = int(np.count_nonzero(free))
        if not area or (area - left) / area > overlap:
            continue
        number = len(segments) + 1
        region[free] = number
        segments.append(Segment(number, int(label), True, left, float(score), row))
    free = ids == 0
    areas = np.bincount(semantic[free], minlength=256)
    for label in np.unique(semantic):  # 255 is no class
        if label in things or label == 255 or areas[label] < stuff_area or not areas[label]:
            continue
        number = len(segments) + 1
        ids[free & (semantic == label)] = number
        segments.append(Segment(number, int(label), False, int(areas[label])))
    return Panoptic(ids, segments)
