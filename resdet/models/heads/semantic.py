"""Semantic FPN head (Kirillov et al. 2019, arXiv:1901.02446, section 3.1): p2..p5 -> a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.fields import replace
from resdet.label_maps import STRIDE
from resdet.models.layers import Conv2d, ConvNorm, Norm, initialise_convs
from resdet.structures import UNLABELLED, Batch, Detections, Loss, Output, Samples

LEVELS = ("p2", "p3", "p4", "p5")


class UpsamplingTower(nn.Module):
    """Upsamples a level to p2's size: a 3x3 convolution, norm and ReLU before each bilinear doubling; one of them for p2."""

    def __init__(self, channels: int, width: int, norm: Norm, doublings: int) -> None:
        super().__init__()
        self.doublings = doublings
        self.convs = nn.ModuleList(
            ConvNorm(channels if i == 0 else width, width, 3, norm) for i in range(max(1, doublings))
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, relu=True)
            if self.doublings:
                x = enlarged(x, 2)
        return x


class SemanticHead(nn.Module):
    """channels: of the pyramid. num_classes: of the label maps. width: of the convolutions.

    class_weights: per class; None: all 1. loss_weight: a factor on the loss.
    """

    outputs: tuple[Output, ...] = ("semantic",)
    class_weights: Tensor | None

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        width: int = 128,
        norm: Norm = "gn",
        class_weights: Sequence[float] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.loss_weight = num_classes, loss_weight
        self.towers = nn.ModuleList(
            UpsamplingTower(channels, width, norm, doublings) for doublings in range(len(LEVELS))
        )
        self.logits = Conv2d(width, num_classes, 1)
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        initialise_convs(self)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """{"p2": (B, C, H/4, W/4), …, "p5": …/32} -> logits (B, K, H/4, W/4)."""
        total, *others = [tower(features[level]) for level, tower in zip(LEVELS, self.towers, strict=True)]
        for other in others:
            total = total + other
        logits: Tensor = self.logits(total)
        return logits

    def loss(self, features: dict[str, Tensor], samples: Samples | Batch) -> dict[str, Loss]:
        """semantic: cross-entropy over the labelled pixels, weighted by class."""
        assert samples.targets is not None
        labels = samples.targets.semantic
        assert labels is not None, "a semantic head needs label maps in its targets"
        logits = enlarged(upcast(self(features)), STRIDE)
        labels = labels.long()
        loss = F.cross_entropy(logits, labels, self.class_weights, ignore_index=UNLABELLED, reduction="sum")
        counted = (labels != UNLABELLED).to(logits.dtype)
        if self.class_weights is not None:
            counted = counted * self.class_weights[labels.clamp(max=self.num_classes - 1)]
        return {"semantic": Loss(self.loss_weight * loss, counted.sum())}

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Adds `semantic`, the logits (B, K, H/4, W/4)."""
        return replace(detections, semantic=upcast(self(features)))


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Bilinear upsampling: (B, C, H, W) -> (B, C, factor H, factor W)."""
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
