"""Cascade R-CNN's head (Cai & Vasconcelos 2018, arXiv:1712.00726): box heads in a row, each on the boxes of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from resdet.boxes import big_enough, clip, upcast
from resdet.fields import replace
from resdet.models.heads.box import BoxHead
from resdet.models.heads.mask import MaskHead
from resdet.models.heads.point_rend import PointRendHead
from resdet.models.matching import relabel, sample_rois
from resdet.models.selection import Selection
from resdet.structures import Detections, Loss, Output, Samples


class CascadeHead(nn.Module):
    """stages: class-agnostic box heads. Each is trained on the boxes of the one before, labelled at an IoU of its own.

    masks: none, or a mask head for each stage, trained on its RoIs (mmdetection); their probabilities are averaged.
    ious: from which a box is positive, for each stage; the first stage's RoIs come labelled.
    loss_weights: of each stage's losses.
    resample: None, each stage labels the first one's RoIs anew (detectron2); or the share of positives with which each stage
    draws as many RoIs again, objects' own boxes among them (mmdetection).
    scale_gradients: all stages together move the features as much as one head would (detectron2).
    average: of the stages' probabilities ("scores", detectron2) or of what their softmax is taken ("logits", mmdetection).
    """

    def __init__(
        self,
        stages: Sequence[BoxHead],
        masks: Sequence[MaskHead | PointRendHead] = (),
        *,
        ious: Sequence[float] = (0.5, 0.6, 0.7),
        loss_weights: Sequence[float] = (1.0, 1.0, 1.0),
        resample: float | None = None,
        scale_gradients: bool = True,
        average: Literal["scores", "logits"] = "scores",
        selection: Selection | None = None,
    ) -> None:
        super().__init__()
        assert len(stages) == len(ious) == len(loss_weights)
        assert len(masks) in (0, len(stages))
        assert all(stage.box_classes == 1 for stage in stages)
        self.stages = cast(list[BoxHead], nn.ModuleList(stages))
        self.masks = cast(list[MaskHead | PointRendHead], nn.ModuleList(masks))
        self.ious, self.loss_weights, self.resample = tuple(ious), tuple(loss_weights), resample
        self.scale_gradients, self.average = scale_gradients, average
        self.outputs: tuple[Output, ...] = ("boxes", "masks") if masks else ("boxes",)
        self.num_classes = stages[0].num_classes
        self.selection = selection or Selection()

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        """box_class_1, box_reg_1 and with masks of their own mask_1, then of stage 2, …, times the stage's weight."""
        masked = features
        if self.scale_gradients:
            features = {name: _ScaleGradient.apply(f, 1 / len(self.stages)) for name, f in features.items()}
        losses: dict[str, Loss] = {}
        for k, stage in enumerate(self.stages):
            logits, deltas = stage(features, samples.boxes, samples.valid)
            found = stage.losses_of(logits, deltas, samples)
            if self.masks:
                found |= self.masks[k].loss(masked, samples)
            weight = self.loss_weights[k]
            losses |= {f"{name}_{k + 1}": Loss(loss.sum * weight, loss.count) for name, loss in found.items()}
            if k + 1 < len(self.stages):
                boxes = _inside(stage.refine(deltas, samples.boxes), samples.image_sizes)
                samples = self._next(samples, boxes, k + 1)
        return losses

    def _next(self, samples: Samples, boxes: Tensor, k: int) -> Samples:
        """What stage k trains on: the boxes (B, R, 4) of the stage before, but for those that shrank to nothing."""
        valid = samples.valid & big_enough(boxes, 0)
        if self.resample is None:
            return relabel(samples, boxes, valid, iou_threshold=self.ious[k], num_classes=self.num_classes)
        own = samples.positive & (samples.boxes == samples.gt_boxes).all(-1)  # objects' own boxes join anew
        return sample_rois(
            boxes, valid & ~own, samples.targets, samples.keys + 1, samples.image_sizes,
            count=boxes.shape[1], positive_fraction=self.resample, iou_threshold=self.ious[k], low_quality=False,
            num_classes=self.num_classes,
        )  # fmt: skip

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Proposals in; the last stage's boxes with the average scores of all stages, suppressed, out."""
        scores, boxes = self.scores_and_boxes(features, detections)
        found = self.selection.select(boxes, scores, detections.valid, detections.image_sizes)
        if not self.masks:
            return found
        masked = [mask.predict(features, found) for mask in self.masks]
        return replace(masked[0], mask_probs=_mean([one.mask_probs for one in masked if one.mask_probs is not None]))

    def scores_and_boxes(self, features: dict[str, Tensor], proposals: Detections) -> tuple[Tensor, Tensor]:
        """Class probabilities (B, R, K) and refined boxes (B, R, 1, 4), not clipped, of R proposals an image."""
        boxes, said = proposals.boxes, []
        for stage in self.stages:
            logits, deltas = stage(features, boxes, proposals.valid)
            said.append(upcast(logits))
            refined = stage.refine(deltas, boxes)
            boxes = _inside(refined, proposals.image_sizes)
        scores = _mean(said).softmax(-1) if self.average == "logits" else _mean([one.softmax(-1) for one in said])
        scores = scores[..., :-1]
        if self.stages[-1].objectness:
            scores = (scores * proposals.scores.unsqueeze(-1)).sqrt()
        return scores, refined


class _ScaleGradient(torch.autograd.Function):
    """x itself; its gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _inside(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """A stage's refined boxes (B, R, 1, 4) -> the next one's (B, R, 4), clipped, without nan and gradients."""
    return torch.nan_to_num(clip(boxes.detach().squeeze(2), image_sizes))


def _mean(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)
