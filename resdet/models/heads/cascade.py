"""Cascade R-CNN's head (Cai & Vasconcelos 2018, arXiv:1712.00726): box heads in sequence, each on the last one's boxes."""

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
    """stages: class-agnostic box heads, each trained on the previous stage's boxes, matched at an IoU of its own.

    masks: none, or one mask head per stage, trained on its RoIs (mmdetection); their probabilities are averaged.
    ious: per stage, the IoU from which a box is positive; the first stage's RoIs come matched.
    loss_weights: per stage.
    resample: None: each stage matches all RoIs of the first one again (detectron2). Otherwise each stage samples as many RoIs
    again, ground-truth boxes included, with this fraction of positives (mmdetection).
    scale_gradients: divide the gradients to the features by the number of stages (detectron2).
    average: average the stages' probabilities ("scores", detectron2) or their logits (mmdetection).
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
        """box_class_1, box_reg_1 and, with mask heads, mask_1 of stage 1, then of stage 2, …, each times its stage's weight."""
        unscaled = features
        if self.scale_gradients:
            features = {name: _ScaleGradient.apply(f, 1 / len(self.stages)) for name, f in features.items()}
        losses: dict[str, Loss] = {}
        for k, stage in enumerate(self.stages):
            logits, deltas = stage(features, samples.boxes, samples.valid)
            of_stage = stage.losses_of(logits, deltas, samples)
            if self.masks:
                of_stage |= self.masks[k].loss(unscaled, samples)
            weight = self.loss_weights[k]
            losses |= {f"{name}_{k + 1}": Loss(loss.sum * weight, loss.count) for name, loss in of_stage.items()}
            if k + 1 < len(self.stages):
                boxes = _next_boxes(stage.refine(deltas, samples.boxes), samples.image_sizes)
                samples = self._next(samples, boxes, k + 1)
        return losses

    def _next(self, samples: Samples, boxes: Tensor, k: int) -> Samples:
        """The samples of stage k from the boxes (B, R, 4) of the previous one, without those that became empty."""
        valid = samples.valid & big_enough(boxes, 0)
        if self.resample is None:
            return relabel(samples, boxes, valid, iou_threshold=self.ious[k], num_classes=self.num_classes)
        own = samples.positive & (samples.boxes == samples.gt_boxes).all(
            -1
        )  # `sample_rois` adds ground-truth boxes again
        return sample_rois(
            boxes, valid & ~own, samples.targets, samples.keys + 1, samples.image_sizes,
            count=boxes.shape[1], positive_fraction=self.resample, iou_threshold=self.ious[k], low_quality=False,
            num_classes=self.num_classes,
        )  # fmt: skip

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Proposals -> detections: the last stage's boxes with the average scores of all stages, after NMS."""
        scores, boxes = self.scores_and_boxes(features, detections)
        found = self.selection.select(boxes, scores, detections.valid, detections.image_sizes)
        if not self.masks:
            return found
        with_masks = [mask.predict(features, found) for mask in self.masks]
        return replace(with_masks[0], mask_probs=_mean([d.mask_probs for d in with_masks if d.mask_probs is not None]))

    def scores_and_boxes(self, features: dict[str, Tensor], proposals: Detections) -> tuple[Tensor, Tensor]:
        """Class probabilities (B, R, K) and refined boxes (B, R, 1, 4), not clipped, of the proposals (B, R)."""
        boxes, all_logits = proposals.boxes, []
        for stage in self.stages:
            logits, deltas = stage(features, boxes, proposals.valid)
            all_logits.append(upcast(logits))
            refined = stage.refine(deltas, boxes)
            boxes = _next_boxes(refined, proposals.image_sizes)
        if self.average == "logits":
            scores = _mean(all_logits).softmax(-1)
        else:
            scores = _mean([logits.softmax(-1) for logits in all_logits])
        scores = scores[..., :-1]
        if self.stages[-1].objectness:
            scores = (scores * proposals.scores.unsqueeze(-1)).sqrt()
        return scores, refined


class _ScaleGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def _next_boxes(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """A stage's refined boxes (B, R, 1, 4) -> input boxes of the next one (B, R, 4): clipped, detached, without nan."""
    return torch.nan_to_num(clip(boxes.detach().squeeze(2), image_sizes))


def _mean(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)
