"""YOLO: data.yaml, images/, labels/*.txt -> COCO's structure.

https://docs.ultralytics.com/datasets/: a line is "class x_centre y_centre width height" (a box), "class x y x y x y …" (a
polygon; the four corners of an oriented box are one), or with kpt_shape in data.yaml, a box and its keypoints "x y" or
"x y visibility". All are fractions of the upright image's size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from resdet.data.formats.common import Builder, Source, image_sizes, polygon_box, read_text
from resdet.data.formats.yolo_layout import Layout, label_files, read_layout, split_images
from resdet.errors import UserError


class _Line(NamedTuple):
    """An object, in pixels: bbox XYWH, and its polygon or keypoints [x, y, visibility, …] if it has any."""

    label: int
    bbox: list[float]
    polygon: list[float] | None = None
    keypoints: list[float] | None = None


def read_yolo(path: Path, images: Path | None, split: str | None) -> Source:
    """A split of a data.yaml, such as "train", "val" or "test" (None: "train"). Raises `UserError` where there is none."""
    layout = read_layout(path)
    if images is not None:
        layout = layout._replace(entries={"": [str(images.absolute())]})
    builder = Builder(path, layout.root, layout.classes)
    source = builder.source
    found, source.split = split_images(layout, split, source.problems, source.remarks)
    source.images = _common_folder(layout.root, found.files)
    labels = label_files(found, source.problems, source.remarks)
    if not found.files and not source.problems:
        raise UserError(f"{path}: the split {source.split} names no images")
    if found.files and not labels:
        source.problems.append(
            f"{path}: none of {len(found.files)} images has a label file: {found.files[0]} needs {found.files[0].stem}.txt "
            "in labels/ where the image lies in images/, or beside it"
        )
    if layout.keypoints:
        for category in source.content["categories"]:
            category |= {"keypoints": layout.keypoint_names, "skeleton": []}
        source.notes.append(f"lines are boxes with {layout.keypoints[0]} keypoints (kpt_shape in {path.name})")
    for file, size in zip(found.files, image_sizes(found.files, source.problems), strict=True):
        if size is None:
            continue  # a problem already
        image_id = builder.image(file, size)
        if file in labels:
            _add(builder, image_id, labels[file], layout, size)
        else:
            source.remarks["images without a label file (negatives)"] += 1
    return source


def _common_folder(root: Path, files: Sequence[Path]) -> Path:
    """`root`, or the folder above it that has all files."""
    inside = os.path.abspath(root)
    return root if all(os.path.abspath(f).startswith(inside + os.sep) for f in files) else Path(
        os.path.commonpath([inside, *(os.path.abspath(f.parent) for f in files)])
    )  # fmt: skip


def _add(builder: Builder, image_id: int, labels: Path, layout: Layout, size: tuple[int, int]) -> None:
    """Add the objects of a label file."""
    try:
        lines = read_text(labels).splitlines()
    except UserError as error:
        builder.source.problems.append(str(error))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        origin = f"{labels}:{number}"
        try:
            found = _parse(line.split(), layout, size)
        except ValueError as error:
            builder.source.problems.append(f"{origin}: {error}")
            continue
        polygon = None if found.polygon is None else [found.polygon]
        builder.object(image_id, layout.classes[found.label], found.bbox, origin, polygon, found.keypoints)


def _parse(words: list[str], layout: Layout, size: tuple[int, int]) -> _Line:
    """One line. Raises `ValueError` that says what is wrong with it."""
    text = " ".join(words)[:60]
    try:
        label, *values = map(float, words)
    except ValueError:
        raise ValueError(f"{text!r} is not numbers") from None
    if not all(map(math.isfinite, (label, *values))):
        raise ValueError(f"{text!r} is not finite")
    if label != int(label) or not 0 <= label < len(layout.classes):
        raise ValueError(f"class {words[0][:20]}, but {layout.file.name} names classes 0 to {len(layout.classes) - 1}")
    if layout.keypoints:
        return _with_keypoints(int(label), values, layout.keypoints, size, text)
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        hint = "; with keypoints, data.yaml needs kpt_shape" if len(values) > 6 and (len(values) - 4) % 3 == 0 else ""
        raise ValueError(f"{len(values)} numbers after the class: 4 for a box, 6, 8, … for a polygon{hint}")
    if len(values) == 4:
        return _Line(int(label), _box(values, size, text))
    _check_fractions(values, text)
    pixels = _to_pixels(values, size)
    return _Line(int(label), polygon_box(pixels), pixels)


def _with_keypoints(label: int, values: list[float], shape: tuple[int, int], size: tuple[int, int], text: str) -> _Line:
    """A box and its keypoints. Without visibilities, a point at (0, 0) or of negative coordinates is not labelled."""
    count, numbers = shape
    if len(values) != 4 + count * numbers:
        raise ValueError(
            f"{len(values)} numbers after the class; kpt_shape [{count}, {numbers}] asks for 4 + {count * numbers}"
        )
    box = _box(values[:4], size, text)
    keypoints: list[float] = []
    for k in range(4, len(values), numbers):
        x, y = values[k : k + 2]
        visibility = values[k + 2] if numbers == 3 else 2 * (x >= 0 and y >= 0 and (x, y) != (0, 0))
        if visibility not in (0, 1, 2):
            raise ValueError(f"visibility {visibility:g} of keypoint {(k - 4) // numbers + 1} is not 0, 1 or 2")
        if visibility:
            _check_fractions([x, y], text)
            keypoints += [*_to_pixels([x, y], size), int(visibility)]
        else:
            keypoints += [0, 0, 0]
    return _Line(label, box, keypoints=keypoints)


def _check_fractions(values: list[float], text: str) -> None:
    if any(not -0.01 <= v <= 1.01 for v in values):
        raise ValueError(f"{text!r} has values outside 0 to 1: YOLO's coordinates are fractions of the image size")


def _to_pixels(values: list[float], size: tuple[int, int]) -> list[float]:
    """[x, y, …] as fractions of (H, W) -> pixels."""
    return [v * size[1 - k % 2] for k, v in enumerate(values)]


def _box(values: list[float], size: tuple[int, int], text: str) -> list[float]:
    """Centre and sides as fractions -> XYWH in pixels. Sides are negative where a tool exchanged the corners."""
    _check_fractions([*values[:2], *map(abs, values[2:])], text)
    x, y, w, h = _to_pixels(values, size)
    return [x - w / 2, y - h / 2, w, h]
