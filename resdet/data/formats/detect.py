"""A folder or an annotation file -> which format it is in, and why: by what is in the files, not by their names alone."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from resdet.config import DataFormat, load_yaml
from resdet.data.formats.common import read_text
from resdet.data.images import ARRAY, SUFFIXES
from resdet.errors import UserError

HEAD = 2**16  # bytes that are looked at of a large file
SMALL = 2**22  # bytes of a JSON file that is parsed to see what it is
MAX_FOLDERS = 500  # that are listed in search of annotations


class Detected(NamedTuple):
    """path: the file or folder that the format's reader takes."""

    format: DataFormat
    path: Path
    reason: str


def detect(place: Path) -> Detected | None:
    """The format of a folder or file; None where there is no sign of any. Raises `UserError` for several at once."""
    if place.is_file():
        return _of_file(place)
    found = [evidence for find in FINDERS.values() if (evidence := find(place))]
    if len(found) > 1 and found[-1].format == "coco" and not _is_standard(found[-1].path, place):
        found.pop()  # a JSON file that was made of the others
    if len(found) > 1:
        both = "\n".join(f"  - {evidence.format}: {evidence.reason}" for evidence in found)
        raise UserError(f"{place}: annotations of several formats; choose one with data.format=…:\n{both}")
    return found[0] if found else None


def unknown(place: Path) -> UserError:
    """The error for a folder or file in which no format is recognised: what is there, and what is read."""
    files = [place] if place.is_file() else list(_glimpse(place))
    lines = [f"  - {text}" for text in dict.fromkeys(filter(None, map(_foreign, files)))][:5]
    if not lines and any("labels" in path.parts and path.suffix == ".txt" for path in files):
        lines = ["  - images and labels/*.txt as of YOLO, but no data.yaml (or classes.txt) with the class names"]
    counts = Counter(path.suffix.lower() or "without a suffix" for path in files)
    there = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6)) or "no files"
    read = "\n".join(f"  - {name}: {text}" for name, text in FORMATS.items())
    found = "\n".join(lines) if len(lines) > 1 else lines[0].strip(" -") if lines else there
    return UserError(
        f"{place}: no annotations of a format that is read. Read are (data.format):\n{read}\nfound:"
        + (f"\n{found}" if len(lines) > 1 else f" {found}")
    )


def is_empty(folder: Path) -> bool:
    """Whether there is neither an image nor a file of annotations, so that a data set is yet to come."""
    return not any(
        path.suffix.lower() in {*SUFFIXES, ARRAY} or _foreign(path) for path in islice(_glimpse(folder), 1000)
    )


# ---- the formats that are read ---------------------------------------------------------------------------------------


def find_voc(folder: Path) -> Detected | None:
    for place in (folder / "Annotations", folder, *(folder / name for name in ("train", "valid", "val", "test"))):
        files = _files(place, ".xml")
        if files and _root_tag(files[0]) in ("annotation", ""):
            name = files[0].relative_to(folder)
            return Detected("voc", folder, f"{name} is Pascal VOC's XML, one of {len(files)}")
    return None


def find_yolo(folder: Path) -> Detected | None:
    found = [path for path in _files(folder, ".yaml", ".yml") if _is_data_yaml(path)]
    usual = [path for path in found if path.stem in ("data", "dataset")]
    if len(found) > 1 and len(usual) != 1:
        names = " and ".join(path.name for path in found[:4])
        raise UserError(
            f"{folder}: {names} are both a YOLO data.yaml: name one with data.train.annotations=… and data.val.…"
        )
    for path in usual or found:
        return Detected("yolo", path, f"{path.name} names classes and splits as YOLO's data.yaml")
    for path in (folder / "obj.data", *(folder / name for name in CLASS_FILES)):
        if path.is_file() and (path.suffix == ".data" or _has_labels(folder)):
            return Detected("yolo", path, f"{path.relative_to(folder)} has the classes of YOLO's label files")
    return None


def find_labelme(folder: Path) -> Detected | None:
    if any(_is_standard(path, folder) for place in _coco_places(folder) for path in _files(place, ".json")):
        return None  # whose folders are not searched for more
    for path in islice((p for p in _glimpse(folder) if p.suffix.lower() == ".json"), 5):
        if json_kind(path) == "labelme":
            return Detected("labelme", folder, f"{path.relative_to(folder)} has labelme's shapes")
    return None


def _coco_places(folder: Path) -> list[Path]:
    return [folder / "annotations", folder, *(folder / name for name in ("train", "valid", "val", "test"))]


def find_coco(folder: Path) -> Detected | None:
    for path in (file for place in _coco_places(folder) for file in _files(place, ".json")):
        if json_kind(path) == "coco":
            return Detected("coco", path, f"{path.relative_to(folder)} has COCO's images, annotations and categories")
    return None


# In this order where several are found; COCO is last, for a COCO file is what others are converted to.
FINDERS: dict[DataFormat, Callable[[Path], Detected | None]] = {
    "voc": find_voc,
    "yolo": find_yolo,
    "labelme": find_labelme,
    "coco": find_coco,
}
FORMATS: dict[DataFormat, str] = {
    "coco": "COCO's JSON (annotations/instances_*.json, Roboflow's _annotations.coco.json, or data.train.annotations=FILE)",
    "voc": "Pascal VOC (an .xml file for each image, in Annotations/ or beside it)",
    "yolo": "YOLO (data.yaml or classes.txt, images/ and labels/*.txt: boxes, polygons, oriented boxes, poses)",
    "labelme": "labelme and X-AnyLabeling (a .json file for each image)",
}
CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "predefined_classes.txt")


def _of_file(path: Path) -> Detected | None:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".data", ".names", ".txt"):
        return Detected("yolo", path, f"{path.name} was named as the annotations")
    if suffix == ".json":
        kind = json_kind(path)
        if kind == "labelme":
            return Detected("labelme", path, f"{path.name} has labelme's shapes")
        if kind in ("coco", ""):
            return Detected("coco", path, f"{path.name} was named as the annotations")
    return None


def _is_standard(path: Path, folder: Path) -> bool:
    """Whether a COCO file lies where COCO or Roboflow put it, rather than being made there by a conversion."""
    ours = path.parent == folder / "annotations" and path.name.startswith("instances_")
    return ours or path.name == "_annotations.coco.json"


def _is_data_yaml(path: Path) -> bool:
    try:
        values = load_yaml(read_text(path)) if path.stat().st_size < SMALL else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return path.stem in ("data", "dataset")  # its reader says what is wrong with it
    keys = {"train", "val", "valid", "test"}
    return isinstance(values, dict) and "names" in values and not keys.isdisjoint(values)


def _has_labels(folder: Path) -> bool:
    """Whether some text file holds a line of YOLO's numbers."""
    texts = (p for p in _glimpse(folder) if p.suffix == ".txt" and p.stem not in ("classes", "predefined_classes"))
    line = rb"(?:\xef\xbb\xbf)?\s*\d+(?:\.0)?(?:\s+-?\d*\.?\d+){4}"
    return any(re.match(line, _head(path)) for path in islice(texts, 20))


# ---- a look into files -----------------------------------------------------------------------------------------------


def json_kind(path: Path) -> str:
    """ "coco", "labelme", a tool's name from FOREIGN, or "" for none of these."""
    try:
        content = json.loads(path.read_bytes()) if path.stat().st_size <= SMALL else None
    except (OSError, ValueError, RecursionError):
        return ""
    if content is None:
        return _kind_of_large(path)
    first: Any = (
        next(iter(content.values() if isinstance(content, dict) else content), None) if _listy(content) else None
    )
    keys = set(content) if isinstance(content, dict) else set()
    inner = set(first) if isinstance(first, dict) else set()
    if {"images", "annotations", "categories"} <= keys:
        return "coco"
    if "shapes" in keys:
        return "labelme"
    return next((tool for tool, (own, theirs) in FOREIGN.items() if own <= keys and theirs <= inner), "")


def _listy(value: Any) -> bool:
    return isinstance(value, dict | list)


def _kind_of_large(path: Path) -> str:
    """By the keys at both ends: a COCO file has more than SMALL bytes of images or annotations, labelme's of imageData."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(-HEAD, 2)
        ends = head + file.read()
    if re.search(rb'"(file_name|category_id|supercategory)"\s*:', ends):
        return "coco"
    return "labelme" if re.search(rb'"(shapes|imageData)"\s*:', ends) else ""


# Tools whose JSON is known but not read: (keys of the whole, keys of its first entry).
FOREIGN: dict[str, tuple[set[str], set[str]]] = {
    "VGG Image Annotator": (set(), {"filename", "regions"}),
    "VGG Image Annotator (a project)": ({"_via_img_metadata"}, set()),
    "Label Studio": (set(), {"annotations", "data"}),
    "Label Studio (JSON-MIN)": (set(), {"image", "annotator"}),
    "Supervisely": ({"objects", "size", "tags"}, set()),
    "Datumaro": ({"items", "categories"}, set()),
    "CreateML": (set(), {"image", "annotations"}),
    "Cityscapes": ({"imgHeight", "imgWidth", "objects"}, set()),
    "BDD100K or Scalabel": (set(), {"name", "labels"}),
    "COCO results, not ground truth,": (set(), {"image_id", "category_id", "score"}),
}
FOREIGN_TAGS = {"annotations": "CVAT's XML (for images)", "dataset": "dlib's XML", "annotation": "Pascal VOC's XML"}


def _foreign(path: Path) -> str:
    """What a file is that is not read, and the next step; "" for nothing in particular."""
    if path.suffix.lower() == ".json":
        kind = json_kind(path)
        if kind == "coco":
            return f"{path} is COCO's: data.train.annotations={path}"
        if kind == "labelme":
            return f"{path} is labelme's: data.root={path.parent}"
        return f"{path} is {kind}'s: export COCO from it" if kind else ""
    if path.suffix.lower() == ".xml":
        tag = FOREIGN_TAGS.get(_root_tag(path))
        return f"{path} is {tag}: export COCO or Pascal VOC" if tag else ""
    if path.suffix.lower() == ".csv":
        return f"{path} is a table (VGG Image Annotator, Open Images, …): export COCO"
    if path.suffix.lower() in (".tfrecord", ".record", ".parquet", ".mat", ".zip", ".tar"):
        return f"{path} is a {path.suffix} file: unpack it, or export COCO"
    return ""


def _root_tag(path: Path) -> str:
    """The name of an XML file's outermost element; "" where that is not to be seen."""
    head = re.sub(rb"<!--.*?-->|<\?.*?\?>|<!DOCTYPE[^>]*>", b"", _head(path).replace(b"\0", b""), flags=re.DOTALL)
    match = re.search(rb"<\s*([A-Za-z_][\w.-]*)", head)
    return match[1].decode() if match else ""


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _files(folder: Path, *suffixes: str) -> list[Path]:
    """Files right inside a folder, sorted, hidden ones left out."""
    try:
        return sorted(
            p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()
        )
    except OSError:
        return []


def _glimpse(folder: Path) -> Iterator[Path]:
    """Files below a folder, the nearest first, of its first MAX_FOLDERS folders; hidden ones are left out."""
    waiting = [str(folder)]
    for count, here in enumerate(waiting):
        if count == MAX_FOLDERS:
            return
        try:
            inside = sorted((e for e in os.scandir(here) if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            continue
        for entry in inside:
            if not entry.is_dir():
                yield Path(entry.path)
            elif not os.path.realpath(here).startswith(os.path.realpath(entry.path)):  # a link that leads back
                waiting.append(entry.path)
