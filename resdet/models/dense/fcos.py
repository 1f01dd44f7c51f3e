"""FCOS (Tian et al. 2019, arXiv:1904.01355): pyramid -> for every point a score for each class, the distances to the four sides
of a box, and how central in it the point is.

Letters: A points of all levels, G objects an image, K classes.
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
from resdet.models.dense.parts import Tower, assigned, best, detections, initialise, level_scales, predictor, rows
from resdet.models.layers import Norm
from resdet.models.matching import CHUNK, first_maximum, gather_rows
from resdet.models.selection import Selection
from resdet.structures import Detections, Loss, Targets


class FCOSHead(DenseHead):
    """points: one a cell, as the centres of anchors.
    num_convs, norm, bias: of each of the two towers' convolutions.
    scales: a learned factor on the distances for each level.
    distances: "relu", in strides, or "exp", in pixels, of what is predicted.
    centerness_on: the tower that centre-ness is predicted from.
    radius: an object's points lie within so many strides of its centre; None: anywhere in it.
    box_loss: "giou", or minus the logarithm of the IoU ("iou").
    weighted: a point's box counts in the loss as much as it is central.
    score: of class and centre-ness the geometric mean (torchvision), or the product, for the ranking and the threshold of
    candidates the class alone (mmdetection).
    candidates: pairs of a point and a class a level that suppression looks at.
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
        """Logits (B, A_l, K), distances (B, A_l, 4) to left, top, right, bottom in pixels, and logits of the centre-ness
        (B, A_l), of each level; points are ordered (row, column)."""
        logits, distances, centerness = [], [], []
        for k, (x, stride) in enumerate(zip(features.values(), self.points.strides, strict=True)):
            class_features, box_features = self.class_tower(x), self.box_tower(x)
            logits.append(rows(self.classifier(class_features), self.num_classes))
            said = upcast(rows(self.regressor(box_features), 4))
            said = said if self.scales is None else said * self.scales[k]
            distances.append(said.exp() if self.distances == "exp" else F.relu(said) * stride)
            central = box_features if self.centerness_on == "box" else class_features
            centerness.append(rows(self.centerness(central), 1).squeeze(-1))
        return logits, distances, centerness

    def loss(self, features: dict[str, Tensor], input_size: tuple[int, int], targets: Targets) -> dict[str, Loss]:
        """Divided by the positives, the boxes' by the sum of their centre-ness if they are weighted by it."""
        logits, distances, centerness = self(features)
        levels = [center(anchors) for anchors in self.points(features, input_size)]
        points = torch.cat(levels)
        to = assigned(targets, *assign(levels, self.points.strides, targets, self.radius), self.num_classes)
        boxes = box_around(points, torch.cat(distances, dim=1))
        error = iou_error(boxes, to.boxes) if self.box_loss == "iou" else 1 - paired_giou(boxes, to.boxes)
        wanted = torch.where(to.positive, centerness_of(sides(points, to.boxes)), 0.0)
        weight = wanted if self.weighted else to.positive.to(wanted.dtype)
        entropy = F.binary_cross_entropy_with_logits(upcast(torch.cat(centerness, dim=1)), wanted, reduction="none")
        count = to.positive.sum()
        return {
            "box_class": Loss(focal(logits, to.labels, targets.known).sum(), count),
            "box_reg": Loss(torch.where(to.positive, error * weight, 0.0).sum(), weight.sum()),
            "centerness": Loss(torch.where(to.positive, entropy, 0.0).sum(), count),
        }

    def predict(self, features: dict[str, Tensor], input_size: tuple[int, int], image_sizes: Tensor) -> Detections:
        levels, boxes = [], []
        for logits, distances, centerness, anchors in zip(
            *self(features), self.points(features, input_size), strict=True
        ):
            central = upcast(centerness).sigmoid()
            threshold = self.selection.score_threshold
            if self.score == "mean":
                level = best(logits, self.candidates, threshold**2, central)
                level = level._replace(
                    scores=torch.where(level.scores > 0, level.scores.clamp(min=0).sqrt(), level.scores)
                )
            else:
                level = best(logits, self.candidates, threshold)
                level = level._replace(scores=level.scores * central.gather(1, level.anchors))
            levels.append(level)
            boxes.append(box_around(center(anchors)[level.anchors], gather_rows(distances, level.anchors)))
        return detections(self.selection, levels, boxes, image_sizes)


def iou_error(boxes: Tensor, wanted: Tensor) -> Tensor:
    """Minus the logarithm of the IoU of corresponding boxes (Yu et al. 2016, arXiv:1608.01471): (..., 4), (..., 4) -> (...)."""
    return -paired_iou(boxes, wanted).clamp(min=1e-6).log()


def centerness_of(sides: Tensor) -> Tensor:
    """Of a point with these distances to a box's sides (..., 4): 1 in its centre, 0 on its sides and outside (equation 3)."""
    left, top, right, bottom = sides.clamp(min=0).unbind(-1)
    ratios = [torch.minimum(a, b) / torch.maximum(a, b).clamp(min=1e-6) for a, b in ((left, right), (top, bottom))]
    return (ratios[0] * ratios[1]).sqrt()


def assign(
    levels: list[Tensor], strides: tuple[int, ...], targets: Targets, radius: float | None
) -> tuple[Tensor, Tensor]:
    """Which object each point belongs to: points (A_l, 2) of each level -> gt_index (B, A) int64, positive (B, A) bool.

    The smallest of those that it lies in, near the centre (`radius`, see `FCOSHead`), and whose farthest side is from four to
    eight strides away, on the finest level also nearer, on the coarsest also farther.
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
        lost, best = first_maximum(-torch.where(fits, area(boxes), torch.inf))
        smaller = -lost < smallest
        index = torch.where(smaller, best + start, index)
        smallest = torch.where(smaller, -lost, smallest)
    return index, smallest < torch.inf
