"""A layout in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resdet.drawing.labels import gap
from resdet.drawing.layout import PADDING, Layout, Mark
from resdet.overlays import Color, legend_strip

KEYPOINT_SCORE = 0.05  # keypoints must score above it to be drawn
STRENGTH = 0.4  # of a mask's colour over the image


def rasterise(layout: Layout) -> np.ndarray:
    """-> (H, W, 3) uint8 RGB, the legend below."""
    canvas = layout.image.copy()
    for mark in layout.marks:
        if mark.mask is not None:
            _blend_mask(canvas, mark.mask, mark.corner, mark.color, layout.line)
        if mark.outlined:
            x1, y1, x2, y2 = np.round(mark.box * 8).astype(int).tolist()
            cv2.rectangle(canvas, (x1, y1), (x2, y2), mark.color, layout.line, cv2.LINE_AA, shift=3)
        if mark.points is not None:
            _draw_keypoints(canvas, mark.points, layout.edges, mark.color, layout.line)
    if any(mark.place for mark in layout.marks):
        canvas = _write_labels(canvas, layout.marks, layout.text)
    if layout.legend:
        canvas = np.concatenate([canvas, legend_strip(layout.legend, canvas.shape[1], layout.text)])
    return canvas


def on_color(color: Color) -> Color:
    """Black or white, whichever is readable on a colour."""
    return (0, 0, 0) if 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 120 else (255, 255, 255)


def _blend_mask(canvas: np.ndarray, mask: np.ndarray, corner: tuple[int, int], color: Color, line: int) -> None:
    y, x = corner
    if not mask.any():
        return
    region = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
    region[mask] = (region[mask] * (1 - STRENGTH) + np.array(color) * STRENGTH).astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, color, line, cv2.LINE_AA, offset=(x, y))


def _draw_keypoints(
    canvas: np.ndarray, points: np.ndarray, edges: Sequence[tuple[int, int]], color: Color, line: int
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


def _write_labels(canvas: np.ndarray, marks: Sequence[Mark], text: float) -> np.ndarray:
    drawing = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(drawing), ImageFont.load_default(size=text)
    placed = [(mark, mark.place) for mark in marks if mark.place]
    for mark, place in placed:
        if line := gap(mark.box, place):
            pen.line(line, fill=mark.color, width=max(1, round(text / 12)))
    for mark, place in placed:
        left, top, *_ = pen.textbbox((0, 0), mark.label, font=font)
        pen.rectangle(place, fill=mark.color)
        at = place[0] + PADDING - left, place[1] + PADDING - top
        pen.text(at, mark.label, font=font, fill=on_color(mark.color))
    return np.asarray(drawing)
