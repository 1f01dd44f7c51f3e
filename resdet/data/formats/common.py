"""`Source`, which every format is converted to, and helpers that the readers share."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from resdet.data.images import ARRAY, SUFFIXES, images_among, read_header
from resdet.data.label_maps import LabelSource
from resdet.data.readings import Readings
from resdet.data.rules import ordered_box
from resdet.data.stand_ins import stand_in
from resdet.errors import UserError, listed
from resdet.masks import encode_crop

ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}  # what data sets call a split
SPLITS = (*(name for names in ALIASES.values() for name in names), "test")
XML_ENCODING = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([\w.-]+)["'][^>]*\?>""", re.ASCII)
ELLIPSE = 32  # corners of the polygon that a circle or an ellipse becomes

# Images that cannot be decoded here: reported rather than silently ignored.
UNREAD_SUFFIXES = {
    ".heic", ".heif", ".jxl", ".tga", ".dib", ".pcx", ".psd", ".svg", ".dcm", ".nii", ".raw", ".dng", ".cr2", ".nef", ".arw",
    ".mp4", ".avi", ".mov",
}  # fmt: skip


@dataclass
class Source:
    """Annotations in COCO's structure.

    path:     what messages name. images: the folder that every "file_name" is relative to.
    content:  {"images", "annotations", "categories"} as in a COCO file.
    origins:  annotation id -> the file and line it came from, for messages; empty for COCO, whose ids are enough.
    remarks:  what was left out or interpreted in a particular way, counted.
    problems: files, lines and objects that could not be read, and so are not in `content`, or that are ambiguous.
    notes:    how the dataset was read (the format and why, its coordinate convention), for people.
    split:    the dataset's own name for this split; None for all of it, or if it has no splits.
    readings: what in `content` was not written in COCO's form.
    read_image: row -> (H, W, C) uint8, where images are not files (see `torch_dataset`).
    labels:   the label maps of the images, where they have such.
    parts:    how many images came from each of several sources, in order; empty for a single one.
    """

    path: Path
    images: Path
    content: dict[str, Any]
    origins: dict[int, str] = field(default_factory=dict)
    remarks: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    split: str | None = None
    readings: Readings = field(default_factory=Readings)
    parts: list[int] = field(default_factory=list)
    read_image: Callable[[int], np.ndarray] | None = None
    labels: LabelSource | None = None

    def whole(self) -> Source:
        """Return itself. Raises one `UserError` with all `problems` if there are any."""
        if self.problems:
            raise listed(f"{self.path}: {len(self.problems)} problem(s):", self.problems)
        return self


# (annotation file or folder, image folder if one is given, the data set's own name of a split or None for all of it)
Reader = Callable[[Path, Path | None, str | None], Source]


class Builder:
    """Collects images and objects into COCO's structure; ids count from one, categories by the order of `classes`."""

    def __init__(self, path: Path, images: Path, classes: Sequence[str]) -> None:
        self.classes = {name: k + 1 for k, name in enumerate(classes)}
        categories = [{"id": k, "name": name} for name, k in self.classes.items()]
        self.source = Source(path, images, {"images": [], "annotations": [], "categories": categories})

    def image(self, file: Path, size: tuple[int, int]) -> int:
        """Add an image of (H, W). -> its id"""
        entries = self.source.content["images"]
        file = Path(os.path.normpath(file))
        folder = Path(os.path.normpath(self.source.images))
        name = file.relative_to(folder) if file.is_relative_to(folder) else file
        entries.append({"id": len(entries) + 1, "file_name": name.as_posix(), "height": size[0], "width": size[1]})
        return len(entries)

    def object(
        self,
        image_id: int,
        name: str,
        bbox: list[float],
        origin: str,
        segmentation: Any = None,
        keypoints: list[float] | None = None,
        *,
        crowd: bool = False,
    ) -> None:
        """Add an object: bbox XYWH in pixels; segmentation as in COCO; keypoints [x, y, visibility, …] in pixels; crowd: a
        group of objects, not trained on. Exchanged corners, as negative sides have them, are counted and put in order. A box
        that is not finite is a problem."""
        if not all(map(math.isfinite, bbox)):
            self.source.problems.append(f"{origin}: its box {bbox} is not finite")
            return
        if min(bbox[2:]) < 0:
            self.source.readings.note("box-swapped", origin)
            bbox = ordered_box(bbox)
        entries = self.source.content["annotations"]
        entry = {
            "id": len(entries) + 1,
            "image_id": image_id,
            "category_id": self.classes[name],
            "bbox": bbox,
            "iscrowd": int(crowd),
        }
        if segmentation is not None:
            entry["segmentation"] = segmentation
        else:
            entry["area"] = bbox[2] * bbox[3]
        if keypoints is not None:
            entry |= {"keypoints": keypoints, "num_keypoints": sum(v > 0 for v in keypoints[2::3])}
        entries.append(entry)
        self.source.origins[len(entries)] = origin

    def polygons(
        self, image_id: int, name: str, polygons: list[list[float]], origin: str, *, crowd: bool = False
    ) -> None:
        """Add an object by its outline: polygons [x, y, …] in pixels; the box is the one around them all. An outline without
        a point is a problem."""
        if points := [v for polygon in polygons for v in polygon]:
            self.object(image_id, name, polygon_box(points), origin, polygons, crowd=crowd)
        else:
            self.source.problems.append(f"{origin}: its outline has no points")

    def bitmap(
        self, image_id: int, name: str, crop: np.ndarray, corner: tuple[int, int], size: tuple[int, int], origin: str,
        *, crowd: bool = False,
    ) -> None:  # fmt: skip
        """Add an object by its pixels: crop (h, w) bool whose top left pixel is `corner` (y, x) of an image of `size` (H, W).

        Pixels outside the image are cut off. An object without any is a problem.
        """
        (top, left), (height, width) = corner, size
        crop = crop[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
        rows, columns = np.flatnonzero(crop.any(axis=1)), np.flatnonzero(crop.any(axis=0))
        if not len(rows):
            self.source.problems.append(f"{origin}: its mask has no pixel inside the image")
            return
        crop = crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        y, x = max(top, 0) + int(rows[0]), max(left, 0) + int(columns[0])
        box = [float(x), float(y), float(crop.shape[1]), float(crop.shape[0])]
        self.object(image_id, name, box, origin, encode_crop(crop, (y, x), size), crowd=crowd)


def all_files(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, sorted; links to folders are followed unless they form a cycle."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent) + os.sep
        folders[:] = sorted(
            f for f in folders
            if not f.startswith((".", "__MACOSX")) and not here.startswith(os.path.realpath(os.path.join(parent, f)) + os.sep)
        )  # fmt: skip
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found


def suffix_counts(files: Iterable[Path]) -> str:
    """ "12 .txt, 3 .heic": what there is instead of what was looked for."""
    counts = Counter(file.suffix.lower() or "without a suffix" for file in files)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6)) or "nothing"


def no_images(folder: Path, files: Sequence[Path]) -> UserError:
    """The error for a folder without a single image that can be read."""
    return UserError(
        f"{folder}: no images here (found: {suffix_counts(files)}; supported are {', '.join(sorted({*SUFFIXES, ARRAY}))})"
    )


def unread_images(files: Iterable[Path]) -> list[str]:
    """A problem for each image type among the files that cannot be decoded."""
    first: dict[str, Path] = {}
    counts: Counter[str] = Counter()
    for file in files:
        if file.suffix.lower() in UNREAD_SUFFIXES:
            first.setdefault(file.suffix.lower(), file)
            counts[file.suffix.lower()] += 1
    return [
        f"{file}: {suffix} files cannot be read ({counts[suffix]} here): convert them to JPEG or PNG, or move them away"
        for suffix, file in first.items()
    ]


def images_by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The images right inside a folder by their names without suffix; two of one name are a problem."""
    found: dict[str, Path] = {}
    for file in sorted(images_among(folder.iterdir())):
        if file.stem in found:
            problems.append(
                f"{found[file.stem]} and {file.name} have the same stem: it is not clear which one is annotated"
            )
        found[file.stem] = file
    return found


def image_sizes(files: Sequence[Path], problems: list[str]) -> list[tuple[int, int] | None]:
    """(H, W) of each file, upright, from its header, read in parallel; None, with a problem, for one that is no image."""

    def size(file: Path) -> tuple[int, int] | str:
        try:
            return read_header(file.read_bytes(), file).upright_size
        except OSError as error:
            dangling = f", a link to {os.readlink(file)}" if os.path.islink(file) else ""
            return f"{file}: cannot be read ({error.strerror}{dangling})"
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(size, files))
    problems += [entry for entry in found if isinstance(entry, str)]
    return [entry if isinstance(entry, tuple) else None for entry in found]


def usual_name(split: str) -> str | None:
    """ "train", "val" or "test" for a data set's own name of such a split, as train2017 or valid; None for any other."""
    word = re.sub(r"20\d\d$", "", split.lower())
    return next((name for name in ("train", "val", "test") if word in ALIASES.get(name, (name,))), None)


def polygon_box(points: Sequence[float]) -> list[float]:
    """[x, y, x, y, …] -> XYWH of the box around them."""
    xs, ys = points[0::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 with one. Raises `UserError`."""
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None


def read_xml(path: Path) -> Element:
    """The root element of an XML file. Raises `UserError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        root: Element = fromstring(_decoded(data))
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:  # the last for unknown encodings
        what = stand_in(data, path) if data else "is empty (0 bytes)"
        raise UserError(f"{path}: {what or f'not readable as XML ({error})'}") from None
    return root


def _decoded(data: bytes) -> bytes | str:
    """XML as text where it declares an encoding such as GBK or Shift JIS, of which Expat knows those of one byte alone."""
    declared = XML_ENCODING.match(data)
    if declared and not declared[1].lower().startswith((b"utf", b"us-ascii", b"iso-8859")):
        return data[declared.end() :].decode(declared[1].decode())
    return data


def rectangle_polygon(x: float, y: float, width: float, height: float, degrees: float = 0.0) -> list[float]:
    """Corners [x, y, …] of a box turned clockwise about its centre."""
    angle = math.radians(degrees)
    cx, cy, cos, sin = x + width / 2, y + height / 2, math.cos(angle), math.sin(angle)
    corners = [(dx * width / 2, dy * height / 2) for dx, dy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return [v for dx, dy in corners for v in (cx + dx * cos - dy * sin, cy + dx * sin + dy * cos)]


def ellipse_polygon(cx: float, cy: float, rx: float, ry: float, radians: float = 0.0) -> list[float]:
    """A polygon of `ELLIPSE` corners on an ellipse turned clockwise about its centre."""
    angles = [2 * math.pi * k / ELLIPSE for k in range(ELLIPSE)]
    cos, sin = math.cos(radians), math.sin(radians)
    points = [(rx * math.cos(a), ry * math.sin(a)) for a in angles]
    return [v for dx, dy in points for v in (cx + dx * cos - dy * sin, cy + dx * sin + dy * cos)]


def read_list(path: Path) -> list[str]:
    """The lines of a text file, without empty ones. Raises `UserError`."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
