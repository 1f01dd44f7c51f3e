"""Bipartite matching of predictions and objects, and the losses (section 4; DETR: Carion et al. 2020, arXiv:2005.12872).

Letters: L layers, Q queries, G objects per image (padded), K classes. Boxes are (centre x, centre y, width, height), relative
to the input's sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resdet.boxes import from_cxcywh, paired_giou, paired_iou, to_cxcywh
from resdet.kernels.assign import assign
from resdet.structures import Loss, Targets

if TYPE_CHECKING:
    from resdet.models.rtdetr.denoising import Noisy


class Objects(NamedTuple):
    """boxes (B, G, 4), labels (B, G) int64 in [0, K), 0 for padding, valid (B, G), known (B, K) or None: as in `Targets`."""

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    known: Tensor | None


class Predictions(NamedTuple):
    """logits (L, B, Q, K), boxes (L, B, Q, 4)."""

    logits: Tensor
    boxes: Tensor

    def queries(self, start: int, stop: int | None) -> Predictions:
        return Predictions(self.logits[:, :, start:stop], self.boxes[:, :, start:stop])


class SetLoss:
    """Hungarian matching per layer; varifocal, L1 and generalised IoU losses.

    The matching cost is class_cost * focal cost + box_cost * L1 - giou_cost * GIoU. alpha, gamma: of the varifocal loss (Zhang
    et al. 2020, arXiv:2008.13367), whose target is the IoU of the matched box.
    """

    def __init__(
        self,
        *,
        class_cost: float,
        box_cost: float,
        giou_cost: float,
        focal_alpha: float,
        focal_gamma: float,
        class_weight: float,
        box_weight: float,
        giou_weight: float,
        alpha: float,
        gamma: float,
    ) -> None:
        self.class_cost, self.box_cost, self.giou_cost = class_cost, box_cost, giou_cost
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.class_weight, self.box_weight, self.giou_weight = class_weight, box_weight, giou_weight
        self.alpha, self.gamma = alpha, gamma

    @staticmethod
    def objects(targets: Targets, size: torch.Size) -> Objects:
        """The targets as `Objects`. size: (H, W) of the padded input."""
        x, y, width, height = to_cxcywh(targets.boxes).unbind(-1)
        h, w = size
        boxes = torch.stack([x / w, y / h, width / w, height / h], dim=-1)
        return Objects(boxes, targets.labels.clamp(min=0), targets.valid, targets.known)

    def __call__(self, layers: Predictions, encoder: Predictions, objects: Objects) -> dict[str, Loss]:
        """class, box, giou of the last layer; aux_… of the other layers and the encoder (L = 1) together."""
        predicted = Predictions(
            torch.cat([encoder.logits, layers.logits]).float(), torch.cat([encoder.boxes, layers.boxes])
        )
        owner = owners(assign(self.costs(predicted, objects)), predicted.logits.shape[2])
        share = predicted.boxes.new_ones(predicted.boxes.shape[1:3])
        losses, count = self.sums(predicted, owner, share, objects), objects.valid.sum()
        last = {name: Loss(sums[-1], count) for name, sums in losses.items()}
        return last | {f"aux_{name}": Loss(sums[:-1].sum(), count) for name, sums in losses.items()}

    def denoising(self, layers: Predictions, noisy: Noisy, objects: Objects) -> dict[str, Loss]:
        """denoising_… of all layers together."""
        owner = noisy.owner.expand(len(layers.boxes), -1, -1)
        losses = self.sums(Predictions(layers.logits.float(), layers.boxes), owner, noisy.share, objects)
        return {f"denoising_{name}": Loss(sums.sum(), noisy.num_objects) for name, sums in losses.items()}

    @torch.no_grad()
    def costs(self, predicted: Predictions, objects: Objects) -> Tensor:
        """The cost of matching each query to each object: (L, B, Q, G), infinite for padding."""
        shape = (*predicted.logits.shape[:3], -1)
        score = predicted.logits.gather(-1, objects.labels[:, None].expand(shape)).sigmoid()
        alpha, gamma, eps = self.focal_alpha, self.focal_gamma, 1e-8
        positive = -alpha * (1 - score) ** gamma * (score + eps).log()
        negative = -(1 - alpha) * score**gamma * (1 - score + eps).log()
        distance = (predicted.boxes.unsqueeze(-2) - objects.boxes[:, None]).abs().sum(-1)
        overlap = paired_giou(from_cxcywh(predicted.boxes).unsqueeze(-2), from_cxcywh(objects.boxes).unsqueeze(-3))
        cost = self.class_cost * (positive - negative) + self.box_cost * distance - self.giou_cost * overlap
        largest = torch.finfo(cost.dtype).max
        cost = cost.nan_to_num(largest, largest, -largest)  # the training step reports non-finite values
        return torch.where(objects.valid[:, None], cost, torch.inf)

    def sums(self, predicted: Predictions, owner: Tensor, share: Tensor, objects: Objects) -> dict[str, Tensor]:
        """Weighted sums of the losses per layer, (L,) each.

        owner (L, B, Q) int64: the object of each query, -1 for none. share (B, Q): the weight of each query.
        """
        classes = predicted.logits.shape[-1]
        matched, index = owner >= 0, owner.clamp(min=0)
        gt_boxes = objects.boxes.expand(len(owner), -1, -1, -1).gather(2, index.unsqueeze(-1).expand(*index.shape, 4))
        label = objects.labels.expand(len(owner), -1, -1).gather(2, index)
        xyxy, gt_xyxy = from_cxcywh(predicted.boxes), from_cxcywh(gt_boxes)
        one_hot = (label.unsqueeze(-1) == torch.arange(classes, device=label.device)) & matched.unsqueeze(-1)
        target = one_hot * paired_iou(xyxy.detach(), gt_xyxy).unsqueeze(-1)
        weight = torch.where(one_hot, target, self.alpha * predicted.logits.detach().sigmoid() ** self.gamma)
        if objects.known is not None:
            weight = weight * (one_hot | objects.known[:, None])  # positives count even if their class is not known
        classification = F.binary_cross_entropy_with_logits(predicted.logits, target, weight, reduction="none").sum(-1)
        l1 = torch.where(matched, (predicted.boxes - gt_boxes).abs().sum(-1), 0.0)
        giou = torch.where(matched, 1 - paired_giou(xyxy, gt_xyxy), 0.0)
        return {
            "class": self.class_weight * (classification * share).sum((1, 2)),
            "box": self.box_weight * (l1 * share).sum((1, 2)),
            "giou": self.giou_weight * (giou * share).sum((1, 2)),
        }


def owners(index: Tensor, queries: int) -> Tensor:
    """The query of each object (L, B, G), -1 for none -> the object of each query (L, B, Q), -1 for none."""
    objects = torch.arange(index.shape[2], device=index.device).expand_as(index)
    owner = torch.full((*index.shape[:2], queries + 1), -1, device=index.device)  # + 1 for objects without a query
    return owner.scatter(2, torch.where(index >= 0, index, queries), objects)[:, :, :-1]
