"""Label maps -> mean and frequency-weighted IoU, accuracies (Long et al. 2014, arXiv:1411.4038) and boundary IoU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from resdet.evaluation.tables import numbers_table, percent
from resdet.structures import UNLABELLED

BOUNDARY = 0.02  # how far a boundary reaches inwards, of the image's diagonal


class SemanticScore:
    """Counts of K classes over any number of images, to which those of other processes can be added.

    confusion (K, K + 1) int64: pixels by true and predicted class, the last of which is none; boundary (K, 2) int64: pixels of
    the boundaries' intersection and union.
    """

    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)
        self.boundary = np.zeros((num_classes, 2), np.int64)

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Count an image: (H, W) uint8 each; pixels whose truth is UNLABELLED do not count, of predictions it is no class."""
        k = len(self.confusion)
        known = truth != UNLABELLED
        pairs = truth[known].astype(np.int64) * (k + 1) + np.minimum(predicted[known], k)
        counts = np.bincount(pairs, minlength=k * (k + 1)).reshape(k, k + 1)
        self.confusion += counts
        width = boundary_width(truth.shape)
        there = counts.sum(1) + counts[:, :k].sum(0) > 0
        for label in np.flatnonzero(there).tolist():
            ours, theirs = (boundary(image == label, width) & known for image in (predicted, truth))
            self.boundary[label] += np.count_nonzero(ours & theirs), np.count_nonzero(ours | theirs)

    def merge(self, other: SemanticScore) -> None:
        self.confusion += other.confusion
        self.boundary += other.boundary

    def metrics(self) -> dict[str, float | None]:
        """mIoU, fwIoU (weighted by frequency), pAcc (of pixels), mAcc (mean of classes), bIoU (of the boundaries), in 0..1:
        means over classes that occur in the truth; None if there are none."""
        true = self.confusion.sum(1)
        there = true > 0
        if not there.any():
            return dict.fromkeys(("mIoU", "fwIoU", "pAcc", "mAcc", "bIoU"))
        iou, accuracy = self.per_class()
        boundary_iou = self.boundary[:, 0] / np.maximum(self.boundary[:, 1], 1)
        return {
            "mIoU": float(iou[there].mean()),
            "fwIoU": float((iou * true).sum() / true.sum()),
            "pAcc": float(np.trace(self.confusion) / true.sum()),
            "mAcc": float(accuracy[there].mean()),
            "bIoU": float(boundary_iou[there].mean()),
        }

    def per_class(self) -> tuple[np.ndarray, np.ndarray]:
        """IoU and accuracy of each class, (K,); 0 for those that do not occur."""
        right, true, found = np.diag(self.confusion), self.confusion.sum(1), self.confusion[:, :-1].sum(0)
        return right / np.maximum(true + found - right, 1), right / np.maximum(true, 1)

    def table(self, names: Sequence[str]) -> str:
        """The metrics and the IoU of each class in percent."""
        iou, accuracy = self.per_class()
        width = max([len(name) for name in names] + [5])
        rows = [
            f"{name:<{width}} {percent(iou[k]):>5} {percent(accuracy[k]):>5}"
            for k, name in enumerate(names)
            if self.confusion[k].any()
        ]
        head = f"{'class':<{width}} {'IoU':>5} {'Acc':>5}"
        return "\n".join([numbers_table("classes of pixels, percent", self.metrics()), head, *rows, ""])


def boundary_width(shape: tuple[int, ...]) -> int:
    """In pixels, of an image of (H, W)."""
    return max(1, round(BOUNDARY * math.hypot(shape[0], shape[1])))


def boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask (H, W) bool that are at most `width` from its outside, or from the image's border (Cheng et al.
    2021, arXiv:2103.16562): those that `width` erosions by 3 x 3 take away."""
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)  # as many erosions at once
    core = cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inner: np.ndarray = mask & (core == 0)
    return inner
