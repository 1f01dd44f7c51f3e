"""RoIAlign over a feature pyramid (He et al. 2017, arXiv:1703.06870; level rule: Lin et al. 2016, equation 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from resdet.boxes import area, upcast
from resdet.kernels import FAST_CPU

NOWHERE = -1e6  # a coordinate beyond every map's border


class RoIAlign(nn.Module):
    """{"p2": (B, C, H/4, W/4), …} and boxes -> (P, C, size, size), each box on the level of its size.

    size:           output side. strides: of the levels that are used, the first of those given.
    sampling_ratio: samples a bin and axis; 0 means as many as pixels (detectron2, mmdetection), which is slower.
    aligned:        half-pixel correct; False shifts by half a pixel and widens boxes to one (torchvision).
    """

    def __init__(
        self, size: int, *, strides: Sequence[int] = (4, 8, 16, 32), sampling_ratio: int = 2, aligned: bool = True
    ) -> None:
        super().__init__()
        self.size, self.strides, self.sampling_ratio, self.aligned = size, tuple(strides), sampling_ratio, aligned

    def forward(self, features: dict[str, Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """boxes (P, 4) XYXY in the input frame, image (P,) int64: the row of the batch each belongs to."""
        boxes = upcast(boxes)
        maps = list(features.values())[: len(self.strides)]
        level = levels_of(boxes, self.strides)
        if FAST_CPU and self.sampling_ratio and not boxes.is_cuda:
            return self.by_gather(maps, boxes, image, level)
        return self.by_level(maps, boxes, image, level)

    def by_level(self, maps: list[Tensor], boxes: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """torchvision's operator on each level, of which each box keeps one answer."""
        pooled: Tensor | None = None
        for k, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = level == k
            # A large box on a fine level would be sampled densely only to be thrown away: shrink it to nothing, and so far
            # outside that no pixel is read nor, backward, added to: at a corner all those additions would queue for one.
            rois = torch.cat([image[:, None].to(boxes.dtype), torch.where(here[:, None], boxes, NOWHERE)], dim=1)
            values = roi_align(upcast(feature), rois, self.size, 1 / stride, self.sampling_ratio, self.aligned)
            pooled = values if pooled is None else torch.where(here[:, None, None, None], values, pooled)
        assert pooled is not None
        return pooled

    def by_gather(self, maps: list[Tensor], boxes: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """The same as one weighted gather: every pixel of every level is a row of one table, every bin a short list of
        rows and weights. Several times faster than the operator on a CPU, above all backward, which is serial there."""
        table = torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps])  # (rows, C)
        if torch.is_grad_enabled():  # in half precision the gradients of many bins would not add up in a pixel
            table = upcast(table)
        start, height, width = torch.zeros_like(level), torch.zeros_like(level), torch.zeros_like(level)
        scale = torch.zeros_like(boxes[:, 0])
        first = 0
        for k, m in enumerate(maps):  # plain numbers: an exported graph's sizes are not known yet
            here = level == k
            start = torch.where(here, first, start)
            height, width = torch.where(here, m.shape[2], height), torch.where(here, m.shape[3], width)
            scale = torch.where(here, 1 / self.strides[k], scale)
            first += len(m) * m.shape[2] * m.shape[3]
        y, weight_y = self._axis(boxes[:, 1], boxes[:, 3], scale, height)  # (P, size, 2 * ratio)
        x, weight_x = self._axis(boxes[:, 0], boxes[:, 2], scale, width)
        base = (start + image * height * width)[:, None, None]
        rows = (base + y * width[:, None, None])[:, :, None, :, None] + x[:, None, :, None, :]
        weights = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]  # (P, size, size, 2 ratio, 2 ratio)
        bins = F.embedding_bag(
            rows.flatten(3).flatten(0, 2),
            table,
            mode="sum",
            per_sample_weights=weights.flatten(3).flatten(0, 2).to(table),
        )
        return bins.view(len(boxes), self.size, self.size, -1).permute(0, 3, 1, 2)

    def _axis(self, low: Tensor, high: Tensor, scale: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Of each bin along one axis: the two neighbours of its samples, and their weights, (P, size, 2 * ratio) each."""
        shift = 0.5 if self.aligned else 0.0
        begin, extent = low * scale - shift, (high - low) * scale
        extent = extent if self.aligned else extent.clamp(min=1)
        count = self.size * self.sampling_ratio
        steps = (torch.arange(count, device=low.device, dtype=low.dtype) + 0.5) / count
        at = begin[:, None] + extent[:, None] * steps  # (P, size * ratio)
        last = (length - 1)[:, None]
        inside = (at >= -1) & (at <= length[:, None])
        at = torch.minimum(at.clamp(min=0), last.to(at.dtype))
        below = at.floor().to(torch.int64).clamp(min=0)
        above = torch.minimum(below + 1, last)
        part = at - below
        weights = torch.stack([1 - part, part], dim=-1) * (inside[..., None] / self.sampling_ratio)
        return (
            torch.stack([below, above], dim=-1).view(len(low), self.size, -1),
            weights.view(len(low), self.size, -1),
        )


def levels_of(boxes: Tensor, strides: Sequence[int] = (4, 8, 16, 32)) -> Tensor:
    """(P, 4) -> (P,) int64, 0 for the first stride: a 224 x 224 box belongs to stride 16, half the side to one level finer."""
    side = area(boxes).clamp(min=0).sqrt()
    level = torch.floor(math.log2(16 / strides[0]) + torch.log2(side / 224 + 1e-8) + 1e-6)
    return level.clamp(0, len(strides) - 1).to(torch.int64)


def flatten_rois(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(B, R, 4) -> boxes (B * R, 4) and the image (B * R,) each belongs to."""
    b, r = boxes.shape[:2]
    return boxes.flatten(0, 1), torch.arange(b, device=boxes.device)[:, None].expand(b, r).reshape(-1)


def occupied(valid: Tensor) -> Tensor:
    """(B, R) bool -> (P,) int64 rows of the flattened RoIs worth computing: all valid ones and a few more.

    In a graph and on CUDA P = B * R, since a number read from the device would break the graph or stall the queue.
    Elsewhere P is the valid ones' count, rounded up a ladder of steps of a half, so that little is computed in vain.
    """
    total = valid.numel()
    if torch.compiler.is_compiling() or valid.is_cuda:
        return torch.arange(total, device=valid.device)
    steps = [8]
    while steps[-1] < total:
        steps.append(steps[-1] * 3 // 2)
    count = int(valid.sum())
    size = min(total, next(step for step in steps if step >= min(count, total)))
    return valid.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:size]
