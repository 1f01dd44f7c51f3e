"""Supervisely: meta.json, DATASET/img/NAME and DATASET/ann/NAME.json -> COCO's structure.

https://docs.supervisely.com/customization-and-integration/00_ann_format_navi: coordinates in pixels; a rectangle's
corners are pixels, both inside; bitmaps are PNGs, compressed with zlib, in base64.
"""

from __future__ import annotations

import base64
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from resdet.data.formats.common import Builder, Source, image_sizes
from resdet.data.images import MAX_PIXELS, read_header
from resdet.data.json_files import read_json
from resdet.data.rules import is_number
from resdet.errors import UserError


def is_supervisely(folder: Path) -> bool:
    """Whether a folder is a Supervisely project."""
    return (folder / "meta.json").is_file() and any(folder.glob("*/ann"))


def read_supervisely(folder: Path, images: Path | None = None, split: str | None = None) -> Source:
    """All datasets of a project (or the one named `split`), with the classes of its meta.json.

    Raises `UserError` where nothing can be read.
    """
    meta = read_json(folder / "meta.json")
    classes = meta.get("classes") if isinstance(meta, dict) else None
    if not isinstance(classes, list) or not all(
        isinstance(c, dict) and isinstance(c.get("title"), str) and c["title"].strip() for c in classes
    ):
        raise UserError(f"{folder / 'meta.json'}: must hold classes, a list of objects with a title each")
    builder = Builder(folder, folder, list(dict.fromkeys(c["title"] for c in classes)))
    problems = builder.source.problems
    files: dict[Path, Path] = {}
    there = sorted(path.parent.name for path in folder.glob("*/ann"))
    if split is not None:
        if split not in there:
            raise UserError(
                f"{folder}: no dataset {split!r}; it has {', '.join(there) or 'none'}: name those that are meant "
                "(data.train.split and data.val.split; --split of `resdet data`)"
            )
        builder.source.split = split
    for file in sorted(folder.glob(f"{split or '*'}/ann/*.json")):
        image = file.parent.parent / "img" / file.stem
        if image.is_file():
            files[image] = file
        else:
            problems.append(f"{file}: its image {image} is not there")
    for (image, file), size in zip(files.items(), image_sizes(list(files), problems), strict=True):
        if size is None:
            continue  # a problem already
        try:
            content = read_json(file)
        except UserError as error:
            problems.append(str(error))
            continue
        objects = content.get("objects") if isinstance(content, dict) else None
        if not isinstance(objects, list):
            problems.append(f"{file}: has no list of objects")
            continue
        image_id = builder.image(image, size)
        for number, entry in enumerate(objects, 1):
            _add(builder, image_id, entry, f"{file}: object {number}", size)
    if not builder.source.content["images"] and not problems:
        raise UserError(f"{folder}: no DATASET/ann/*.json")
    return builder.source


def _add(builder: Builder, image_id: int, entry: Any, origin: str, size: tuple[int, int]) -> None:
    problems = builder.source.problems
    title = entry.get("classTitle") if isinstance(entry, dict) else None
    if not isinstance(title, str) or title not in builder.classes:
        problems.append(f"{origin}: its classTitle is not among meta.json's classes")
        return
    name, kind = title, str(entry.get("geometryType"))
    if kind == "bitmap":
        crop = _bitmap(entry.get("bitmap"))
        if crop is None:
            problems.append(f"{origin}: its bitmap is not a PNG with an origin")
        else:
            builder.bitmap(image_id, name, crop[0], crop[1], size, origin)
        return
    if kind not in ("polygon", "rectangle"):
        builder.source.remarks[f"objects of type {kind} (left out: they enclose no area)"] += 1
        return
    points = entry.get("points")
    points = points if isinstance(points, dict) else {}
    holes = points.get("interior") or []
    rings: list[Any] = [points.get("exterior"), *(holes if isinstance(holes, list) else [None])]
    if not all(map(_is_ring, rings)) or (kind == "rectangle" and len(rings[0]) != 2):
        problems.append(f"{origin}: points must be exterior and interior lists of [x, y]")
    elif kind == "rectangle":
        (x1, x2), (y1, y2) = (sorted(axis) for axis in zip(*rings[0], strict=True))
        builder.object(image_id, name, [x1, y1, x2 - x1 + 1, y2 - y1 + 1], origin)
    elif not rings[0]:
        problems.append(f"{origin}: its outline has no points")
    elif len(rings) == 1:
        builder.polygons(image_id, name, [[float(v) for point in rings[0] for v in point]], origin)
    else:
        builder.bitmap(image_id, name, *_with_holes(rings, size), size, origin)


def _is_ring(points: Any) -> bool:
    return isinstance(points, list) and all(
        isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) and max(map(abs, p)) < 2**24 for p in points
    )


def _bitmap(content: Any) -> tuple[np.ndarray, tuple[int, int]] | None:
    """-> (h, w) bool and the (y, x) of its top left pixel."""
    data, origin = (content.get("data"), content.get("origin")) if isinstance(content, dict) else (None, None)
    if not isinstance(data, str) or not _is_ring([origin]):
        return None
    try:
        unpacker = zlib.decompressobj()
        png = unpacker.decompress(base64.b64decode(data, validate=True), MAX_PIXELS)
        read_header(png, "a bitmap")  # which a small file may say to be of gigabytes
        image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    except (ValueError, zlib.error, cv2.error, UserError):  # of Base64 that is none, and of what it holds
        return None
    if image is None:
        return None
    crop = (
        image[:, :, 3] if image.ndim == 3 and image.shape[2] == 4 else image.max(axis=2) if image.ndim == 3 else image
    )
    return crop > 0, (int(origin[1]), int(origin[0]))  # type: ignore[index]


def _with_holes(rings: list[list[list[float]]], size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels inside the first polygon and outside the others, as Supervisely fills them -> (h, w) bool, (y, x)."""
    outer = np.round(rings[0]).astype(int)
    low = outer.min(axis=0).clip(0, [size[1] - 1, size[0] - 1])
    high = outer.max(axis=0).clip(0, [size[1] - 1, size[0] - 1])
    crop = np.zeros((high[1] - low[1] + 1, high[0] - low[0] + 1), np.uint8)
    for k, ring in enumerate(rings):
        if ring:
            cv2.fillPoly(crop, [(np.round(ring).astype(int) - low).astype(np.int32)], int(k == 0))
    return crop > 0, (int(low[1]), int(low[0]))
