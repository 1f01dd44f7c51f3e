"""RetinaNet (Lin et al. 2017, arXiv:1708.02002): pyramid -> class scores and a box for every anchor."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from resdet.boxes import decode, delta_distance, encode, paired_giou
from resdet.models.anchors import Anchors
from resdet.models.dense.detector import DenseHead
from resdet.models.dense.losses import focal
from resdet.models.dense.parts import Tower, assigned, best, detections, initialise, per_anchor, positives, predictor
from resdet.models.layers import Norm
from resdet.models.matching import gather_rows, match
from resdet.models.selection import Selection
from resdet.structures import Detections, Loss, Targets

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class RetinaNetHead(DenseHead):
    """num_convs, norm: of each of the two towers.
    high, low: anchors are positive at IoU >= high, and if they are an object's best; negative below low.
    box_loss: smooth L1 (with beta = `loss_beta`) of the deltas ("l1"), or "giou" of the boxes.
    divisor: of the losses: the positives of the batch, or per image, averaged over images ("image", torchvision).
    clamp_shrink: see `boxes.decode`. candidates: (anchor, class) pairs per level that enter NMS.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        anchors: Anchors,
        selection: Selection,
        *,
        num_convs: int = 4,
        norm: Norm = "none",
        high: float = 0.5,
        low: float = 0.4,
        box_loss: Literal["l1", "giou"] = "l1",
        loss_beta: float = 0.0,
        divisor: Literal["batch", "image"] = "batch",
        clamp_shrink: bool = False,
        candidates: int = 1000,
    ) -> None:
        super().__init__()
        self.anchors, self.selection, self.num_classes = anchors, selection, num_classes
        self.class_tower = Tower(channels, num_convs, norm)
        self.box_tower = Tower(channels, num_convs, norm)
        self.classifier = predictor(channels, anchors.per_location * num_classes)
        self.regressor = predictor(channels, anchors.per_location * 4)
        initialise(self, self.classifier)
        self.high, self.low, self.candidates = high, low, candidates
        self.box_loss, self.loss_beta, self.divisor, self.clamp_shrink = box_loss, loss_beta, divisor, clamp_shrink

    def forward(self, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: logits (B, A_l, K) and deltas (B, A_l, 4); anchors are ordered (row, column, shape)."""
        logits = [per_anchor(self.classifier(self.class_tower(x)), self.num_classes) for x in features.values()]
        deltas = [per_anchor(self.regressor(self.box_tower(x)), 4) for x in features.values()]
        return logits, deltas

    def loss(self, features: dict[str, Tensor], input_size: tuple[int, int], targets: Targets) -> dict[str, Loss]:
        logits, deltas = self(features)
        anchors = torch.cat(self.anchors(features, input_size))
        found = match(anchors, targets.boxes, targets.valid, high=self.high, low=self.low, low_quality=True)
        ignored = ~(found.positive | found.negative)
        matched = assigned(targets, found.gt_index, found.positive, self.num_classes, ignored)
        all_deltas = torch.cat(deltas, dim=1)
        if self.box_loss == "giou":
            boxes = decode(all_deltas, anchors, DELTA_WEIGHTS, clamp_shrink=self.clamp_shrink)
            distance = 1 - paired_giou(boxes, matched.boxes)
        else:
            distance = delta_distance(all_deltas, encode(matched.boxes, anchors, DELTA_WEIGHTS), self.loss_beta)
        sums = {
            "box_class": focal(logits, matched.labels, targets.known),
            "box_reg": torch.where(matched.positive, distance, 0.0).sum(1),
        }
        if self.divisor == "image":
            counts = matched.positive.sum(1).clamp(min=1)
            images = torch.full_like(counts[0], len(counts))
            return {name: Loss((per_image / counts).sum(), images) for name, per_image in sums.items()}
        return {name: Loss(per_image.sum(), positives(matched.positive)) for name, per_image in sums.items()}

    def predict(self, features: dict[str, Tensor], input_size: tuple[int, int], image_sizes: Tensor) -> Detections:
        levels, boxes = [], []
        for logits, deltas, anchors in zip(*self(features), self.anchors(features, input_size), strict=True):
            level = best(logits, self.candidates, self.selection.score_threshold)
            chosen = gather_rows(deltas, level.anchors)
            levels.append(level)
            boxes.append(decode(chosen, anchors[level.anchors], DELTA_WEIGHTS, clamp_shrink=self.clamp_shrink))
        return detections(self.selection, levels, boxes, image_sizes)
