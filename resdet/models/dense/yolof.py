"""YOLOF (Chen et al. 2021, arXiv:2103.09460): a dilated encoder on c5 only, and the same number of positives for every object.

Letters: A anchors, G objects per image, M matches per object, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet.boxes import center, decode, iou, paired_giou, paired_iou, upcast
from resdet.models.anchors import Anchors
from resdet.models.dense.detector import DenseHead
from resdet.models.dense.losses import focal
from resdet.models.dense.parts import Tower, assigned, best, detections, initialise, per_anchor, positives, predictor
from resdet.models.fpn import Neck
from resdet.models.layers import ConvNorm, Norm
from resdet.models.matching import gather_rows
from resdet.models.selection import Selection
from resdet.structures import Detections, Loss, Targets

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
MAX_SHIFT = 32.0  # maximum shift of a box's centre in pixels: one cell
LARGEST = 1e8  # upper bound of exponentials


class DilatedEncoder(Neck):
    """c5 -> {"c5": …} with `channels` channels: a projection, then residual blocks of increasing dilation, which together cover
    objects of all sizes (section 4.1).

    width: of the blocks' 3x3 convolutions. dilations: one per block.
    """

    def __init__(
        self,
        in_channels: int,
        stride: int,
        channels: int = 512,
        *,
        width: int = 128,
        dilations: Sequence[int] = (2, 4, 6, 8),
        norm: Norm = "bn",
    ) -> None:
        super().__init__()
        self.channels, self.strides = channels, {"c5": stride}
        self.lateral = ConvNorm(in_channels, channels, 1, norm, bias=True)
        self.output = ConvNorm(channels, channels, 3, norm, bias=True)
        self.blocks = nn.ModuleList(DilatedBlock(channels, width, dilation, norm) for dilation in dilations)
        for module in (self.lateral.conv, self.output.conv):
            nn.init.kaiming_uniform_(module.weight, a=1)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        for part in self.blocks.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.output(self.lateral(features["c5"]))
        for block in self.blocks:
            x = block(x)
        return {"c5": x}


class DilatedBlock(nn.Module):
    """A residual bottleneck: (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int, width: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, width, 1, norm)
        self.conv2 = ConvNorm(width, width, 3, norm, dilation=dilation)
        self.conv3 = ConvNorm(width, channels, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.conv2(self.conv1(x, relu=True), relu=True), relu=True)
        return y + x


class YOLOFHead(DenseHead):
    """class_convs, box_convs, norm: of the two towers. matches, low, high: see `assign`.
    candidates: (anchor, class) pairs that enter NMS."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        anchors: Anchors,
        selection: Selection,
        *,
        class_convs: int = 2,
        box_convs: int = 4,
        norm: Norm = "bn",
        matches: int = 4,
        low: float = 0.15,
        high: float = 0.7,
        candidates: int = 1000,
    ) -> None:
        super().__init__()
        self.anchors, self.selection, self.num_classes = anchors, selection, num_classes
        self.class_tower, self.box_tower = Tower(channels, class_convs, norm), Tower(channels, box_convs, norm)
        self.classifier = predictor(channels, anchors.per_location * num_classes)
        self.regressor = predictor(channels, anchors.per_location * 4)
        self.objectness = predictor(channels, anchors.per_location)
        initialise(self, self.classifier)
        self.matches, self.low, self.high, self.candidates = matches, low, high, candidates

    def forward(self, features: dict[str, Tensor], input_size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, A, K), boxes (B, A, 4), and their anchors (A, 4).

        The logits are those of class probability times objectness; no loss is applied to objectness separately.
        """
        (x,) = features.values()
        box_features = self.box_tower(x)
        logits = upcast(per_anchor(self.classifier(self.class_tower(x)), self.num_classes))
        objectness = upcast(per_anchor(self.objectness(box_features), 1))
        total = 1 + logits.exp().clamp(max=LARGEST) + objectness.exp().clamp(max=LARGEST)
        (anchors,) = self.anchors(features, input_size)
        deltas = per_anchor(self.regressor(box_features), 4)
        return logits + objectness - total.log(), decode(deltas, anchors, DELTA_WEIGHTS, max_shift=MAX_SHIFT), anchors

    def loss(self, features: dict[str, Tensor], input_size: tuple[int, int], targets: Targets) -> dict[str, Loss]:
        """Over the number of positives."""
        logits, boxes, anchors = self(features, input_size)
        found = assign(boxes.detach(), anchors, targets, self.matches, self.low, self.high)
        assignment = assigned(targets, found.gt_index, found.positive, self.num_classes, found.ignored)
        objects = targets.boxes.repeat(1, found.matched.shape[1] // targets.boxes.shape[1], 1)
        error = 1 - paired_giou(gather_rows(boxes, found.matched), objects)
        count = positives(assignment.positive)
        return {
            "box_class": Loss(focal([logits], assignment.labels, targets.known).sum(), count),
            "box_reg": Loss(torch.where(found.counts, error, 0.0).sum(), count),
        }

    def predict(self, features: dict[str, Tensor], input_size: tuple[int, int], image_sizes: Tensor) -> Detections:
        logits, boxes, _ = self(features, input_size)
        found = best(logits, self.candidates, self.selection.score_threshold)
        return detections(self.selection, [found], [gather_rows(boxes, found.anchors)], image_sizes)


class UniformMatches(NamedTuple):
    """gt_index (B, A) int64, positive (B, A), ignored (B, A) bool; matched (B, 2 * M * G) int64: the anchors matched to the
    objects, which repeat every G entries; counts (B, 2 * M * G) bool: whether the box has a loss."""

    gt_index: Tensor
    positive: Tensor
    ignored: Tensor
    matched: Tensor
    counts: Tensor


def assign(boxes: Tensor, anchors: Tensor, targets: Targets, matches: int, low: float, high: float) -> UniformMatches:
    """Uniform matching (section 4.2) of predicted boxes (B, A, 4) and their anchors (A, 4).

    Each object is matched to its `matches` nearest boxes and as many nearest anchors, by L1 distance of centre and size.
    Matches whose anchor has an IoU below `low` with the object are ignored, as are unmatched boxes with an IoU above `high`
    with any object. An anchor matched to several objects is assigned the last one in mmdetection's order: by rank of distance,
    boxes before anchors, then by object.
    """
    g, count = targets.valid.shape[1], min(matches, len(anchors))
    near = torch.stack([nearest(x, targets.boxes, count) for x in (boxes, anchors.expand_as(boxes))], dim=2)
    near = near.flatten(1)  # (B, 2 * M * G): by rank of distance, boxes and anchors, objects
    objects, valid = targets.boxes.repeat(1, 2 * count, 1), targets.valid.repeat(1, 2 * count)
    counts = (paired_iou(anchors[near], objects) >= low) & valid
    place = torch.where(valid, torch.arange(near.shape[1], device=near.device), -1)
    unmatched = torch.full(boxes.shape[:2], -1, device=near.device)
    last = unmatched.scatter_reduce(1, near, place, "amax")
    matched = last >= 0
    last = last.clamp(min=0)
    positive = matched & counts.gather(1, last)
    close = (iou(boxes, targets.boxes) > high) & targets.valid.unsqueeze(1)
    return UniformMatches(last % g, positive, (matched | close.any(-1)) & ~positive, near, counts)


def nearest(boxes: Tensor, objects: Tensor, count: int) -> Tensor:
    """Boxes (B, A, 4), objects (B, G, 4) -> the `count` nearest boxes of each object, nearest first, (B, count, G) int64."""
    a, b = (torch.cat([center(x), x[..., 2:] - x[..., :2]], dim=-1) for x in (boxes, objects))
    distance = (a[:, None] - b[:, :, None]).abs().sum(-1)  # (B, G, A)
    return distance.topk(count, dim=2, largest=False).indices.transpose(1, 2)
