"""Label maps and panoptic segments drawn over images, with a legend of their classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resdet.panoptic import ALL_THINGS, THINGS, Panoptic, Segment
from resdet.structures import UNLABELLED, Instances

Color = tuple[int, int, int]
STRENGTH = 0.55  # of the colours over the image
# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/, without black, in an order in which neighbours differ most
SAFE: tuple[Color, ...] = (
    (230, 159, 0), (86, 180, 233), (213, 94, 0), (0, 158, 115), (240, 228, 66), (0, 114, 178), (204, 121, 167),
)  # fmt: skip


def color_of(index: int) -> Color:
    """The first seven are told apart by the colour-blind; then come lighter and darker ones of them, then hues a golden angle
    apart."""
    if index < len(SAFE):
        return SAFE[index]
    if index < 3 * len(SAFE):
        lighter = index < 2 * len(SAFE)
        red, green, blue = (round(0.45 * v + 140) if lighter else round(0.55 * v) for v in SAFE[index % len(SAFE)])
        return red, green, blue
    hue = index * 0.618034 % 1
    r, g, b = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 1.0)[index % 3], (1.0, 1.0, 0.85)[index // 3 % 3])
    return int(r * 255), int(g * 255), int(b * 255)


def muted(color: Color) -> Color:
    """Of stuff beside things, which stand out in full colours."""
    red, green, blue = (int(0.4 * value + 0.6 * 128) for value in color)
    return red, green, blue


def segments_of(instances: Instances, stuff_area: int = 1) -> Panoptic:
    """The instances, whatever their scores, and the label map as segments; of the label map alone without masks."""
    assert instances.semantic is not None
    if instances.mask_probs is not None:
        return instances.panoptic(score=0.0, stuff_area=stuff_area)
    labels, areas = np.unique(instances.semantic, return_counts=True)
    ids = instances.semantic.astype(np.int32) + 1
    ids[instances.semantic == UNLABELLED] = 0
    found = zip(labels.tolist(), areas.tolist(), strict=True)
    return Panoptic(ids, [Segment(label + 1, label, False, area) for label, area in found if label != UNLABELLED])


def draw_segments(
    image: np.ndarray, panoptic: Panoptic, class_names: Sequence[str], label_names: Sequence[str], factor: int = 1
) -> np.ndarray:
    """Segments on (H, W, 3) uint8 RGB, enlarged by `factor`, their boundaries in white, and below it the legend: those of most
    pixels first.

    class_names: of things. label_names: of stuff, by the label map's labels.
    """
    size = (image.shape[0] * factor, image.shape[1] * factor)
    canvas = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC) if factor > 1 else image.copy()
    ids = cv2.resize(panoptic.ids.astype(np.float32), size[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int32)
    table = np.zeros((max((s.id for s in panoptic.segments), default=0) + 1, 3), np.float32)
    entries: dict[tuple[bool, int], int] = {}
    for segment in panoptic.segments:
        entries[segment.thing, segment.label] = entries.get((segment.thing, segment.label), 0) + segment.area
        table[segment.id] = _segment_color(segment, label_names)
    there = ids > 0
    canvas[there] = (canvas[there] * (1 - STRENGTH) + table[ids[there]] * STRENGTH).astype(np.uint8)
    canvas[_boundaries(ids)] = 255
    legend = [
        (
            _segment_color(Segment(1, label, thing, area), label_names),
            (class_names if thing else label_names)[label],
        )
        for (thing, label), area in sorted(entries.items(), key=lambda entry: -entry[1])
    ]
    return np.concatenate([canvas, legend_strip(legend, size[1])]) if legend else canvas


def _segment_color(segment: Segment, label_names: Sequence[str]) -> Color:
    """Stuff by label, muted beside things; things by class, after the colours of stuff."""
    if segment.thing:
        return color_of(segment.label + len(label_names))
    color = color_of(segment.label)
    return muted(color) if label_names[:1] == [ALL_THINGS] and segment.label != THINGS else color


def _boundaries(ids: np.ndarray) -> np.ndarray:
    """(H, W) bool: the pixels whose right or lower neighbour is of another segment."""
    edges = np.zeros(ids.shape, bool)
    edges[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edges[:-1] |= ids[:-1] != ids[1:]
    return edges


def legend_strip(entries: Sequence[tuple[Color, str]], width: int, text: float = 14) -> np.ndarray:
    """Coloured squares with names, in lines of `width` pixels -> (h, width, 3) uint8. text: the height of the font."""
    font, side, line = ImageFont.load_default(size=text), round(text), round(1.6 * text)
    places: list[tuple[int, int]] = []
    x = y = 4
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    for _, name in entries:
        wide = side + 6 + int(pen.textlength(name, font=font)) + 12
        if x > 4 and x + wide > width:
            x, y = 4, y + line
        places.append((x, y))
        x += wide
    strip = Image.new("RGB", (width, y + line), (24, 24, 24))
    pen = ImageDraw.Draw(strip)
    for (color, name), (left, top) in zip(entries, places, strict=True):
        pen.rectangle((left, top, left + side, top + side), fill=color)
        pen.text((left + side + 6, top - 1), name, font=font, fill=(230, 230, 230))
    return np.asarray(strip)
