"""Instances on an image -> what is drawn where: colours, masks, boxes, keypoints, labels or a legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import ImageFont

from resdet.drawing.labels import Rectangle, place_labels
from resdet.masks import paste_in_boxes
from resdet.overlays import Color, color_of
from resdet.structures import Instances

ColorBy = Literal["auto", "class", "instance"]
SMALLEST_SIDE = 480  # smaller images are enlarged, so that labels fit
LABELS = 40  # more objects than these have a legend instead of labels
LABELS_SHARE = 0.1  # of the image: labels that cover more, and on median more than half of their objects, are left out
PADDING = 3  # around the text of a label
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Mark:
    """What is drawn of an object, in pixels of the layout's image.

    box: (4,) XYXY. outlined: whether the box is drawn. mask: bool, its upper left pixel at `corner` (y, x); None without one.
    points: (K, 3) keypoints. place: the label's rectangle; None without a label.
    """

    color: Color
    box: np.ndarray
    outlined: bool
    mask: np.ndarray | None
    corner: tuple[int, int]
    points: np.ndarray | None
    label: str = ""
    place: Rectangle | None = None


@dataclass(frozen=True)
class Layout:
    """image: (H, W, 3) uint8 RGB, at least `SMALLEST_SIDE` in size. marks: large objects first. line: the width of lines.
    text: the height of the font. legend: classes with their colours, in the place of labels."""

    image: np.ndarray
    marks: list[Mark]
    edges: Sequence[tuple[int, int]]
    line: int
    text: float
    legend: list[tuple[Color, str]]


def lay_out(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    *,
    color_by: ColorBy = "auto",
    scores: bool = True,
    edges: Sequence[tuple[int, int]] = (),
) -> Layout:
    """Instances on (H, W, 3) uint8 RGB.

    Where labels are too many or would hide the objects there is a legend of the classes instead, and objects that have a mask
    have no box. A name is left out where there is one class.
    color_by: one colour per class or per object; "auto": per object of a single class, else per class.
    edges: pairs of keypoints to connect by lines.
    """
    factor = max(1, -(-SMALLEST_SIDE // min(image.shape[:2])))
    size = (image.shape[0] * factor, image.shape[1] * factor)
    canvas = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC) if factor > 1 else image
    boxes, probs = instances.boxes * factor, instances.mask_probs
    text = max(13, min(size) / 36)
    labels = _labels(instances, class_names, scores)
    extents = [_extent(label or "100%", text) for label in labels]
    crowded = len(labels) > LABELS or _hide_objects(extents, boxes, size)
    one_each = color_by == "instance" or (color_by == "auto" and len(class_names) == 1)
    colors = [color_of(int(i if one_each else instances.labels[i])) for i in range(len(instances))]
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    pasted = None if probs is None else paste_in_boxes(probs[order], boxes[order], size, instances.paste)
    occupied = np.zeros(size, bool)
    found: dict[int, Mark] = {}
    for i in map(int, order):
        known = probs is not None and probs[i].max() <= 1
        corner, mask = next(pasted) if pasted is not None else ((0, 0), None)
        if known and mask is not None:
            occupied[corner[0] : corner[0] + mask.shape[0], corner[1] : corner[1] + mask.shape[1]] |= mask
        else:
            x1, y1, x2, y2 = boxes[i].clip(0).round().astype(int).tolist()
            occupied[y1:y2, x1:x2] = True
        points = None if instances.keypoints is None else instances.keypoints[i] * np.array([factor, factor, 1])
        outlined = not (crowded and known)
        found[i] = Mark(colors[i], boxes[i], outlined, mask if known else None, corner, points)
    if not crowded and any(labels):
        for i, place in enumerate(place_labels(boxes, extents, occupied)):
            found[i] = _labelled(found[i], labels[i], place)
    counts = Counter(instances.labels.tolist())
    several = crowded and not one_each and len(class_names) > 1
    legend = [(color_of(k), f"{class_names[k]} {count}") for k, count in counts.most_common()] if several else []
    line = max(1, round(min(size) / 400))
    return Layout(canvas, [found[int(i)] for i in order], edges, line, text, legend)


def _labelled(mark: Mark, label: str, place: Rectangle) -> Mark:
    return Mark(mark.color, mark.box, mark.outlined, mark.mask, mark.corner, mark.points, label, place)


def _labels(instances: Instances, class_names: Sequence[str], scores: bool) -> list[str]:
    """What is written at each object: its class where there are several, its score."""
    names = [class_names[k] if len(class_names) > 1 else "" for k in instances.labels]
    if not scores:
        return names
    return [f"{name} {score:.0%}".lstrip() for name, score in zip(names, instances.scores, strict=True)]


def _extent(label: str, text: float) -> tuple[float, float]:
    """The width and height of a label."""
    left, top, right, bottom = ImageFont.load_default(size=text).getbbox(label)
    return right - left + 2 * PADDING, bottom - top + 2 * PADDING


def _hide_objects(labels: Sequence[tuple[float, float]], boxes: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether labels of these extents are too many and too large for the objects in an image of `size` (H, W)."""
    if not labels:
        return False
    areas = np.prod(np.array(labels), axis=1)
    objects = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return bool(areas.sum() > LABELS_SHARE * size[0] * size[1] and np.median(areas / np.maximum(objects, 1)) > 0.5)
