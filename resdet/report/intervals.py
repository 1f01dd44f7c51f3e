"""Confidence intervals of COCO's metrics: a bootstrap over images (Efron and Tibshirani 1993), by hotcoco."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import hotcoco

from resdet.evaluation.backends import hotcoco_evaluator
from resdet.evaluation.coco import Evaluation

SAMPLES, FEWER, MANY = 200, 100, 1000  # drawn; above MANY images, where each takes longer and says more, FEWER
FEWEST = 5  # images below which an interval would say nothing


def intervals(
    evaluation: Evaluation, found: Sequence[dict[str, Any]], kind: str, limits: list[int]
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each metric, by name; empty with fewer than `FEWEST` images or without an object.

    hotcoco compares two evaluations; against one without detections, whose AP is 0 in every sample, the difference is the AP.
    """
    truth = evaluation.truth
    if len(truth["images"]) < FEWEST or all(entry["iscrowd"] for entry in truth["annotations"]):
        return {}
    samples = FEWER if len(truth["images"]) > MANY else SAMPLES
    sigmas = evaluation.sigmas if kind == "keypoints" else ()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = [
            hotcoco_evaluator(truth, {**truth, "annotations": entries}, kind, limits, sigmas)
            for entries in ([], list(found))
        ]
        for evaluator in both:
            evaluator.run()
        compared: dict[str, Any] = hotcoco.compare(both[0], both[1], n_bootstrap=samples, seed=0)
    measured = compared["metrics_b"]
    return {
        name: (max(ci["lower"], 0.0), min(ci["upper"], 1.0))
        for name, ci in compared["ci"].items()
        if measured.get(name, 0.0) >= 0
    }
