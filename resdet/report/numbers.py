"""An evaluation -> all numbers of its report, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from resdet.data.json_files import no_collection
from resdet.evaluation import keypoints
from resdet.evaluation.backends import accumulated
from resdet.evaluation.coco import Evaluation, Metrics
from resdet.evaluation.tables import COCO_LIMIT
from resdet.report.boundary import boundary_ap
from resdet.report.curves import Curve, calibration, confusion, curve
from resdet.report.groups import grouped
from resdet.report.intervals import intervals
from resdet.report.matches import Matches, match
from resdet.report.tide import lost

LIMITED = ("bbox", "segm")  # the kinds that are matched by IoU


class Numbers(NamedTuple):
    """values: for report.json. matches and curves (the first of all classes, then by category): of the boxes; None and [] where
    there are none. thresholds: for thresholds.json."""

    values: dict[str, Any]
    matches: Matches | None
    curves: list[Curve | None]
    thresholds: dict[str, Any] | None


@no_collection()
def numbers_of(
    evaluation: Evaluation, metrics: Metrics, entries: Sequence[dict[str, Any]], limit: int, *, quick: bool = False
) -> Numbers:
    """All numbers. limit: how many detections per image and class count. quick: no confidence intervals, no boundary AP."""
    kinds = [kind for kind in metrics if kind in (*LIMITED, "keypoints")]
    names = list(evaluation.category_names.values())
    classes: list[dict[str, Any]] = [{"name": name, "objects": 0} for name in names]
    values: dict[str, Any] = {
        "images": len(evaluation.image_sizes), "detections": len(entries), "metrics": metrics, "classes": classes,
        "intervals": {}, "lost": {}, "groups": {}, "calibration": {}, "confusion": None, "boundary": None,
    }  # fmt: skip
    main: Matches | None = None
    for kind in kinds:
        found = evaluation.detections(entries, kind)
        limits = [keypoints.LIMIT] if kind == "keypoints" else sorted({1, 10, COCO_LIMIT, limit})
        if not quick:
            given = intervals(evaluation, found, kind, limits)
            values["intervals"][kind] = {name: given[name] for name in metrics[kind] if name in given}
        _note_classes(evaluation, found, kind, limits, classes)
        if kind not in LIMITED:
            continue
        matches = match(evaluation, found, kind, limit)
        main = main or matches
        values["lost"][kind] = lost(matches)
        values["calibration"][kind] = calibration(matches)
        values["groups"][kind] = {
            name: [group._asdict() for group in groups]
            for name, groups in grouped(evaluation, found, kind, limit).items()
        }
        if kind == "segm" and not quick:
            values["boundary"] = boundary_ap(evaluation, found, limit)
    if main is None:
        return Numbers(values, None, [], None)
    curves = [curve(main), *(curve(main, category) for category in range(1, len(names) + 1))]
    thresholds = None
    if curves[0]:
        thresholds = _thresholds(names, curves, curves[0])
        for row, of_class in zip(classes, curves[1:], strict=True):
            row |= {"threshold": of_class.threshold, "F1": of_class.best} if of_class else {}
        at = curves[0].threshold
        values["confusion"] = {"threshold": at, "table": confusion(main, len(names), at).tolist()}
        values["F1"] = {"threshold": at, "F1": curves[0].best}
    return Numbers(values, main, curves, thresholds)


def _note_classes(
    evaluation: Evaluation, found: list[dict[str, Any]], kind: str, limits: list[int], classes: list[dict[str, Any]]
) -> None:
    sigmas = evaluation.sigmas if kind == "keypoints" else ()
    content = {**evaluation.truth, "annotations": found}
    precision, _ = accumulated(evaluation.truth, content, kind, "hotcoco", limits, sigmas)
    for row, (_, objects, ap, ap50) in zip(classes, evaluation.per_class(precision, kind), strict=True):
        row["objects"] = max(int(row["objects"]), int(objects))
        row[kind] = {"AP": ap, "AP50": ap50}


def _thresholds(names: Sequence[str], curves: Sequence[Curve | None], overall: Curve) -> dict[str, Any]:
    """The content of thresholds.json: a class that has no F1 above 0 gets the threshold of all classes as one."""
    return {
        "what": "the score above which each class has its highest F1 at IoU 0.5 on the validation set",
        "default": _rounded_down(overall.threshold),
        "classes": {
            name: _rounded_down(c.threshold) if c and c.best > 0 else _rounded_down(overall.threshold)
            for name, c in zip(names, curves[1:], strict=True)
        },
    }


def _rounded_down(score: float) -> float:
    """To four digits, so that a detection of just this score is still kept."""
    return float(np.floor(score * 1e4) / 1e4)
