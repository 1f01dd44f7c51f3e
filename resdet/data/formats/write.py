"""COCO's structure -> the files of other formats: YOLO (boxes or polygons), Pascal VOC, labelme, label maps.

The annotations must be accepted by `parse_coco`. The images are copied along, so that the folder is complete. What a
format cannot store is counted in the result.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np

from resdet.data.convex import clip_polygon, rectangle
from resdet.data.edit import unique_names
from resdet.data.formats.common import Source
from resdet.data.formats.yolo_layout import label_folder
from resdet.data.patch import patch_of
from resdet.errors import UserError
from resdet.masks import decode_rle
from resdet.writing import atomic_write, write_json, write_text

Objects = list[dict[str, Any]]
CROWDS = "crowd regions (left out: the format cannot mark them)"
PARTS = "objects of several parts (joined into one polygon by lines of zero width)"
NO_AREA = "boxes without area inside their image (left out)"
KEYPOINTS = "objects whose keypoints were left out"
ROUNDED = "boxes rounded to whole pixels (VOC has no fractions)"
NO_MASK = "objects without a mask (their boxes are written as polygons)"
HOLES = "objects whose holes were filled (the format cannot store them)"
Polygons = list[list[float]]


def write_yolo(source: Source, folder: Path, split: str = "train") -> Counter[str]:
    """images/SPLIT, labels/SPLIT and data.yaml (with the splits that are there); polygons if any object has a mask.

    -> what was lost, counted. Raises `UserError` if data.yaml is there and names other classes.
    """
    lost: Counter[str] = Counter()
    names = list(unique_names(source).values())
    index = {category["id"]: k for k, category in enumerate(source.content["categories"])}
    masks = any(entry.get("segmentation") for entry in source.content["annotations"])
    sheet = folder / "data.yaml"
    head = "".join(f"  {k}: {json.dumps(name, ensure_ascii=False)}\n" for k, name in enumerate(names))
    head = f"path: .\nnames:\n{head}"
    if sheet.is_file() and not sheet.read_text(encoding="utf-8").startswith(head):
        raise UserError(f"{sheet}: exists, with other classes; choose an empty folder")
    for image, objects, name in _images(source, folder / "images" / split, lost):
        lines = []
        for entry in objects:
            outline = _inside(_polygons(entry, image, lost), image) if masks else []
            if outline:
                values = _joined(outline, lost)
            else:
                lost[NO_MASK] += masks
                x, y, w, h = _box_inside(entry, image)
                values = [x, y, x + w, y, x + w, y + h, x, y + h] if masks else [x + w / 2, y + h / 2, w, h]
            shares = [v / (image["width"], image["height"])[k % 2] for k, v in enumerate(values)]
            lines.append(" ".join([str(index[entry["category_id"]]), *(f"{v:.10g}" for v in shares)]) + "\n")
        place = folder / "images" / split / name
        target = (label_folder(place.parent) / place.name).with_suffix(".txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, "".join(lines))
    splits = sorted({path.name for path in (folder / "images").iterdir() if path.is_dir()})
    write_text(sheet, head + "".join(f"{name}: images/{name}\n" for name in splits))
    return +lost


def write_voc(source: Source, folder: Path, split: str = "train") -> Counter[str]:
    """JPEGImages, Annotations/*.xml, ImageSets/Main/SPLIT.txt: boxes alone. -> what was lost, counted.

    Corners are whole pixels counted from one, both inside, as VOC's own are. A box narrower than two pixels becomes two pixels
    wide: `read_voc`, as other readers, takes equal corners for a box without area.
    """
    lost: Counter[str] = Counter()
    names = unique_names(source)
    stems = []
    for image, objects, name in _images(source, folder / "JPEGImages", lost, flat=True):
        parts = []
        for entry in objects:
            lost["masks (left out: only boxes are written)"] += bool(entry.get("segmentation"))
            x, y, w, h = _box_inside(entry, image)
            left, right = _whole_pixels(x, x + w, image["width"])
            top, bottom = _whole_pixels(y, y + h, image["height"])
            lost[ROUNDED] += (left - 1, top - 1, right, bottom) != (x, y, x + w, y + h)
            corners = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
            title = escape(names[entry["category_id"]])
            box = f"<bndbox>{corners}</bndbox>"
            parts.append(f"  <object><name>{title}</name><difficult>0</difficult>{box}</object>\n")
        size = f"<width>{image['width']}</width><height>{image['height']}</height><depth>3</depth>"
        text = f"<annotation>\n  <filename>{escape(name)}</filename>\n  <size>{size}</size>\n{''.join(parts)}</annotation>\n"
        stems.append(Path(name).stem)
        write_text(folder / "Annotations" / f"{stems[-1]}.xml", text)
    write_text(folder / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
    return +lost


def _whole_pixels(start: float, end: float, side: int) -> tuple[int, int]:
    """The first and last pixel, counted from one, of a stretch inside an image of `side` pixels."""
    first = min(round(start), max(side - 2, 0))
    return first + 1, min(max(round(end), first + 2), side)


def write_labelme(source: Source, folder: Path, split: str = "train") -> Counter[str]:
    """A JSON beside each image (`split` is not used: labelme has none). -> what was lost, counted."""
    lost: Counter[str] = Counter()
    names = unique_names(source)
    for image, objects, name in _images(source, folder, lost):
        shapes: list[dict[str, Any]] = []
        for number, entry in enumerate(objects, 1):
            outline = _polygons(entry, image, lost)
            x, y, w, h = entry["bbox"]
            pieces = outline or [[x, y, x + w, y + h]]
            shapes += [
                {
                    "label": names[entry["category_id"]],
                    "points": np.reshape(piece, (-1, 2)).tolist(),
                    "group_id": number if len(pieces) > 1 else None,
                    "shape_type": "polygon" if outline else "rectangle",
                    "flags": {},
                }
                for piece in pieces
            ]
        content = {
            "version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": Path(name).name, "imageData": None,
            "imageHeight": image["height"], "imageWidth": image["width"],
        }  # fmt: skip
        write_json((folder / name).with_suffix(".json"), content, indent=1)
    return +lost


def write_masks(source: Source, folder: Path, split: str = "train") -> Counter[str]:
    """images/SPLIT, masks/SPLIT/NAME.png (16 bits, one number an object), classes.json, and where there are several classes
    masks/SPLIT/NAME.json, which gives the class of each number. -> what was lost, counted.

    Of a pixel that several objects cover, the smallest gets it. Raises `UserError` if classes.json is there and names other
    classes, and for an image of more objects than 16 bits can number.
    """
    lost: Counter[str] = Counter()
    names = unique_names(source)
    sheet = folder / "classes.json"
    text = json.dumps(list(names.values()), ensure_ascii=False) + "\n"
    if sheet.is_file() and sheet.read_text(encoding="utf-8") != text:
        raise UserError(f"{sheet}: exists, with other classes; choose an empty folder")
    for image, objects, name in _images(source, folder / "images" / split, lost):
        if len(objects) >= 2**16:
            raise UserError(
                f"{image['file_name']}: has {len(objects)} objects, a label map of 16 bits at most {2**16 - 1}"
            )
        size = image["height"], image["width"]
        label_map = np.zeros(size, np.uint16)
        patches = []
        for entry in objects:
            x, y, w, h = _box_inside(entry, image)
            patches.append(patch_of(entry.get("segmentation"), np.array([x, y, x + w, y + h]), size))
        areas = [int(patch.bitmap.sum()) for patch in patches]
        lost["objects without a mask (their boxes are filled)"] += sum(
            not entry.get("segmentation") for entry in objects
        )
        for k in np.argsort(areas, kind="stable")[::-1]:
            x, y, bitmap = patches[k]
            label_map[y : y + len(bitmap), x : x + bitmap.shape[1]][bitmap > 0] = k + 1
        left = np.bincount(label_map.ravel(), minlength=len(objects) + 1)[1:]
        lost["objects partly covered by smaller ones (a pixel holds one number)"] += int(
            ((left > 0) & (left < areas)).sum()
        )
        lost["objects without a pixel of their own (left out)"] += int((left == 0).sum())
        target = (folder / "masks" / split / name).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            temporary.write_bytes(cv2.imencode(".png", label_map)[1].tobytes())
        if len(names) > 1:
            classes = {k: names[entry["category_id"]] for k, entry in enumerate(objects, 1) if left[k - 1]}
            write_json(target.with_suffix(".json"), classes)
    write_text(sheet, text)
    return +lost


WRITERS: dict[str, Callable[[Source, Path, str], Counter[str]]] = {
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
    "masks": write_masks,
}


def refuse_clashes(sources: list[Source], to: str) -> None:
    """Raises `UserError` for what does not fit into one folder of a format: images of one name, or other classes."""
    stems: dict[str, Path] = {}
    for source in sources:
        names, others = (list(unique_names(each).values()) for each in (source, sources[0]))
        if to in ("yolo", "masks") and names != others:
            raise UserError(
                f"{source.path} and {sources[0].path} list other classes: convert them one by one (--split), into folders "
                "of their own"
            )
        for image in source.content["images"] if to == "voc" else ():
            file = source.images / image["file_name"]
            if (other := stems.setdefault(file.stem, file)) != file:
                raise UserError(f"{other} and {file} would both become {file.stem}: rename one of them")


def _images(
    source: Source, folder: Path, lost: Counter[str], flat: bool = False
) -> Iterator[tuple[dict[str, Any], Objects, str]]:
    """(image, its objects, its name below `folder`), the file copied there. Raises `UserError` for two of one name, also where
    an earlier conversion has put another one there."""
    size_of = {image["id"]: image for image in source.content["images"]}
    objects: dict[Any, Objects] = {identity: [] for identity in size_of}
    for entry in source.content["annotations"]:
        if entry.get("iscrowd"):
            lost[CROWDS] += 1
        elif min(_box_inside(entry, size_of[entry["image_id"]])[2:]) <= 0:
            lost[NO_AREA] += 1
        else:
            objects[entry["image_id"]].append(entry)
            lost[KEYPOINTS] += any(entry.get("keypoints") or ())
    stems: dict[str, str] = {}
    files = [Path(image["file_name"]) for image in source.content["images"]]
    flat = flat or any(map(Path.is_absolute, files))
    base = os.path.commonpath([file.parent for file in files]) if not flat else ""
    for image, given in zip(source.content["images"], files, strict=True):
        stem = given.stem if flat else given.relative_to(base).with_suffix("").as_posix()
        if stem in stems:
            raise UserError(f"{stems[stem]} and {image['file_name']} would both become {stem}: rename one of them")
        stems[stem] = image["file_name"]
        file, target = source.images / image["file_name"], folder / f"{stem}{Path(image['file_name']).suffix}"
        if target.is_file() and file.is_file() and not filecmp.cmp(file, target, shallow=False):
            raise UserError(f"{target}: is there already, and is another image than {file}: choose an empty folder")
    for image, stem in zip(source.content["images"], stems, strict=True):
        name = f"{stem}{Path(image['file_name']).suffix}"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source.images / image["file_name"], target)
        except shutil.SameFileError:
            raise UserError(f"{target}: is the source image itself; choose another folder") from None
        except OSError as error:
            raise UserError(
                f"{source.images / image['file_name']}: cannot be copied to {target} ({error.strerror})"
            ) from None
        yield image, objects[image["id"]], name


def _box_inside(entry: dict[str, Any], image: dict[str, Any]) -> tuple[float, float, float, float]:
    """XYWH of the part of a box that lies in its image."""
    x, y, w, h = entry["bbox"]
    left, top = max(x, 0), max(y, 0)
    return left, top, min(x + w, image["width"]) - left, min(y + h, image["height"]) - top


def _inside(polygons: Polygons, image: dict[str, Any]) -> Polygons:
    """The parts of polygons that lie in their image."""
    window = rectangle((image["height"], image["width"]))
    cut = [clip_polygon(np.reshape(np.asarray(polygon, np.float64), (-1, 2)), window) for polygon in polygons]
    return [points.ravel().tolist() for points in cut if len(points)]


def _polygons(entry: dict[str, Any], image: dict[str, Any], lost: Counter[str]) -> Polygons:
    """The object's outlines; [] without a mask. Of run lengths the contours of the parts, half a pixel exact."""
    segmentation = entry.get("segmentation")
    if not isinstance(segmentation, dict):
        return [polygon for polygon in segmentation or [] if len(polygon) >= 6]
    # Four times as large, so that the contour runs along the pixels' edges within an eighth of a pixel.
    bitmap = decode_rle(segmentation, image["height"], image["width"])
    x, y, w, h = (int(v) for v in cv2.boundingRect(bitmap))
    crop = np.kron(bitmap[y : y + h, x : x + w], np.ones((4, 4), np.uint8))
    contours, levels = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = [c for c, level in zip(contours, levels[0] if levels is not None else [], strict=True) if level[3] < 0]
    lost[HOLES] += len(outer) < len(contours)
    simple = [cv2.approxPolyDP(contour, 1.0, closed=True)[:, 0] for contour in outer]
    return [((points + 0.5) / 4 + (x, y)).ravel().tolist() for points in simple if len(points) >= 3]


def _joined(polygons: Polygons, lost: Counter[str]) -> list[float]:
    """One polygon that runs through all: from the first to each other one and back the same way."""
    first, *others = (np.reshape(polygon, (-1, 2)) for polygon in polygons)
    lost[PARTS] += bool(others)
    path = [first]
    for points in others:
        path += [points, points[:1], first[-1:]]
    return np.concatenate(path).ravel().tolist()
