"""Pure functions on boxes: XYXY, absolute pixels (see `structures.py`), computed in at least float32."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The upper bound of log-scale deltas, so that exp does not overflow: a box grows at most 62.5 times.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def upcast(x: Tensor) -> Tensor:
    """To at least float32: bfloat16 has 8 significant bits, four pixels at 1000, too coarse for coordinates and losses."""
    return x if x.dtype == torch.float64 else x.float()


def area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def center(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 2) as (x, y)."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def from_cxcywh(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) -> XYXY: (..., 4) -> (..., 4), in at least float32."""
    middle, half = upcast(boxes[..., :2]), 0.5 * upcast(boxes[..., 2:])
    return torch.cat([middle - half, middle + half], dim=-1)


def to_cxcywh(boxes: Tensor) -> Tensor:
    """The inverse of `from_cxcywh`: XYXY -> (centre x, centre y, width, height), (..., 4) -> (..., 4)."""
    low, high = boxes.chunk(2, dim=-1)
    return torch.cat([0.5 * (low + high), high - low], dim=-1)


def sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Points (..., 2), boxes (..., 4) -> distances to the left, top, right and bottom sides (..., 4), negative outside."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def box_around(points: Tensor, distances: Tensor) -> Tensor:
    """The inverse of `sides`: points (..., 2), distances (..., 4) -> boxes (..., 4)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of all pairs: (..., N, 4), (..., M, 4) -> (..., N, M); 0 for two empty boxes."""
    # Each coordinate separately: (..., N, M, 2) intermediates would double the memory traffic.
    first, second = a.unsqueeze(-2), b.unsqueeze(-3)  # (..., N, 1, 4), (..., 1, M, 4)
    width = (torch.minimum(first[..., 2], second[..., 2]) - torch.maximum(first[..., 0], second[..., 0])).clamp(min=0)
    height = (torch.minimum(first[..., 3], second[..., 3]) - torch.maximum(first[..., 1], second[..., 1])).clamp(min=0)
    inter = width * height
    union = area(a).unsqueeze(-1) + area(b).unsqueeze(-2) - inter
    return torch.where(inter > 0, inter / union, 0.0)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of corresponding boxes: (..., 4), (..., 4) -> (...)."""
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inter = size[..., 0] * size[..., 1]
    return inter / (area(a) + area(b) - inter).clamp(min=1e-7)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of corresponding boxes (Rezatofighi et al. 2019, arXiv:1902.09630): (..., 4), (..., 4) -> (...) in -1..1.

    The IoU minus the fraction of their smallest enclosing box that neither covers.
    """
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    enclosing = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = area(a) + area(b) - inter
    # Padding is masked in every loss, but 0 / 0 would still be nan.
    return inter / union.clamp(min=1e-7) - (enclosing - union) / enclosing.clamp(min=1e-7)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Deltas (dx, dy, dw, dh) that turn `anchors` into `boxes`, (..., 4) each (Girshick et al. 2014, appendix C).

    `anchors` must have positive width and height; the sides of `boxes` are clamped, since those of empty ones give log 0.
    """
    wx, wy, ww, wh = weights
    aw, ah = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    ax, ay = anchors[..., 0] + 0.5 * aw, anchors[..., 1] + 0.5 * ah
    bw, bh = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    bx, by = boxes[..., 0] + 0.5 * bw, boxes[..., 1] + 0.5 * bh
    # Padding is masked in every loss, but 0 * inf would still be nan.
    aw, ah, bw, bh = (t.clamp(min=1e-6) for t in (aw, ah, bw, bh))
    return torch.stack(
        [wx * (bx - ax) / aw, wy * (by - ay) / ah, ww * torch.log(bw / aw), wh * torch.log(bh / ah)], dim=-1
    )


def decode(
    deltas: Tensor,
    anchors: Tensor,
    weights: tuple[float, float, float, float],
    *,
    clamp_shrink: bool = False,
    max_shift: float | None = None,
) -> Tensor:
    """The inverse of `encode`: deltas (..., 4) and anchors broadcastable to them -> boxes (..., 4).

    clamp_shrink: bound shrinking like growth (mmdetection), not growth only (detectron2, torchvision).
    max_shift: maximum shift of the centre in pixels, along each axis.
    """
    deltas, anchors = upcast(deltas), upcast(anchors)
    wx, wy, ww, wh = weights
    aw, ah = anchors[..., 2] - anchors[..., 0], anchors[..., 3] - anchors[..., 1]
    ax, ay = anchors[..., 0] + 0.5 * aw, anchors[..., 1] + 0.5 * ah
    dx, dy = deltas[..., 0] / wx * aw, deltas[..., 1] / wy * ah
    if max_shift is not None:
        dx, dy = dx.clamp(-max_shift, max_shift), dy.clamp(-max_shift, max_shift)
    cx, cy = dx + ax, dy + ay
    lowest = -MAX_LOG_SCALE if clamp_shrink else None
    w = torch.exp((deltas[..., 2] / ww).clamp(lowest, MAX_LOG_SCALE)) * aw
    h = torch.exp((deltas[..., 3] / wh).clamp(lowest, MAX_LOG_SCALE)) * ah
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def delta_distance(deltas: Tensor, target: Tensor, beta: float) -> Tensor:
    """Smooth L1 (L1 if beta is 0) summed over the four deltas: (..., 4), (..., 4) -> (...)."""
    return F.smooth_l1_loss(upcast(deltas), target, beta=beta, reduction="none").sum(-1)


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Clip boxes (B, N, 4) to their images; image_sizes (B, 2) as (H, W)."""
    h, w = image_sizes.to(boxes.dtype).unsqueeze(-1).unbind(1)  # (B, 1) each
    x1, y1, x2, y2 = boxes.unbind(-1)
    zero = torch.zeros_like(h)
    x1, x2 = (torch.minimum(torch.maximum(x, zero), w) for x in (x1, x2))
    y1, y2 = (torch.minimum(torch.maximum(y, zero), h) for y in (y1, y2))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def big_enough(boxes: Tensor, min_size: float) -> Tensor:
    """(..., 4) -> (...) bool: whether both sides are positive and at least `min_size` pixels (False for nan)."""
    w, h = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return (w > 0) & (h > 0) & (w >= min_size) & (h >= min_size)
