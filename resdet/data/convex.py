"""Polygons clipped by a convex window: what stays of an outline when an image is cropped or rotated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOLERANCE = 1e-3  # pixels


def rectangle(size: tuple[int, int]) -> np.ndarray:
    """(H, W) -> the image's corners (4, 2), clockwise as seen: the order that all windows here have."""
    height, width = size
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)


def oriented(window: np.ndarray) -> np.ndarray:
    """A polygon (V, 2), clockwise as seen."""
    x, y = window.T
    area = x @ np.roll(y, -1) - y @ np.roll(x, -1)
    return window if area >= 0 else window[::-1]


def distances(points: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(N, 2) and a convex polygon (V, 2) -> (V, N): how far each point lies inside of each edge, in pixels."""
    edges = np.roll(window, -1, 0) - window
    long = np.hypot(*edges.T) > 1e-9
    window, edges = window[long], edges[long]
    normals = np.stack([-edges[:, 1], edges[:, 0]], 1) / np.hypot(*edges.T)[:, None]
    inside: np.ndarray = normals @ points.T - (normals * window).sum(1)[:, None]
    return inside


def contains(window: np.ndarray, points: np.ndarray) -> bool:
    """Whether all points (N, 2) lie in the convex polygon `window` (V, 2), within a thousandth of a pixel."""
    return len(window) > 2 and bool((distances(points, window) >= -TOLERANCE).all())


def clip_polygon(polygon: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(N, 2) cut to the convex `window` (V, 2) -> (M, 2), with M = 0 if nothing stays (Sutherland and Hodgman 1974).

    Parts that come apart stay connected by edges along the window's border, which enclose no area.
    """
    for edge in range(len(window)):
        if len(polygon) < 3:
            return np.zeros((0, 2))
        polygon = _clip_at(polygon, window, edge)
    return polygon if len(polygon) > 2 else np.zeros((0, 2))


def _clip_at(polygon: np.ndarray, window: np.ndarray, edge: int) -> np.ndarray:
    start, along = window[edge], window[(edge + 1) % len(window)] - window[edge]
    depth = (polygon - start) @ np.array([-along[1], along[0]])
    if (depth >= 0).all():
        return polygon
    after, deep = np.roll(polygon, -1, 0), np.roll(depth, -1)
    crossing = (depth >= 0) != (deep >= 0)
    share = np.divide(depth, depth - deep, out=np.zeros_like(depth), where=crossing)
    cut = polygon + share[:, None] * (after - polygon)
    both = np.stack([polygon, cut], 1)  # each corner, then where its edge crosses
    kept = np.stack([depth >= 0, crossing], 1)
    clipped: np.ndarray = both[kept]
    return clipped


def clipped_box(polygons: Sequence[np.ndarray], window: np.ndarray) -> np.ndarray | None:
    """The tight box (4,) XYXY of the part of the polygons inside the convex `window`; None if there is none.

    Not simply around `clip_polygon`, whose connecting edges may reach further than the polygon.
    """
    if len(window) < 3:
        return None
    ends = [_segments_inside(polygon, window) for polygon in polygons]
    corners = [window[_even_odd(window, polygon)] for polygon in polygons]
    points = np.concatenate([*ends, *corners])
    return np.concatenate([points.min(0), points.max(0)]) if len(points) else None


def _segments_inside(polygon: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Both ends of what lies inside of each of a polygon's edges: (M, 2) (Cyrus and Beck 1978)."""
    after = np.roll(polygon, -1, 0)
    start, end = distances(polygon, window), distances(after, window)
    change = end - start
    at = np.divide(-start, change, out=np.zeros_like(start), where=change != 0)
    enter = np.where(change > 0, at, 0).max(0).clip(0)
    leave = np.where(change < 0, at, 1).min(0).clip(max=1)
    inside = (enter <= leave) & ~((change == 0) & (start < 0)).any(0)
    along = after - polygon
    both = np.concatenate([polygon + enter[:, None] * along, polygon + leave[:, None] * along])
    kept: np.ndarray = both[np.tile(inside, 2)]
    return kept


def _even_odd(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """(V, 2) -> (V,) bool: whether each point lies in a polygon."""
    (x1, y1), (x2, y2) = polygon.T, np.roll(polygon, -1, 0).T
    x, y = points[:, :1], points[:, 1:]
    spans = (y1 > y) != (y2 > y)
    where = x1 + (y - y1) * np.divide(x2 - x1, y2 - y1, out=np.zeros_like(x1), where=y1 != y2)
    inside: np.ndarray = (spans & (x < where)).sum(1) % 2 == 1
    return inside
