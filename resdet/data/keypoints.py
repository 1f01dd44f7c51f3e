"""COCO's keypoints in: `categories[].keypoints` and `skeleton`, and `annotations[].keypoints`, checked.

COCO's coordinates are pixel indices: a keypoint on the first pixel is at 0. Ours are continuous: its centre is at 0.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from resdet.keypoints import PIXEL_CENTRE, Skeleton

OUTSIDE = "labelled keypoints outside their image (taken as not labelled)"


def read_skeleton(categories: Sequence[dict[str, Any]], problems: list[str]) -> tuple[Skeleton | None, set[Any]]:
    """What the categories that list keypoints have in common, and their ids; (None, none) where they list none, or
    different ones, which no single head can learn."""
    listing = [entry for entry in categories if entry.get("keypoints")]
    found: list[Skeleton] = []
    for entry in listing:
        what, names, pairs = f"category {entry.get('name')!r}", entry["keypoints"], entry.get("skeleton") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problems.append(f"{what}: keypoints {str(names)[:60]} is not a list of names")
        elif len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            problems.append(f"{what}: its keypoints name {twice!r} twice")
        elif (edges := _edges(pairs, len(names))) is None:
            problems.append(f"{what}: its skeleton must be pairs of keypoints' numbers from 1 to {len(names)}")
        else:
            found.append(Skeleton(names, edges))
    if not found or any(other.names != found[0].names for other in found):
        return None, set()
    return found[0], {entry.get("id") for entry in listing}


def _edges(pairs: Any, count: int) -> list[tuple[int, int]] | None:
    """Pairs of numbers from 0; COCO counts from 1, some tools from 0."""
    if not isinstance(pairs, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        return None
    numbers = [number for pair in pairs for number in pair]
    if not all(type(number) is int for number in numbers):
        return None
    first = 0 if 0 in numbers else 1
    if not all(first <= number < first + count for number in numbers):
        return None
    return [(a - first, b - first) for a, b in pairs]


def parse_keypoints(
    value: Any, names: Sequence[str], size: tuple[int, int], problems: list[str], skipped: Counter[str]
) -> list[float] | None:
    """[x, y, visibility, …] of an annotation in an image of `size` (H, W), those outside it counted and made unlabelled;
    None where it has none, or a problem."""
    if not value:
        return None
    if wrong := keypoint_problem(value, len(names)):
        problems.append(wrong)
        return None
    if away := outside(value, size):
        skipped[OUTSIDE] += len(away)
        return without_outside(value, size)
    return value  # type: ignore[no-any-return]


def keypoint_problem(value: Any, count: int) -> str:
    """What makes the keypoints of an annotation unusable; "" if nothing does."""
    if not isinstance(value, list) or not all(type(v) in (int, float) and abs(v) < 1e9 for v in value):
        return f"keypoints {str(value)[:60]} is not [x, y, visibility, …]"
    if len(value) != 3 * count:
        return (
            f"{len(value)} numbers in keypoints, but its category lists {count} keypoints, which take "
            f"3 x {count} = {3 * count}"
        )
    if strange := [v for v in value[2::3] if v not in (0, 1, 2)]:
        return f"visibility {strange[0]:g} of a keypoint is not 0 (not labelled), 1 (hidden) or 2 (visible)"
    return ""


def outside(value: Sequence[float], size: tuple[int, int]) -> list[int]:
    """The numbers of the labelled keypoints that do not lie in an image of `size` (H, W)."""
    height, width = size
    return [
        k
        for k, (x, y, seen) in enumerate(zip(value[::3], value[1::3], value[2::3], strict=True))
        if seen and not (-PIXEL_CENTRE <= x <= width and -PIXEL_CENTRE <= y <= height)
    ]


def without_outside(value: Sequence[float], size: tuple[int, int]) -> list[float]:
    """[x, y, visibility, …] with those outside an image of `size` (H, W) not labelled."""
    cleaned = list(value)
    for k in outside(value, size):
        cleaned[3 * k : 3 * k + 3] = 0, 0, 0
    return cleaned


def dense_keypoints(poses: Sequence[list[float] | None], count: int) -> np.ndarray:
    """[x, y, visibility, …] in pixels' numbers, or None, of M objects -> (M, K, 3) float32 in continuous coordinates."""
    keypoints = np.zeros((len(poses), count, 3), np.float32)
    for row, pose in zip(keypoints.reshape(len(poses), 3 * count), poses, strict=True):
        if pose is not None:
            row[:] = pose
    labelled = keypoints[..., 2:] > 0
    keypoints[..., :2] = np.where(labelled, keypoints[..., :2] + PIXEL_CENTRE, 0)
    return keypoints
