"""Mask head (He et al. 2017, arXiv:1703.06870): pooled RoIs -> an m x m mask of the box's class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.fields import replace
from resdet.masks import targets_in_rois
from resdet.models.heads.res5 import RoIStage
from resdet.models.heads.rois import PositiveRoIs, positive_rois, scatter_rows
from resdet.models.layers import ConvNorm, Norm, initialise_convs
from resdet.models.roi_align import RoIAlign, flatten_rois, occupied
from resdet.structures import MASK_UNKNOWN, Detections, Loss, Output, Samples


class MaskHead(nn.Module):
    """pool: to s x s; masks have side m = 2 s. num_convs 3x3 convolutions of `width` channels.

    standardized: see `ConvNorm`. class_agnostic: one mask for all classes instead of one per class.
    stage: in C4 detectors, runs on the pooled RoIs before the convolutions; it halves the side, so that m = s.
    max_rois: positives per image in the loss; at least as many as the sampler draws.
    paste: how masks become pixels, see `Detections`.
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
        initialise_convs(self)
        nn.init.normal_(self.logits.weight, std=0.001)

    def forward(
        self, features: dict[str, Tensor], boxes: Tensor, image: Tensor, valid: Tensor, labels: Tensor
    ) -> Tensor:
        """boxes (P, 4), image (P,), valid (P,), labels (P,) in [0, K) -> mask logits of these labels (P, m, m)."""
        x = self.pool(features, boxes, image)
        if self.stage:
            x = self.stage(x, valid)
        for conv in self.convs:
            x = F.relu(conv(x, valid), inplace=True)
        # The masks of other classes are never used, so they are not computed: one dot product per pixel, not K.
        p, c, s, _ = x.shape
        x = F.relu(self._upsampled(x.permute(0, 2, 3, 1).reshape(p, s * s, c)), inplace=True)  # (P, s * s * 4, width)
        labels = labels.clamp(max=self.logits.out_channels - 1)  # 0 if class-agnostic
        weight, bias = self.logits.weight[labels, :, 0, 0], self.logits.bias
        assert bias is not None
        logits = torch.baddbmm(bias[labels][:, None, None], x, weight[:, :, None])
        return logits.view(p, s, s, 2, 2).permute(0, 1, 3, 2, 4).reshape(p, self.size, self.size)

    def _upsampled(self, x: Tensor) -> Tensor:
        """The transposed convolution, whose 2 x 2 windows do not overlap, as one matrix product:
        (P, s * s, C) -> (P, s * s * 4, width), the four output pixels of an input pixel next to each other."""
        weight = self.upsample.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 * 2 * width, C)
        assert self.upsample.bias is not None
        return F.linear(x, weight, self.upsample.bias.repeat(4)).view(len(x), x.shape[1] * 4, -1)

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        """mask: `mask_loss` on the positive RoIs whose object has a mask."""
        rois, crops = masked_rois(samples, self.max_rois)
        logits = self(features, rois.boxes, rois.image, rois.positive, rois.labels.clamp(min=0))
        target = mask_targets(rois, crops, self.size)
        return {"mask": mask_loss(logits, target, rois.positive)}

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Adds `mask_probs` (B, D, m, m) of each detection's own class."""
        b, d = detections.valid.shape
        rows = occupied(detections.valid)
        boxes, image = flatten_rois(detections.boxes)
        valid, labels = detections.valid.flatten()[rows], detections.labels.flatten()[rows]
        logits = upcast(self(features, boxes[rows], image[rows], valid, labels))
        probs = logits.sigmoid() * valid[:, None, None]
        return replace(detections, mask_probs=scatter_rows(probs, rows, (b, d)), paste=self.paste)


def masked_rois(samples: Samples, max_rois: int) -> tuple[PositiveRoIs, Tensor]:
    """The RoIs of a mask loss, positive only if their object has a mask, and the objects' masks (P, M, M), see `Targets`."""
    masks = samples.targets.masks
    assert masks is not None, "a mask head needs masks in its targets"
    rois = positive_rois(samples, max_rois)
    crops = masks[rois.image, rois.gt_index]
    return replace(rois, positive=rois.positive & (crops[:, 0, 0] != MASK_UNKNOWN)), crops


def mask_targets(rois: PositiveRoIs, crops: Tensor, size: int) -> Tensor:
    """The objects' masks (P, M, M) in the frames of the RoIs: (P, size, size) float32, 0 or 1."""
    with torch.autocast(crops.device.type, enabled=False):  # bfloat16 is too coarse for coordinates
        covered = targets_in_rois(crops, rois.gt_boxes, rois.boxes, size)
    return (covered >= 0.5).to(covered.dtype)


def mask_loss(logits: Tensor, target: Tensor, positive: Tensor) -> Loss:
    """logits, target (P, …) in 0..1, positive (P,) bool -> binary cross-entropy: the mean of each positive RoI, summed."""
    per_roi = F.binary_cross_entropy_with_logits(upcast(logits), target, reduction="none").flatten(1).mean(dim=1)
    return Loss(torch.where(positive, per_roi, 0.0).sum(), positive.sum())
