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

NOWHERE = -1e6  # a coordinate outside every feature map


class RoIAlign(nn.Module):
    """{"p2": (B, C, H/4, W/4), …} and boxes -> (P, C, size, size), each box pooled from the level that fits its size.

    size:           output side. strides: of the levels used; further levels are ignored.
    sampling_ratio: sampling points per bin and axis; 0: one per feature pixel (detectron2, mmdetection), which is slower.
    aligned:        half-pixel correct; False shifts by half a pixel and widens boxes to at least one (torchvision).
    """

    def __init__(
        self, size: int, *, strides: Sequence[int] = (4, 8, 16, 32), sampling_ratio: int = 2, aligned: bool = True
    ) -> None:
        super().__init__()
        self.size, self.strides, self.sampling_ratio, self.aligned = size, tuple(strides), sampling_ratio, aligned

    def forward(self, features: dict[str, Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """boxes (P, 4) XYXY in the input frame, image (P,) int64: the index in the batch of each box's image."""
        boxes = upcast(boxes)
        maps = list(features.values())[: len(self.strides)]
        level = levels_of(boxes, self.strides)
        if FAST_CPU and self.sampling_ratio and not boxes.is_cuda:
            return self.by_gather(maps, boxes, image, level)
        return self.by_level(maps, boxes, image, level)

    def by_level(self, maps: list[Tensor], boxes: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """torchvision's operator on every level for all boxes; each box keeps the result of its own level."""
        pooled: Tensor | None = None
        for k, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = level == k
            # Boxes of other levels are emptied and moved outside: they cost no sampling, and no atomic additions to a common
            # pixel in backward.
            rois = torch.cat([image[:, None].to(boxes.dtype), torch.where(here[:, None], boxes, NOWHERE)], dim=1)
            values = roi_align(upcast(feature), rois, self.size, 1 / stride, self.sampling_ratio, self.aligned)
            pooled = values if pooled is None else torch.where(here[:, None, None, None], values, pooled)
        assert pooled is not None
        return pooled

    def by_gather(self, maps: list[Tensor], boxes: Tensor, image: Tensor, level: Tensor) -> Tensor:
        """The same as one weighted gather: the pixels of all levels are the rows of one table, and a bin is a weighted sum of
        a few of them. Several times faster than the operator on CPUs, mostly in backward, which is serial there."""
        table = torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps])  # (rows, C)
        if torch.is_grad_enabled():  # half precision is too coarse to sum the gradients of many bins in one pixel
            table = upcast(table)
        start, height, width = torch.zeros_like(level), torch.zeros_like(level), torch.zeros_like(level)
        scale = torch.zeros_like(boxes[:, 0])
        first = 0
        for k, m in enumerate(maps):  # no tensor of sizes: in an exported graph they are symbolic
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
        """Along one axis, the two pixels around each sample of each bin and their weights: (P, size, 2 * ratio) each."""
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
    """(P, 4) -> index of each box's level (P,) int64: boxes of 224 x 224 belong to stride 16, of half the side to stride 8."""
    side = area(boxes).clamp(min=0).sqrt()
    level = torch.floor(math.log2(16 / strides[0]) + torch.log2(side / 224 + 1e-8) + 1e-6)
    return level.clamp(0, len(strides) - 1).to(torch.int64)


def flatten_rois(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(B, R, 4) -> boxes (B * R, 4) and the index of each box's image (B * R,) int64."""
    b, r = boxes.shape[:2]
    return boxes.flatten(0, 1), torch.arange(b, device=boxes.device)[:, None].expand(b, r).reshape(-1)


def occupied(valid: Tensor) -> Tensor:
    """(B, R) bool -> (P,) int64 rows of the flattened RoIs to compute: all valid ones, and some padding.

    In a graph and on CUDA P = B * R, since reading the count from the device would break the graph or synchronise.
    Elsewhere P is the number of valid RoIs, rounded up to a step of a geometric ladder of factor 1.5.
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
