"""Annotations and their findings -> repaired annotations, and what was changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from resdet.data.formats.common import Source
from resdet.data.keypoints import without_outside
from resdet.data.outlines import area_of, box_of
from resdet.data.quality.box_forms import FORMS
from resdet.data.quality.report import KINDS, Entry, Finding
from resdet.data.rules import is_size

BY_NUMBER = ("image-unknown", "category-unknown")
DROPPED = ("box-malformed", "box-degenerate", "box-nowhere", "duplicate", "crowd-flag")
LOST_FILES = ("image-name", "file-missing", "file-empty", "file-unreadable", "file-truncated", "file-void")
MAY_BE_LOST = 0.1  # of the images, objects or masks, without --drop


@dataclass
class Repair:
    """COCO's structure after repair, and how many findings of each code were repaired. `lost`: dropped entries, by kind;
    `masks` counts objects that lost only their mask."""

    content: dict[str, Any]
    done: dict[str, int]
    lost: dict[str, int]
    of: dict[str, int]

    def costs(self) -> list[str]:
        """The kinds of which more than `MAY_BE_LOST` would be dropped, in words."""
        return [
            f"{count} of {self.of[kind]} {kind}"
            for kind, count in self.lost.items()
            if count > MAY_BE_LOST * self.of[kind]
        ]


def repair(source: Source, findings: list[Finding]) -> Repair:
    """The repaired annotations of a source, which is not modified."""
    by_code = {finding.code: finding for finding in findings}
    marked = {code: set(by_code[code].items) if code in by_code else set() for code in KINDS}
    done: Counter[str] = Counter({code: reading.count for code, reading in source.readings.items()})
    if "unusable" in by_code:
        done["unusable"] = by_code["unusable"].count  # already missing from the content
    sizes = dict(_pairs(by_code.get("file-size")))
    first_of = dict(_pairs(by_code.get("image-twice")))  # {id of an image: that of the first entry of the same file}
    images = []
    for entry in source.content["images"]:
        code = next((c for c in LOST_FILES if entry.get("id") in marked[c]), None)
        if code:
            done[code] += 1
            continue
        if entry.get("id") in first_of:
            done["image-twice"] += 1
            continue
        if entry.get("id") in sizes:
            done["file-size"] += 1
            entry = {**entry, "height": sizes[entry["id"]][0], "width": sizes[entry["id"]][1]}
        images.append(entry)
    kept = {entry.get("id"): entry for entry in images}
    listed, given = source.content["images"], source.content["annotations"]
    annotations = []
    for i, entry in enumerate(given):
        dropped = next((c for c in BY_NUMBER if i in marked[c]), None)
        dropped = dropped or next((c for c in DROPPED if id(entry) in marked[c]), None)
        image_id = None if dropped else first_of.get(entry["image_id"], entry["image_id"])
        if dropped or image_id not in kept:
            done[dropped or "its image is gone"] += 1
            continue
        annotations.append(_mended(entry, kept[image_id], by_code, marked, done) | {"image_id": image_id})
    # Of two copies of an object nothing is lost with one.
    single = [entry for entry in given if id(entry) not in marked["duplicate"]]
    masks, left = (sum(_has_mask(entry) for entry in entries) for entries in (single, annotations))
    return Repair(
        {**source.content, "images": images, "annotations": annotations},
        dict(done),
        lost={
            "images": len(listed) - len(images) - done["image-twice"],
            "objects": len(single) - len(annotations),
            "masks": masks - left,
        },
        of={"images": len(listed), "objects": len(single), "masks": masks},
    )


def _has_mask(entry: Entry) -> bool:
    """Whether there is an outline to lose: some tools write [[]] for an object without one."""
    value = entry.get("segmentation")
    return any(value) if isinstance(value, list) else bool(value)


def _pairs(finding: Finding | None) -> list[tuple[Any, Any]]:
    return [item for item in finding.items if isinstance(item, tuple)] if finding else []


def _mended(
    entry: Entry, image: Entry, by_code: dict[str, Finding], marked: dict[str, set[Any]], done: Counter[str]
) -> Entry:
    height, width = size = (image.get("height", 0), image.get("width", 0))
    box = entry["bbox"]
    new = dict(entry)
    here: list[str] = [code for code in marked if id(entry) in marked[code]]
    if "off-by-one" in by_code:
        new["category_id"] = entry["category_id"] + by_code["off-by-one"].items[0]
        done["off-by-one"] += 1
    if "crowd-only" in here:
        new["iscrowd"] = 0
    for code in here:
        if code in FORMS:
            new["bbox"] = FORMS[code](np.array(box, dtype=np.float64)).tolist()
    if "box-normalised" in here:
        new["bbox"] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    if "box-outside" in here:
        x1, y1 = max(box[0], 0), max(box[1], 0)
        new["bbox"] = [x1, y1, min(box[0] + box[2], width) - x1, min(box[1] + box[3], height) - y1]
    if "mask-normalised" in here:
        new["segmentation"] = [[v * size[(k + 1) % 2] for k, v in enumerate(p)] for p in entry["segmentation"]]
        new.pop("area", None)
    if "polygon-short" in here:
        new["segmentation"] = [p for p in entry["segmentation"] if len(p) >= 6]
    emptied = "polygon-short" in here and not new["segmentation"]
    if "mask-empty" in here or "mask-malformed" in here or emptied:
        new.pop("segmentation")
    if "keypoints-malformed" in here:
        new.pop("keypoints")
        new.pop("num_keypoints", None)
    if "keypoints-outside" in here:
        new["keypoints"] = without_outside(entry["keypoints"], size)
    if "keypoints-outside" in here or "keypoints-number" in here:
        new["num_keypoints"] = sum(v > 0 for v in new["keypoints"][2::3])
    if "polygon-apart" in here and (around := box_of(new["segmentation"], (height, width))):
        new["bbox"] = around
    for code in here:
        done[code] += "--fix" in KINDS[code][2]
    if new.get("bbox") != box and not new.get("segmentation"):
        new.pop("area", None)
    if is_size(*size):  # what COCO's own tools cannot do without
        new["iscrowd"] = new.get("iscrowd") or 0
        if new.get("area") is None:
            new["area"] = area_of(new, size)
    return new
