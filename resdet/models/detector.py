"""Faster R-CNN and Mask R-CNN: the architecture, in one file that reads like the papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from resdet.models.fpn import FPN
from resdet.models.layers import ConvNorm, fold_for_good
from resdet.models.matching import sample_rois
from resdet.models.resnet import ResNet
from resdet.models.rpn import RPN
from resdet.structures import Batch, Detections, Samples


class RoIHead(Protocol):
    """What a head is. Subclass nn.Module, give it these two methods, put it into `detector.heads`."""

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Tensor]:
        """Named scalar losses, from the pyramid p2..p6 and the sampled RoIs."""

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """The detections completed. Heads run in the order of the dict; the box head, the first, is given proposals."""


class Detector(nn.Module):
    """Two-stage detector: backbone, pyramid, proposals, heads.

    heads: name -> `RoIHead`, run in order. num_classes: K, without background.
    pixel_mean, pixel_std: of RGB (or BGR with `bgr`) values in 0..255.
    samples, positive_fraction, iou_threshold, low_quality: the RoIs that train the heads (`matching.sample_rois`).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: ResNet,
        fpn: FPN,
        rpn: RPN,
        heads: Mapping[str, nn.Module],
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
        super().__init__()
        self.backbone, self.fpn, self.rpn, self.heads = backbone, fpn, rpn, nn.ModuleDict(heads)
        self.num_classes, self.bgr = num_classes, bgr
        self.samples, self.positive_fraction = samples, positive_fraction
        self.iou_threshold, self.low_quality = iou_threshold, low_quality
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses: rpn_objectness, rpn_box, box_class, box_reg, and mask. In training and in evaluation mode alike."""
        assert batch.targets is not None, "losses need targets"
        features = self.features(batch)
        with torch.no_grad():  # proposals teach nothing; the RPN's loss looks again at the anchors that it draws
            scores = self.rpn(features, _size(batch.images))
        losses: dict[str, Tensor] = self.rpn.loss(features, torch.cat(scores.anchors), batch.targets, batch.keys)
        boxes, _, valid = self.rpn.propose(scores, batch.image_sizes, self.rpn.train_limits)
        samples = sample_rois(
            boxes, valid, batch.targets, batch.keys + 1,
            count=self.samples, positive_fraction=self.positive_fraction, iou_threshold=self.iou_threshold,
            low_quality=self.low_quality, num_classes=self.num_classes,
        )  # fmt: skip
        for head in self.heads.values():
            losses = losses | head.loss(features, samples)  # type: ignore[operator]
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch) -> Detections:
        """Detections in the network's input frame; `batch.targets` and `batch.keys` are not looked at."""
        features = self.features(batch)
        scores = self.rpn(features, _size(batch.images))
        boxes, objectness, valid = self.rpn.propose(scores, batch.image_sizes, self.rpn.predict_limits)
        labels = torch.zeros_like(valid, dtype=torch.int64)
        detections = Detections(boxes, objectness, labels, valid, batch.image_sizes)
        for head in self.heads.values():
            detections = head.predict(features, detections)  # type: ignore[operator]
        return detections

    def only_predict(self, dtype: torch.dtype | None = None) -> Detector:
        """Itself, made ready to predict and nothing else: in evaluation mode, with fixed norms folded into their convolutions
        for good and, to run under autocast with that dtype, the weights below the heads cast for good. Detections stay the
        same; a GPU starts a third fewer kernels for them."""
        self.eval()
        for module in (*self.backbone.modules(), *(m for m in self.modules() if isinstance(m, ConvNorm))):
            fold_for_good(module)
        for part in (self.backbone, self.fpn, self.rpn):  # a head of your own may want its weights as they are
            for module in part.modules():
                if dtype and isinstance(module, nn.Conv2d):
                    module.to(dtype)
        return self

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Images (B, 3, H, W) in 0..255 -> {"p2": (B, C, H/4, W/4), …, "p6": …}."""
        features: dict[str, Tensor] = self.fpn(self.backbone(self.normalize(batch)))
        return features

    def normalize(self, batch: Batch) -> Tensor:
        """Mean, std and channel order; the padding is zero afterwards, as every published model was trained."""
        images = batch.images.flip(1) if self.bgr else batch.images
        images = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        h, w = batch.image_sizes[:, :, None].unbind(1)  # (B, 1)
        rows = torch.arange(images.shape[2], device=images.device) < h
        columns = torch.arange(images.shape[3], device=images.device) < w
        return images * (rows[:, None, :, None] & columns[:, None, None, :])


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
