"""The R-CNN family: Faster, Mask, Keypoint and Cascade R-CNN by their heads, and the RPN alone without heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from resdet.models.backbones.base import Backbone
from resdet.models.detector import Detector
from resdet.models.fpn import Neck
from resdet.models.heads.rpn import RPN
from resdet.models.matching import sample_rois
from resdet.models.selection import Selection
from resdet.structures import Batch, Detections, Loss, Output, Samples


class RoIHead(Protocol):
    """The interface of a head: an nn.Module with these two methods in `detector.heads`.

    outputs: the kinds of results it adds; optional in a custom head that adds none.
    """

    outputs: tuple[Output, ...]

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        """The head's losses by name, from the pyramid p2..p6 and the sampled RoIs."""

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """The detections with the head's results added. Heads run in the order of the dict; the first gets proposals."""


class RCNN(Detector):
    """Two-stage detector: backbone, neck, proposals, heads.

    heads: name -> `RoIHead`, run in order. Without heads the proposals are the detections: label 0, scored by objectness.
    samples, positive_fraction, iou_threshold, low_quality: the RoIs that train the heads (`matching.sample_rois`).
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        rpn: RPN,
        heads: Mapping[str, RoIHead],
        *,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        bgr: bool = False,
        samples: int = 512,
        positive_fraction: float = 0.25,
        iou_threshold: float = 0.5,
        low_quality: bool = False,
    ) -> None:
        super().__init__(backbone, neck, num_classes=num_classes, pixel_mean=pixel_mean, pixel_std=pixel_std, bgr=bgr)
        self.rpn, self.heads = rpn, nn.ModuleDict(cast(Mapping[str, nn.Module], heads))
        self.samples, self.positive_fraction = samples, positive_fraction
        self.iou_threshold, self.low_quality = iou_threshold, low_quality
        self._proposals = Selection(score_threshold=0.0, max_detections=rpn.predict_limits.post_nms)

    @property
    def outputs(self) -> frozenset[Output]:
        if not self.heads:
            return frozenset({"proposals"})
        return frozenset(output for head in self.roi_heads() for output in getattr(head, "outputs", ()))

    @property
    def selection(self) -> Selection:
        selection = self.heads["box"].selection if self.heads else self._proposals
        assert isinstance(selection, Selection)
        return selection

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """rpn_objectness, rpn_box, box_class, box_reg, mask, and those of other heads."""
        assert batch.targets is not None, "losses need targets"
        features = self.features(batch)
        if not self.heads:
            anchors = self.rpn.anchors(features, _size(batch.images))
            return self.rpn.loss(features, torch.cat(anchors), batch.targets, batch.keys)
        with torch.no_grad():  # for proposals only: the RPN's loss recomputes the scores of the anchors that it samples
            scores = self.rpn(features, _size(batch.images))
        losses: dict[str, Loss] = self.rpn.loss(features, torch.cat(scores.anchors), batch.targets, batch.keys)
        boxes, _, valid = self.rpn.propose(scores, batch.image_sizes, self.rpn.train_limits)
        samples = sample_rois(
            boxes, valid, batch.targets, batch.keys + 1, batch.image_sizes,
            count=self.samples, positive_fraction=self.positive_fraction, iou_threshold=self.iou_threshold,
            low_quality=self.low_quality, num_classes=self.num_classes,
        )  # fmt: skip
        for head in self.roi_heads():
            losses = losses | head.loss(features, samples)
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch) -> Detections:
        """Detections in the network's input frame; `batch.targets` and `batch.keys` are not used."""
        features = self.features(batch)
        scores = self.rpn(features, _size(batch.images))
        limits = self.rpn.predict_limits
        if not self.heads:
            limits = limits._replace(post_nms=self.selection.max_detections)
        boxes, objectness, valid = self.rpn.propose(scores, batch.image_sizes, limits)
        if not self.heads:
            valid = valid & (objectness > self.selection.score_threshold)
        labels = torch.zeros_like(valid, dtype=torch.int64)
        detections = Detections(boxes, objectness, labels, valid, batch.image_sizes)
        for head in self.roi_heads():
            detections = head.predict(features, detections)
        return detections

    def roi_heads(self) -> list[RoIHead]:
        """The heads in the order in which they run."""
        return cast(list[RoIHead], list(self.heads.values()))

    def below_heads(self) -> list[nn.Module]:
        return [*super().below_heads(), self.rpn]


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
