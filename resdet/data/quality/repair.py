"""Findings -> annotations without what can be mended, and how much of it was."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from resdet.data.formats.common import Source
from resdet.data.quality.checks import rle_corners
from resdet.data.quality.files import slashed
from resdet.data.quality.report import KINDS, Entry, Finding

BY_NUMBER = ("image-unknown", "category-unknown")
DROPPED = ("box-malformed", "box-degenerate", "box-nowhere", "duplicate")
LOST_FILES = ("file-missing", "file-empty", "file-unreadable", "file-truncated")


def repair(source: Source, findings: list[Finding]) -> tuple[dict[str, Any], dict[str, int]]:
    """COCO's structure without what can be mended, and how many of each code were."""
    by_code = {finding.code: finding for finding in findings}
    marked = {code: set(by_code[code].items) if code in by_code else set() for code in KINDS}
    done: Counter[str] = Counter()
    if "unusable" in by_code:
        done["unusable"] = by_code["unusable"].count  # the content is without them already
    sizes = {image: size for code in ("file-size", "image-size") for image, size in _sizes(by_code.get(code))}
    images = []
    for entry in source.content["images"]:
        code = next((c for c in LOST_FILES if entry.get("id") in marked[c]), None)
        if code:
            done[code] += 1
            continue
        if entry.get("id") in sizes:
            done["file-size"] += 1
            entry = {**entry, "height": sizes[entry["id"]][0], "width": sizes[entry["id"]][1]}
        if entry.get("id") in marked["file-backslash"]:
            done["file-backslash"] += 1
            entry = {**entry, "file_name": slashed(entry["file_name"])}
        images.append(entry)
    kept = {entry.get("id"): entry for entry in images}
    annotations = []
    for i, entry in enumerate(source.content["annotations"]):
        image = kept.get(entry.get("image_id"))
        dropped = next((c for c in BY_NUMBER if i in marked[c]), None)
        dropped = dropped or next((c for c in DROPPED if id(entry) in marked[c]), None)
        if dropped or image is None:
            done[dropped or "its image is gone"] += 1
            continue
        annotations.append(_mended(entry, image, by_code, marked, done))
    return {**source.content, "images": images, "annotations": annotations}, dict(done)


def _sizes(finding: Finding | None) -> list[tuple[int, tuple[int, int]]]:
    return [item for item in finding.items if isinstance(item, tuple)] if finding else []


def _mended(
    entry: Entry, image: Entry, by_code: dict[str, Finding], marked: dict[str, set[Any]], done: Counter[str]
) -> Entry:
    width, height = image["width"], image["height"]
    box = entry["bbox"]
    new = dict(entry)
    here: list[str] = [code for code in marked if id(entry) in marked[code]]
    if "off-by-one" in by_code:
        new["category_id"] = entry["category_id"] + by_code["off-by-one"].items[0]
        done["off-by-one"] += 1
    if "box-xyxy" in here:
        new["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    if "box-normalised" in here:
        new["bbox"] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    if "box-outside" in here:
        x1, y1 = max(box[0], 0), max(box[1], 0)
        new["bbox"] = [x1, y1, min(box[0] + box[2], width) - x1, min(box[1] + box[3], height) - y1]
    if "polygon-short" in here:
        new["segmentation"] = [p for p in entry["segmentation"] if len(p) >= 6]
    emptied = "polygon-short" in here and not new["segmentation"]
    if "mask-empty" in here or "mask-malformed" in here or emptied:
        new.pop("segmentation")
    if "polygon-apart" in here:
        value = new["segmentation"]
        corners = rle_corners(value, height, width) if isinstance(value, dict) else _corners(value)
        if not isinstance(corners, str):
            new["bbox"] = [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]]
    for code in here:
        done[code] += "--fix" in KINDS[code][2]
    if new.get("bbox") != box and not new.get("segmentation"):
        new["area"] = new["bbox"][2] * new["bbox"][3]
    return new


def _corners(polygons: list[list[float]]) -> list[float]:
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    return [*points.min(0).tolist(), *points.max(0).tolist()]
