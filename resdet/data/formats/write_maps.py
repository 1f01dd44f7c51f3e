"""Objects, label maps and panoptic segments -> formats of PNGs: label maps of objects, of classes, and COCO's panoptic format.

As in `write.py`, annotations must be accepted by `parse_coco`, images are copied along, and what is lost is counted.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from resdet.data.coco import parse_coco
from resdet.data.edit import unique_names
from resdet.data.formats.common import Source
from resdet.data.formats.masks_pixels import objects_of
from resdet.data.formats.write_common import Objects, box_inside, copied
from resdet.data.label_maps import LabelFiles, LabelSource, as_labels, read_values, refuse_many
from resdet.data.patch import patch_of
from resdet.data.relabel import as_label_maps
from resdet.data.rules import is_id
from resdet.errors import UserError
from resdet.panoptic import encode_ids
from resdet.structures import UNLABELLED
from resdet.writing import atomic_write, write_json, write_text

FILLED = "objects without a mask (their boxes are filled)"
COVERED = "objects partly covered by smaller ones (a pixel holds one number)"
HIDDEN = "objects without a pixel of their own (left out)"
UNMAPPED = "images without a label map (written as not labelled)"
NOT_DRAWN = "objects without a mask (their boxes are not labelled)"


def write_masks(source: Source, folder: Path, split: str = "train") -> Counter[str]:
    """images/SPLIT, masks/SPLIT/NAME.png (16 bits, one number an object), classes.json, and where there are several classes
    masks/SPLIT/NAME.json, which gives the class of each number. -> what was lost, counted.

    Of a pixel that several objects cover, the smallest gets it. Raises `UserError` if classes.json is there and names other
    classes, and for an image of more objects than 16 bits can number.
    """
    lost: Counter[str] = Counter()
    names = unique_names(source)
    text = json.dumps(list(names.values()), ensure_ascii=False) + "\n"
    _write_names(folder / "classes.json", text)
    for image, objects, name in copied(source, folder / "images" / split, lost):
        if len(objects) >= 2**16:
            raise UserError(
                f"{image['file_name']}: has {len(objects)} objects, a label map of 16 bits at most {2**16 - 1}"
            )
        label_map = _painted(objects, image, lost)
        target = (folder / "masks" / split / name).with_suffix(".png")
        _write_png(label_map.astype(np.uint16), target)
        if len(names) > 1:
            there = set(np.unique(label_map).tolist())
            classes = {k: names[entry["category_id"]] for k, entry in enumerate(objects, 1) if k in there}
            write_json(target.with_suffix(".json"), classes)
    return +lost


def write_label_maps(source: Source, folder: Path, split: str = "train") -> Counter[str]:
    """images/SPLIT, annotations/SPLIT/NAME.png (8 bits, the class of each pixel, 255 for none) and classes.txt.
    -> what was lost, counted.

    The classes are those of the source's label maps; of panoptic segments all things and all stuff; otherwise the background
    and those of the objects, drawn as `as_label_maps` does. Raises `UserError` without either, for more than 255 classes, and
    if classes.txt is there and names other classes.
    """
    lost: Counter[str] = Counter()
    read = parse_coco(source.content, source.images, source.path, source.origins)
    if source.labels:
        labels = _of_all_categories(source.labels)
        refuse_many([name for _, name in labels.classes], source.path)
        read = replace(read, label_maps=LabelFiles(labels))
        lost[UNMAPPED] = len(source.content["images"]) - len(labels.files)
    read = as_label_maps(read)
    maps = read.label_maps
    assert maps
    if not source.labels:
        lost[NOT_DRAWN] = sum(not entry.get("segmentation") for entry in source.content["annotations"])
    _write_names(folder / "classes.txt", "".join(f"{name}\n" for name in maps.names))
    for (image, _, name), info in zip(
        copied(source, folder / "images" / split, lost, crowds=True), read.images, strict=True
    ):
        assert info.image_id == image["id"]
        _write_png(maps.read(info), (folder / "annotations" / split / name).with_suffix(".png"))
    return +lost


def write_panoptic(source: Source, folder: Path, split: str = "train") -> Counter[str]:
    """SPLIT/…, annotations/panoptic_SPLIT.json and annotations/panoptic_SPLIT/NAME.png, whose pixels are ids.
    -> what was lost, counted.

    Panoptic segments stay as they are. The classes of label maps are stuff, a segment of each in an image. Objects are things;
    of a pixel that several cover, the smallest gets it. Raises `UserError`.
    """
    lost: Counter[str] = Counter()
    labels, place = source.labels, folder / "annotations" / f"panoptic_{split}"
    things = [] if labels and not labels.things else source.content["categories"]
    stuff = [] if labels is None else labels.classes[1:] if labels.things else labels.classes
    stuff = stuff if labels is None or labels.categories else [(k, name) for k, (_, name) in enumerate(stuff, 1)]
    categories = [{**entry, "isthing": 1} for entry in things]
    categories += [{"id": identity, "name": name, "isthing": 0} for identity, name in stuff]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, objects, name) in enumerate(copied(source, folder / split, lost, flat=True, crowds=True), 1):
        identity = image["id"] if is_id(image["id"]) else number
        size = image["height"], image["width"]
        images.append({"id": identity, "file_name": name, "height": size[0], "width": size[1]})
        crowds: set[int] = set()
        if labels is None:
            ids = _painted(objects, image, lost)
            category_of = {k: entry["category_id"] for k, entry in enumerate(objects, 1)}
            crowds = {k for k, entry in enumerate(objects, 1) if entry.get("iscrowd")}
        elif (file := labels.files.get(image["id"])) is None:
            lost["images without a label map (without an annotation)"] += 1
            continue
        elif file.ids:
            ids = read_values(file, size)
            category_of = {value.value: categories[value.category]["id"] for value in file.values}
            crowds = {value.value for value in file.values if value.crowd}
        else:
            pixels = as_labels(file, read_values(file, size)).astype(np.int64)
            ids = np.where(pixels == UNLABELLED, 0, pixels + 1)
            category_of = {k: k for k in range(1, len(stuff) + 1)}
        segments = [
            {
                "id": each.number, "category_id": category_of[each.number], "area": int(each.crop.sum()),
                "bbox": [each.corner[1], each.corner[0], each.crop.shape[1], each.crop.shape[0]],
                "iscrowd": int(each.number in crowds),
            }
            for each in objects_of(ids)
        ]  # fmt: skip
        png = f"{Path(name).stem}.png"
        annotations.append({"image_id": identity, "file_name": png, "segments_info": segments})
        _write_png(encode_ids(ids), place / png)
    write_json(place.with_suffix(".json"), {"images": images, "annotations": annotations, "categories": categories})
    return +lost


def _painted(objects: Objects, image: dict[str, Any], lost: Counter[str]) -> np.ndarray:
    """(H, W) int64: the number of the object of each pixel, from 1; 0 for none. Crowd regions lie under all objects, and large
    objects under small ones."""
    size = image["height"], image["width"]
    numbers = np.zeros(size, np.int64)
    patches = []
    for entry in objects:
        x, y, w, h = box_inside(entry, image)
        patches.append(patch_of(entry.get("segmentation"), np.array([x, y, x + w, y + h]), size))
    areas = np.array([int(patch.bitmap.sum()) for patch in patches], np.int64)
    crowd = np.array([bool(entry.get("iscrowd")) for entry in objects], bool)
    lost[FILLED] += sum(not entry.get("segmentation") for entry in objects)
    for k in sorted(range(len(objects)), key=lambda k: (not crowd[k], -areas[k], -k)):
        x, y, bitmap = patches[k]
        numbers[y : y + len(bitmap), x : x + bitmap.shape[1]][bitmap > 0] = k + 1
    left = np.bincount(numbers.ravel(), minlength=len(objects) + 1)[1:]
    lost[COVERED] += int(((left > 0) & (left < areas)).sum())
    lost[HIDDEN] += int((left == 0).sum())
    return numbers


def _of_all_categories(labels: LabelSource) -> LabelSource:
    """Label maps of every thing and stuff instead of all things as one; others as they are."""
    if not labels.things:
        return labels
    files = {
        image: file._replace(values=[value._replace(label=value.category) for value in file.values])
        for image, file in labels.files.items()
    }
    return labels._replace(classes=list(enumerate(labels.categories)), files=files)


def _write_names(sheet: Path, text: str) -> None:
    """Raises `UserError` if the file is there and names other classes."""
    if sheet.is_file() and sheet.read_text(encoding="utf-8") != text:
        raise UserError(f"{sheet}: exists, with other classes; choose an empty folder")
    sheet.parent.mkdir(parents=True, exist_ok=True)
    write_text(sheet, text)


def _write_png(pixels: np.ndarray, target: Path) -> None:
    """(H, W) uint8 or uint16, or (H, W, 3) uint8 RGB."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        temporary.write_bytes(cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes())
