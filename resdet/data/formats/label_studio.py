"""Label Studio's JSON and JSON-MIN exports, with the images beside them -> COCO's structure.

https://labelstud.io/guide/export: coordinates are percent of the image; rectangles turn about their top left corner.
Annotations only: predictions and cancelled annotations are left out. With several annotations of an image, the last
one counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resdet.data.formats.common import Builder, Source, ellipse_polygon
from resdet.data.formats.lookup import located
from resdet.data.images import SUFFIXES
from resdet.data.json_files import read_json
from resdet.data.rules import is_number
from resdet.errors import UserError

KINDS = ("rectanglelabels", "polygonlabels", "ellipselabels", "brushlabels")
SHAPES = {
    "rectangle": "width",
    "polygon": "points",
    "ellipse": "radiusX",
    "brush": "rle",
}  # and a key that it alone has
Region = tuple[str, str, dict[str, Any]]  # where it stands in the file, its kind, its value


def is_label_studio(content: Any) -> bool:
    """Whether a parsed JSON is a list of Label Studio's tasks, or of its JSON-MIN's."""
    if not isinstance(content, list) or not content or not isinstance(content[0], dict):
        return False
    return ("data" in content[0] and "annotations" in content[0]) or {"annotation_id", "annotator"} <= set(content[0])


def read_label_studio(file: Path, images: Path | None = None, split: str | None = None) -> Source:
    """`file`'s annotations of the images below the folder `images` (None: the file's own).

    Raises `UserError` where nothing can be read.
    """
    images = images or file.parent
    content = read_json(file)
    if not is_label_studio(content):
        raise UserError(f"{file}: not an export of Label Studio (a list of tasks with data and annotations)")
    problems: list[str] = []
    remarks: list[str] = []
    regions: dict[str, list[Region]] = {}
    for number, task in enumerate(content, 1):
        origin = f"{file}: task {task.get('id', number) if isinstance(task, dict) else number}"
        name = _image_name(task) if isinstance(task, dict) else None
        if name is None:
            problems.append(f"{origin}: its data names no image")
        elif name in regions:
            problems.append(f"{origin}: its image {name!r} also belongs to an earlier task")
        elif (found := _results(task, origin, remarks)) is not None:
            regions[name] = found
    labelled = [(origin, label) for found in regions.values() for origin, kind, value in found
                if (label := _label(kind, value))]  # fmt: skip
    builder = Builder(file, images, sorted({label for _, label in labelled}))
    builder.source.problems = problems
    builder.source.remarks.update(remarks)
    for path, size, name in located(regions, images, file, problems, builder.source.remarks):
        image_id = builder.image(path, size)
        for origin, kind, value in regions[name]:
            _add(builder, image_id, kind, value, origin, size)
    return builder.source


def _image_name(task: dict[str, Any]) -> str | None:
    """The one value of the task's data that is the name of an image file."""
    data = task.get("data", task)
    values = [v for v in data.values() if isinstance(v, str)] if isinstance(data, dict) else []
    names = [v for v in values if Path(v.split("?d=")[-1].split("?")[0]).suffix.lower() in SUFFIXES]
    return names[0] if len(names) == 1 else None


def _results(task: dict[str, Any], origin: str, remarks: list[str]) -> list[Region] | None:
    """The task's regions; None, with a remark, for an image without annotations."""
    if "annotations" not in task:  # JSON-MIN: every list of regions stands under its control's name
        lists = [v for v in task.values() if isinstance(v, list)]
        entries = [entry for v in lists for entry in v if isinstance(entry, dict)]
        found = [
            (kind, v) for entry in entries for k in (*KINDS, "labels") if k in entry for kind, v in [_plain(k, entry)]
        ]
        return [(f"{origin}: region {k}", kind, value) for k, (kind, value) in enumerate(found, 1) if kind in KINDS]
    given = task["annotations"] if isinstance(task["annotations"], list) else []
    done = [a for a in given if isinstance(a, dict) and not a.get("was_cancelled")]
    if not done:
        remarks.append("images without annotations (left out: unlabelled images are not negatives)")
        return None
    if len(done) > 1:
        remarks.append("images with several annotations (the last one is used)")
    regions: list[Region] = []
    result = done[-1].get("result")
    entries = [entry if isinstance(entry, dict) else {} for entry in (result if isinstance(result, list) else [])]
    labelled = {str(entry.get("id")) for entry in entries if entry.get("type") == "labels"}
    for k, entry in enumerate(entries, 1):
        kind, value = _plain(entry.get("type"), entry.get("value"))
        if kind in KINDS:
            regions.append((f"{origin}: region {k}", kind, value))
        elif kind not in SHAPES or str(entry.get("id")) not in labelled:
            remarks.append(f"regions of type {kind} (left out: not labelled boxes or masks)")
    return regions


def _plain(kind: Any, value: Any) -> tuple[str, dict[str, Any]]:
    """The kind of a region and its value, in the form of `KINDS`.

    Where <Labels> stands beside <Rectangle> in Label Studio's configuration, a region has two entries of one id: "rectangle",
    and "labels", which repeats the shape.
    """
    if not isinstance(value, dict):
        return f"{kind} without a value", {}
    shape = next((shape for shape, key in SHAPES.items() if key in value), None)
    if kind != "labels" or shape is None:
        return str(kind), value
    return f"{shape}labels", {**value, f"{shape}labels": value.get("labels")}


def _label(kind: str, value: dict[str, Any]) -> str:
    labels = value.get(kind)
    named = isinstance(labels, list) and len(labels) == 1 and isinstance(labels[0], str) and labels[0].strip()
    return labels[0] if named else ""  # type: ignore[index]


def _add(builder: Builder, image_id: int, kind: str, value: dict[str, Any], origin: str, size: tuple[int, int]) -> None:
    label, problems = _label(kind, value), builder.source.problems
    if not label:
        problems.append(f"{origin}: must have one label in {kind}, has {value.get(kind)!r}")
        return
    sy, sx = size[0] / 100, size[1] / 100
    angle = value.get("rotation") or 0
    keys = {"rectanglelabels": "x y width height", "ellipselabels": "x y radiusX radiusY"}.get(kind, "").split()
    numbers = [value.get(key) for key in keys]
    if not all(map(is_number, [*numbers, angle])):
        problems.append(f"{origin}: {', '.join(keys)} and rotation must be numbers")
    elif kind == "rectanglelabels":
        x, y, w, h = (float(v) * s for v, s in zip(numbers, (sx, sy, sx, sy), strict=True))  # type: ignore[arg-type]
        if angle:
            builder.polygons(image_id, label, [_turned(x, y, w, h, angle)], origin)
        else:
            builder.object(image_id, label, [x, y, w, h], origin)
    elif kind == "ellipselabels":
        x, y, rx, ry = (float(v) * s for v, s in zip(numbers, (sx, sy, sx, sy), strict=True))  # type: ignore[arg-type]
        builder.polygons(image_id, label, [ellipse_polygon(x, y, rx, ry, math.radians(angle))], origin)
    elif kind == "polygonlabels":
        points = value.get("points")
        if not isinstance(points, list) or not all(map(_is_point, points)):
            problems.append(f"{origin}: points must be [[x, y], …]")
        else:
            builder.polygons(image_id, label, [[c for x, y in points for c in (x * sx, y * sy)]], origin)
    elif (mask := decode_brush(value.get("rle"), size)) is None:
        problems.append(f"{origin}: its rle is not a mask of {size[0]} x {size[1]} pixels")
    else:
        builder.bitmap(image_id, label, mask, (0, 0), size, origin)


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(map(is_number, point))


def _turned(x: float, y: float, width: float, height: float, degrees: float) -> list[float]:
    """Corners [x, y, …] of a rectangle turned clockwise about its top left corner."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    return [v for dx, dy in corners for v in (x + dx * cos - dy * sin, y + dx * sin + dy * cos)]


def decode_brush(rle: Any, size: tuple[int, int]) -> np.ndarray | None:
    """Label Studio's run lengths of an RGBA image's bytes -> (H, W) bool, where alpha is above 0; None if they are none.

    A bit stream: 32 bits number of bytes, 5 bits word size - 1, four times 4 bits length size - 1; then blocks of one
    bit (whether one word repeats), 2 bits (which length size), the length - 1, and one word or as many as the length.
    """
    if not isinstance(rle, list) or not all(isinstance(v, int) and 0 <= v < 256 for v in rle):
        return None
    bits = _bits(np.unpackbits(np.array(rle, dtype=np.uint8)))
    height, width = size
    try:
        total, word = _take(bits, 32), _take(bits, 5) + 1
        lengths = [_take(bits, 4) + 1 for _ in range(4)]
        if total != height * width * 4 or word > 8:
            return None
        values, counts, count = [], [], 0
        while count < total:
            repeats = _take(bits, 1)
            length = _take(bits, lengths[_take(bits, 2)]) + 1
            words = [_take(bits, word)] if repeats else [_take(bits, word) for _ in range(length)]
            values += words
            counts += [length] if repeats else [1] * length
            count += length
    except StopIteration:
        return None
    pixels: np.ndarray = np.repeat(values, counts)[:total].reshape(height, width, 4)[:, :, 3] > 0
    return pixels


def _bits(bits: np.ndarray) -> Iterator[int]:
    return iter(bits.tolist())


def _take(bits: Iterator[int], count: int) -> int:
    """The next `count` bits as a number. Raises `StopIteration` where they end."""
    value = 0
    for _ in range(count):
        value = value << 1 | next(bits)
    return value
