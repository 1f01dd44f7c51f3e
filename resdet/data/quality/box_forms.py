"""Boxes in another form than COCO's, told from how they lie in their images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

MARGIN = 2  # pixels by which boxes may leave their image


def _corners(boxes: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = boxes.T
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)


def _centred(boxes: np.ndarray) -> np.ndarray:
    cx, cy, w, h = boxes.T
    return np.stack([cx - w / 2, cy - h / 2, w, h], axis=-1)


def _cornered(boxes: np.ndarray) -> np.ndarray:
    """The reverse of `_centred`: what stood in the place of the centre was the top left corner."""
    x, y, w, h = boxes.T
    return np.stack([x + w / 2, y + h / 2, w, h], axis=-1)


# Code of a finding: what turns boxes as they were read into XYWH.
FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "box-xyxy": _corners,
    "box-centred": _centred,
    "label-xywh": _cornered,
    "label-xyxy": lambda boxes: _corners(_cornered(boxes)),
}


def find_form(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    """The form that puts nearly all boxes into their images, where many are outside as they stand; None if there is none, and
    "box-form" if several do, or with x and y exchanged.

    boxes: (N, 4) read as XYWH. sizes: (N, 2) of their images, (H, W).
    """
    if len(boxes) < 3 or (outside := 1 - _inside(boxes, sizes).mean()) <= 0.2:
        return None
    fitting = [code for code, convert in FORMS.items() if _inside(convert(boxes), sizes).mean() > 0.95]
    if fitting[:1] == ["box-xyxy"]:  # whose corners hardly any other boxes would have in this order
        return "box-xyxy"
    if _inside(boxes[:, [1, 0, 3, 2]], sizes).mean() > 0.95:
        fitting.append("box-form")
    if not fitting or len(boxes) < 10 or outside <= 0.3:
        return None
    return fitting[0] if len(fitting) == 1 else "box-form"


def in_form(code: str, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) bool: which boxes have the form that `find_form` found: they fit their image in it, or at least have an area where
    they do not fit as XYWH either. All for "box-form", which is none in particular."""
    if code not in FORMS:
        return np.ones(len(boxes), bool)
    converted = FORMS[code](boxes)
    area = (converted[:, 2:] > 0).all(1)
    found: np.ndarray = _inside(converted, sizes) | (area & ~_inside(boxes, sizes))
    return found


def _inside(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) bool: has an area, and leaves the image by at most `MARGIN`."""
    x, y, w, h = boxes.T
    height, width = sizes.T
    low = (x >= -MARGIN) & (y >= -MARGIN) & (w > 0) & (h > 0)
    inside: np.ndarray = low & (x + w <= width + MARGIN) & (y + h <= height + MARGIN)
    return inside
