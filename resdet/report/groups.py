"""AP by properties of objects and pictures, by COCO's rule for areas.

A group counts its objects; detections of other objects, and false detections without the property themselves, do not count.
COCO's evaluation is given the number of the group as the area of each object and detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from resdet.evaluation.backends import accumulated
from resdet.evaluation.coco import AREAS, Evaluation
from resdet.evaluation.tables import measured_mean

COUNTS = (1, 2, 5, 10, 20)  # objects in a picture: the first of each group
CROWDED = 0.1  # IoU with another object, of any class, from which an object is crowded
EDGE = 1.0  # pixels from the border within which a box is cut off
NAMES = {
    "size": ("small: up to 32² pixels", "medium: up to 96²", "large: more"),
    "number of objects in the picture": ("1", "2 to 4", "5 to 9", "10 to 19", "20 or more"),
    "place at the border": ("whole", "cut off"),
    "crowding": ("alone", "overlapping another object"),
}


class Group(NamedTuple):
    """objects: how many. ap, ap50: None where there are none."""

    name: str
    objects: int
    ap: float | None
    ap50: float | None


def grouped(evaluation: Evaluation, found: Sequence[dict[str, Any]], kind: str, limit: int) -> dict[str, list[Group]]:
    """The groups of each property. found: `Evaluation.detections`."""
    truth = evaluation.truth
    result = {}
    for name, (of_objects, of_detections) in _properties(truth, found).items():
        objects = [{**a, "area": int(g)} for a, g in zip(truth["annotations"], of_objects, strict=True)]
        detections = [{**d, "area": int(g)} for d, g in zip(found, of_detections, strict=True)]
        count = len(NAMES[name])
        precision, _ = accumulated(
            {**truth, "annotations": objects}, {**truth, "annotations": detections}, kind, "hotcoco", [limit],
            areas=[(k + 0.5, k + 1.5) for k in range(count)],
        )  # fmt: skip
        plain = np.array([not entry["iscrowd"] for entry in truth["annotations"]], bool)
        numbers = np.bincount(of_objects[plain], minlength=count + 1)[1:]
        result[name] = [
            Group(title, int(numbers[k]), measured_mean(precision[..., k, 0]), measured_mean(precision[0, ..., k, 0]))
            for k, title in enumerate(NAMES[name])
        ]
    return result


def _properties(truth: dict[str, Any], found: Sequence[dict[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By property, the group of each annotation and of each detection, from 1."""
    both: tuple[Sequence[dict[str, Any]], ...] = (truth["annotations"], found)
    counts = dict.fromkeys((image["id"] for image in truth["images"]), 0)
    for entry in truth["annotations"]:
        counts[entry["image_id"]] += not entry["iscrowd"]
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}
    limits = [AREAS["s"][1], AREAS["m"][1]]
    of_size = [1 + np.searchsorted(limits, [entry["area"] for entry in entries]) for entries in both]
    of_count = [
        1 + np.searchsorted(COUNTS[1:], [counts[entry["image_id"]] for entry in entries], side="right")
        for entries in both
    ]
    of_edge = [
        np.array([1 + _cut_off(e["bbox"], *sizes[e["image_id"]]) for e in entries], np.int64) for entries in both
    ]
    plain = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    crowded = [1 + _crowded(entries, plain, own) for entries, own in ((truth["annotations"], True), (found, False))]
    columns = (of_size, of_count, of_edge, crowded)
    return {name: (column[0], column[1]) for name, column in zip(NAMES, columns, strict=True)}


def _cut_off(box: Sequence[float], height: float | None, width: float | None) -> bool:
    x, y, w, h = box
    beyond = (width is not None and x + w >= width - EDGE) or (height is not None and y + h >= height - EDGE)
    return x <= EDGE or y <= EDGE or beyond


def _crowded(entries: Sequence[dict[str, Any]], objects: Sequence[dict[str, Any]], own: bool) -> np.ndarray:
    """(n,) int: 1 where a box overlaps more than one object, itself included if it is `own`; a detection, more than the one it
    may be of."""
    result = np.zeros(len(entries), np.int64)
    others: dict[int, list[Any]] = {}
    for entry in objects:
        others.setdefault(entry["image_id"], []).append(entry["bbox"])
    rows: dict[int, list[int]] = {}
    for k, entry in enumerate(entries):
        rows.setdefault(entry["image_id"], []).append(k)
    for image, chosen in rows.items():
        if there := others.get(image):
            ious = np.asarray(coco_mask.iou([entries[k]["bbox"] for k in chosen], there, [0] * len(there)))
            crowds = np.array([bool(own and entries[k]["iscrowd"]) for k in chosen])
            result[chosen] = ((ious >= CROWDED).sum(axis=1) > 1) & ~crowds
    return result
