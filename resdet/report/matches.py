"""Detections and ground truth -> what became of each: Bolya et al. 2020, TIDE (arXiv:2008.08115), section 2.

D detections, G objects, both without crowd regions, which only excuse detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from resdet.evaluation.coco import Evaluation

POSITIVE, BACKGROUND = 0.5, 0.1  # IoU from which a detection is right, and up to which it is on background
# What can become of a detection: right, on a crowd region, or one of TIDE's kinds of false positives.
RIGHT, IGNORED, CLASS, PLACE, BOTH, TWICE, NOTHING = range(7)
# And of an object: found; missed, but a detection of kind CLASS or PLACE would find it; missed altogether.
FOUND, NEARLY, MISSED = range(3)


@dataclass
class Matches:
    """By image, and in each by descending score. Ids are those of `Evaluation.truth`.

    entry (D,) the position in the results, image (D,) and category (D,) ids, score (D,), kind (D,) RIGHT to NOTHING,
    partner (D,) the object that explains the kind or -1, iou (D,) with it.
    annotation (G,) the position in truth["annotations"], object_image (G,), object_category (G,), object_kind (G,) FOUND to
    MISSED, object_partner (G,) the detection that found it, or of kind CLASS or PLACE would with the highest score, or -1;
    object_iou (G,) the highest IoU with any detection.
    """

    entry: np.ndarray
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    kind: np.ndarray
    partner: np.ndarray
    iou: np.ndarray
    annotation: np.ndarray
    object_image: np.ndarray
    object_category: np.ndarray
    object_kind: np.ndarray
    object_partner: np.ndarray
    object_iou: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """(D,) bool: the detections that are right or wrong."""
        return np.asarray(self.kind != IGNORED)


def match(evaluation: Evaluation, found: Sequence[dict[str, Any]], kind: str, limit: int) -> Matches:
    """Matches at IoU 0.5 of boxes ("bbox") or masks ("segm"), as in COCO's evaluation.

    found: `Evaluation.detections`. limit: how many detections of each image and class count.
    """
    images = [image["id"] for image in evaluation.truth["images"]]
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in evaluation.truth["images"]}
    detections = _by_image(images, found)
    objects = _by_image(images, evaluation.truth["annotations"])
    of_detections: list[list[np.ndarray]] = [[] for _ in range(7)]
    of_objects: list[list[np.ndarray]] = [[] for _ in range(6)]
    first_detection = first_object = 0
    for image in images:
        given = _limited(detections[image], found, limit)
        truth = evaluation.truth["annotations"]
        plain = [k for k in objects[image] if not truth[k]["iscrowd"]]
        crowds = [k for k in objects[image] if truth[k]["iscrowd"]]
        shapes = [[_shape(source[k], kind, sizes[image]) for k in chosen]
                  for source, chosen in ((found, given), (truth, plain), (truth, crowds))]  # fmt: skip
        labels = [np.array([source[k]["category_id"] for k in chosen], np.int64)
                  for source, chosen in ((found, given), (truth, plain), (truth, crowds))]  # fmt: skip
        ious = _ious(shapes[0], shapes[1], crowd=False)
        on_crowd = _ious(shapes[0], shapes[2], crowd=True) * (labels[0][:, None] == labels[2][None])
        kinds, partners, overlap = _judge(
            ious, labels[0][:, None] == labels[1][None], on_crowd.max(axis=1, initial=0.0)
        )
        states, finders = _judge_objects(len(plain), kinds, partners)
        rows = [
            np.array(given, np.int64), np.full(len(given), image), labels[0],
            np.array([found[k]["score"] for k in given], np.float64), kinds,
            np.where(partners >= 0, partners + first_object, -1), overlap,
        ]  # fmt: skip
        for column, row in zip(of_detections, rows, strict=True):
            column.append(row)
        rows = [
            np.array(plain, np.int64), np.full(len(plain), image), labels[1], states,
            np.where(finders >= 0, finders + first_detection, -1), ious.max(axis=0, initial=0.0),
        ]  # fmt: skip
        for column, row in zip(of_objects, rows, strict=True):
            column.append(row)
        first_detection += len(given)
        first_object += len(plain)
    empty = [np.zeros(0, np.int64)]
    return Matches(*(np.concatenate(column or empty) for column in (*of_detections, *of_objects)))


def _judge(ious: np.ndarray, same: np.ndarray, on_crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the D detections of an image, by descending score: their kinds, partners and IoUs with them.

    ious (D, G); same (D, G) bool: of the same class; on_crowd (D,): the largest share of it on a crowd region of its class.
    """
    count, objects = ious.shape
    kinds, partners, overlap = np.full(count, NOTHING), np.full(count, -1), np.zeros(count)
    of_class = ious * same
    free = of_class.copy()
    taken = np.zeros(objects, bool)
    for d in np.flatnonzero((of_class >= POSITIVE).any(axis=1)):
        best = int(free[d].argmax())
        if free[d, best] >= POSITIVE:
            kinds[d], partners[d], overlap[d] = RIGHT, best, ious[d, best]
            taken[best], free[:, best] = True, -1.0
    wrong = kinds != RIGHT
    kinds[wrong & (on_crowd >= POSITIVE)] = IGNORED
    if not objects:
        return kinds, partners, overlap
    rows = np.arange(count)
    near, other, repeated = of_class.argmax(axis=1), (ious * ~same).argmax(axis=1), (of_class * taken).argmax(axis=1)
    any_best = ious.argmax(axis=1)
    left = kinds == NOTHING
    # In the order of the authors' code; a later test is for what no earlier one explains.
    for kind, which, holds in (
        (PLACE, near, (of_class[rows, near] >= BACKGROUND) & (of_class[rows, near] < POSITIVE)),
        (CLASS, other, (ious * ~same)[rows, other] >= POSITIVE),
        (TWICE, repeated, (of_class * taken)[rows, repeated] >= POSITIVE),
        (BOTH, any_best, ious[rows, any_best] > BACKGROUND),
    ):
        now = left & holds
        kinds[now], partners[now], overlap[now] = kind, which[now], ious[rows, which][now]
        left &= ~holds
    return kinds, partners, overlap


def _judge_objects(count: int, kinds: np.ndarray, partners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kinds of the objects of an image, and the detections that explain them."""
    states, finders = np.full(count, MISSED), np.full(count, -1)
    for d in np.flatnonzero((kinds == RIGHT) | (kinds == CLASS) | (kinds == PLACE)):
        g = partners[d]
        if kinds[d] == RIGHT:
            states[g], finders[g] = FOUND, d
        elif states[g] == MISSED:
            states[g], finders[g] = NEARLY, d
    return states, finders


def _by_image(images: Sequence[int], entries: Sequence[dict[str, Any]]) -> dict[int, list[int]]:
    listed: dict[int, list[int]] = {image: [] for image in images}
    for k, entry in enumerate(entries):
        listed[entry["image_id"]].append(k)
    return listed


def _limited(chosen: list[int], found: Sequence[dict[str, Any]], limit: int) -> list[int]:
    """By descending score, at most `limit` of each class."""
    ordered = sorted(chosen, key=lambda k: -found[k]["score"])
    counts: dict[int, int] = {}
    kept = []
    for k in ordered:
        category = found[k]["category_id"]
        counts[category] = counts.get(category, 0) + 1
        if counts[category] <= limit:
            kept.append(k)
    return kept


def _shape(entry: dict[str, Any], kind: str, size: tuple[Any, Any]) -> Any:
    """What pycocotools computes the IoU of: a box XYWH, or a compressed RLE."""
    return entry["bbox"] if kind == "bbox" else compressed(entry["segmentation"], size)


def compressed(outline: Any, size: tuple[Any, Any]) -> dict[str, Any]:
    """Polygons or an RLE of an image of `size` (H, W) as a compressed RLE."""
    if isinstance(outline, list):
        return dict(coco_mask.merge(coco_mask.frPyObjects(outline, *size)))
    if isinstance(outline["counts"], list):
        return dict(coco_mask.frPyObjects(outline, *outline["size"]))
    return dict(outline)


def _ious(detections: list[Any], objects: list[Any], *, crowd: bool) -> np.ndarray:
    """(D, G) IoUs; with crowd, the shares of the detections that lie on the objects."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    return np.asarray(coco_mask.iou(detections, objects, [int(crowd)] * len(objects)))
