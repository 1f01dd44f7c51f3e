"""Maps, boxes and points drawn on the network's input. All arrays are of one image, all coordinates in its input frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from resdet.overlays import Color

MAP_SIDE = 420  # pictures of maps are no larger than this
CROP = 150  # side of pictures of RoIs
HEAT = cv2.COLORMAP_CIVIDIS  # even in brightness, and to the colour-blind


class Figure(NamedTuple):
    """picture: (H, W, 3) uint8 RGB."""

    picture: np.ndarray
    caption: str


class Section(NamedTuple):
    """A chapter of the page. small: whether its figures are crops, many in a row."""

    title: str
    text: str
    figures: list[Figure]
    small: bool = False


def strength(features: Tensor) -> np.ndarray:
    """(C, H, W) -> (H, W): the mean magnitude of the channels."""
    found: np.ndarray = features.float().abs().mean(0).cpu().numpy()
    return found


def heat(
    image: np.ndarray, values: np.ndarray, padded: tuple[int, int], span: tuple[float, float] | None = None
) -> np.ndarray:
    """A map over the whole padded input, (H, W) of it, drawn over the image, which is its upper left part.

    span: the values of the darkest and the brightest colour, by default the lowest and the highest.
    """
    h, w = image.shape[:2]
    large = cv2.resize(values.astype(np.float32), padded[::-1], interpolation=cv2.INTER_NEAREST)[:h, :w]
    low, high = span or (float(large.min()), float(large.max()))
    levels = ((large - low) / max(high - low, 1e-9) * 255).clip(0, 255).astype(np.uint8)
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    drawn = cv2.addWeighted(cv2.cvtColor(cv2.applyColorMap(levels, HEAT), cv2.COLOR_BGR2RGB), 0.72, grey, 0.28, 0)
    factor = min(1.0, MAP_SIDE / max(h, w))
    small: np.ndarray = cv2.resize(drawn, (round(w * factor), round(h * factor)), interpolation=cv2.INTER_AREA)
    return small


def tile(values: np.ndarray, span: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """A small map (h, w) alone, as a square picture."""
    levels = ((values - span[0]) / max(span[1] - span[0], 1e-9) * 255).clip(0, 255).astype(np.uint8)
    large = cv2.resize(levels, (CROP, CROP), interpolation=cv2.INTER_NEAREST)
    colored: np.ndarray = cv2.cvtColor(cv2.applyColorMap(large, HEAT), cv2.COLOR_BGR2RGB)
    return colored


def with_boxes(image: np.ndarray, boxes: np.ndarray, colors: Sequence[Color], line: int | None = None) -> np.ndarray:
    """Boxes (N, 4) on a copy of the image, the first one on top."""
    drawn = image.copy()
    line = line or max(1, round(min(image.shape[:2]) / 300))
    for box, color in list(zip(boxes, colors, strict=True))[::-1]:
        x1, y1, x2, y2 = np.round(box * 8).astype(int).tolist()
        cv2.rectangle(drawn, (x1, y1), (x2, y2), color, line, cv2.LINE_AA, shift=3)
    return drawn


def with_points(image: np.ndarray, points: np.ndarray, weights: np.ndarray, color: Color) -> np.ndarray:
    """Points (N, 2) on a copy of the image, the larger the greater their weights (N,)."""
    drawn = image.copy()
    unit = min(image.shape[:2]) / 110
    for k in np.argsort(weights):
        at = int(points[k, 0] * 8), int(points[k, 1] * 8)
        radius = int(8 * unit * (0.25 + np.sqrt(weights[k] / max(weights.max(), 1e-9))))
        cv2.circle(drawn, at, radius + 8, (255, 255, 255), -1, cv2.LINE_AA, shift=3)
        cv2.circle(drawn, at, radius, color, -1, cv2.LINE_AA, shift=3)
    return drawn


def crop(image: np.ndarray, box: np.ndarray, around: float = 0.4) -> np.ndarray:
    """The part of the image with a box and something around it, as a picture of at most `CROP`."""
    x1, y1, x2, y2 = box.tolist()
    dx, dy = around * (x2 - x1) + 4, around * (y2 - y1) + 4
    h, w = image.shape[:2]
    left, top = int(max(0, min(x1 - dx, w - 1))), int(max(0, min(y1 - dy, h - 1)))
    part = image[top : int(np.clip(y2 + dy, top + 1, h)), left : int(np.clip(x2 + dx, left + 1, w))]
    factor = CROP / max(part.shape[:2])
    size = max(1, round(part.shape[1] * factor)), max(1, round(part.shape[0] * factor))
    resized: np.ndarray = cv2.resize(part, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    return resized
