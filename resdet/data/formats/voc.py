"""Pascal VOC: an XML file for each image, ImageSets/Main/SPLIT.txt, SegmentationObject/*.png -> COCO's structure.

Everingham et al. 2010; http://host.robots.ox.ac.uk/pascal/VOC/voc2012/devkit_doc.pdf. Its corners are pixels counted from
one, both inside: a box from 1 to W covers the whole width. Most of today's tools (CVAT, Label Studio, Roboflow) write from
zero instead, the far corner outside. A corner at zero or a fraction occurs in these alone, so one anywhere in the data set
decides for all of it. Exchanged corners are counted and put in order; a box whose corners coincide keeps no area and is
reported as such.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from resdet.data.formats.common import (
    ALIASES,
    SPLITS,
    Builder,
    Source,
    all_files,
    image_sizes,
    no_images,
    read_list,
    read_xml,
    unread_images,
)
from resdet.data.formats.names import NameIndex
from resdet.data.images import images_among
from resdet.errors import UserError
from resdet.masks import encode_bitmap

Origin = Literal[0, 1]


class _Object(NamedTuple):
    """corners: x1, y1, x2, y2 as written; outline: [x, y, …] as written, or None."""

    name: str
    corners: tuple[float, float, float, float]
    outline: list[float] | None
    difficult: bool


class _File(NamedTuple):
    """image: what <filename> says, "" for nothing; whole: False if nothing of it could be read."""

    path: Path
    image: str
    folder: str
    size: tuple[int, int] | None
    objects: list[_Object]
    problems: list[str]
    whole: bool


def read_voc(root: Path, images: Path | None, split: str | None, origin: Origin | None = None) -> Source:
    """A split (None: every file), with the classes of all splits, by name. Raises `UserError` where there is none to read.

    origin: what the first pixel is counted as; None: found from all files of the data set.
    """
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    there = all_files(images or (root / "JPEGImages" if (root / "JPEGImages").is_dir() else root))
    image_files = images_among(there)
    files = {
        path.relative_to(folder).with_suffix("").as_posix(): _parse(path)
        for path in all_files(folder)
        if path.suffix.lower() == ".xml"
    }
    if not files:
        raise UserError(f"{folder}: no .xml files (Pascal VOC has one for each image)")
    if not image_files:
        raise no_images(images or root, there)
    problems: list[str] = unread_images(there)
    names, part = _names(root, folder, split, files, problems)
    classes = sorted({entry.name for file in files.values() for entry in file.objects})
    builder = Builder(root, images or root, classes)
    source = builder.source
    source.problems, source.split = problems, part
    source.notes, origin = _origin(files, origin)
    for name in names:
        problems += files[name].problems
    matched = _match({n: files[n] for n in names if files[n].whole}, files, image_files, folder, source)
    unsized = [name for name in matched if files[name].size is None]
    measured = dict(zip(unsized, image_sizes([matched[n] for n in unsized], problems), strict=True))
    for name, image_file in matched.items():
        size = files[name].size or measured[name]
        if size is not None:
            _add(builder, builder.image(image_file, size), files[name], root, image_file, origin)
    source.remarks += Counter()  # drops zero counts
    return source


def _add(builder: Builder, image_id: int, file: _File, root: Path, image_file: Path, origin: Origin) -> None:
    """Add the objects of one file."""
    masks = _instance_masks(root / "SegmentationObject" / f"{image_file.stem}.png", builder.source.problems)
    for number, entry in enumerate(file.objects, 1):
        mask = None if masks is None else masks == number
        segmentation: Any = None
        if mask is not None and mask.any():
            segmentation = encode_bitmap(mask)
        elif entry.outline:
            segmentation = [[v - origin for v in entry.outline]]
        what = f"{file.path}: object {number} ({entry.name})"
        x1, y1, x2, y2 = entry.corners
        if x1 > x2 or y1 > y2:
            builder.source.readings.note("box-swapped", what)
        builder.object(image_id, entry.name, _box(entry.corners, origin), what, segmentation)
        builder.source.remarks["objects marked difficult (treated like any other)"] += entry.difficult


def _box(corners: tuple[float, float, float, float], origin: Origin) -> list[float]:
    """Corners as written, in any order -> XYWH in continuous coordinates."""
    (x1, x2), (y1, y2) = sorted(corners[::2]), sorted(corners[1::2])
    width = x2 - x1 + origin if x2 > x1 else 0.0
    height = y2 - y1 + origin if y2 > y1 else 0.0
    return [x1 - origin, y1 - origin, width, height]


def _origin(files: dict[str, _File], given: Origin | None) -> tuple[list[str], Origin]:
    """What the first pixel is counted as in this data set, and a note that says so and why."""
    if given is not None:
        return [f"corners are counted from {given} (data.voc_origin)"], given
    for file in files.values():
        for number, entry in enumerate(file.objects, 1):
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), entry.corners, strict=True):
                if 0 <= value < 1 or value != int(value):
                    why = f"{key} {value:g} in {file.path}, object {number}"
                    return [f"corners are counted from zero, as {why} shows; if not: data.voc_origin=1"], 0
            if entry.outline and any(value != int(value) for value in entry.outline):
                why = f"the fractions of the polygon in {file.path}, object {number}"
                return [f"corners are counted from zero, as {why} show; if not: data.voc_origin=1"], 0
    return ["corners are counted from one, as none is zero or fractional; if not: data.voc_origin=0"], 1


def _names(
    root: Path, folder: Path, split: str | None, files: dict[str, _File], problems: list[str]
) -> tuple[list[str], str | None]:
    """The files of a split: those that ImageSets/Main/SPLIT.txt names, or those in the folder SPLIT. -> also its name"""
    if split is None:
        return list(files), None
    lists = root / "ImageSets" / "Main"
    for alias in ALIASES.get(split, (split,)):
        if (lists / f"{alias}.txt").is_file():
            return _listed(lists / f"{alias}.txt", folder, files, problems), split
        inside = [name for name in files if PurePosixPath(name).parts[0] == alias and "/" in name]
        if inside:
            return inside, split
    there = voc_splits(root)
    if there or split not in ("train", "val"):
        has = (
            f"it has {', '.join(there)}"
            if there
            else "there is no ImageSets/Main: use data.val_fraction=0.2 to hold out a split"
        )
        raise UserError(f"{lists / f'{split}.txt'}: no such split; {has}")
    return list(files), None


def voc_splits(root: Path) -> list[str]:
    """The lists in ImageSets/Main, or the folders with .xml files that are named as splits."""
    lists = sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt"))
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    return lists or [name for name in sorted(SPLITS) if any((folder / name).rglob("*.xml"))]


def _listed(listing: Path, folder: Path, files: dict[str, _File], problems: list[str]) -> list[str]:
    """The files that a list names; a line may end in VOC's -1, 0 or 1 for a class."""
    found: dict[str, None] = {}
    index = NameIndex(files)
    remarks = Counter[str]()
    for line in read_list(listing):
        words = line.rsplit(maxsplit=1)
        name = words[0] if len(words) == 2 and words[1] in ("-1", "0", "1") and line not in files else line
        try:
            found[index.find(name, remarks)] = None
        except UserError as error:
            text = str(error) if " may be " in str(error) else f"{name!r} has no {folder.name}/{name}.xml"
            problems.append(f"{listing}: {text}")
    return list(found)


def _match(
    wanted: dict[str, _File], files: dict[str, _File], image_files: list[Path], folder: Path, source: Source
) -> dict[str, Path]:
    """XML file -> its image: <filename>; where that is missing, or not there, the image of the XML's own name."""
    base = source.images
    names = {(p.relative_to(base) if p.is_relative_to(base) else p).as_posix(): p for p in image_files}
    index = NameIndex(names)

    def find(name: str, file: _File, remarks: Any) -> Path:
        relative = file.path.parent.relative_to(folder).as_posix()
        for near in (file.folder, relative) if file.folder else (relative,):
            for candidate in (PurePosixPath(near, name), PurePosixPath("JPEGImages", near, name)):
                if str(candidate) in names:
                    return names[str(candidate)]
        return names[index.find(name, remarks, relative)]

    claimed: dict[Path, Path] = {}
    matched: dict[str, Path] = {}
    stale: list[tuple[str, str]] = []
    for name, file in wanted.items():
        try:
            matched[name] = find(file.image or PurePosixPath(name).name, file, source.remarks)
        except UserError as error:
            if not file.image or " may be " in str(error):
                source.problems.append(f"{file.path}: {error}")
            else:
                stale.append((name, str(error)))
    taken = set(matched.values())
    for name, text in stale:
        try:
            image_file = find(PurePosixPath(name).name, files[name], source.remarks)
        except UserError:
            source.problems.append(f"{files[name].path}: {text}")
            continue
        if image_file in taken:
            source.problems.append(f"{files[name].path}: {text}, and another file annotates {image_file}")
            continue
        matched[name] = image_file
        source.remarks["images named as their XML, whose <filename> is not there (taken by the XML's name)"] += 1
    for name, image_file in list(matched.items()):
        if image_file in claimed:
            source.problems.append(f"{files[name].path}: annotates {image_file}, as {claimed[image_file]} does")
            del matched[name]
        claimed.setdefault(image_file, files[name].path)
    return {name: matched[name] for name in wanted if name in matched}


def _parse(path: Path) -> _File:
    try:
        tree = read_xml(path)
    except UserError as error:
        return _File(path, "", "", None, [], [str(error)], whole=False)
    objects: list[_Object] = []
    problems: list[str] = []
    for number, node in enumerate(tree.iter("object"), 1):
        what = f"{path}: object {number}"
        name, box = (node.findtext("name") or "").strip(), node.find("bndbox")
        if not name or box is None:
            problems.append(f"{what}: has no {'name' if not name else 'bndbox'}")
            continue
        corners = [v for key in ("xmin", "ymin", "xmax", "ymax") if (v := _number(box, key)) is not None]
        if len(corners) < 4:
            problems.append(f"{what} ({name}): xmin, ymin, xmax, ymax must be numbers")
            continue
        x1, y1, x2, y2 = corners
        difficult = (node.findtext("difficult") or "0").strip() == "1"
        objects.append(_Object(name, (x1, y1, x2, y2), _outline(node.find("polygon"), what, problems), difficult))
    size = tree.find("size")
    sides = [None, None] if size is None else [_number(size, "height"), _number(size, "width")]
    known = (int(sides[0] or 0), int(sides[1] or 0)) if all(side and side >= 1 for side in sides) else None
    image, folder = (_slashed(tree.findtext(key)) for key in ("filename", "folder"))
    return _File(path, image, folder, known, objects, problems, whole=True)


def _slashed(text: str | None) -> str:
    return (text or "").strip().replace("\\", "/").replace("\0", "")


def _outline(node: Element | None, what: str, problems: list[str]) -> list[float] | None:
    """[x, y, …] of Roboflow's <polygon>, whose children are x1, y1, x2, y2, …"""
    if node is None or not len(node):
        return None
    points = [_number(node, f"{axis}{k}") for k in range(1, len(node) // 2 + 1) for axis in "xy"]
    if None in points or len(points) != len(node):
        problems.append(f"{what}: its polygon must hold numbers x1, y1, x2, y2, …")
        return None
    return [v for v in points if v is not None]


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
            numbers = np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problems.append(f"{path}: not a readable segmentation ({error})")
        return None
    if numbers.ndim != 2:
        problems.append(f"{path}: must hold object numbers (a palette or greyscale PNG), not colours")
        return None
    return numbers
