"""COCO's structure -> the files of other formats: YOLO (boxes or polygons), Pascal VOC, labelme; PNGs in `write_maps.py`.

The annotations must be accepted by `parse_coco`. The images are copied along, so that the folder is complete. What a
format cannot store is counted in the result.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import cv2
import numpy as np

from resdet.data.convex import clip_polygon, rectangle
from resdet.data.edit import unique_names
from resdet.data.formats.common import Source
from resdet.data.formats.write_common import box_inside, copied
from resdet.data.formats.write_maps import write_label_maps, write_masks, write_panoptic
from resdet.data.formats.yolo_layout import label_folder
from resdet.errors import UserError
from resdet.masks import decode_rle
from resdet.writing import write_json, write_text

PARTS = "objects of several parts (joined into one polygon by lines of zero width)"
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
    for image, objects, name in copied(source, folder / "images" / split, lost):
        lines = []
        for entry in objects:
            outline = _inside(_polygons(entry, image, lost), image) if masks else []
            if outline:
                values = _joined(outline, lost)
            else:
                lost[NO_MASK] += masks
                x, y, w, h = box_inside(entry, image)
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
    for image, objects, name in copied(source, folder / "JPEGImages", lost, flat=True):
        parts = []
        for entry in objects:
            lost["masks (left out: only boxes are written)"] += bool(entry.get("segmentation"))
            x, y, w, h = box_inside(entry, image)
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
    for image, objects, name in copied(source, folder, lost):
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


WRITERS: dict[str, Callable[[Source, Path, str], Counter[str]]] = {
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
    "masks": write_masks,
    "label_maps": write_label_maps,
    "coco_panoptic": write_panoptic,
}


def refuse_clashes(sources: list[Source], to: str) -> None:
    """Raises `UserError` for what does not fit into one folder of a format: images of one name, or other classes."""
    stems: dict[str, Path] = {}
    for source in sources:
        names, others = (list(unique_names(each).values()) for each in (source, sources[0]))
        if to in ("yolo", "masks", "label_maps") and names != others:
            raise UserError(
                f"{source.path} and {sources[0].path} list other classes: convert them one by one (--split), into folders "
                "of their own"
            )
        for image in source.content["images"] if to == "voc" else ():
            file = source.images / image["file_name"]
            if (other := stems.setdefault(file.stem, file)) != file:
                raise UserError(f"{other} and {file} would both become {file.stem}: rename one of them")


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
