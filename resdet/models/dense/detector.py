"""One-stage detectors: backbone, neck, and a dense head that predicts classes and a box for every anchor or point."""

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
    """The interface of a dense head: a subclass sets `selection` and defines these two methods. input_size: (H, W) of the
    padded input."""

    selection: Selection

    def loss(self, features: dict[str, Tensor], input_size: tuple[int, int], targets: Targets) -> dict[str, Loss]:
        """The losses by name, over all locations of the maps."""
        raise NotImplementedError

    def predict(self, features: dict[str, Tensor], input_size: tuple[int, int], image_sizes: Tensor) -> Detections:
        """Detections in the network's input frame."""
        raise NotImplementedError


class OneStage(Detector):
    """RetinaNet, FCOS, ATSS, GFL or YOLOF, depending on the head."""

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
        """The head's losses: box_class, box_reg and, depending on the head, centerness or box_dfl."""
        assert batch.targets is not None, "losses need targets"
        return self.head.loss(self.features(batch), _size(batch.images), batch.targets)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Detections:
        """Detections in the network's input frame; `batch.targets` and `batch.keys` are not used."""
        return self.head.predict(self.features(batch), _size(batch.images), batch.image_sizes)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
