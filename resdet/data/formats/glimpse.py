"""A quick look into files, at their first bytes, tags and keys, to tell which tool wrote them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = 2**16  # bytes that are looked at of a large file
SMALL = 2**22  # bytes of a JSON file that is parsed to see what it is
MAX_FOLDERS = 500  # that are listed in search of annotations


def json_kind(path: Path) -> str:
    """ "coco", "labelme", a name from KINDS, or "" for none of these."""
    try:
        if path.stat().st_size > SMALL:
            return _kind_of_large(path)
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    first: Any = (
        next(iter(content.values() if isinstance(content, dict) else content), None) if _listy(content) else None
    )
    keys = set(content) if isinstance(content, dict) else set()
    inner = set(first) if isinstance(first, dict) else set()
    if {"images", "annotations", "categories"} <= keys:
        annotations = content["annotations"]
        panoptic = isinstance(annotations, list) and any(
            "segments_info" in e for e in annotations[:1] if isinstance(e, dict)
        )
        return "coco_panoptic" if panoptic else "coco"
    if "shapes" in keys:
        return "labelme"
    return next((tool for tool, own, theirs in KINDS if own <= keys and theirs <= inner), "")


def _listy(value: Any) -> bool:
    return isinstance(value, dict | list)


def _kind_of_large(path: Path) -> str:
    """By the keys at both ends: a COCO file has more than SMALL bytes of images or annotations, labelme's of imageData."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(-HEAD, 2)
        ends = head + file.read()
    if re.search(rb'"segments_info"\s*:', ends) or (b'"isthing"' in ends and b'"segmentation"' not in ends):
        return "coco_panoptic"
    if re.search(rb'"(file_name|category_id|supercategory)"\s*:', ends):
        return "coco"
    if re.search(rb'"(shapes|imageData)"\s*:', ends):
        return "labelme"
    if re.search(rb'"(shape_attributes|region_attributes)"\s*:', ends):
        return "via"
    return "label_studio" if re.search(rb'"(from_name|original_width)"\s*:', ends) else ""


# Kinds of JSON: (their name, keys of the whole, keys of its first entry). The first four are formats that are read.
KINDS: list[tuple[str, set[str], set[str]]] = [
    ("via", set(), {"filename", "regions"}),
    ("via", {"_via_img_metadata"}, set()),
    ("label_studio", set(), {"annotations", "data"}),
    ("label_studio", set(), {"annotation_id", "annotator"}),
    ("Supervisely", {"objects", "size", "tags"}, set()),
    ("Datumaro", {"items", "categories"}, set()),
    ("CreateML", set(), {"image", "annotations"}),
    ("Cityscapes", {"imgHeight", "imgWidth", "objects"}, set()),
    ("BDD100K or Scalabel", set(), {"name", "labels"}),
    ("COCO results, not ground truth,", set(), {"image_id", "category_id", "score"}),
]


def root_tag(path: Path) -> str:
    """The name of an XML file's outermost element; "" if it cannot be found."""
    head = re.sub(rb"<!--.*?-->|<\?.*?\?>|<!DOCTYPE[^>]*>", b"", head_of(path).replace(b"\0", b""), flags=re.DOTALL)
    match = re.search(rb"<\s*([A-Za-z_][\w.-]*)", head)
    return match[1].decode() if match else ""


def head_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """Files right inside a folder, sorted, hidden ones left out."""
    try:
        return sorted(
            p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file()
        )
    except OSError:
        return []


def glimpse(folder: Path) -> Iterator[Path]:
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
            elif not os.path.realpath(here).startswith(os.path.realpath(entry.path)):  # a link that forms a cycle
                waiting.append(entry.path)
