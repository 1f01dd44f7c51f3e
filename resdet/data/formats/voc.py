"""Pascal VOC: Annotations/*.xml, JPEGImages/, ImageSets/Main/SPLIT.txt, SegmentationObject/*.png -> COCO's structure.

Everingham et al. 2010; http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf. Corners are pixels counted from
one, both inside: a box from 1 to W covers the whole width. One whose corners coincide is nobody's object, so it keeps no
area and is reported as such.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from PIL import Image

from resdet.data.formats.common import Builder, Source, picture_sizes, read_list, stems_of
from resdet.errors import UserError
from resdet.masks import encode_bitmap


class _Object(NamedTuple):
    name: str
    bbox: list[float]
    difficult: bool


class _File(NamedTuple):
    """whole: False if nothing of it could be read."""

    path: Path
    size: tuple[int, int] | None
    objects: list[_Object]
    problems: list[str]
    whole: bool


def read_voc(root: Path, split: str | None) -> Source:
    """A split (None: every file), with the classes of all splits, by name. Raises `UserError` where there is none to read."""
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    pictures = stems_of((root / "JPEGImages" if (root / "JPEGImages").is_dir() else root).iterdir())
    problems: list[str] = []
    files = {path.stem: _parse(path) for path in sorted(folder.glob("*.xml"))}
    if not files:
        raise UserError(f"{folder}: no .xml files (Pascal VOC has one for each picture in Annotations/)")
    names = list(files)
    if split is not None:
        listing = root / "ImageSets" / "Main" / f"{split}.txt"
        if not listing.is_file():
            there = sorted(p.stem for p in listing.parent.glob("*.txt")) if listing.parent.is_dir() else []
            has = (
                f"it has {', '.join(there)}" if there else "there is no ImageSets/Main: use data.split=0.2 to make one"
            )
            raise UserError(f"{listing}: no such split; {has}")
        names = [line.split()[0] for line in read_list(listing)]
        problems += [f"{listing}: {name!r} has no {folder.name}/{name}.xml" for name in names if name not in files]
        names = [name for name in names if name in files]
    for name in names:
        problems += files[name].problems
        problems += [] if name in pictures else [f"{files[name].path}: its picture {name}.* is not there"]
    names = [name for name in names if name in pictures and files[name].whole]
    classes = sorted({entry.name for file in files.values() for entry in file.objects})
    builder = Builder(root, root, classes)
    builder.source.problems = problems
    unsized = [name for name in names if files[name].size is None]
    measured = dict(zip(unsized, picture_sizes([pictures[n] for n in unsized], problems), strict=True))
    for name in names:
        size = files[name].size or measured[name]
        if size is None:
            continue  # a problem already
        image_id = builder.image(pictures[name], size)
        masks = _instance_masks(root / "SegmentationObject" / f"{name}.png", problems)
        for number, entry in enumerate(files[name].objects, 1):
            mask = None if masks is None else masks == number
            rle: Any = None if mask is None or not mask.any() else encode_bitmap(mask)
            origin = f"{files[name].path}: object {number} ({entry.name})"
            builder.object(image_id, entry.name, entry.bbox, origin, rle)
            builder.source.remarks["objects marked difficult (they count like any other)"] += entry.difficult
    builder.source.remarks += type(builder.source.remarks)()  # without zero counts
    return builder.source


def _parse(path: Path) -> _File:
    try:
        tree = fromstring(path.read_bytes())
    except (ParseError, DefusedXmlException, OSError, ValueError) as error:
        return _File(path, None, [], [f"{path}: not readable as XML ({error})"], whole=False)
    objects: list[_Object] = []
    problems: list[str] = []
    for number, node in enumerate(tree.iter("object"), 1):
        what = f"{path}: object {number}"
        name, box = (node.findtext("name") or "").strip(), node.find("bndbox")
        if not name or box is None:
            problems.append(f"{what}: has no {'name' if not name else 'bndbox'}")
            continue
        corners = [_number(box, key) for key in ("xmin", "ymin", "xmax", "ymax")]
        if None in corners:
            problems.append(f"{what} ({name}): xmin, ymin, xmax, ymax must be numbers")
            continue
        x1, y1, x2, y2 = (float(v) for v in corners if v is not None)
        width = x2 - x1 + 1 if x2 > x1 else x2 - x1
        height = y2 - y1 + 1 if y2 > y1 else y2 - y1
        difficult = (node.findtext("difficult") or "0").strip() == "1"
        objects.append(_Object(name, [x1 - 1, y1 - 1, width, height], difficult))
    size = tree.find("size")
    sides = [None, None] if size is None else [_number(size, "height"), _number(size, "width")]
    whole = all(side and side > 0 for side in sides)
    return _File(path, (int(sides[0] or 0), int(sides[1] or 0)) if whole else None, objects, problems, whole=True)


def _number(node: Element, key: str) -> float | None:
    try:
        value = float(node.findtext(key) or "")
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _instance_masks(path: Path, problems: list[str]) -> np.ndarray | None:
    """(H, W) of object numbers from one; 0 background, 255 the border between objects. None without a file that can be read."""
    if not path.is_file():
        return None
    try:
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        problems.append(f"{path}: not a readable segmentation ({error})")
        return None
