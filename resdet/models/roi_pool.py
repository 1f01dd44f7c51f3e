"""RoIAlign over a feature pyramid (He et al. 2017, arXiv:1703.06870; level rule: Lin et al. 2016, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from resdet.boxes import area, at_least_float32


class RoIPool(nn.Module):
    """{"p2": (B, C, H/4, W/4), …} and boxes -> (P, C, size, size), each box on the level of its size.

    size:           output side. levels: how many levels, from p2 on, are used.
    sampling_ratio: samples a bin and axis; 0 means as many as pixels (detectron2, mmdetection), which is slower.
    aligned:        half-pixel correct; False shifts by half a pixel and widens boxes to one (torchvision).
    """

    def __init__(self, size: int, *, levels: int = 4, sampling_ratio: int = 2, aligned: bool = True) -> None:
        super().__init__()
        self.size, self.levels, self.sampling_ratio, self.aligned = size, levels, sampling_ratio, aligned

    def forward(self, features: dict[str, Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """boxes (P, 4) XYXY in the input frame, image (P,) int64: the row of the batch each belongs to."""
        boxes = at_least_float32(boxes)
        level = levels_of(boxes, self.levels)
        pooled: Tensor | None = None
        for k, feature in enumerate(list(features.values())[: self.levels]):
            here = level == k
            # A large box on a fine level would be sampled densely only to be thrown away: shrink it to nothing first.
            rois = torch.cat([image[:, None].to(boxes.dtype), torch.where(here[:, None], boxes, 0.0)], dim=1)
            values = roi_align(
                feature, rois.to(feature.dtype), self.size, 0.25 / 2**k, self.sampling_ratio, self.aligned
            )
            pooled = values if pooled is None else torch.where(here[:, None, None, None], values, pooled)
        assert pooled is not None
        return pooled


def levels_of(boxes: Tensor, levels: int = 4) -> Tensor:
    """(P, 4) -> (P,) int64, 0 for p2: a 224 x 224 box belongs to p4, half the side to one level finer."""
    side = area(boxes).clamp(min=0).sqrt()
    level = torch.floor(2 + torch.log2(side / 224 + 1e-8) + 1e-6)
    return level.clamp(0, levels - 1).to(torch.int64)


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
