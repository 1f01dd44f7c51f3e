"""How the objects of a dataset fit the anchors and the input size: findings, and advice to be taken by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resdet.config import DataConfig, ModelConfig, RCNNConfig, RetinaNetConfig
from resdet.data.coco import Annotations
from resdet.data.quality.report import Finding, Findings

SMALL = 8  # pixels of a side after resizing: two cells of the finest level
RECALLED = 0.5  # IoU
ENOUGH = 20_000  # objects sampled to judge anchors


def resized_objects(annotations: Annotations, data: DataConfig, keep_ratio: bool = True) -> np.ndarray:
    """(N, 2) float32: width and height of every object in the network's input, at the last `data.min_size`."""
    images = annotations.images
    sizes = images.sizes.astype(np.float32)
    scale = np.minimum(data.min_size[-1] / sizes.min(1), data.max_size / sizes.max(1))[:, None]
    if not keep_ratio:
        scale = data.min_size[-1] / sizes[:, ::-1]  # of width and height
    objects: np.ndarray = (images.boxes[:, 2:] - images.boxes[:, :2]) * np.repeat(scale, images.counts, axis=0)
    return objects


def best_overlaps(objects: np.ndarray, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """(N,) IoU of each (width, height) with the most similar anchor shape, centres aligned. ratios: height / width."""
    best = np.zeros(len(objects))
    for size in sizes:
        for ratio in ratios:
            anchor = np.array([size / ratio**0.5, size * ratio**0.5])
            inter = np.minimum(objects, anchor).prod(1)
            best = np.maximum(best, inter / (objects.prod(1) + anchor.prod() - inter))
    return best


def examine_sizes(annotations: Annotations, data: DataConfig, model: ModelConfig) -> tuple[list[Finding], list[str]]:
    """Findings on objects that the input size or the anchors do not fit, and `advise_anchors`."""
    found = Findings("train")
    objects = resized_objects(annotations, data, model.input.keep_ratio)
    if not len(objects):
        return [], []
    sides = np.sqrt(objects.prod(1))
    suspects = [("too-small", sides < SMALL, 0.02)]
    if isinstance(model, RCNNConfig | RetinaNetConfig):
        overlaps = best_overlaps(objects, model.anchors.sizes, model.anchors.ratios)
        suspects.append(("too-large", sides > 1.5 * model.anchors.sizes[-1], 0.02))
        # COCO itself, at its usual size, has a sixth of its objects below an overlap of one half.
        suspects.append(("anchors", overlaps < RECALLED, 0.2))
    for code, where, limit in suspects:
        if where.mean() > limit:
            for k in np.nonzero(where)[0]:
                found.add(code, f"{objects[k][0]:.0f} x {objects[k][1]:.0f} pixels (W x H) in the network's input")
    return list(found.by_code.values()), advise_anchors(objects, model)


def advise_anchors(objects: np.ndarray, model: ModelConfig) -> list[str]:
    """(N, 2) sizes in the network's input -> what fraction of them the anchors match, and which anchors would match more."""
    if not isinstance(model, RCNNConfig):
        return []  # without anchors, or with the many of a RetinaNet
    objects = objects[:: 1 + len(objects) // ENOUGH]
    recall = float((best_overlaps(objects, model.anchors.sizes, model.anchors.ratios) >= RECALLED).mean())
    other = best_anchors(objects)
    reached = float((best_overlaps(objects, *other) >= RECALLED).mean())
    lines = [f"anchors match {recall:.1%} of the objects (IoU with the most similar shape at least {RECALLED:g})"]
    if reached > recall + 0.02:
        sizes, ratios = (f"[{','.join(f'{value:g}' for value in values)}]" for values in other)
        lines.append(
            f"model.anchors.sizes={sizes} model.anchors.ratios={ratios} would match {reached:.1%}; a pretrained RPN would "
            "have to relearn them"
        )
    return lines


def best_anchors(objects: np.ndarray) -> tuple[list[float], list[float]]:
    """Those of a few scales and sets of ratios that match most objects; five sizes, each twice the one before."""
    choices = [
        ([first * 2**k for k in range(5)], ratios)
        for first in (8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
        for ratios in ([0.5, 1.0, 2.0], [0.33, 1.0, 3.0], [0.25, 1.0, 4.0], [0.25, 0.5, 1.0, 2.0, 4.0])
    ]

    def worth(choice: tuple[list[float], list[float]]) -> float:
        """Recall, less a little for more shapes and for sizes far from the usual ones."""
        recall = float((best_overlaps(objects, *choice) >= RECALLED).mean())
        return round(recall, 2) - 0.02 * (len(choice[1]) > 3) - 1e-4 * abs(32 - choice[0][0])

    return max(choices, key=worth)
