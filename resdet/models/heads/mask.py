"""Mask head (He et al. 2017, arXiv:1703.06870): pooled RoIs -> one m x m mask a class; the box's class selects."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.fields import replace
from resdet.masks import targets_in_rois
from resdet.models.heads.res5 import RoIStage
from resdet.models.layers import ConvNorm, Norm
from resdet.models.roi_align import RoIAlign, flatten_rois, occupied
from resdet.structures import MASK_UNKNOWN, Detections, Loss, Output, Samples


class MaskHead(nn.Module):
    """pool: side s of the pooled RoI; masks have side m = 2 s. num_convs 3x3 convolutions of `width` channels.

    standardized: see `ConvNorm`. class_agnostic: one mask for all classes instead of one for each.
    stage: computed on the pooled RoIs before these, in C4 detectors; it halves the side, so that m = s.
    max_rois: positives an image in the loss; the sampler puts positives first and draws no more than these.
    paste: how the masks are to become pixels, see `Detections`.
    """

    outputs: tuple[Output, ...] = ("masks",)

    def __init__(
        self,
        pool: RoIAlign,
        channels: int,
        num_classes: int,
        *,
        num_convs: int = 4,
        width: int = 256,
        norm: Norm = "none",
        standardized: bool = False,
        class_agnostic: bool = False,
        max_rois: int = 128,
        stage: RoIStage | None = None,
        paste: str = "resdet",
    ) -> None:
        super().__init__()
        self.pool, self.max_rois, self.stage, self.paste = pool, max_rois, stage, paste
        self.size = pool.size if stage else pool.size * 2
        channels = stage.channels if stage else channels
        self.convs = nn.ModuleList(
            ConvNorm(channels if i == 0 else width, width, 3, norm, standardized=standardized) for i in range(num_convs)
        )
        self.upsample = nn.ConvTranspose2d(width if num_convs else channels, width, 2, stride=2)
        self.logits = nn.Conv2d(width, 1 if class_agnostic else num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(
        self, features: dict[str, Tensor], boxes: Tensor, image: Tensor, valid: Tensor, labels: Tensor
    ) -> Tensor:
        """boxes (P, 4), image (P,), valid (P,), labels (P,) in [0, K) -> logits of each one's own class (P, m, m)."""
        x = self.pool(features, boxes, image)
        if self.stage:
            x = self.stage(x, valid)
        for conv in self.convs:
            x = F.relu(conv(x, valid), inplace=True)
        # Nobody looks at the other classes' masks, so they are not computed: one dot product a pixel, not K.
        p, c, s, _ = x.shape
        x = F.relu(self._upsampled(x.permute(0, 2, 3, 1).reshape(p, s * s, c)), inplace=True)  # (P, s * s * 4, width)
        labels = labels.clamp(max=self.logits.out_channels - 1)  # 0 where one mask serves all classes
        weight, bias = self.logits.weight[labels, :, 0, 0], self.logits.bias
        assert bias is not None
        logits = torch.baddbmm(bias[labels][:, None, None], x, weight[:, :, None])
        return logits.view(p, s, s, 2, 2).permute(0, 1, 3, 2, 4).reshape(p, self.size, self.size)

    def _upsampled(self, x: Tensor) -> Tensor:
        """The transposed convolution, whose 2 x 2 windows do not overlap, as one matrix product:
        (P, s * s, C) -> (P, s * s * 4, width), the four pixels of each old one side by side."""
        weight = self.upsample.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * width, C)
        assert self.upsample.bias is not None
        return F.linear(x, weight, self.upsample.bias.repeat(4)).view(len(x), x.shape[1] * 4, -1)

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        """Mean over the pixels of each positive RoI whose object has a mask; the count is the number of these RoIs."""
        gt_masks = samples.targets.masks
        assert gt_masks is not None, "a mask head needs masks in its targets"
        limit = min(self.max_rois, samples.boxes.shape[1])
        first = [t[:, :limit] for t in (samples.boxes, samples.positive, samples.labels, samples.gt_index)]
        rows = occupied(first[1])
        boxes, image = flatten_rois(first[0])
        boxes, image = boxes[rows], image[rows]
        positive, labels, gt_index = (t.flatten()[rows] for t in first[1:])  # rows that are not positive weigh nothing
        crops = gt_masks[image, gt_index]  # (P, M, M)
        positive = positive & (crops[:, 0, 0] != MASK_UNKNOWN)
        logits = self(features, boxes, image, positive, labels.clamp(0, self.logits.out_channels - 1))
        # In float32 even when the network is not: a box's coordinates do not fit bfloat16.
        with torch.autocast(boxes.device.type, enabled=False):
            wanted = targets_in_rois(crops, samples.gt_boxes[:, :limit].flatten(0, 1)[rows], boxes, self.size)
        return {"mask": mask_loss(logits, (wanted >= 0.5).to(wanted.dtype), positive)}

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Adds `mask_probs` (B, D, m, m) of each detection's own class."""
        rows = occupied(detections.valid)
        boxes, image = flatten_rois(detections.boxes)
        valid, labels = detections.valid.flatten()[rows], detections.labels.flatten()[rows]
        own = upcast(self(features, boxes[rows], image[rows], valid, labels))
        probs = own.new_zeros(len(boxes), self.size, self.size)
        probs[rows] = own.sigmoid() * valid[:, None, None]
        mask_probs = probs.view(*detections.valid.shape, self.size, self.size)
        return replace(detections, mask_probs=mask_probs, paste=self.paste)


def mask_loss(logits: Tensor, wanted: Tensor, positive: Tensor) -> Loss:
    """logits (P, m, m) of each object's class, wanted (P, m, m) in 0..1, positive (P,) bool -> the positives' cross-entropy,
    each the mean of its pixels."""
    each = F.binary_cross_entropy_with_logits(upcast(logits), wanted, reduction="none").mean((1, 2))
    return Loss(torch.where(positive, each, 0.0).sum(), positive.sum())
