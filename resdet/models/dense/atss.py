"""ATSS (Zhang et al. 2020, arXiv:1912.02424): RetinaNet with one anchor per location, FCOS's centre-ness, and adaptive training
sample selection.

Letters: A anchors of all levels, G objects per image, C candidates per object, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resdet.boxes import center, decode, paired_giou, paired_iou, sides, upcast
from resdet.models.anchors import Anchors
from resdet.models.dense.detector import DenseHead
from resdet.models.dense.fcos import centerness_of
from resdet.models.dense.losses import focal
from resdet.models.dense.parts import (
    Tower,
    assigned,
    best,
    detections,
    initialise,
    level_scales,
    per_anchor,
    positives,
    predictor,
)
from resdet.models.layers import Norm
from resdet.models.matching import gather_rows
from resdet.models.selection import Selection
from resdet.structures import Detections, Loss, Targets

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
BOX_WEIGHT = 2.0  # of the box loss


class ATSSHead(DenseHead):
    """anchors: one per cell. num_convs, norm: of each of the two towers. nearest: see `assign`.
    candidates: (anchor, class) pairs per level that enter NMS."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        anchors: Anchors,
        selection: Selection,
        *,
        num_convs: int = 4,
        norm: Norm = "gn",
        nearest: int = 9,
        candidates: int = 1000,
    ) -> None:
        super().__init__()
        self.anchors, self.selection, self.num_classes = anchors, selection, num_classes
        self.class_tower, self.box_tower = Tower(channels, num_convs, norm), Tower(channels, num_convs, norm)
        self.classifier = predictor(channels, num_classes)
        self.regressor, self.centerness = predictor(channels, 4), predictor(channels, 1)
        self.scales = level_scales(len(anchors.strides))
        initialise(self, self.classifier)
        self.nearest, self.candidates = nearest, candidates

    def forward(self, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level: logits (B, A_l, K), deltas (B, A_l, 4) and centre-ness logits (B, A_l)."""
        logits, deltas, centerness = [], [], []
        for scale, x in zip(self.scales, features.values(), strict=True):
            box_features = self.box_tower(x)
            logits.append(per_anchor(self.classifier(self.class_tower(x)), self.num_classes))
            deltas.append(upcast(per_anchor(self.regressor(box_features), 4)) * scale)
            centerness.append(per_anchor(self.centerness(box_features), 1).squeeze(-1))
        return logits, deltas, centerness

    def loss(self, features: dict[str, Tensor], input_size: tuple[int, int], targets: Targets) -> dict[str, Loss]:
        """Over the number of positives; the box loss is weighted by centre-ness and divided by its sum."""
        logits, deltas, centerness = self(features)
        levels = self.anchors(features, input_size)
        anchors = torch.cat(levels)
        matched = assigned(targets, *assign(levels, targets, self.nearest), self.num_classes)
        boxes = decode(torch.cat(deltas, dim=1), anchors, DELTA_WEIGHTS, clamp_shrink=True)
        error = 1 - paired_giou(boxes, matched.boxes)
        target = torch.where(matched.positive, centerness_of(sides(center(anchors), matched.boxes)), 0.0)
        entropy = F.binary_cross_entropy_with_logits(upcast(torch.cat(centerness, dim=1)), target, reduction="none")
        count = positives(matched.positive)
        return {
            "box_class": Loss(focal(logits, matched.labels, targets.known).sum(), count),
            "box_reg": Loss(BOX_WEIGHT * torch.where(matched.positive, error * target, 0.0).sum(), target.sum()),
            "centerness": Loss(torch.where(matched.positive, entropy, 0.0).sum(), count),
        }

    def predict(self, features: dict[str, Tensor], input_size: tuple[int, int], image_sizes: Tensor) -> Detections:
        levels, boxes = [], []
        for logits, deltas, centerness, anchors in zip(
            *self(features), self.anchors(features, input_size), strict=True
        ):
            level = best(logits, self.candidates, self.selection.score_threshold)
            quality = upcast(centerness).sigmoid().gather(1, level.anchors)
            levels.append(level._replace(scores=level.scores * quality))
            chosen = gather_rows(deltas, level.anchors)
            boxes.append(decode(chosen, anchors[level.anchors], DELTA_WEIGHTS, clamp_shrink=True))
        return detections(self.selection, levels, boxes, image_sizes)


def assign(levels: list[Tensor], targets: Targets, nearest: int) -> tuple[Tensor, Tensor]:
    """Assign objects to anchors (A_l, 4) of each level -> gt_index (B, A) int64, positive (B, A) bool.

    The candidates of an object are the `nearest` anchors of each level to its centre (mmdetection's topk). A candidate is
    positive if its centre lies inside the box and its IoU is at least the mean plus the standard deviation of the candidates'
    IoUs (section 3.2). An anchor that is positive for several objects is assigned the one of highest IoU.
    """
    anchors, boxes = torch.cat(levels), targets.boxes
    near, start = [], 0
    for level in levels:
        x, y = (center(level)[:, k] - center(boxes)[:, :, None, k] for k in (0, 1))  # (B, G, A_l)
        distance = x * x + y * y
        near.append(distance.topk(min(nearest, len(level)), dim=2, largest=False).indices + start)
        start += len(level)
    index = torch.cat(near, dim=2)  # (B, G, C)
    candidates = anchors[index]
    overlap = paired_iou(candidates, boxes[:, :, None])
    deviation, mean = torch.std_mean(overlap, dim=2, keepdim=True)
    inside = sides(center(candidates), boxes[:, :, None]).amin(-1) > 0.01
    chosen = (overlap >= mean + deviation) & inside & targets.valid[:, :, None]
    overlap, index = torch.where(chosen, overlap, 0.0).flatten(1), index.flatten(1)
    highest = overlap.new_zeros(len(boxes), len(anchors)).scatter_reduce(1, index, overlap, "amax")
    wins = (overlap > 0) & (overlap == highest.gather(1, index))
    count = boxes.shape[1]
    owner = torch.arange(count, device=boxes.device)[:, None].expand(chosen.shape[1:]).flatten()
    first = torch.full_like(highest, count, dtype=torch.int64).scatter_reduce(
        1, index, torch.where(wins, owner, count), "amin"
    )
    return first.clamp(max=count - 1), highest > 0
