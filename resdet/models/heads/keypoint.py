"""Keypoint head (He et al. 2017, arXiv:1703.06870, section 5): pooled RoIs -> one heatmap per keypoint.

3x3 convolutions, a transposed convolution and bilinear upsampling turn s x s RoIs into 4 s x 4 s heatmaps.
Letters: P RoIs, K keypoints per object, S = 4 s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.fields import replace
from resdet.keypoints import Decode, heatmap_targets
from resdet.models.heads.rois import positive_rois, scatter_rows
from resdet.models.layers import ConvNorm, Norm, initialise_convs
from resdet.models.roi_align import RoIAlign, flatten_rois, occupied
from resdet.structures import Detections, Loss, Output, Samples


class KeypointHead(nn.Module):
    """num_keypoints: K, the same for every class. num_convs 3x3 convolutions of `width` channels.

    max_rois: positives per image in the loss; at least as many as the sampler draws.
    decode: how heatmaps become points, see `Detections`.
    """

    outputs: tuple[Output, ...] = ("keypoints",)

    def __init__(
        self,
        pool: RoIAlign,
        channels: int,
        num_keypoints: int,
        *,
        num_convs: int = 8,
        width: int = 512,
        norm: Norm = "none",
        max_rois: int = 128,
        decode: Decode = "detectron2",
    ) -> None:
        super().__init__()
        self.pool, self.max_rois, self.size, self.decode = pool, max_rois, pool.size * 4, decode
        self.convs = nn.ModuleList(ConvNorm(channels if i == 0 else width, width, 3, norm) for i in range(num_convs))
        self.logits = nn.ConvTranspose2d(width if num_convs else channels, num_keypoints, 4, stride=2, padding=1)
        initialise_convs(self)

    def forward(self, features: dict[str, Tensor], boxes: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """boxes (P, 4), image (P,), valid (P,) -> logits (P, K, S, S)."""
        x = self.pool(features, boxes, image)
        for conv in self.convs:
            x = F.relu(conv(x, valid), inplace=True)
        return F.interpolate(upcast(self.logits(x)), scale_factor=2.0, mode="bilinear", align_corners=False)

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        """keypoint: `keypoint_loss` on the positive RoIs."""
        keypoints = samples.targets.keypoints
        assert keypoints is not None, "a keypoint head needs keypoints in its targets"
        rois = positive_rois(samples, self.max_rois)
        logits = self(features, rois.boxes, rois.image, rois.positive)
        return {"keypoint": keypoint_loss(logits, keypoints[rois.image, rois.gt_index], rois.boxes, rois.positive)}

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Adds `keypoint_logits` (B, D, K, S, S)."""
        b, d = detections.valid.shape
        rows = occupied(detections.valid)
        boxes, image = flatten_rois(detections.boxes)
        logits = self(features, boxes[rows], image[rows], detections.valid.flatten()[rows])
        return replace(detections, keypoint_logits=scatter_rows(logits, rows, (b, d)), keypoint_decode=self.decode)


def keypoint_loss(logits: Tensor, keypoints: Tensor, boxes: Tensor, positive: Tensor) -> Loss:
    """logits (P, K, S, S), keypoints (P, K, 3) of the matched objects, boxes (P, 4), positive (P,) bool -> cross-entropy over
    the S * S cells of a heatmap; the count is the number of labelled keypoints inside their positive RoIs."""
    with torch.autocast(boxes.device.type, enabled=False):  # bfloat16 is too coarse for coordinates
        place, inside = heatmap_targets(keypoints, boxes, logits.shape[-1])
    inside = (inside & positive[:, None]).flatten()
    entropy = F.cross_entropy(logits.flatten(2).flatten(0, 1), place.flatten(), reduction="none")
    return Loss(torch.where(inside, entropy, 0.0).sum(), inside.sum())
