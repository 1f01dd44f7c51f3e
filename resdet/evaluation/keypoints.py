"""COCO's keypoint evaluation by object keypoint similarity (OKS): https://cocodataset.org/#keypoints-eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resdet.data.keypoints import keypoint_problem
from resdet.errors import UserError
from resdet.evaluation.tables import measured_mean
from resdet.keypoints import COCO_NAMES, COCO_SIGMAS, OTHER_SIGMA, Skeleton

METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
LIMIT = 20  # detections per image and class that COCO counts


def sigmas_of(skeleton: Skeleton | None, given: Sequence[float] | None, source: Path) -> list[float]:
    """The standard deviation of annotators per keypoint, relative to the object's size: as given, COCO's, or `OTHER_SIGMA`.

    Raises `UserError` if there is not one for each keypoint.
    """
    names = skeleton.names if skeleton else []
    if given is None or skeleton is None:
        return COCO_SIGMAS if names == COCO_NAMES else [OTHER_SIGMA] * len(names)
    if len(given) != len(names):
        raise UserError(
            f"data.keypoint_sigmas has {len(given)} numbers, but {source} lists {len(names)} keypoints: give one for each"
        )
    return list(given)


def truth_of(value: Any, count: int, problems: list[str]) -> dict[str, Any]:
    """The keypoint fields of an annotation; all keypoints are unlabelled if it has none."""
    wrong = keypoint_problem(value, count) if value else ""
    if wrong:
        problems.append(wrong)
    keypoints = value if value and not wrong else [0] * (3 * count)
    return {"keypoints": keypoints, "num_keypoints": sum(v > 0 for v in keypoints[2::3])}


def detection_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The keypoint fields of a detection; its area is that of its box or, without one, of the box around its keypoints."""
    keypoints = entry["keypoints"]
    box = entry.get("bbox")
    if not box:
        xs, ys = keypoints[0::3], keypoints[1::3]
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    count = len(keypoints) // 3
    return {"keypoints": keypoints, "num_keypoints": count, "bbox": box, "area": box[2] * box[3]}


def summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """COCO's ten metrics from precision (T, R, K, A, 1) and recall (T, K, A, 1); areas: all, medium, large."""
    mean = measured_mean
    numbers: dict[str, float | None] = {}
    for name, values in (("AP", precision), ("AR", recall)):
        numbers |= {name: mean(values[..., 0, 0]), f"{name}50": mean(values[0, ..., 0, 0])}
        numbers |= {f"{name}75": mean(values[5, ..., 0, 0])}
        numbers |= {f"{name}m": mean(values[..., 1, 0]), f"{name}l": mean(values[..., 2, 0])}
    return numbers
