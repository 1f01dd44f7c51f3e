"""RT-DETR: the detector, from its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resdet.boxes import clip, from_cxcywh, upcast
from resdet.models.backbones.base import Backbone
from resdet.models.detector import Detector
from resdet.models.matching import gather_rows
from resdet.models.rtdetr.decoder import Decoder, QuerySelection
from resdet.models.rtdetr.denoising import Denoising
from resdet.models.rtdetr.encoder import HybridEncoder, RepBlock
from resdet.models.rtdetr.losses import Predictions, SetLoss
from resdet.models.selection import Selection
from resdet.structures import Batch, Detections, Loss, Output


class RTDETR(Detector):
    """Backbone, hybrid encoder, query selection and decoder; no NMS.

    denoising: None to train without. selection: only its score threshold and number of detections are used.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: HybridEncoder,
        queries: QuerySelection,
        decoder: Decoder,
        denoising: Denoising | None,
        loss: SetLoss,
        selection: Selection,
        *,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        bgr: bool = False,
    ) -> None:
        super().__init__(
            backbone, encoder, num_classes=num_classes, pixel_mean=pixel_mean, pixel_std=pixel_std, bgr=bgr
        )
        self.queries, self.decoder, self.denoising = queries, decoder, denoising
        self.loss, self._selection = loss, selection

    @property
    def outputs(self) -> frozenset[Output]:
        return frozenset({"boxes"})

    @property
    def selection(self) -> Selection:
        return self._selection

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """class, box and giou of the last layer; aux_… of the other layers and the encoder together; with denoising, also
        denoising_… of all layers."""
        assert batch.targets is not None, "losses need targets"
        objects = self.loss.objects(batch.targets, batch.images.shape[2:])
        memory = self.decoder.memory(self.features(batch))
        selected = self.queries(memory)
        content, boxes, mask = selected.content.detach(), selected.boxes.detach(), None
        noisy = self.denoising(objects, batch.keys, content.shape[1]) if self.denoising else None
        if noisy:
            content, boxes = torch.cat([noisy.content, content], dim=1), torch.cat([noisy.boxes, boxes], dim=1)
            mask = noisy.mask
        contents, refined = self.decoder(content, boxes, memory, len(self.decoder.layers), mask)
        logits = [score(content) for score, content in zip(self.decoder.scores, contents, strict=True)]
        layers = Predictions(torch.stack(logits), torch.stack(refined))
        num_noisy = noisy.content.shape[1] if noisy else 0
        encoder = Predictions(selected.logits[None], selected.boxes.sigmoid()[None])
        losses = self.loss(layers.queries(num_noisy, None), encoder, objects)
        if noisy:
            losses |= self.loss.denoising(layers.queries(0, num_noisy), noisy, objects)
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch) -> Detections:
        """The best (query, class) pairs, in the network's input frame; `batch.targets` and `batch.keys` are not used."""
        memory = self.decoder.memory(self.features(batch))
        selected = self.queries(memory)
        contents, refined = self.decoder(selected.content, selected.boxes, memory, self.decoder.predict_layers)
        scores = upcast(self.decoder.scores[self.decoder.predict_layers - 1](contents[-1])).sigmoid()
        count = min(self.selection.max_detections, scores[0].numel())
        best, index = scores.flatten(1).topk(count, dim=1)
        valid = best > self.selection.score_threshold
        boxes = to_pixels(gather_rows(refined[-1], index // self.num_classes), batch.images.shape[2:])
        return Detections(
            boxes=torch.where(valid.unsqueeze(-1), clip(boxes, batch.image_sizes), 0.0),
            scores=torch.where(valid, best, 0.0),
            labels=torch.where(valid, index % self.num_classes, 0),
            valid=valid,
            image_sizes=batch.image_sizes,
        )

    def prepare_for_inference(self, dtype: torch.dtype | None = None) -> RTDETR:
        super().prepare_for_inference()
        for module in self.modules():
            if isinstance(module, RepBlock):
                module.merge()
        return super().prepare_for_inference(dtype)  # weights are rounded once, after merging


def to_pixels(boxes: Tensor, size: torch.Size) -> Tensor:
    """(centre x, centre y, width, height) in 0..1 -> XYXY in pixels; size: (H, W) of the input."""
    x1, y1, x2, y2 = from_cxcywh(boxes).unbind(-1)
    return torch.stack([x1 * size[1], y1 * size[0], x2 * size[1], y2 * size[0]], dim=-1)
