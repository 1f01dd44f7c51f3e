"""Matches -> precision and recall, F1, confusion and calibration, at IoU 0.5."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hotcoco import metrics

from resdet.report.matches import CLASS, RIGHT, Matches

RECALLS = np.linspace(0, 1, 51)
SCORES = np.linspace(0, 1, 51)
BINS = 10


class Curve(NamedTuple):
    """Of one class or all together: precision (51,) at `RECALLS`, 0 where the recall is not reached; f1 (51,) of the detections
    of at least `SCORES`; the score `threshold` of the highest F1, which is `best`."""

    precision: np.ndarray
    f1: np.ndarray
    threshold: float
    best: float


def curve(matches: Matches, category: int | None = None) -> Curve | None:
    """The curve of a category, or of all classes as one; None without objects."""
    rows, objects = matches.counted, matches.object_category
    if category is not None:
        rows, objects = rows & (matches.category == category), objects[objects == category]
    if not len(objects):
        return None
    score, right = matches.score[rows], matches.kind[rows] == RIGHT
    order = np.argsort(-score, kind="stable")
    score, found = score[order], np.cumsum(right[order])
    precision, recall = found / np.arange(1, len(found) + 1), found / len(objects)
    f1 = 2 * found / (np.arange(1, len(found) + 1) + len(objects))
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    at_recall = envelope[np.searchsorted(recall, RECALLS - 1e-12)]
    taken = np.searchsorted(-score, -SCORES + 1e-9, side="right")  # detections of at least each score
    at_score = np.append(0.0, f1)[taken]
    if not len(f1):
        return Curve(at_recall, at_score, 0.5, 0.0)
    last = np.append(score[1:] != score[:-1], True)  # a threshold keeps or drops equal scores together
    best = int(np.argmax(np.where(last, f1, -1.0)))
    return Curve(at_recall, at_score, float(score[best]), float(f1[best]))


def confusion(matches: Matches, categories: int, threshold: float) -> np.ndarray:
    """(K + 1, K + 1) counts of detections of at least a score: row the class of the object, column that of the detection, the
    last of each for background. Categories are 1 … K, as in `Evaluation.truth`.

    An object that no detection of its class finds counts as the class of its highest-scored detection of kind CLASS. On objects
    that are found, and on any other, detections that are not right are on background. hotcoco's matrix counts detections on
    crowd regions there, too.
    """
    m = matches
    kept = m.counted & (m.score >= threshold)
    shown_as = np.full(len(m.object_category), categories + 1)
    on = np.full(len(m.category), categories + 1)
    for kind in (RIGHT, CLASS):
        rows = np.flatnonzero(kept & (m.kind == kind))
        rows = rows[np.argsort(-m.score[rows], kind="stable")]
        partners, first = np.unique(m.partner[rows], return_index=True)
        new = shown_as[partners] == categories + 1
        rows, partners = rows[first][new], partners[new]
        shown_as[partners], on[rows] = m.category[rows], m.object_category[partners]
    table = np.zeros((categories + 2, categories + 2), np.int64)
    np.add.at(table, (m.object_category, shown_as), 1)
    background = kept & (on == categories + 1)
    np.add.at(table, (np.full(background.sum(), categories + 1), m.category[background]), 1)
    return table[1:, 1:]


def calibration(matches: Matches) -> dict[str, Any]:
    """How often detections of each score are right: {"bins": [{"low", "high", "count", "score", "right"}], "ece", "mce"}, the
    expected and the largest calibration error (Naeini et al. 2015). Without detections, no bins, and None for the errors."""
    rows = matches.counted
    score, right = matches.score[rows], matches.kind[rows] == RIGHT
    if not len(score):
        return {"bins": [], "ece": None, "mce": None}
    names = {
        "low": "bin_lower",
        "high": "bin_upper",
        "count": "count",
        "score": "avg_confidence",
        "right": "avg_accuracy",
    }
    found = metrics.calibration_curve(score, right, BINS)
    bins = [{name: of_bin[theirs] for name, theirs in names.items()} for of_bin in found]
    ece, mce = metrics.calibration_error(score, right, BINS)
    return {"bins": bins, "ece": ece, "mce": mce}
