"""One-stage detectors: backbone, neck, and a head that says of every anchor or point what is there and where its box lies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resdet.models.backbones.base import Backbone
from resdet.models.detector import Detector
from resdet.models.fpn import Neck
from resdet.models.selection import Selection
from resdet.structures import Batch, Detections, Loss, Output, Targets


class DenseHead(nn.Module):
    """What a head is: a subclass sets `selection` and has these two methods. input_size: the padded input's (H, W)."""

    selection: Selection

    def loss(self, features: dict[str, Tensor], input_size: tuple[int, int], targets: Targets) -> dict[str, Loss]:
        """Named losses, each a sum and a count, of all places of the maps."""
        raise NotImplementedError

    def predict(self, features: dict[str, Tensor], input_size: tuple[int, int], image_sizes: Tensor) -> Detections:
        """Detections in the input's frame."""
        raise NotImplementedError


class OneStage(Detector):
    """RetinaNet, FCOS, ATSS, GFL or YOLOF: which, its head decides."""

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        head: DenseHead,
        *,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        bgr: bool = False,
    ) -> None:
        super().__init__(backbone, neck, num_classes=num_classes, pixel_mean=pixel_mean, pixel_std=pixel_std, bgr=bgr)
        self.head = head

    @property
    def outputs(self) -> frozenset[Output]:
        return frozenset({"boxes"})

    @property
    def selection(self) -> Selection:
        return self.head.selection

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """Those of the head: box_class, box_reg and, of some, centerness or box_dfl."""
        assert batch.targets is not None, "losses need targets"
        return self.head.loss(self.features(batch), _size(batch.images), batch.targets)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Detections:
        """Detections in the network's input frame; `batch.targets` and `batch.keys` are not looked at."""
        return self.head.predict(self.features(batch), _size(batch.images), batch.image_sizes)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
