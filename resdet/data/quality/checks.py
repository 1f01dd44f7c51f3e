"""COCO's structure of each split -> `Finding`s: what is wrong with the annotations, counted, with examples and fixes.

Nothing raises here, so that all mistakes are listed. The image files are checked by `files.py`.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from resdet.data.formats.common import Source
from resdet.data.json_files import no_collection
from resdet.data.known import check_known
from resdet.data.outlines import box_of
from resdet.data.quality.box_forms import find_form, in_form
from resdet.data.quality.categories import examine_categories
from resdet.data.quality.keypoints import check_keypoints
from resdet.data.quality.polygons import crossed_share
from resdet.data.quality.report import FEW, Entry, Finding, Findings
from resdet.data.rules import (
    IDS,
    Id,
    check_flags,
    id_kind,
    is_box,
    is_id,
    is_name,
    is_size,
    parse_segmentation,
    size_of,
    title_of,
)

MISSING = 0.05  # fraction of a split's objects that may lack a mask before it is reported


@no_collection()
def examine(split: str, source: Source, *, outlines: bool = True) -> list[Finding]:
    """Everything that can be found in the annotations of one split by themselves.

    outlines: also look for self-intersecting polygons, which takes most of the time.
    """
    found = Findings(split)
    found.add_readings(source.readings)
    images = _images(source, found)
    categories = examine_categories(source, found)
    for image in images.values():
        wrong: list[str] = []
        if not check_known(image, categories, wrong):
            found.add("known-classes", wrong[0])
    entries = _known(source, images, categories, found)
    boxed = _boxes(source, entries, images, found)
    _masks(source, entries, {id(entry) for entry in boxed}, images, found, outlines)
    check_keypoints(source.content["categories"], entries, images, found, partial(name_of, source))
    _crowds(source, entries, found)
    _duplicates(source, boxed, found)
    if split == "train":
        counts = Counter(entry["category_id"] for entry in boxed)
        for identity, name in categories.items():
            if 0 < counts[identity] < FEW:
                found.add("class-rare", f"{name}: {counts[identity]}")
    return list(found.by_code.values())


def unusable(sources: dict[str, Source]) -> list[Finding]:
    """What the readers could not read; a problem that several splits share is reported for the first."""
    reported: set[str] = set()
    findings: list[Finding] = []
    for split, source in sources.items():
        found = Findings(split)
        for problem in source.problems:
            if problem not in reported:
                found.add("unusable", problem)
        reported |= set(source.problems)
        findings += found.by_code.values()
    return findings


def name_of(source: Source, entry: Entry, number: int = 0) -> str:
    """What messages call an annotation."""
    return title_of(entry, number, source.origins)


def _images(source: Source, found: Findings) -> dict[Id, Entry]:
    images: dict[Id, Entry] = {}
    kind = id_kind(source.content["images"])
    files: dict[str, Id] = {}
    if not source.content["images"]:
        found.add("empty", f"{source.path}: images")
    for i, entry in enumerate(source.content["images"]):
        identity = entry.get("id")
        if not is_id(identity, kind) or identity in images:
            found.add("image-id", f"image number {i} ({entry.get('file_name')}): {identity!r}")
            continue
        images[identity] = entry
        if not is_name(name := entry.get("file_name")):
            found.add("image-name", f"image {identity}: {str(name)[:40]!r}", identity)
        elif (first := files.setdefault(os.path.normpath(name), identity)) != identity:
            found.add("image-twice", f"images {first} and {identity}: {name}", (identity, first))
        sides = entry.get("height"), entry.get("width")
        if not is_size(*sides):
            found.add(
                "image-size", f"image {identity} ({entry.get('file_name')}): {sides[0]!r} x {sides[1]!r}", identity
            )
    return images


def _known(source: Source, images: dict[Id, Entry], categories: dict[Any, str], found: Findings) -> list[Entry]:
    """The annotations whose image and category are listed."""
    used = {e.get("category_id") for e in source.content["annotations"] if is_id(e.get("category_id"))}
    unknown = used - categories.keys()
    # Categories 1..K and annotations 0..K-1, or the other way round: every id would fit if it moved by one.
    shift = next((s for s in (1, -1) if unknown and {c + s for c in used} <= categories.keys()), 0)
    kept = []
    for i, entry in enumerate(source.content["annotations"]):
        image, category = entry.get("image_id"), entry.get("category_id")
        if type(image) not in IDS or image not in images:
            found.add("image-unknown", f"{name_of(source, entry, i)}: image_id {image!r}", i)
        elif shift:
            if type(category) not in IDS:
                found.add("category-unknown", f"{name_of(source, entry, i)}: category_id {category!r}", i)
                continue
            if category in unknown:
                text = f"category_id {category}, listed are {sorted(categories)[:4]}…"
                found.add("off-by-one", f"{name_of(source, entry, i)}: {text}", shift)
            kept.append(entry)
        elif type(category) not in IDS or category not in categories:
            found.add("category-unknown", f"{name_of(source, entry, i)}: category_id {category!r}", i)
        else:
            kept.append(entry)
    return kept


def _boxes(source: Source, entries: list[Entry], images: dict[Id, Entry], found: Findings) -> list[Entry]:
    """The annotations with a box that has an area."""
    whole: list[tuple[Entry, tuple[float, float]]] = []
    for i, entry in enumerate(entries):
        box, size = entry.get("bbox"), size_of(images[entry["image_id"]])
        if not is_box(box):
            found.add("box-malformed", f"{name_of(source, entry, i)}: {str(box)[:60]}", id(entry))
        elif size:
            whole.append((entry, size))
    if not whole:
        return []
    boxes = np.array([entry["bbox"] for entry, _ in whole], dtype=np.float64)
    sizes = np.array([size for _, size in whole])
    x, y, w, h = boxes.T
    height, width = sizes.T
    sized = (w > 0) & (h > 0)
    if sized.any() and boxes[sized].max() <= 1.5 and np.median(width) > 16:
        for k in np.nonzero(sized)[0]:
            found.add("box-normalised", f"{name_of(source, whole[k][0])}: {boxes[k].tolist()}", id(whole[k][0]))
        return []
    if form := find_form(boxes[sized], sizes[sized]):
        for k in np.nonzero(of_form := sized & in_form(form, boxes, sizes))[0]:
            found.add(form, f"{name_of(source, whole[k][0])}: {boxes[k].tolist()}", id(whole[k][0]))
        whole = [one for one, other in zip(whole, of_form, strict=True) if not other]
        boxes, sizes, sized = boxes[~of_form], sizes[~of_form], sized[~of_form]
        (x, y, w, h), (height, width) = boxes.T, sizes.T
    outside = (x + w > width + 2) | (y + h > height + 2)
    nowhere = sized & ((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0))
    leaving = sized & ~nowhere & (outside | (x < -2) | (y < -2))
    for code, where in (("box-degenerate", ~sized), ("box-nowhere", nowhere), ("box-outside", leaving)):
        for k in np.nonzero(where)[0]:
            text = (
                f"{name_of(source, whole[k][0])}: {_short(boxes[k])} in {sizes[k][0]:.0f} x {sizes[k][1]:.0f} (H x W)"
            )
            found.add(code, text, id(whole[k][0]))
    return [whole[k][0] for k in np.nonzero(sized & ~nowhere)[0]]


def _masks(
    source: Source, entries: list[Entry], boxed: set[int], images: dict[Id, Entry], found: Findings, outlines: bool
) -> None:
    """boxed: id() of the entries whose box can be compared with their mask."""
    bounds: list[tuple[Entry, str, tuple[float, float, float, float]]] = []
    fractions = True
    for i, entry in enumerate(entries):
        value, size = entry.get("segmentation"), size_of(images[entry["image_id"]])
        if not value or not size:
            continue
        what, wrong = name_of(source, entry, i), list[str]()
        outline = parse_segmentation(value, size, wrong, Counter())
        for problem in wrong:
            found.add("mask-malformed", f"{what}: {problem}", id(entry))
        if wrong:
            continue
        if not isinstance(value, dict):
            _polygons(value, what, entry, found, outlines)
        around = box_of(outline, size)
        if not around:
            continue  # polygons of fewer than three points alone
        if around[2] <= 0 or around[3] <= 0:
            found.add("mask-empty", what, id(entry))
            continue
        left, top, right, bottom = around[0], around[1], around[0] + around[2], around[1] + around[3]
        bounds.append((entry, what, (left, top, right, bottom)))
        fractions &= not isinstance(value, dict) and max(right, bottom) <= 1.5 and size[1] > 16
    if bounds and fractions:
        for entry, what, corners in bounds:
            found.add("mask-normalised", f"{what}: from {corners[:2]} to {corners[2:]}", id(entry))
    else:
        _compare([one for one in bounds if id(one[0]) in boxed and not one[0].get("iscrowd")], found)


def _compare(bounds: list[tuple[Entry, str, tuple[float, float, float, float]]], found: Findings) -> None:
    """Boxes with the corners around their masks."""
    apart, beyond = [], 0
    for entry, what, (left, top, right, bottom) in bounds:
        x, y, w, h = entry["bbox"]
        slack_x, slack_y = max(0.1 * w, 2), max(0.1 * h, 2)
        out = max((x - left) / slack_x, (right - x - w) / slack_x, (y - top) / slack_y, (bottom - y - h) / slack_y)
        within = max((left - x) / slack_x, (x + w - right) / slack_x, (top - y) / slack_y, (y + h - bottom) / slack_y)
        if max(out, within) > 1:
            beyond += out > 1
            corners = _short([x, y, x + w, y + h]), _short([left, top, right, bottom])
            apart.append((entry, f"{what}: box {corners[0]}, mask {corners[1]} (corners)"))
    # Boxes of whole objects may be larger than the masks of what is visible, but not leave most of them out.
    code = "masks-elsewhere" if len(bounds) >= 10 and beyond > 0.5 * len(bounds) else "polygon-apart"
    for entry, text in apart:
        found.add(code, text, id(entry))


def _polygons(value: list[list[float]], what: str, entry: Entry, found: Findings, outlines: bool) -> None:
    for polygon in value:
        if len(polygon) < 6:
            found.add("polygon-short", f"{what}: {len(polygon) // 2} points", id(entry))
        elif outlines and crossed_share(polygon) > 0.1:
            found.add("polygon-crossing", f"{what}: {len(polygon) // 2} points", id(entry))


def _crowds(source: Source, entries: list[Entry], found: Findings) -> None:
    """Crowd flags, and objects that lack what others have."""
    plain = [entry for entry in entries if not entry.get("iscrowd")]
    for i, entry in enumerate(entries):
        wrong: list[str] = []
        check_flags(entry, wrong)
        for problem in wrong:
            found.add("crowd-flag", f"{name_of(source, entry, i)}: {problem}", id(entry))
    if entries and not plain and found.split == "train":
        for entry in entries:
            found.add("crowd-only", name_of(source, entry), id(entry))
    without = [entry for entry in plain if not entry.get("segmentation")]
    if MISSING * len(plain) < len(without) < len(plain):
        for entry in without:
            found.add("mask-missing", name_of(source, entry), id(entry))


def _duplicates(source: Source, entries: list[Entry], found: Findings) -> None:
    seen: dict[tuple[Any, ...], Entry] = {}
    for i, entry in enumerate(entries):
        key = (
            entry["image_id"],
            entry["category_id"],
            *(round(v, 1) for v in entry["bbox"]),
            bool(entry.get("iscrowd")),
        )
        if key in seen:
            text = f"{name_of(source, entry, i)} is {name_of(source, seen[key])} again: {_short(entry['bbox'])}"
            found.add("duplicate", text, id(entry))
        else:
            seen[key] = entry


def _short(values: Iterable[float]) -> str:
    return (
        "["
        + ", ".join(f"{v:g}" if math.isfinite(v) else str(v) for v in map(lambda v: round(float(v), 1), values))
        + "]"
    )
