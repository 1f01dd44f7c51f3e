"""Ground truth and detections in COCO's structure -> precision and recall, by hotcoco or pycocotools."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


def accumulated(
    truth: dict[str, Any],
    found: dict[str, Any],
    kind: str,
    backend: str,
    limits: list[int],
    sigmas: Sequence[float] = (),
    by_class: bool = True,
    areas: Sequence[tuple[float, float]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M), -1 where there is nothing to measure.

    T IoU thresholds 0.5 to 0.95, R recall thresholds, K classes (1 unless by_class), A areas as in `coco.AREAS` (for keypoints
    without the small ones) or as given, M `limits`.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hotcoco warns of sigmas that are not COCO's
        if backend == "hotcoco":
            evaluator = hotcoco_evaluator(truth, found, kind, limits, sigmas, by_class, areas)
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            both = COCO(), COCO()
            for coco, content in zip(both, (truth, found), strict=True):
                coco.dataset = content
                coco.createIndex()
            evaluator = COCOeval(*both, kind)
            evaluator.params.maxDets, evaluator.params.useCats = limits, int(by_class)
            if sigmas:
                evaluator.params.kpt_oks_sigmas = np.array(sigmas)
            if areas:
                evaluator.params.areaRng = [list(area) for area in areas]
                evaluator.params.areaRngLbl = [str(k) for k in range(len(areas))]
        evaluator.evaluate()
        evaluator.accumulate()
    numbers: Any = evaluator.eval
    return np.asarray(numbers["precision"]), np.asarray(numbers["recall"])


def hotcoco_evaluator(
    truth: dict[str, Any],
    found: dict[str, Any],
    kind: str,
    limits: list[int],
    sigmas: Sequence[float] = (),
    by_class: bool = True,
    areas: Sequence[tuple[float, float]] | None = None,
) -> Any:
    """hotcoco's COCOeval with these parameters, before `evaluate`."""
    import hotcoco

    evaluator = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(found), kind)
    parameters = evaluator.params
    parameters.maxDets, parameters.useCats = limits, by_class
    if sigmas:
        parameters.kpt_oks_sigmas = list(sigmas)
    if areas:
        parameters.areaRng = [list(area) for area in areas]
        parameters.areaRngLbl = [str(k) for k in range(len(areas))]
    evaluator.params = parameters
    return evaluator
