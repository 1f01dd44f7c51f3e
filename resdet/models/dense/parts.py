"""Shared by the dense heads: towers of convolutions, assigned targets, and the best candidates of each level.

Letters: A anchors or points of a level (or of all), K classes, N candidates per image that enter NMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.models.layers import PRIOR_LOGIT, Conv2d, ConvNorm, Norm
from resdet.models.matching import gather_rows
from resdet.models.selection import Selection
from resdet.structures import Detections, Targets


class Tower(nn.Module):
    """`count` 3x3 convolutions with norm and ReLU, shared by all levels: (B, C, H, W) -> the same. bias: see `ConvNorm`."""

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
    """Small weights and zero biases, except for the classifier, which starts at `PRIOR_LOGIT`: otherwise the many background
    locations would dominate the first losses."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert classifier.bias is not None
    nn.init.constant_(classifier.bias, PRIOR_LOGIT)


def level_scales(levels: int) -> nn.ParameterList:
    """A learned factor per level (Tian et al. 2019, section 3.2)."""
    return nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in range(levels))


def per_anchor(maps: Tensor, width: int) -> Tensor:
    """(B, n * width, H, W) -> (B, H * W * n, width), ordered (row, column, anchor)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, width)


class Assigned(NamedTuple):
    """The targets of anchors. labels (B, A) int64: the class, K for background, -1 if ignored; positive (B, A) bool;
    boxes (B, A, 4): of the assigned object, if positive."""

    labels: Tensor
    positive: Tensor
    boxes: Tensor


def assigned(
    targets: Targets, gt_index: Tensor, positive: Tensor, num_classes: int, ignored: Tensor | None = None
) -> Assigned:
    """The targets of anchors with the assigned objects gt_index (B, A), positive (B, A), ignored (B, A)."""
    labels = torch.where(positive, targets.labels.gather(1, gt_index), num_classes)
    labels = labels if ignored is None else torch.where(ignored, -1, labels)
    return Assigned(labels, positive, gather_rows(targets.boxes, gt_index))


def positives(positive: Tensor) -> Tensor:
    """The number of positives (B, A), at least one per image: () int64."""
    return positive.sum(1).clamp(min=1).sum()


class Candidates(NamedTuple):
    """scores (B, N) in 0..1, -1 for none; anchors (B, N) int64: indices in the level; labels (B, N) int64."""

    scores: Tensor
    anchors: Tensor
    labels: Tensor


def best(logits: Tensor, count: int, threshold: float, quality: Tensor | None = None) -> Candidates:
    """The `count` best (anchor, class) pairs of a level, by class probability times the anchor's `quality`.

    logits (B, A, K), quality (B, A) -> N = count candidates by descending score above the threshold. First the best `count`
    anchors by their best class, then the best pairs among these, so that only one pass reads all classes of all anchors.
    Padded by `count`, so that N does not depend on the size of the map: an exported model's H and W stay dynamic.
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
    """NMS of the candidates of all levels, with boxes (B, N, 4) of each."""
    scores = torch.cat([level.scores for level in levels], dim=1)
    labels = torch.cat([level.labels for level in levels], dim=1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    sorted_boxes = gather_rows(torch.cat(list(boxes), dim=1), order)
    return selection.suppress(sorted_boxes, scores, labels.gather(1, order), scores >= 0, image_sizes)
