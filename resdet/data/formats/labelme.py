"""labelme: a folder of JSON files, each beside its picture -> COCO's structure.

https://github.com/wkentaro/labelme: shapes are polygons, rectangles and circles; those of one label and one group_id are
the parts of one object.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from resdet.data.coco import is_number, read_json
from resdet.data.formats.common import Builder, Source, picture_sizes, polygon_box
from resdet.data.images import SUFFIXES
from resdet.errors import UserError

CIRCLE = 32  # corners of the polygon that a circle becomes


def read_labelme(folder: Path) -> Source:
    """All JSON files under a folder; classes by name. Raises `UserError` where there are none."""
    problems: list[str] = []
    files: dict[Path, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            content = read_json(path)
        except UserError as error:
            problems.append(str(error))
            continue
        if isinstance(content, dict) and isinstance(content.get("shapes"), list):
            files[path] = content
    if not files and not problems:
        raise UserError(f"{folder}: no labelme files (JSON with shapes, beside their pictures)")
    pictures = {path: _picture(path, content) for path, content in files.items()}
    problems += [f"{path}: its picture {pictures[path]} is not there" for path in files if not pictures[path].is_file()]
    files = {path: content for path, content in files.items() if pictures[path].is_file()}
    shapes = [s for content in files.values() for s in content["shapes"] if isinstance(s, dict)]
    builder = Builder(folder, folder, sorted({str(s.get("label")) for s in shapes if s.get("label")}))
    builder.source.problems = problems
    sizes = picture_sizes([pictures[path] for path in files], problems)
    for (path, content), size in zip(files.items(), sizes, strict=True):
        if size is None:
            continue  # a problem already
        image_id = builder.image(pictures[path], size)
        parts: dict[Any, list[tuple[str, list[float], str]]] = {}
        for number, shape in enumerate(content["shapes"], 1):
            origin = f"{path}: shape {number}"
            if not isinstance(shape, dict) or not shape.get("label"):
                problems.append(f"{origin}: has no label")
                continue
            polygon = _polygon(shape, origin, problems, builder.source)
            if polygon is not None:
                group = shape.get("group_id")
                key = number if group is None else f"{shape['label']} {group}"
                parts.setdefault(key, []).append((str(shape["label"]), polygon, origin))
        for pieces in parts.values():
            outline = [polygon for _, polygon, _ in pieces]
            box = polygon_box([v for polygon in outline for v in polygon])
            builder.object(image_id, pieces[0][0], box, pieces[0][2], outline)
    unlabelled = {p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES} - set(pictures.values())
    if unlabelled:
        builder.source.remarks["pictures without a JSON file (left out: nobody has said that they are empty)"] = len(
            unlabelled
        )
    return builder.source


def _picture(path: Path, content: dict[str, Any]) -> Path:
    """imagePath, or where that has moved away, a picture of the JSON's own name."""
    name = str(content.get("imagePath") or "").replace("\\", "/")
    candidates = [path.parent / name, path.parent / Path(name).name]
    candidates += [path.with_suffix(suffix) for suffix in sorted(SUFFIXES)]
    return next((c for c in candidates if (name or c.stem == path.stem) and _is_file(c)), candidates[0])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _polygon(shape: dict[str, Any], origin: str, problems: list[str], source: Source) -> list[float] | None:
    """[x, y, …] of a shape; None for one that is no region, or, with a problem, none at all."""
    points, kind = shape.get("points"), shape.get("shape_type", "polygon")
    if (
        not isinstance(points, list)
        or not points
        or not all(isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points)
    ):
        problems.append(f"{origin}: points must be [[x, y], …]")
        return None
    if kind == "polygon":
        return [float(v) for point in points for v in point]
    if kind == "rectangle" and len(points) == 2:
        (x1, y1), (x2, y2) = points
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        angles = [2 * math.pi * k / CIRCLE for k in range(CIRCLE)]
        return [v for a in angles for v in (x + radius * math.cos(a), y + radius * math.sin(a))]
    source.remarks[f"shapes of type {kind} (left out: no region)"] += 1
    return None
