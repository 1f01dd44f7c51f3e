"""Semantic FPN (Kirillov et al. 2019, arXiv:1901.02446): backbone, pyramid, and a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from resdet.models.backbones.base import Backbone
from resdet.models.detector import Detector
from resdet.models.fpn import FPN
from resdet.models.heads.semantic import SemanticHead
from resdet.models.selection import Selection
from resdet.structures import Batch, Detections, Loss, Output


class SemanticFPN(Detector):
    """Semantic segmentation only: its `Detections` have no boxes, only `semantic`."""

    def __init__(
        self,
        backbone: Backbone,
        fpn: FPN,
        head: SemanticHead,
        *,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        bgr: bool = False,
    ) -> None:
        super().__init__(
            backbone, fpn, num_classes=head.num_classes, pixel_mean=pixel_mean, pixel_std=pixel_std, bgr=bgr
        )
        self.heads = nn.ModuleDict({"semantic": head})  # the same parameter names as in an R-CNN
        self._no_detections = Selection(max_detections=0)

    @property
    def outputs(self) -> frozenset[Output]:
        return frozenset({"semantic"})

    @property
    def selection(self) -> Selection:
        return self._no_detections

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """semantic: see `SemanticHead.loss`."""
        losses: dict[str, Loss] = self._head.loss(self.features(batch), batch)
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch) -> Detections:
        """Empty `Detections` with the class logits of every pixel."""
        sizes = batch.image_sizes
        none = torch.zeros(len(sizes), 0, device=sizes.device)
        empty = Detections(none[..., None].expand(-1, -1, 4), none, none.long(), none.bool(), sizes)
        return self._head.predict(self.features(batch), empty)

    @property
    def _head(self) -> SemanticHead:
        head = self.heads["semantic"]
        assert isinstance(head, SemanticHead)
        return head
