"""Pure functions on keypoints: points -> heatmap targets, heatmaps -> points, horizontal flips.

Letters: P RoIs, K keypoints per object, S side of a heatmap. A keypoint is (x, y, visibility) with COCO's visibility: 0 not
labelled, 1 labelled but not visible, 2 visible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resdet.errors import UserError

Decode = Literal["detectron2", "torchvision"]
COCO_NAMES = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
    "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
]  # fmt: skip
COCO_EDGES = [
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (1, 2),
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
]  # fmt: skip
# Standard deviation of annotators per keypoint, relative to the object's size (https://cocodataset.org/#keypoints-eval).
COCO_SIGMAS = [
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
]  # fmt: skip
PIXEL_CENTRE = (
    0.5  # COCO's keypoints are pixel indices; adding this gives the continuous coordinate of the pixel's centre
)
OTHER_SIGMA = 0.05  # for keypoints that COCO does not have


class Skeleton(NamedTuple):
    """names: of the K keypoints. edges: pairs of indices, from 0, that drawings connect by lines."""

    names: list[str]
    edges: list[tuple[int, int]]


def heatmap_targets(keypoints: Tensor, rois: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The heatmap cell of each keypoint: (P, K, 3), (P, 4) XYXY -> index (P, K) int64 in [0, S * S), inside (P, K) bool.

    A point on the right or bottom edge of its RoI belongs to the last cell (as in Detectron). `inside` is False, with index 0,
    for keypoints that are not labelled or outside their RoI.
    """
    extent = (rois[:, 2:] - rois[:, :2]).clamp(min=1e-6)
    at = (keypoints[..., :2] - rois[:, None, :2]) * (size / extent)[:, None]  # (P, K, 2) in cells
    cell = torch.where(keypoints[..., :2] == rois[:, None, 2:], size - 1, at.floor()).to(torch.int64)
    inside = ((cell >= 0) & (cell < size)).all(dim=-1) & (keypoints[..., 2] > 0)
    return torch.where(inside, cell[..., 1] * size + cell[..., 0], 0), inside


def heatmaps_to_keypoints(logits: Tensor, boxes: Tensor, style: Decode = "detectron2") -> Tensor:
    """The maximum of each heatmap: (N, K, S, S), (N, 4) XYXY -> (N, K, 3) float32 x, y, score, in the frame of the boxes.

    The logits are resized bicubically to the box's size in whole pixels; the point is the centre of the highest pixel. The
    score is its probability in a softmax over the heatmap ("detectron2"), or the logit ("torchvision").
    """
    n, k = logits.shape[:2]
    found = logits.new_zeros(n, k, 3, dtype=torch.float32)
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = extent.ceil()
    for i, (w, h) in enumerate(pixels.to(torch.int64).tolist()):
        maps = logits[i : i + 1].float()
        large = F.interpolate(maps, size=(h, w), mode="bicubic", align_corners=False)[0].flatten(1)  # (K, h * w)
        top, place = large.max(dim=1)
        at = torch.stack([place % w, place // w], dim=1) + 0.5
        found[i, :, :2] = at * (extent[i] / pixels[i]) + boxes[i, :2]
        if style == "torchvision":
            found[i, :, 2] = top
        else:  # softmax; the numerator is exp(0) = 1
            found[i, :, 2] = 1 / (maps[0].flatten(1) - top[:, None]).exp().sum(dim=1)
    return found


def flip_order(names: Sequence[str], pairs: Sequence[tuple[str, str]] | None = None) -> list[int]:
    """The permutation of keypoints in a horizontally flipped image, where "left_eye" and "right_eye" are swapped.

    pairs: of names to swap; None: those that differ in "left" and "right", or in "l" and "r" as separate words, in any case.
    Raises `UserError` for a pair that is not of two of the names.
    """
    order = list(range(len(names)))
    if pairs is None:
        pairs = _mirrored_pairs(names)
    for pair in pairs:
        if len(set(pair)) != 2 or not set(pair) <= set(names):
            raise UserError(
                f"data.keypoint_flip_pairs: {list(pair)} is not a pair of different keypoints among {', '.join(names)}"
            )
        a, b = (names.index(name) for name in pair)
        if order[a] != a or order[b] != b:
            raise UserError(f"data.keypoint_flip_pairs: a keypoint of {list(pair)} is in another pair already")
        order[a], order[b] = b, a
    return order


def _mirrored_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    by_lower = {name.lower(): name for name in names}
    pairs = []
    for name in names:
        lower = name.lower()
        for left, right in ((r"left", r"right"), (r"(?<![a-z])l(?![a-z])", r"r")):
            other = by_lower.get(re.sub(left, right, lower), name)
            if other != name and by_lower[lower] == name:
                pairs.append((name, other))
                break
    return pairs
