"""RoIs in the heads that learn from positives only (mask, keypoint): padded (B, R, …) <-> the P rows that are computed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from resdet.models.roi_align import flatten_rois, occupied
from resdet.structures import Samples


class PositiveRoIs(NamedTuple):
    """boxes, gt_boxes (P, 4); image, labels, gt_index (P,) int64; positive (P,) bool: the other rows have no loss."""

    boxes: Tensor
    image: Tensor
    positive: Tensor
    labels: Tensor
    gt_index: Tensor
    gt_boxes: Tensor


def positive_rois(samples: Samples, max_rois: int) -> PositiveRoIs:
    """The positives among the first `max_rois` RoIs of each image, and rows that pad them (`roi_align.occupied`)."""
    count = min(max_rois, samples.boxes.shape[1])
    rows = occupied(samples.positive[:, :count])
    boxes, image = flatten_rois(samples.boxes[:, :count])
    positive, labels, gt_index, gt_boxes = (
        t[:, :count].flatten(0, 1)[rows] for t in (samples.positive, samples.labels, samples.gt_index, samples.gt_boxes)
    )
    return PositiveRoIs(boxes[rows], image[rows], positive, labels, gt_index, gt_boxes)


def scatter_rows(values: Tensor, rows: Tensor, shape: tuple[int, int]) -> Tensor:
    """values (P, …) of the rows (P,) of B * R RoIs -> (B, R, …) for shape (B, R); zero elsewhere."""
    full = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    full[rows] = values
    return full.view(*shape, *values.shape[1:])
