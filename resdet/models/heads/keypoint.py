"""Keypoint head (He et al. 2017, arXiv:1703.06870, section 5): pooled RoIs -> one heatmap a keypoint.

3x3 convolutions, a transposed one and a bilinear enlargement: RoIs of s x s become heatmaps of 4 s x 4 s.
Letters: P RoIs, K keypoints of an object, S = 4 s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.fields import replace
from resdet.keypoints import Decode, heatmap_targets
from resdet.models.layers import ConvNorm, Norm
from resdet.models.roi_align import RoIAlign, flatten_rois, occupied
from resdet.structures import Detections, Loss, Output, Samples


class KeypointHead(nn.Module):
    """num_keypoints: K, the same for every class. num_convs 3x3 convolutions of `width` channels.

    max_rois: positives an image in the loss; the sampler puts positives first and draws no more than these.
    decode: how the heatmaps are to become points, see `Detections`.
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
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: dict[str, Tensor], boxes: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """boxes (P, 4), image (P,), valid (P,) -> logits (P, K, S, S)."""
        x = self.pool(features, boxes, image)
        for conv in self.convs:
            x = F.relu(conv(x, valid), inplace=True)
        return F.interpolate(upcast(self.logits(x)), scale_factor=2.0, mode="bilinear", align_corners=False)

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        """Cross-entropy over the places of a heatmap; the count is the number of labelled keypoints in their positive RoI."""
        keypoints = samples.targets.keypoints
        assert keypoints is not None, "a keypoint head needs keypoints in its targets"
        limit = min(self.max_rois, samples.boxes.shape[1])
        first = [t[:, :limit] for t in (samples.boxes, samples.positive, samples.gt_index)]
        rows = occupied(first[1])
        boxes, image = (t[rows] for t in flatten_rois(first[0]))
        positive, gt_index = (t.flatten()[rows] for t in first[1:])
        logits = self(features, boxes, image, positive)
        return {"keypoint": keypoint_loss(logits, keypoints[image, gt_index], boxes, positive)}

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Adds `keypoint_logits` (B, D, K, S, S)."""
        valid = detections.valid
        rows = occupied(valid)
        boxes, image = flatten_rois(detections.boxes)
        found = self(features, boxes[rows], image[rows], valid.flatten()[rows])
        logits = found.new_zeros(len(boxes), *found.shape[1:])
        logits[rows] = found
        logits = logits.view(*valid.shape, *found.shape[1:])
        return replace(detections, keypoint_logits=logits, keypoint_decode=self.decode)


def keypoint_loss(logits: Tensor, keypoints: Tensor, boxes: Tensor, positive: Tensor) -> Loss:
    """logits (P, K, S, S), keypoints (P, K, 3) of the matched objects, boxes (P, 4), positive (P,) bool -> cross-entropy over
    the S * S places of each labelled keypoint that lies in its box."""
    with torch.autocast(boxes.device.type, enabled=False):  # coordinates do not fit bfloat16
        place, inside = heatmap_targets(keypoints, boxes, logits.shape[-1])
    inside = (inside & positive[:, None]).flatten()
    entropy = F.cross_entropy(logits.flatten(2).flatten(0, 1), place.flatten(), reduction="none")
    return Loss(torch.where(inside, entropy, 0.0).sum(), inside.sum())
