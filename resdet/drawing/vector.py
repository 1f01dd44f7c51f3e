"""Layouts as SVG and PDF: the images as they are, everything on them as shapes and text. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from resdet.drawing.labels import gap
from resdet.drawing.layout import PADDING, Layout, Mark
from resdet.drawing.raster import KEYPOINT_SCORE, STRENGTH, on_color
from resdet.errors import UserError
from resdet.overlays import Color
from resdet.writing import atomic_write

SUFFIXES = (".svg", ".pdf")
DPI = 100  # pixels of an image per inch of the drawing


def require_matplotlib() -> None:
    """Raises `UserError` where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("SVG and PDF drawings need the extra: pip install 'resdet[plots]'") from None


def write_vector(layouts: Sequence[Layout], path: Path) -> None:
    """Layouts side by side -> a file whose suffix is one of `SUFFIXES`. Raises `UserError`."""
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    strip = max(4 * layout.text if layout.legend else 0 for layout in layouts)
    height = max(len(layout.image) for layout in layouts) + strip
    width = sum(layout.image.shape[1] for layout in layouts)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    left = 0.0
    for layout in layouts:
        h, w = layout.image.shape[:2]
        axes = figure.add_axes((left / width, 1 - h / height, w / width, h / height))
        axes.set_axis_off()
        axes.imshow(layout.image, extent=(0, w, h, 0), interpolation="none")
        axes.set_xlim(0, w)
        axes.set_ylim(h, 0)
        for mark in layout.marks:
            _draw_shapes(axes, mark, layout)
        for mark in layout.marks:
            _write_label(axes, mark, layout)
        if layout.legend:
            _draw_legend(axes, layout)
        left += w
    # Text stays text; without a date and random names, the same drawing is the same file.
    settings = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "resdet"}
    kind = path.suffix[1:].lower()
    with mpl.rc_context(settings), atomic_write(path) as temporary:
        figure.savefig(temporary, format=kind, metadata={"Date" if kind == "svg" else "CreationDate": None})


def _rgb(color: Color) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255


def _points(pixels: float) -> float:
    """Pixels of the image as typographic points."""
    return pixels * 72 / DPI


def _draw_shapes(axes: Any, mark: Mark, layout: Layout) -> None:
    from matplotlib.patches import PathPatch, Rectangle
    from matplotlib.path import Path as Outline

    color, line = _rgb(mark.color), _points(layout.line)
    if mark.mask is not None and mark.mask.any():
        rings, _ = cv2.findContours(mark.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        offset = np.array(mark.corner[::-1]) + 0.5  # contours go through the middles of pixels
        outlines = [
            Outline(np.concatenate([ring[:, 0], ring[:1, 0]]) + offset, closed=True) for ring in rings if len(ring) > 2
        ]
        if outlines:
            shape = Outline.make_compound_path(*outlines)
            axes.add_patch(PathPatch(shape, facecolor=(*color, STRENGTH), edgecolor=color, linewidth=line))
    if mark.outlined:
        x1, y1, x2, y2 = mark.box.tolist()
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=line))
    if mark.points is not None:
        shown = mark.points[:, 2] > KEYPOINT_SCORE
        limbs = [mark.points[[a, b], :2].T for a, b in layout.edges if shown[a] and shown[b]]
        for stroke, width in (("white", 2 * line + 2), (color, 2 * line)):
            for x, y in limbs:
                axes.plot(x, y, color=stroke, linewidth=width, solid_capstyle="round")
        x, y = mark.points[shown, :2].T
        axes.plot(x, y, "o", color=color, markersize=4 * line + 2, markeredgecolor="white", markeredgewidth=line / 2)


def _write_label(axes: Any, mark: Mark, layout: Layout) -> None:
    from matplotlib.patches import Rectangle

    if mark.place is None:
        return
    x1, y1, x2, y2 = mark.place
    if line := gap(mark.box, mark.place):
        axes.plot(*np.array(line).T, color=_rgb(mark.color), linewidth=_points(max(1, layout.text / 12)))
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, color=_rgb(mark.color), linewidth=0))
    # The text is as wide in this font as the place was made for another, or a little less.
    size = _points(layout.text) * 0.86
    axes.text(
        x1 + PADDING, (y1 + y2) / 2, mark.label, color=_rgb(on_color(mark.color)), fontsize=size, va="center_baseline"
    )


def _draw_legend(axes: Any, layout: Layout) -> None:
    from matplotlib.patches import Patch

    marks = [Patch(color=_rgb(color), label=name) for color, name in layout.legend]
    axes.legend(handles=marks, loc="upper left", bbox_to_anchor=(0, 0), ncols=4, frameon=False, borderaxespad=0.3,
                fontsize=_points(layout.text))  # fmt: skip
