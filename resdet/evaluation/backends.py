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
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, A, M) and recall (T, K, A, M), -1 where there is nothing to measure.

    T IoU thresholds 0.5 to 0.95, R recall thresholds, K classes (1 unless by_class), A areas as in `coco.AREAS` (for keypoints
    without the small ones), M `limits`.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hotcoco warns of sigmas that are not COCO's
        if backend == "hotcoco":
            import hotcoco

            evaluator = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(found), kind)
            parameters = evaluator.params
            parameters.maxDets, parameters.useCats = limits, by_class
            if sigmas:
                parameters.kpt_oks_sigmas = list(sigmas)
            evaluator.params = parameters
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
        evaluator.evaluate()
        evaluator.accumulate()
    numbers: Any = evaluator.eval
    return np.asarray(numbers["precision"]), np.asarray(numbers["recall"])
