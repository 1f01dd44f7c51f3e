"""Drawing: boxes, masks, keypoints, names and scores on images of any size; contact sheets of many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resdet.data.dataset import crop_masks
from resdet.data.index import Objects
from resdet.errors import UserError
from resdet.masks import paste_in_boxes
from resdet.overlays import color_of, draw_segments, segments_of
from resdet.structures import MASK_UNKNOWN, Instances

ColorBy = Literal["auto", "class", "instance"]
SMALLEST_SIDE = 480  # smaller images are enlarged, so that labels fit
LABELS_SHARE = 0.1  # of the image: labels that cover more, and on median more than half of their objects, are left out
KEYPOINT_SCORE = 0.05  # keypoints must score above it to be drawn
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Rectangle = tuple[float, float, float, float]


def draw(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    *,
    color_by: ColorBy = "auto",
    scores: bool = True,
    edges: Sequence[tuple[int, int]] = (),
    label_names: Sequence[str] = (),
) -> np.ndarray:
    """Instances on (H, W, 3) uint8 RGB -> an image of at least `SMALLEST_SIDE`; large objects are drawn first.

    Labels are left out where they would hide the objects, and with them the boxes of objects that have a mask; a name is left
    out where there is one class.
    color_by: one colour per class or per object; "auto": per object of a single class or without labels, else per class.
    edges: pairs of keypoints to connect by lines.
    label_names: of the label map's classes; where it is given and there is a label map, segments are drawn, with a legend.
    """
    factor = max(1, -(-SMALLEST_SIDE // min(image.shape[:2])))
    if label_names and instances.semantic is not None:
        return draw_segments(image, segments_of(instances), class_names, label_names, factor)
    size = (image.shape[0] * factor, image.shape[1] * factor)
    canvas = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC) if factor > 1 else image.copy()
    boxes = instances.boxes * factor
    order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
    labels = _labels(instances, class_names, scores)
    font = ImageFont.load_default(size=max(13, min(size) / 36))
    crowded = _hide_objects([font.getbbox(label or "100%") for label in labels], boxes, size)
    one_each = color_by == "instance" or (color_by == "auto" and (crowded or len(class_names) == 1))
    colors = [color_of(int(i if one_each else instances.labels[i])) for i in range(len(instances))]
    line = max(1, round(min(size) / 400))
    probs = instances.mask_probs
    pasted = None if probs is None else paste_in_boxes(probs[order], boxes[order], size, instances.paste)
    for i in order:
        known = probs is not None and probs[i].max() <= 1
        if pasted is not None:
            (y, x), mask = next(pasted)
            if known:
                _blend_mask(canvas, mask, (y, x), colors[i], line)
        x1, y1, x2, y2 = np.round(boxes[i] * 8).astype(int).tolist()
        if not (crowded and known):
            cv2.rectangle(canvas, (x1, y1), (x2, y2), colors[i], line, cv2.LINE_AA, shift=3)
        if instances.keypoints is not None:
            scale = np.array([factor, factor, 1])
            _draw_keypoints(canvas, instances.keypoints[i] * scale, edges, colors[i], line)
    return canvas if crowded or not any(labels) else _write_labels(canvas, boxes, labels, colors, font)


def _labels(instances: Instances, class_names: Sequence[str], scores: bool) -> list[str]:
    """What is written at each object: its class where there are several, its score."""
    names = [class_names[k] if len(class_names) > 1 else "" for k in instances.labels]
    if not scores:
        return names
    return [f"{name} {score:.0%}".lstrip() for name, score in zip(names, instances.scores, strict=True)]


def contact_sheet(tiles: Sequence[tuple[np.ndarray, str]], columns: int | None = None, tile: int = 480) -> np.ndarray:
    """Images (H, W, 3) with titles -> one image with each of them in a square cell of side `tile`."""
    columns = columns or max(1, int(np.ceil(np.sqrt(len(tiles)))))
    rows, title = -(-len(tiles) // columns), 24
    sheet = Image.new("RGB", (columns * tile, rows * (tile + title)), (24, 24, 24))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for k, (image, text) in enumerate(tiles):
        x, y = k % columns * tile, k // columns * (tile + title)
        thumbnail = Image.fromarray(image)
        thumbnail.thumbnail((tile - 6, tile - 4), Image.Resampling.LANCZOS)
        sheet.paste(thumbnail, (x + (tile - thumbnail.width) // 2, y + title + (tile - thumbnail.height) // 2))
        while text and pen.textlength(text, font=font) > tile - 8:
            text = "…" + text[2:]  # keep the end, the informative part of a path
        pen.text((x + 6, y + 4), text, font=font, fill=(230, 230, 230))
    return np.asarray(sheet)


def annotated_instances(
    objects: Objects, size: tuple[int, int], masks: bool = True, label_map: np.ndarray | None = None
) -> Instances:
    """The ground truth of an image of `size` (H, W) as `Instances` with score 1, for drawing."""
    crops = None
    if masks and any(s is not None for s in objects.segmentations):
        crops = crop_masks(objects, 224).astype(np.float32)
        crops[crops == MASK_UNKNOWN] = 2.0  # no mask to draw
    return Instances(
        objects.boxes,
        np.ones(len(objects.labels), np.float32),
        objects.labels,
        size,
        crops,
        keypoints=objects.keypoints,
        semantic=label_map,
    )


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two drawings (H, W, 3) of one image, whose legends may have different heights."""
    height = max(len(left), len(right))
    padded = [np.pad(drawing, ((0, height - len(drawing)), (0, 0), (0, 0))) for drawing in (left, right)]
    return np.concatenate(padded, axis=1)


def save_image(image: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) uint8 RGB to a file of the type of its suffix. Raises `UserError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=92)
    except OSError as error:
        raise UserError(f"{path}: the image could not be written ({error})") from None


def _blend_mask(
    canvas: np.ndarray, mask: np.ndarray, corner: tuple[int, int], color: tuple[int, int, int], line: int
) -> None:
    y, x = corner
    if not mask.any():
        return
    region = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
    region[mask] = (region[mask] * 0.6 + np.array(color) * 0.4).astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, color, line, cv2.LINE_AA, offset=(x, y))


def _draw_keypoints(
    canvas: np.ndarray, points: np.ndarray, edges: Sequence[tuple[int, int]], color: tuple[int, int, int], line: int
) -> None:
    """points (K, 3): dots for those whose score or visibility is above `KEYPOINT_SCORE`, lines for the edges between them;
    both are edged in white."""
    shown = points[:, 2] > KEYPOINT_SCORE
    # OpenCV's coordinates are relative to pixel centres, here in eighths.
    at = [(int(x), int(y)) for x, y in np.round((points[:, :2] - 0.5) * 8)]
    limbs = [(at[a], at[b]) for a, b in edges if shown[a] and shown[b]]
    for stroke, width in (((255, 255, 255), 2 * line + 2), (color, 2 * line)):
        for start, end in limbs:
            cv2.line(canvas, start, end, stroke, width, cv2.LINE_AA, shift=3)
    for k in np.flatnonzero(shown):
        cv2.circle(canvas, at[k], 8 * (2 * line + 2), (255, 255, 255), -1, cv2.LINE_AA, shift=3)
        cv2.circle(canvas, at[k], 8 * (2 * line + 1), color, -1, cv2.LINE_AA, shift=3)


def _hide_objects(labels: Sequence[Rectangle], boxes: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether labels of these extents are too many and too large for the objects in an image of `size` (H, W)."""
    if not labels:
        return False
    areas = np.array([(right - left + 6) * (bottom - top + 6) for left, top, right, bottom in labels])
    objects = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return bool(areas.sum() > LABELS_SHARE * size[0] * size[1] and np.median(areas / np.maximum(objects, 1)) > 0.5)


def _write_labels(
    canvas: np.ndarray, boxes: np.ndarray, labels: list[str], colors: list[tuple[int, int, int]], font: Font
) -> np.ndarray:
    """Write each label next to its box, where it covers no earlier label."""
    height, width = canvas.shape[:2]
    drawing = Image.fromarray(canvas)
    pen = ImageDraw.Draw(drawing)
    taken: list[Rectangle] = []
    for box, label, color in zip(boxes, labels, colors, strict=True):
        left, top, right, bottom = pen.textbbox((0, 0), label, font=font)
        w, h = right - left + 6, bottom - top + 6
        x, y = _free_position(box, w, h, width, height, taken)
        taken.append((x, y, x + w, y + h))
        pen.rectangle((x, y, x + w, y + h), fill=color)
        dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 120
        pen.text((x + 3 - left, y + 3 - top), label, font=font, fill=(0, 0, 0) if dark else (255, 255, 255))
    return np.asarray(drawing)


def _free_position(
    box: np.ndarray, w: float, h: float, width: int, height: int, taken: list[Rectangle]
) -> tuple[float, float]:
    """The top left corner of a label: above the box, else inside its top, below it, inside its bottom, or further down."""
    x1, y1, x2, y2 = box.tolist()
    rows = [y1 - h, y1, y2, y2 - h, *(y1 + k * h for k in range(1, 6))]
    places = [
        (min(max(x, 0), max(width - w, 0)), min(max(y, 0), max(height - h, 0)))
        for y, x in itertools.product(rows, (x1, x2 - w))
    ]
    for x, y in places:
        if not any(x < c and a < x + w and y < d and b < y + h for a, b, c, d in taken):
            return x, y
    return places[0]
