"""Generalized Focal Loss (Li et al. 2020, arXiv:2006.04388): ATSS whose class scores predict the IoU of the box, and whose
boxes are predicted as distributions over the distance to each side.

Letters: A anchors of all levels, K classes, n the largest distance in strides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resdet.boxes import box_around, center, paired_giou, paired_iou, sides, upcast
from resdet.models.anchors import Anchors
from resdet.models.dense.atss import BOX_WEIGHT, assign
from resdet.models.dense.detector import DenseHead
from resdet.models.dense.losses import distribution_focal, quality_focal
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

DISTRIBUTION_WEIGHT = 0.25  # of the distribution focal loss


class GFLHead(DenseHead):
    """anchors: one per cell; only the assignment uses their boxes, everything else their centres. num_convs, norm: of each of
    the two towers. farthest: n (mmdetection's reg_max). nearest: see `atss.assign`.
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
        farthest: int = 16,
        nearest: int = 9,
        candidates: int = 1000,
    ) -> None:
        super().__init__()
        self.anchors, self.selection, self.num_classes = anchors, selection, num_classes
        self.class_tower, self.box_tower = Tower(channels, num_convs, norm), Tower(channels, num_convs, norm)
        self.classifier = predictor(channels, num_classes)
        self.regressor = predictor(channels, 4 * (farthest + 1))
        self.scales = level_scales(len(anchors.strides))
        initialise(self, self.classifier)
        self.farthest, self.nearest, self.candidates = farthest, nearest, candidates

    def forward(self, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: class logits (B, A_l, K), and logits over 0..n strides for the distances to left, top, right and bottom
        (B, A_l, 4 * (n + 1))."""
        logits, distances = [], []
        for scale, x in zip(self.scales, features.values(), strict=True):
            logits.append(per_anchor(self.classifier(self.class_tower(x)), self.num_classes))
            distances.append(upcast(per_anchor(self.regressor(self.box_tower(x)), 4 * (self.farthest + 1))) * scale)
        return logits, distances

    def loss(self, features: dict[str, Tensor], input_size: tuple[int, int], targets: Targets) -> dict[str, Loss]:
        """Over the number of positives; the box losses are weighted by the best class score and divided by its sum."""
        logits, distances = self(features)
        levels = self.anchors(features, input_size)
        matched = assigned(targets, *assign(levels, targets, self.nearest), self.num_classes)
        points, distributions = center(torch.cat(levels)), torch.cat(distances, dim=1)
        stride = torch.cat(
            [points.new_full((len(level), 1), s) for level, s in zip(levels, self.anchors.strides, strict=True)]
        )
        boxes = box_around(points, expected(distributions) * stride)
        quality = torch.where(matched.positive, paired_iou(boxes.detach(), matched.boxes), 0.0)
        score = torch.cat([upcast(level.detach().amax(-1)).sigmoid() for level in logits], dim=1)
        weight = torch.where(matched.positive, score, 0.0)
        target = (sides(points, matched.boxes) / stride).clamp(0, self.farthest - 0.1)
        dfl = distribution_focal(distributions.reshape(*distributions.shape[:2], 4, -1), target).mean(-1)
        error = 1 - paired_giou(boxes, matched.boxes)
        return {
            "box_class": Loss(
                quality_focal(logits, matched.labels, quality, targets.known).sum(), positives(matched.positive)
            ),
            "box_reg": Loss(BOX_WEIGHT * torch.where(matched.positive, error * weight, 0.0).sum(), weight.sum()),
            "box_dfl": Loss(DISTRIBUTION_WEIGHT * torch.where(matched.positive, dfl * weight, 0.0).sum(), weight.sum()),
        }

    def predict(self, features: dict[str, Tensor], input_size: tuple[int, int], image_sizes: Tensor) -> Detections:
        levels, boxes = [], []
        for logits, distances, anchors, stride in zip(
            *self(features), self.anchors(features, input_size), self.anchors.strides, strict=True
        ):
            level = best(logits, self.candidates, self.selection.score_threshold)
            levels.append(level)
            chosen = expected(gather_rows(distances, level.anchors)) * stride
            boxes.append(box_around(center(anchors)[level.anchors], chosen))
        return detections(self.selection, levels, boxes, image_sizes)


def expected(logits: Tensor) -> Tensor:
    """The expected values of four distributions over 0..n: (..., 4 * (n + 1)) -> (..., 4)."""
    probs = F.softmax(upcast(logits.reshape(*logits.shape[:-1], 4, -1)), dim=-1)
    # No matrix product: autocast would round it to half a pixel and more.
    return (probs * torch.arange(probs.shape[-1], device=logits.device, dtype=probs.dtype)).sum(-1)
