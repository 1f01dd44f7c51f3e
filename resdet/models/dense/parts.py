"""What dense heads share: towers of convolutions, maps as rows of anchors, and the best candidates of each level.

Letters: A anchors or points of a level (or of all), K classes, N candidates an image that suppression looks at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.models.layers import Conv2d, ConvNorm, Norm
from resdet.models.matching import gather_rows
from resdet.models.selection import Selection
from resdet.structures import Detections, Targets

PRIOR = 0.01  # the probability that an untrained classifier gives each class (Lin et al. 2017, section 4.1)


class Tower(nn.Module):
    """`count` 3x3 convolutions with norm and ReLU, the same for all levels: (B, C, H, W) -> the same. bias: see `ConvNorm`."""

    def __init__(self, channels: int, count: int, norm: Norm = "none", *, bias: bool | None = None) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvNorm(channels, channels, 3, norm, bias=bias) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x, relu=True)
        return x


def predictor(channels: int, out: int) -> Conv2d:
    """The 3x3 convolution at the end of a tower."""
    return Conv2d(channels, out, 3, padding=1)


def initialise(head: nn.Module, classifier: Conv2d) -> None:
    """Small weights, no biases but the classifier's, which says `PRIOR`: most places are background, and the first losses
    would drown in them."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert classifier.bias is not None
    nn.init.constant_(classifier.bias, -math.log((1 - PRIOR) / PRIOR))


def level_scales(levels: int) -> nn.ParameterList:
    """A learned factor for each level (Tian et al. 2019, section 3.2)."""
    return nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in range(levels))


def rows(maps: Tensor, width: int) -> Tensor:
    """(B, n * width, H, W) -> (B, H * W * n, width), ordered (row, column, anchor)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, width)


class Assigned(NamedTuple):
    """labels (B, A) int64: the class, K for background, -1 where the anchor does not count; positive (B, A) bool;
    boxes (B, A, 4): of the object that the anchor belongs to, if it is positive."""

    labels: Tensor
    positive: Tensor
    boxes: Tensor


def assigned(
    targets: Targets, gt_index: Tensor, positive: Tensor, num_classes: int, ignored: Tensor | None = None
) -> Assigned:
    """What each anchor is taught by the object gt_index (B, A) that it belongs to if it is positive (B, A); not if ignored."""
    labels = torch.where(positive, targets.labels.gather(1, gt_index), num_classes)
    labels = labels if ignored is None else torch.where(ignored, -1, labels)
    return Assigned(labels, positive, gather_rows(targets.boxes, gt_index))


def positives(positive: Tensor) -> Tensor:
    """How many (B, A) there are, an image without any counted as having one: () int64."""
    return positive.sum(1).clamp(min=1).sum()


class Candidates(NamedTuple):
    """scores (B, N) in 0..1, -1 for none; anchors (B, N) int64: rows of the level; labels (B, N) int64."""

    scores: Tensor
    anchors: Tensor
    labels: Tensor


def best(logits: Tensor, count: int, threshold: float, quality: Tensor | None = None) -> Candidates:
    """The `count` best pairs of an anchor and a class of a level, by the class's probability times the anchor's `quality`.

    logits (B, A, K), quality (B, A) -> N = count, by falling score, which is above the threshold. First the best `count`
    anchors by their best class, then the best pairs of these: so only one pass looks at all classes of all anchors. Padded by
    `count`, so that N does not depend on the size of the map: an exported model's H and W stay free.
    """
    rank = upcast(logits.amax(-1))
    rank = rank if quality is None else rank.sigmoid() * quality
    rank, anchors = F.pad(rank, (0, count), value=-torch.inf).topk(count, dim=1)
    anchors = anchors.clamp(max=logits.shape[1] - 1)
    scores = upcast(gather_rows(logits, anchors)).sigmoid()  # (B, count, K)
    scores = scores if quality is None else scores * quality.gather(1, anchors).unsqueeze(-1)
    usable = (rank > -torch.inf).unsqueeze(-1) & (scores > threshold)
    scores, pair = torch.where(usable, scores, -1.0).flatten(1).topk(count, dim=1)
    k = logits.shape[2]
    return Candidates(scores, anchors.gather(1, pair // k), pair % k)


def detections(
    selection: Selection, levels: Sequence[Candidates], boxes: Sequence[Tensor], image_sizes: Tensor
) -> Detections:
    """The candidates of all levels, with boxes (B, N, 4) of each, suppressed within each class."""
    scores, labels = (torch.cat([level[i] for level in levels], dim=1) for i in (0, 2))
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    placed = gather_rows(torch.cat(list(boxes), dim=1), order)
    return selection.suppress(placed, scores, labels.gather(1, order), scores >= 0, image_sizes)
