"""Drawing: boxes, masks, keypoints, names and scores on images of any size; contact sheets of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from resdet.data.dataset import crop_masks
from resdet.data.index import Objects
from resdet.drawing.layout import SMALLEST_SIDE, ColorBy, Layout, lay_out
from resdet.drawing.raster import rasterise
from resdet.drawing.vector import SUFFIXES, write_vector
from resdet.errors import UserError
from resdet.overlays import draw_segments, segments_of
from resdet.structures import MASK_UNKNOWN, Instances


def layout_of(
    image: np.ndarray,
    instances: Instances,
    class_names: Sequence[str],
    *,
    color_by: ColorBy = "auto",
    scores: bool = True,
    edges: Sequence[tuple[int, int]] = (),
    label_names: Sequence[str] = (),
) -> Layout:
    """What is drawn of instances on (H, W, 3) uint8 RGB.

    label_names: of the label map's classes; where it is given and there is a label map, segments are drawn, in the pixels of
    the layout's image. The other arguments are those of `lay_out`.
    """
    if label_names and instances.semantic is not None:
        factor = max(1, -(-SMALLEST_SIDE // min(image.shape[:2])))
        drawn = draw_segments(image, segments_of(instances), class_names, label_names, factor)
        return Layout(drawn, [], edges, line=1, text=14, legend=[])
    return lay_out(image, instances, class_names, color_by=color_by, scores=scores, edges=edges)


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
    """The same in pixels: an image of at least `SMALLEST_SIDE`, with a legend below where there is one."""
    return rasterise(
        layout_of(image, instances, class_names, color_by=color_by, scores=scores, edges=edges, label_names=label_names)
    )


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


def save_drawing(layouts: Sequence[Layout], path: Path) -> None:
    """Layouts of one image side by side, as shapes in SVG and PDF, else in pixels. Raises `UserError`."""
    if path.suffix.lower() in SUFFIXES:
        write_vector(layouts, path)
        return
    drawn, *others = map(rasterise, layouts)
    for other in others:
        drawn = side_by_side(drawn, other)
    save_image(drawn, path)


def save_image(image: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) uint8 RGB to a file of the type of its suffix. Raises `UserError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, quality=92)
    except OSError as error:
        raise UserError(f"{path}: the image could not be written ({error})") from None
