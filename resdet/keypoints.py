"""Pure functions on keypoints: heatmap targets in an RoI, heatmaps back to points, flips.

Letters: P RoIs, K keypoints of an object, S the heatmap's side. A keypoint is (x, y, visibility) with COCO's visibility: 0 not
labelled, 1 labelled but hidden, 2 visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Decode = Literal["detectron2", "torchvision"]


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
    n, k, side, _ = logits.shape
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


def flip_pairs(names: Sequence[str]) -> list[int]:
    """For each keypoint the one that takes its place in a mirrored image: "left_eye" and "right_eye" change places.

    Recognised are left/right at the beginning, the end or between separators, and l_/r_ or _l/_r, in any case.
    """
    index = {name.lower(): k for k, name in enumerate(names)}
    swapped = []
    for k, name in enumerate(names):
        candidates = [_mirrored(name.lower(), a, b) for a, b in (("left", "right"), ("right", "left"))]
        candidates += [_mirrored_letter(name.lower(), a, b) for a, b in (("l", "r"), ("r", "l"))]
        swapped.append(next((index[c] for c in candidates if c in index and c != name.lower()), k))
    return swapped


def _mirrored(name: str, a: str, b: str) -> str:
    return name.replace(a, b)


def _mirrored_letter(name: str, a: str, b: str) -> str:
    for separator in "_- .":
        parts = name.split(separator)
        if a in parts:
            return separator.join(b if part == a else part for part in parts)
    return name
