"""VGG Image Annotator 1 and 2: a project's or an exported JSON, or the exported CSV -> COCO's structure.

https://www.robots.ox.ac.uk/~vgg/software/via/: an image has regions, each a shape and a dictionary of attributes, one
of which holds the class.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from resdet.data.formats.common import Builder, Source, ellipse_polygon, read_text, rectangle_polygon
from resdet.data.formats.lookup import located
from resdet.data.json_files import read_json
from resdet.data.rules import is_number
from resdet.errors import UserError

CLASS_ATTRIBUTES = ("class", "label", "name", "type", "category", "object", "object_name")
COLUMNS = {"filename", "region_shape_attributes", "region_attributes"}
Region = tuple[str, dict[str, Any], dict[str, Any]]  # where it stands in the file, its shape, its attributes


def is_via(content: Any) -> bool:
    """Whether a parsed JSON is VIA's: a project, or the images with their regions."""
    if not isinstance(content, dict) or not content:
        return False
    images = content.get("_via_img_metadata", content)
    return isinstance(images, dict) and all(isinstance(v, dict) and "regions" in v for v in images.values())


def is_via_csv(head: bytes) -> bool:
    """Whether a CSV file that begins so is VIA's."""
    text = _unmarked(head.decode("utf-8-sig", errors="replace"))
    return set(next(csv.reader(io.StringIO(text[:10_000])), [])) >= COLUMNS


def _unmarked(text: str) -> str:
    """Without the # with which version 1 begins the line of column names."""
    return text.removeprefix("#")


def read_via(file: Path, images: Path | None = None, split: str | None = None) -> Source:
    """`file`'s regions on the images below the folder `images` (None: the file's own).

    Raises `UserError` where nothing can be read.
    """
    images = images or file.parent
    problems: list[str] = []
    regions = _from_csv(file, problems) if file.suffix.lower() == ".csv" else _from_json(file, problems)
    attribute = _class_attribute(file, [entry for entries in regions.values() for _, _, entry in entries])
    labels = {
        origin: _label(attributes.get(attribute, ""))
        for entries in regions.values()
        for origin, _, attributes in entries
    }
    builder = Builder(file, images, sorted(set(labels.values()) - {""}))
    builder.source.problems = problems
    for path, size, name in located(regions, images, file, problems, builder.source.remarks):
        image_id = builder.image(path, size)
        for origin, shape, _ in regions[name]:
            kind = str(shape.get("name"))
            if kind in ("point", "polyline", "line"):
                builder.source.remarks[f"regions of type {kind} (left out: they enclose no area)"] += 1
            elif not labels[origin]:
                problems.append(f"{origin}: has no {attribute!r}, the attribute that holds the class")
            elif (polygon := _polygon(kind, shape)) is None:
                problems.append(f"{origin}: not a {kind} of numbers: {json.dumps(shape)[:80]}")
            elif kind == "rect":
                box = [float(shape[key]) for key in ("x", "y", "width", "height")]
                builder.object(image_id, labels[origin], box, origin)
            else:
                builder.polygons(image_id, labels[origin], [polygon], origin)
    return builder.source


def _from_json(file: Path, problems: list[str]) -> dict[str, list[Region]]:
    content = read_json(file)
    if not is_via(content):
        raise UserError(f"{file}: not an annotation file of VGG Image Annotator 1 or 2 (images with regions)")
    found: dict[str, list[Region]] = {}
    for entry in content.get("_via_img_metadata", content).values():
        name, given = entry.get("filename"), entry["regions"]
        given = list(given.values()) if isinstance(given, dict) else given  # version 1 numbers them in a dictionary
        if not isinstance(name, str) or not isinstance(given, list):
            problems.append(f"{file}: an image without filename or with regions that are not a list: {str(entry)[:80]}")
            continue
        regions = found.setdefault(name, [])
        for number, region in enumerate(given, 1):
            origin = f"{file}: {name}: region {number}"
            parts = (
                [region.get(f"{part}_attributes") for part in ("shape", "region")] if isinstance(region, dict) else []
            )
            if len(parts) != 2 or not all(isinstance(part, dict) for part in parts):
                problems.append(f"{origin}: has no shape_attributes or no region_attributes")
            else:
                regions.append((origin, parts[0] or {}, parts[1] or {}))
    return found


def _from_csv(file: Path, problems: list[str]) -> dict[str, list[Region]]:
    text = _unmarked(read_text(file))
    if not is_via_csv(text.encode()):
        raise UserError(
            f"{file}: not a CSV of VGG Image Annotator: its first line must name {', '.join(sorted(COLUMNS))}"
        )
    found: dict[str, list[Region]] = {}
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
        origin = f"{file}:{number}"
        regions = found.setdefault(row["filename"] or "", [])
        try:
            shape, attributes = (json.loads(row[f"region_{key}attributes"] or "{}") for key in ("shape_", ""))
        except (ValueError, RecursionError) as error:
            problems.append(f"{origin}: attributes are not JSON ({error})")
            continue
        if not isinstance(shape, dict) or not isinstance(attributes, dict):
            problems.append(f"{origin}: attributes must be JSON objects")
        elif shape:  # an image without regions has one row with an empty shape
            regions.append((origin, shape, attributes))
    return found


def _class_attribute(file: Path, attributes: list[dict[str, Any]]) -> str:
    """The region attribute that holds the class: the only one there is, or one with a typical name."""
    names = Counter(key for entry in attributes for key in entry)
    if len(names) == 1 or not names:
        return next(iter(names), "class")
    telling = [name for name in CLASS_ATTRIBUTES for key in names if key.lower() == name]
    if len(telling) != 1:
        raise UserError(
            f"{file}: cannot tell which region attribute holds the class: {', '.join(map(repr, names))}; name one of "
            f"them 'class' (Attributes > Region in VIA)"
        )
    return next(key for key in names if key.lower() == telling[0])


def _label(value: Any) -> str:
    """The class: text, or the only option ticked of a checkbox {"cat": true, …}."""
    if isinstance(value, dict):
        ticked = [key for key, on in value.items() if on is True or on == "true"]
        return ticked[0] if len(ticked) == 1 else ""
    return str(value).strip() if isinstance(value, str | int) else ""


def _polygon(kind: str, shape: dict[str, Any]) -> list[float] | None:
    """[x, y, …] of a region; None if its numbers are missing or it is of another kind."""
    if kind in ("polygon", "polyline"):
        xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
        whole = isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) and all(map(is_number, xs + ys))
        return [float(v) for point in zip(xs, ys, strict=True) for v in point] if whole else None  # type: ignore[arg-type]
    keys = {"rect": "x y width height", "circle": "cx cy r", "ellipse": "cx cy rx ry"}.get(kind, "missing").split()
    numbers = [shape.get(key) for key in keys]
    if not all(map(is_number, numbers)):
        return None
    values = [float(v) for v in numbers]  # type: ignore[arg-type]
    if kind == "rect":
        return rectangle_polygon(*values)
    angle = shape.get("theta", 0.0)
    rx, ry = values[2], values[-1]
    return ellipse_polygon(values[0], values[1], rx, ry, angle if is_number(angle) else 0.0)
