"""Cityscapes: gtFine/SPLIT/CITY/*_gtFine_polygons.json beside leftImg8bit/ -> COCO's structure.

Cordts et al. 2016, arXiv:1604.01685; https://github.com/mcordts/cityscapesScripts: polygons are drawn in their order, later
ones over earlier ones, so an object's mask is its visible part. The eight classes that have instances are taken; those
with "group" behind their name are crowds.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from resdet.data.formats.common import Builder, Source
from resdet.data.json_files import read_json
from resdet.data.rules import is_number
from resdet.errors import UserError

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
KINDS = ("gtFine", "gtCoarse")
NEVER_DRAWN = "license plate"  # belongs to the vehicle below it


class _Shape(NamedTuple):
    """An object's visible pixels: crop (h, w) bool, its top left pixel (y, x)."""

    name: str
    crowd: bool
    crop: np.ndarray
    corner: tuple[int, int]
    number: int


def cityscapes_folder(root: Path) -> Path | None:
    """gtFine (or gtCoarse) below `root`; None if this is not Cityscapes' layout."""
    return next((root / kind for kind in KINDS if (root / kind).is_dir() and (root / "leftImg8bit").is_dir()), None)


def cityscapes_splits(folder: Path) -> list[str]:
    """Of gtFine or gtCoarse."""
    return sorted(path.name for path in folder.glob("*/"))


def read_cityscapes(root: Path, images: Path | None = None, split: str | None = None) -> Source:
    """A split: train, val, …; None: all. Raises `UserError` where nothing can be read."""
    folder = cityscapes_folder(root)
    if folder is None:
        raise UserError(f"{root}: no gtFine or gtCoarse beside leftImg8bit (Cityscapes' layout)")
    if split is not None and split not in (there := cityscapes_splits(folder)):
        raise UserError(f"{folder}: no split {split!r}; it has {', '.join(there) or 'none'}")
    files = sorted(folder.glob(f"{split or '*'}/*/*_polygons.json"))
    if not files:
        raise UserError(f"{folder}: no SPLIT/CITY/*_polygons.json")
    left = images or root / "leftImg8bit"
    builder = Builder(folder, left, CLASSES)
    builder.source.split = split
    problems = builder.source.problems
    with ThreadPoolExecutor(4) as pool:
        for file, found in zip(files, pool.map(_read, files), strict=True):
            image = left / file.parent.parent.name / file.parent.name
            image = image / f"{file.name.removesuffix(f'_{folder.name}_polygons.json')}_leftImg8bit.png"
            if isinstance(found, str):
                problems.append(found)
            elif not image.is_file():
                problems.append(f"{file}: its image {image} is not there")
            else:
                _add(builder, file, image, *found)
    return builder.source


def _add(
    builder: Builder, file: Path, image: Path, size: tuple[int, int], shapes: list[_Shape], others: int, hidden: int
) -> None:
    image_id = builder.image(image, size)
    for shape in shapes:
        origin = f"{file}: object {shape.number} ({shape.name})"
        builder.bitmap(image_id, shape.name, shape.crop, shape.corner, size, origin, crowd=shape.crowd)
    if others:
        builder.source.remarks["regions of classes without instances, such as road (left out)"] += others
    if hidden:
        builder.source.remarks["objects entirely behind others (left out)"] += hidden


def _read(file: Path) -> tuple[tuple[int, int], list[_Shape], int, int] | str:
    """(H, W), the objects, how many regions are of other classes, how many objects are hidden; or what is wrong."""
    try:
        content = read_json(file)
    except UserError as error:
        return str(error)
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list):
        return f"{file}: has no list of objects"
    size: tuple[Any, Any] = content.get("imgHeight"), content.get("imgWidth")
    if not all(isinstance(side, int) and 0 < side < 2**15 for side in size):
        return f"{file}: imgHeight and imgWidth must be whole numbers"
    for number, entry in enumerate(content["objects"], 1):
        if not isinstance(entry, dict) or not _is_polygon(entry.get("polygon")):
            return f"{file}: object {number}: polygon must be a list of at least three [x, y]"
    objects = [entry for entry in content["objects"] if not entry.get("deleted")]
    names = [str(entry.get("label")) for entry in objects]
    wanted = [name.removesuffix("group") in CLASSES for name in names]
    shapes = list(_visible(objects, names, wanted, size))
    return size, shapes, wanted.count(False), wanted.count(True) - len(shapes)


def _is_polygon(points: Any) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 3
        and all(
            isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) and max(map(abs, p)) < 2**20 for p in points
        )
    )


def _visible(
    objects: list[dict[str, Any]], names: list[str], wanted: list[bool], size: tuple[int, int]
) -> Iterator[_Shape]:
    """Each wanted object without the pixels that a later polygon covers; nothing of one that has none left."""
    outlines = [np.round(entry["polygon"]).astype(np.int32) for entry in objects]
    border = np.array([size[1] - 1, size[0] - 1])
    for k, outline in enumerate(outlines):
        low, high = outline.min(axis=0).clip(0, border), outline.max(axis=0).clip(0, border)
        if not wanted[k]:
            continue
        crop = np.zeros(high[::-1] - low[::-1] + 1, np.uint8)
        cv2.fillPoly(crop, [outline - low.astype(np.int32)], 1)
        for later, above in zip(outlines[k + 1 :], names[k + 1 :], strict=True):
            if above != NEVER_DRAWN and (later.max(axis=0) >= low).all() and (later.min(axis=0) <= high).all():
                cv2.fillPoly(crop, [later - low.astype(np.int32)], 0)
        if crop.any():
            name = names[k]
            yield _Shape(
                name.removesuffix("group"), name.endswith("group"), crop > 0, (int(low[1]), int(low[0])), k + 1
            )
