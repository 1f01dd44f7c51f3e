"""Pure functions on keypoints: heatmap targets in an RoI, heatmaps back to points, flips.

Letters: P RoIs, K keypoints of an object, S the heatmap's side. A keypoint is (x, y, visibility) with COCO's visibility: 0 not
labelled, 1 labelled but hidden, 2 visible.
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
# How far annotators differ, by keypoint, as a share of an object's size (https://cocodataset.org/#keypoints-eval).
COCO_SIGMAS = [
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
]  # fmt: skip
PIXEL_CENTRE = 0.5  # what a pixel's number, as COCO's keypoints are, lacks to the continuous coordinate of its centre
OTHER_SIGMA = 0.05  # of keypoints that COCO does not have


class Skeleton(NamedTuple):
    """names: of K keypoints, in order. edges: pairs of their numbers, from 0, that are drawn as limbs."""

    names: list[str]
    edges: list[tuple[int, int]]


def heatmap_targets(keypoints: Tensor, rois: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The heatmap cell of each keypoint: (P, K, 3), (P, 4) XYXY -> index (P, K) int64 in [0, S * S), inside (P, K) bool.

    A point on an RoI's right or lower edge belongs to the last cell (Heckbert's rule, as Detectron has it). `inside` is False,
    with index 0, for a keypoint that is not labelled or lies outside the RoI.
    """
    extent = (rois[:, 2:] - rois[:, :2]).clamp(min=1e-6)
    at = (keypoints[..., :2] - rois[:, None, :2]) * (size / extent)[:, None]  # (P, K, 2) in cells
    cell = torch.where(keypoints[..., :2] == rois[:, None, 2:], size - 1, at.floor()).to(torch.int64)
    inside = ((cell >= 0) & (cell < size)).all(dim=-1) & (keypoints[..., 2] > 0)
    return torch.where(inside, cell[..., 1] * size + cell[..., 0], 0), inside


def heatmaps_to_keypoints(logits: Tensor, boxes: Tensor, style: Decode = "detectron2") -> Tensor:
    """The place of each heatmap's maximum: (N, K, S, S), (N, 4) XYXY -> (N, K, 3) float32 x, y, score, in the boxes' frame.

    The logits are enlarged bicubically to the box's size in whole pixels, and the middle of the highest pixel counts. The score
    is that pixel's share of the softmax over the heatmap ("detectron2"), or the logit itself ("torchvision").
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
        else:  # the maximum minus itself is 0, so its exponential is 1
            found[i, :, 2] = 1 / (maps[0].flatten(1) - top[:, None]).exp().sum(dim=1)
    return found


def flip_order(names: Sequence[str], pairs: Sequence[tuple[str, str]] | None = None) -> list[int]:
    """For each keypoint the one that takes its place in a mirrored image: "left_eye" and "right_eye" change places.

    pairs: the names that do; None: those that differ by "left" and "right", or by "l" and "r" as a word of their own, in any
    case. Raises `UserError` for a pair that is not of two of the names.
    """
    order = list(range(len(names)))
    if pairs is None:
        pairs = _mirrored_pairs(names)
    for pair in pairs:
        if len(set(pair)) != 2 or not set(pair) <= set(names):
            raise UserError(
                f"data.keypoint_flip_pairs: {list(pair)} is not a pair of two of the keypoints {', '.join(names)}"
            )
        a, b = (names.index(name) for name in pair)
        if order[a] != a or order[b] != b:
            raise UserError(f"data.keypoint_flip_pairs: {list(pair)} has a keypoint that is in another pair already")
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
