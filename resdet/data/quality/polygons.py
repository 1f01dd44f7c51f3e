"""Self-intersection of polygons [x, y, …], as a share of their area."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask


def signed_area(points: np.ndarray) -> float:
    """(N, 2) -> area, positive one way round."""
    x, y = points.T
    return float(0.5 * (x * np.roll(y, -1) - y * np.roll(x, -1)).sum())


def crossed_share(polygon: Iterable[float]) -> float:
    """How much of a polygon overlaps itself or is inside out: 0 for a simple polygon, 1 for a symmetric figure of eight.

    By area, not by the number of crossings: hand-drawn outlines often cross themselves by a pixel, which does no harm.
    """
    points = np.reshape(np.fromiter(polygon, float), (-1, 2))
    points = points[:: 1 + len(points) // 4096]  # more make no other shape
    low, high = points.min(0), points.max(0)
    if (high - low).min() <= 0:
        return 0.0
    # A simple outline's area is the same by the shoelace formula and by its pixels; only where it is not, look closely.
    fine = ((points - low) / (high - low) * 256).ravel().tolist()
    pixels = float(coco_mask.area(coco_mask.frPyObjects([fine], 256, 256))[0])
    if abs(abs(signed_area(np.reshape(fine, (-1, 2)))) - pixels) < 0.05 * pixels:
        return 0.0
    # The winding number of points on a grid: another sign, or over one, where the outline overlaps itself.
    side = 64
    scaled = (points - low) / (high - low) * side
    centres = np.arange(side) + 0.5
    starts, ends = scaled, np.roll(scaled, -1, axis=0)
    low_y, high_y = np.minimum(starts[:, 1], ends[:, 1]), np.maximum(starts[:, 1], ends[:, 1])
    crosses = (low_y[:, None] <= centres) & (centres < high_y[:, None])  # (N, side): edge k passes row r
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (ends[:, 0] - starts[:, 0]) / (ends[:, 1] - starts[:, 1])
        at = starts[:, :1] + slope[:, None] * (centres - starts[:, 1:])
    direction = np.where(ends[:, 1] > starts[:, 1], 1, -1)
    winding = np.zeros((side, side), dtype=int)
    for k, row in zip(*np.nonzero(crosses), strict=True):
        winding[row] += direction[k] * (centres > at[k, row])
    positive, negative, double = (winding > 0).sum(), (winding < 0).sum(), (np.abs(winding) > 1).sum()
    total = (winding != 0).sum()
    return float((min(positive, negative) + double) / total) if total else 0.0
