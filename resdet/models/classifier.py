"""A classifier of pictures on a residual backbone: the ImageNet network of He et al. 2015, to pretrain backbones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.models.backbones.base import Backbone
from resdet.models.detector import Detector
from resdet.models.fpn import SingleLevel
from resdet.models.selection import Selection
from resdet.structures import Batch, Detections, Loss, Output

MOST = 5  # classes that are predicted for a picture


class Classifier(Detector):
    """Backbone, mean of its last map, a linear layer.

    To the code around it, a picture is one object that fills it, so that it is trained as a detector is.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        label_smoothing: float,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        bgr: bool = False,
    ) -> None:
        name, channels = list(backbone.channels.items())[-1]
        last = SingleLevel(name, channels, backbone.strides[name])
        super().__init__(backbone, last, num_classes=num_classes, pixel_mean=pixel_mean, pixel_std=pixel_std, bgr=bgr)
        self.label_smoothing = label_smoothing
        self.classifier = nn.Linear(channels, num_classes)
        self._selection = Selection(max_detections=MOST)

    @property
    def outputs(self) -> frozenset[Output]:
        return frozenset({"classes"})

    @property
    def selection(self) -> Selection:
        return self._selection

    def logits(self, batch: Batch) -> Tensor:
        """(B, K) float32."""
        (last,) = self.features(batch).values()  # (B, C, H/32, W/32)
        logits: Tensor = self.classifier(last.mean((2, 3)))
        return logits.float()

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """class: cross-entropy against the classes' shares of each picture, a part of which goes to all classes equally."""
        assert batch.targets is not None
        assert batch.targets.shares is not None
        smooth = self.label_smoothing
        wanted = batch.targets.shares * (1 - smooth) + smooth / self.num_classes  # (B, K)
        terms = -(wanted * F.log_softmax(self.logits(batch), dim=1)).sum(1)
        return {"class": Loss(terms.sum(), torch.full_like(terms[0], len(terms)))}

    @torch.no_grad()
    def predict(self, batch: Batch) -> Detections:
        """The most probable classes of each picture, by descending probability, each as a box that fills it."""
        scores, labels = self.logits(batch).softmax(1).topk(min(MOST, self.num_classes))
        h, w = batch.image_sizes.to(scores).unbind(1)
        zero = torch.zeros_like(h)
        boxes = torch.stack([zero, zero, w, h], dim=1)[:, None].expand(-1, labels.shape[1], -1)
        return Detections(boxes, scores, labels, torch.ones_like(labels, dtype=torch.bool), batch.image_sizes)
