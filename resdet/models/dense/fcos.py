"""FCOS (Tian et al. 2019, arXiv:1904.01355): pyramid -> for every point class scores, distances to the four sides of a box, and
centre-ness.

Letters: A points of all levels, G objects per image, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from resdet.boxes import area, box_around, center, paired_giou, paired_iou, sides, upcast
from resdet.models.anchors import Anchors
from resdet.models.dense.detector import DenseHead
from resdet.models.dense.losses import focal
from resdet.models.dense.parts import Tower, assigned, best, detections, initialise, level_scales, per_anchor, predictor
from resdet.models.layers import Norm
from resdet.models.matching import CHUNK, first_maximum, gather_rows
from resdet.models.selection import Selection
from resdet.structures import Detections, Loss, Targets


class FCOSHead(DenseHead):
    """points: one per cell, the centres of anchors.
    num_convs, norm, bias: of the convolutions of each of the two towers.
    scales: a learned factor on the distances of each level.
    distances: the output's ReLU in strides ("relu") or its exponential in pixels ("exp").
    centerness_on: the tower that centre-ness is predicted from.
    radius: centre sampling: positives are within `radius` strides of an object's centre; None: anywhere in the object.
    box_loss: "giou", or -log IoU ("iou").
    weighted: weight the box loss by centre-ness.
    score: the geometric mean of class score and centre-ness (torchvision), or their product; with the product, candidates are
    ranked and thresholded by the class score only (mmdetection).
    candidates: (point, class) pairs per level that enter NMS.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        points: Anchors,
        selection: Selection,
        *,
        num_convs: int = 4,
        norm: Norm = "gn",
        bias: bool = True,
        scales: bool = True,
        distances: Literal["relu", "exp"] = "relu",
        centerness_on: Literal["box", "class"] = "box",
        radius: float | None = 1.5,
        box_loss: Literal["giou", "iou"] = "giou",
        weighted: bool = True,
        score: Literal["mean", "product"] = "product",
        candidates: int = 1000,
    ) -> None:
        super().__init__()
        self.points, self.selection, self.num_classes = points, selection, num_classes
        self.class_tower = Tower(channels, num_convs, norm, bias=bias)
        self.box_tower = Tower(channels, num_convs, norm, bias=bias)
        self.classifier = predictor(channels, num_classes)
        self.regressor, self.centerness = predictor(channels, 4), predictor(channels, 1)
        self.scales = level_scales(len(points.strides)) if scales else None
        initialise(self, self.classifier)
        self.distances, self.centerness_on, self.radius = distances, centerness_on, radius
        self.box_loss, self.weighted, self.score, self.candidates = box_loss, weighted, score, candidates

    def forward(self, features: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Per level: logits (B, A_l, K), distances (B, A_l, 4) to left, top, right, bottom in pixels, and centre-ness logits
        (B, A_l); points are ordered (row, column)."""
        logits, distances, centerness = [], [], []
        for k, (x, stride) in enumerate(zip(features.values(), self.points.strides, strict=True)):
            class_features, box_features = self.class_tower(x), self.box_tower(x)
            logits.append(per_anchor(self.classifier(class_features), self.num_classes))
            output = upcast(per_anchor(self.regressor(box_features), 4))
            output = output if self.scales is None else output * self.scales[k]
            distances.append(output.exp() if self.distances == "exp" else F.relu(output) * stride)
            tower = box_features if self.centerness_on == "box" else class_features
            centerness.append(per_anchor(self.centerness(tower), 1).squeeze(-1))
        return logits, distances, centerness

    def loss(self, features: dict[str, Tensor], input_size: tuple[int, int], targets: Targets) -> dict[str, Loss]:
        """Over the number of positives; a box loss weighted by centre-ness is divided by its sum."""
        logits, distances, centerness = self(features)
        levels = [center(anchors) for anchors in self.points(features, input_size)]
        points = torch.cat(levels)
        matched = assigned(targets, *assign(levels, self.points.strides, targets, self.radius), self.num_classes)
        boxes = box_around(points, torch.cat(distances, dim=1))
        error = iou_error(boxes, matched.boxes) if self.box_loss == "iou" else 1 - paired_giou(boxes, matched.boxes)
        target = torch.where(matched.positive, centerness_of(sides(points, matched.boxes)), 0.0)
        weight = target if self.weighted else matched.positive.to(target.dtype)
        entropy = F.binary_cross_entropy_with_logits(upcast(torch.cat(centerness, dim=1)), target, reduction="none")
        count = matched.positive.sum()
        return {
            "box_class": Loss(focal(logits, matched.labels, targets.known).sum(), count),
            "box_reg": Loss(torch.where(matched.positive, error * weight, 0.0).sum(), weight.sum()),
            "centerness": Loss(torch.where(matched.positive, entropy, 0.0).sum(), count),
        }

    def predict(self, features: dict[str, Tensor], input_size: tuple[int, int], image_sizes: Tensor) -> Detections:
        levels, boxes = [], []
        for logits, distances, centerness, anchors in zip(
            *self(features), self.points(features, input_size), strict=True
        ):
            quality = upcast(centerness).sigmoid()
            threshold = self.selection.score_threshold
            if self.score == "mean":
                level = best(logits, self.candidates, threshold**2, quality)
                level = level._replace(
                    scores=torch.where(level.scores > 0, level.scores.clamp(min=0).sqrt(), level.scores)
                )
            else:
                level = best(logits, self.candidates, threshold)
                level = level._replace(scores=level.scores * quality.gather(1, level.anchors))
            levels.append(level)
            boxes.append(box_around(center(anchors)[level.anchors], gather_rows(distances, level.anchors)))
        return detections(self.selection, levels, boxes, image_sizes)


def iou_error(boxes: Tensor, target: Tensor) -> Tensor:
    """-log IoU of corresponding boxes (Yu et al. 2016, arXiv:1608.01471): (..., 4), (..., 4) -> (...)."""
    return -paired_iou(boxes, target).clamp(min=1e-6).log()


def centerness_of(sides: Tensor) -> Tensor:
    """Centre-ness of points with these distances to the sides of a box (..., 4) -> (...): 1 at its centre, 0 on its sides and
    outside (equation 3)."""
    left, top, right, bottom = sides.clamp(min=0).unbind(-1)
    ratios = [torch.minimum(a, b) / torch.maximum(a, b).clamp(min=1e-6) for a, b in ((left, right), (top, bottom))]
    return (ratios[0] * ratios[1]).sqrt()


def assign(
    levels: list[Tensor], strides: tuple[int, ...], targets: Targets, radius: float | None
) -> tuple[Tensor, Tensor]:
    """Assign objects to points (A_l, 2) of each level -> gt_index (B, A) int64, positive (B, A) bool.

    A point is assigned the smallest object that it lies in, near its centre (`radius`, see `FCOSHead`), and whose farthest side
    is four to eight strides away; the finest level takes nearer ones too, the coarsest farther ones.
    """
    points = torch.cat(levels)
    stride, low, high = (
        torch.cat([points.new_full((len(level), 1), value) for level, value in zip(levels, values, strict=True)])
        for values in (strides, [0, *(4 * s for s in strides[1:])], [*(8 * s for s in strides[:-1]), torch.inf])
    )
    smallest = points.new_full((len(targets.boxes), len(points)), torch.inf)
    index = torch.zeros_like(smallest, dtype=torch.int64)
    for start in range(0, targets.boxes.shape[1], CHUNK):
        boxes = targets.boxes[:, None, start : start + CHUNK]  # (B, 1, chunk, 4)
        distance = sides(points[:, None], boxes)  # (B, A, chunk, 4)
        farthest = distance.amax(-1)
        fits = (distance.amin(-1) > 0) & (farthest > low) & (farthest < high)
        if radius is not None:
            fits = fits & ((points[:, None] - center(boxes)).abs().amax(-1) < radius * stride)
        fits = fits & targets.valid[:, None, start : start + CHUNK]
        negative_area, best = first_maximum(-torch.where(fits, area(boxes), torch.inf))
        smaller = -negative_area < smallest
        index = torch.where(smaller, best + start, index)
        smallest = torch.where(smaller, -negative_area, smallest)
    return index, smallest < torch.inf
