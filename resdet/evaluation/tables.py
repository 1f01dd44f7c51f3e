"""COCO metrics -> plain text tables."""

from __future__ import annotations

import math

import numpy as np

COCO_LIMIT = 100  # detections per image and class that count in COCO's metrics
STANDARD_AP = "AP_max100"  # AP at COCO's limit, reported next to an AP at a higher limit


def measured_mean(values: np.ndarray) -> float | None:
    """The mean without entries of -1, by which pycocotools marks that there is nothing to measure; None if all are -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def percent(value: float | None) -> str:
    """A number in 0..1 as "38.6", None as "-"."""
    return "-" if value is None else f"{100 * value:.1f}"


def numbers_table(title: str, metrics: dict[str, float | None]) -> str:
    """A title, the names, and below them the values in percent."""
    names = " ".join(f"{name:>5}" for name in metrics)
    values = " ".join(f"{percent(value):>{max(len(name), 5)}}" for name, value in metrics.items())
    return "\n".join([title, names, values, ""])


def metrics_table(
    kind: str, metrics: dict[str, float | None], classes: list[tuple[str, int, float | None, float | None]], limit: int
) -> str:
    """The metrics and the per-class table in percent.

    classes: (name, objects, AP, AP50). limit: detections per image and class that count.
    """
    shown = {name: value for name, value in metrics.items() if name != STANDARD_AP}
    present = [row for row in classes if row[1]]
    width = max([len(name) for name, *_ in present] + [5])
    columns = 1 if len(present) <= 10 else 3
    cells = [f"{name:<{width}} {count:>6} {percent(ap):>5} {percent(ap50):>5}" for name, count, ap, ap50 in present]
    rows = math.ceil(len(cells) / columns)
    head = " | ".join([f"{'class':<{width}} {'count':>6} {'AP':>5} {'AP50':>5}"] * min(columns, max(len(cells), 1)))
    lines = [" | ".join(cells[r::rows]) for r in range(rows)]
    absent = len(classes) - len(present)
    if not present:
        head = "no objects: AP cannot be measured"
    elif absent:
        lines.append(f"({absent} classes without objects are not shown)")
    title = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}[kind]
    if STANDARD_AP in metrics:
        head_line = f"{title} AP, percent, {limit} detections per image and class (AP at COCO's limit of {COCO_LIMIT}: "
        head_line += f"{percent(metrics[STANDARD_AP])})"
    else:
        head_line = f"COCO {title} AP, percent, {limit} detections per image and class"
    return "\n".join([numbers_table(head_line, shown), head, *lines, ""])
