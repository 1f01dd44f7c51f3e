"""Scored candidate boxes -> detections: score threshold, non-maximum suppression (NMS) per class, the top few.

Letters: N candidates per image that enter NMS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from resdet.boxes import big_enough, clip
from resdet.kernels.nms import nms, soft_nms
from resdet.models.matching import gather_rows
from resdet.structures import Detections

# (RoI, class) pairs per image that enter NMS, best first; there are hardly ever more above the score threshold.
MAX_CANDIDATES = 8192


@dataclass
class Selection:
    """Which candidates become detections.

    score_threshold: candidates must score above it. nms_threshold: IoU within a class above which the lower score is dropped.
    soft_sigma: of Soft-NMS (`kernels.nms.soft_nms`), which then replaces `nms_threshold`; 0 means ordinary NMS.
    max_detections: kept per image. min_size: boxes with a side below it, in input pixels, are dropped like empty ones.
    empty: whether empty boxes are dropped before NMS, after it, or never; part of a checkpoint's numerics, like
    clip: whether boxes are clipped to the image before NMS or after it (detectron2's RetinaNet).
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    soft_sigma: float = 0.0
    max_detections: int = 100
    min_size: float = 0.0
    empty: Literal["drop_first", "drop_last", "keep"] = "drop_first"
    clip: Literal["first", "last"] = "first"

    def select(self, boxes: Tensor, scores: Tensor, valid: Tensor, image_sizes: Tensor) -> Detections:
        """boxes (B, R, K, 4), or (B, R, 1, 4) if class-agnostic, scores (B, R, K), valid (B, R), image_sizes (B, 2) (H, W)."""
        classes = scores.shape[2]
        scores = torch.where(valid.unsqueeze(-1) & (scores > self.score_threshold), scores, -1.0).flatten(1)
        scores, index = scores.topk(min(MAX_CANDIDATES, scores.shape[1]), dim=1)
        row = index if boxes.shape[2] == classes else index // classes
        return self.suppress(gather_rows(boxes.flatten(1, 2), row), scores, index % classes, scores >= 0, image_sizes)

    def suppress(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, usable: Tensor, image_sizes: Tensor
    ) -> Detections:
        """NMS of candidates sorted by descending score: boxes (B, N, 4), scores, labels, usable (B, N)."""
        boxes = clip(boxes, image_sizes) if self.clip == "first" else boxes
        if self.empty == "drop_first":
            usable = usable & big_enough(boxes, self.min_size)
        count = min(self.max_detections, usable.shape[1])
        if self.soft_sigma:
            scores, index = soft_nms(boxes, scores, labels, usable, self.soft_sigma, count)
            valid = scores > self.score_threshold
        else:
            keep = nms(boxes, scores, labels, usable, self.nms_threshold, count)
            scores, index = torch.where(keep, scores, -1.0).topk(count, dim=1)
            valid = scores >= 0
        boxes = gather_rows(boxes, index)
        boxes = clip(boxes, image_sizes) if self.clip == "last" else boxes
        if self.empty == "drop_last":
            valid = valid & big_enough(boxes, self.min_size)
        return Detections(
            boxes=torch.where(valid.unsqueeze(-1), boxes, 0.0),
            scores=torch.where(valid, scores, 0.0),
            labels=torch.where(valid, labels.gather(1, index), 0),
            valid=valid,
            image_sizes=image_sizes,
        )
