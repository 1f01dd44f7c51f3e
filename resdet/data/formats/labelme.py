"""labelme and X-AnyLabeling: a folder of JSON files, one for each image -> COCO's structure.

https://github.com/wkentaro/labelme, https://github.com/CVHub520/X-AnyLabeling: shapes are polygons, rectangles (of two or
of four corners), rotated rectangles, circles and masks; those of one label and one group_id are the parts of one object.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from resdet.data.formats.common import (
    Builder,
    Source,
    all_files,
    ellipse_polygon,
    image_sizes,
    no_images,
    polygon_box,
    unread_images,
)
from resdet.data.formats.names import NameIndex
from resdet.data.images import images_among
from resdet.data.json_files import read_json
from resdet.data.rules import is_number, is_size
from resdet.errors import UserError
from resdet.masks import Rle, encode_bitmap

NO_REGION = {"point", "points", "line", "linestrip"}
OUTLINES = {"polygon", "rectangle", "rotation", "oriented_rectangle", "quadrilateral"}  # given by three corners or more

Part = list[float] | Rle  # a polygon [x, y, …] or a mask


def read_labelme(path: Path, images: Path | None, split: str | None) -> Source:
    """All JSON files under a folder; classes by name; there are no splits. Raises `UserError` where there are none."""
    folder = path if path.is_dir() else path.parent
    files = all_files(folder)
    there = files if images is None or images == folder else all_files(images)
    problems = unread_images(there)
    contents = _contents([f for f in files if f.suffix.lower() == ".json"] if path.is_dir() else [path], problems)
    if not contents and not problems:
        raise UserError(f"{folder}: no labelme files (JSON with shapes, one for each image)")
    image_files = images_among(there)
    if not image_files:
        raise no_images(images or folder, there)
    labels = {str(s["label"]) for c in contents.values() for s in c["shapes"] if isinstance(s, dict) and _has_label(s)}
    builder = Builder(folder, images or folder, sorted(labels))
    builder.source.problems = problems
    matched = _match(contents, image_files, builder.source)
    sizes = image_sizes(list(matched.values()), problems)
    for (file, image_file), size in zip(matched.items(), sizes, strict=True):
        if size is not None:
            _add(builder, builder.image(image_file, size), file, contents[file]["shapes"], size)
    unlabelled = len(set(image_files) - set(matched.values()))
    if unlabelled:
        builder.source.remarks["images without a JSON file (left out: unlabelled images are not negatives)"] = (
            unlabelled
        )
    return builder.source


def _contents(files: list[Path], problems: list[str]) -> dict[Path, dict[str, Any]]:
    found: dict[Path, dict[str, Any]] = {}
    for path in files:
        try:
            content = read_json(path)
        except UserError as error:
            problems.append(str(error))
            continue
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            found[path] = content
    return found


def _match(contents: dict[Path, dict[str, Any]], image_files: list[Path], source: Source) -> dict[Path, Path]:
    """JSON file -> its image: imagePath, or where that has moved away, an image of the JSON's own name beside it."""
    folder = source.path
    names = {(p.relative_to(folder) if p.is_relative_to(folder) else p).as_posix(): p for p in image_files}
    index = NameIndex(names)
    taken: dict[Path, Path] = {}
    moved: list[tuple[Path, str]] = []
    for path, content in contents.items():
        near = path.parent.relative_to(folder).as_posix()
        given = content.get("imagePath")
        try:
            name = given if isinstance(given, str) and given else path.stem
            image_file = names[index.find(name, source.remarks, near)]
        except UserError as error:
            moved.append((path, str(error)))
            continue
        if image_file in taken:
            source.problems.append(f"{path}: annotates {image_file}, as {taken[image_file]} does")
        taken.setdefault(image_file, path)
    for path, text in moved:
        beside = [p for p in image_files if p.parent == path.parent and p.stem == path.stem and p not in taken]
        if len(beside) == 1 and " may be " not in text:
            taken[beside[0]] = path
            source.remarks["images named as their JSON, whose imagePath is not there (taken by the JSON's name)"] += 1
            continue
        embedded = "; imageData still holds it" if contents[path].get("imageData") else ""
        source.problems.append(f"{path}: {text}{embedded}")
    return {path: image_file for image_file, path in taken.items()}


def _add(builder: Builder, image_id: int, path: Path, shapes: list[Any], size: tuple[int, int]) -> None:
    """Add the objects of one file."""
    groups: dict[Any, list[tuple[str, Part, str]]] = {}
    for number, shape in enumerate(shapes, 1):
        origin = f"{path}: shape {number}"
        if not isinstance(shape, dict) or not _has_label(shape):
            builder.source.problems.append(f"{origin}: has no label")
            continue
        part = _part(shape, origin, size, builder.source)
        if part is not None:
            group = shape.get("group_id")
            key = number if group is None else f"{shape['label']} {group}"
            groups.setdefault(key, []).append((str(shape["label"]), part, origin))
    for group in groups.values():
        label, _, origin = group[0]
        polygons = [part for _, part, _ in group if isinstance(part, list)]
        masks = [part for _, part, _ in group if not isinstance(part, list)]
        if not masks:
            builder.object(image_id, label, polygon_box([v for polygon in polygons for v in polygon]), origin, polygons)
            continue
        if any(max(map(abs, polygon)) > 16 * max(size) for polygon in polygons):
            builder.source.problems.append(f"{origin}: a polygon of its group reaches far outside the image")
            continue
        masks += [coco_mask.merge(coco_mask.frPyObjects([polygon], *size)) for polygon in polygons if len(polygon) >= 6]
        rle = masks[0] if len(masks) == 1 else encode_bitmap(coco_mask.decode(coco_mask.merge(masks)))
        builder.object(image_id, label, coco_mask.toBbox(rle).tolist(), origin, rle)


def _has_label(shape: dict[str, Any]) -> bool:
    """Whether a shape has a label: text, or a number such as 0."""
    label = shape.get("label")
    return bool(label.strip()) if isinstance(label, str) else type(label) in (int, float)


def _part(shape: dict[str, Any], origin: str, size: tuple[int, int], source: Source) -> Part | None:
    """The region of a shape; None for one that is no region, or, with a problem, none that can be read."""
    points, kind = shape.get("points"), shape.get("shape_type") or "polygon"
    if isinstance(kind, str) and kind in NO_REGION:
        source.remarks[f"shapes of type {kind} (left out: no region)"] += 1
        return None
    if (
        not isinstance(points, list)
        or not points
        or not all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points)
    ):
        source.problems.append(f"{origin}: points must be [[x, y], …]")
        return None
    if kind == "mask" and len(points) == 2:
        return _mask(shape.get("mask"), points, origin, size, source)
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return ellipse_polygon(x, y, radius, radius)
    if kind == "polygon" or (isinstance(kind, str) and kind in OUTLINES and len(points) >= 3):
        return [float(v) for point in points for v in point]
    source.problems.append(
        f"{origin}: shape_type {str(kind)[:40]!r} with {len(points)} points; read are {', '.join(sorted(OUTLINES))}, "
        "rectangle, circle and mask of two points"
    )
    return None


def _mask(value: Any, points: list[list[float]], origin: str, size: tuple[int, int], source: Source) -> Rle | None:
    """labelme's mask: a PNG as base64 text, as large as the box of its two points, both pixels inside."""
    (x1, y1), (x2, y2) = (map(round, point) for point in points)
    try:
        with Image.open(io.BytesIO(base64.b64decode(value, validate=False))) as image:
            sides = image.size
            if sides not in ((x2 - x1 + 1, y2 - y1 + 1), (x2 - x1, y2 - y1)) or not is_size(*sides):
                expected = f"{x2 - x1 + 1} x {y2 - y1 + 1}"
                source.problems.append(f"{origin}: its mask has {sides[0]} x {sides[1]} pixels, its box {expected}")
                return None
            bitmap = np.array(image.convert("L")) > 0
    except (TypeError, OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError):
        source.problems.append(f"{origin}: its mask is not a PNG as base64 text")
        return None
    whole = np.zeros(size, bool)
    inside = bitmap[max(-y1, 0) : max(size[0] - y1, 0), max(-x1, 0) : max(size[1] - x1, 0)]
    top, left = max(y1, 0), max(x1, 0)
    whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    if not whole.any():
        source.remarks["masks without a pixel inside their image (left out)"] += 1
        return None
    return encode_bitmap(whole)
