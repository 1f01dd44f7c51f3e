"""Where labels go, so that they hide neither objects nor each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np

Rectangle = tuple[float, float, float, float]  # XYXY
RINGS = 6  # how many heights of a label it may be away from its object


def place_labels(boxes: np.ndarray, sizes: Sequence[tuple[float, float]], occupied: np.ndarray) -> list[Rectangle]:
    """A place for the label of each object, at its box or a little away from it.

    boxes: (N, 4) XYXY. sizes: (width, height) of each label. occupied: (H, W) bool, the pixels of all objects.
    A place that covers no earlier label comes first, then one that hides the fewest pixels of objects, then the nearest.
    """
    height, width = occupied.shape
    hidden = cv2.integral(occupied.astype(np.uint8))
    taken: list[Rectangle] = []
    for box, (w, h) in zip(boxes, sizes, strict=True):
        best: tuple[bool, int] | None = None
        chosen: Rectangle | None = None
        for x, y in _candidates(box, w, h):
            left, top = min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0))
            place = (left, top, left + w, top + h)
            cost = any(_overlap(place, other) for other in taken), _inside(hidden, place)
            if best is None or cost < best:
                best, chosen = cost, place
            if best == (False, 0):
                break
        assert chosen
        taken.append(chosen)
    return taken


def gap(box: np.ndarray, label: Rectangle) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The line from a box to its label; None where they touch."""
    start, end = [], []
    for low, high, first, last in ((box[0], box[2], label[0], label[2]), (box[1], box[3], label[1], label[3])):
        if last < low:
            pair = low, last
        elif first > high:
            pair = high, first
        else:
            pair = ((max(low, first) + min(high, last)) / 2,) * 2
        start.append(float(pair[0]))
        end.append(float(pair[1]))
    apart = max(abs(a - b) for a, b in zip(start, end, strict=True))
    return ((start[0], start[1]), (end[0], end[1])) if apart > 2 else None


def _candidates(box: np.ndarray, w: float, h: float) -> list[tuple[float, float]]:
    """Top left corners: above and below the box, beside it, inside it, then the same further and further away."""
    x1, y1, x2, y2 = box.tolist()
    columns = (x1, x2 - w, (x1 + x2 - w) / 2)
    around = [*itertools.product(columns, (y1 - h, y2)), *itertools.product((x2, x1 - w), (y1, y2 - h))]
    inside = list(itertools.product((x1, x2 - w), (y1, y2 - h)))
    further: list[tuple[float, float]] = []
    for k in range(1, RINGS):
        further += itertools.product(columns, (y1 - (k + 1) * h, y2 + k * h))
        further += itertools.product((x2 + k * h, x1 - w - k * h), (y1, y2 - h))
    return [*around, *inside, *further]


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inside(integral: np.ndarray, place: Rectangle) -> int:
    """How many occupied pixels a rectangle covers."""
    x1, y1, x2, y2 = (round(value) for value in place)
    return int(integral[y2, x2] - integral[y1, x2] - integral[y2, x1] + integral[y1, x1])
