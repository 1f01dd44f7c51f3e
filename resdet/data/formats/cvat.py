"""CVAT for images 1.1: annotations.xml, with the images beside it -> COCO's structure.

https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/: boxes (also rotated), polygons, ellipses, masks and
skeletons; coordinates in pixels from zero, continuous.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from resdet.data.formats.common import Builder, Source, ellipse_polygon, polygon_box, read_xml, rectangle_polygon
from resdet.data.formats.lookup import located
from resdet.errors import UserError

NO_AREA = ("polyline", "points", "tag", "cuboid")


def is_cvat(text: bytes) -> bool:
    """Whether the beginning of an XML file is CVAT's."""
    return b"<annotations>" in text[:1000]


def read_cvat(file: Path, images: Path | None = None, split: str | None = None) -> Source:
    """All images that `file` lists, found below the folder `images` (None: the file's own).

    Raises `UserError` where nothing can be read.
    """
    images = images or file.parent
    root = read_xml(file)
    if root.tag != "annotations":
        raise UserError(f"{file}: not CVAT's: its root element is <{root.tag}>, not <annotations>")
    if root.find("track") is not None:
        raise UserError(
            f"{file}: holds the tracks of a video; export the task from CVAT as 'CVAT for images 1.1' or COCO"
        )
    labels = [(text, node) for node in root.iter("label") if (text := (node.findtext("name") or "").strip())]
    shapes = [shape for image in root.iter("image") for shape in image if shape.tag not in NO_AREA]
    used = {name for shape in shapes if (name := shape.get("label", "")).strip()}
    types = {name: (node.findtext("type") or "").strip() for name, node in labels if node.find("parent") is None}
    named = [name for name, kind in types.items() if name in used or kind not in NO_AREA]
    builder = Builder(file, images, list(dict.fromkeys([*named, *sorted(used)])))
    problems = builder.source.problems
    for name in types.keys() - set(named):
        builder.source.remarks[f"labels of type {types[name]} (no classes: they enclose no area)"] += 1
    keypoints: dict[str, list[str]] = {}  # of each skeleton, in the order of the labels
    for name, node in labels:
        if parent := (node.findtext("parent") or "").strip():
            keypoints.setdefault(parent, []).append(name)
    for category in builder.source.content["categories"]:
        if category["name"] in keypoints:
            category |= {"keypoints": keypoints[category["name"]], "skeleton": []}
    entries: dict[str, Element] = {}
    for node in root.iter("image"):
        name = node.get("name", "")
        if name in entries:
            problems.append(f"{file}: image {name!r} is listed twice")
        entries[name] = node
    for path, size, name in located(entries, images, file, problems, builder.source.remarks):
        image_id = builder.image(path, size)
        for number, shape in enumerate(entries[name], 1):
            origin = f"{file}: {name}: shape {number} ({shape.tag})"
            if shape.tag == "skeleton":
                _add_skeleton(builder, image_id, shape, origin, keypoints.get(shape.get("label", ""), []))
            else:
                _add(builder, image_id, shape, origin, size)
    return builder.source


def _add(builder: Builder, image_id: int, shape: Element, origin: str, size: tuple[int, int]) -> None:
    label = shape.get("label", "")
    if shape.tag in NO_AREA:
        builder.source.remarks[f"shapes of type {shape.tag} (left out: they enclose no area)"] += 1
        return
    if not label.strip():
        builder.source.problems.append(f"{origin}: has no label")
        return
    try:
        if shape.tag == "box":
            x1, y1, x2, y2 = (float(shape.attrib[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
            angle = float(shape.get("rotation", 0))
            if angle:
                builder.polygons(image_id, label, [rectangle_polygon(x1, y1, x2 - x1, y2 - y1, angle)], origin)
            else:
                builder.object(image_id, label, [x1, y1, x2 - x1, y2 - y1], origin)
        elif shape.tag == "polygon":
            builder.polygons(image_id, label, [_points(shape)], origin)
        elif shape.tag == "ellipse":
            cx, cy, rx, ry = (float(shape.attrib[key]) for key in ("cx", "cy", "rx", "ry"))
            angle = np.deg2rad(float(shape.get("rotation", 0)))
            builder.polygons(image_id, label, [ellipse_polygon(cx, cy, rx, ry, angle)], origin)
        elif shape.tag == "mask":
            left, top, width, height = (int(float(shape.attrib[key])) for key in ("left", "top", "width", "height"))
            builder.bitmap(image_id, label, _mask(shape, height, width), (top, left), size, origin)
        else:
            builder.source.remarks[f"shapes of type {shape.tag} (left out: unknown type)"] += 1
    except (KeyError, ValueError, OverflowError) as error:
        builder.source.problems.append(f"{origin}: cannot be read ({error})")


def _add_skeleton(builder: Builder, image_id: int, shape: Element, origin: str, names: list[str]) -> None:
    """The keypoints in the order of `names`, and the box around the labelled ones; outside is 0, occluded 1, visible 2.

    Counted and left out are those without a labelled keypoint, or with too few to span a box: nothing tells the object's size.
    """
    found: dict[str, list[float]] = {}
    for node in shape.iter("points"):
        try:
            x, y = _points(node)
        except (KeyError, ValueError) as error:
            builder.source.problems.append(f"{origin}: keypoint {node.get('label')}: cannot be read ({error})")
            return
        visible = 0 if node.get("outside") == "1" else 1 if node.get("occluded") == "1" else 2
        found[node.get("label", "")] = [x, y, visible] if visible else [0, 0, 0]
    if unknown := set(found) - set(names):
        builder.source.problems.append(
            f"{origin}: the keypoints {', '.join(sorted(unknown))} are not among its label's"
        )
        return
    values = [found.get(name, [0, 0, 0]) for name in names]
    there = [value for value in values if value[2]]
    box = polygon_box([v for x, y, _ in there for v in (x, y)]) if there else [0.0] * 4
    if min(box[2:]) <= 0:
        builder.source.remarks["skeletons whose labelled keypoints, if any, span no box (left out)"] += 1
        return
    builder.object(image_id, shape.get("label", ""), box, origin, keypoints=[v for value in values for v in value])


def _points(shape: Element) -> list[float]:
    """points="x,y;x,y;…" -> [x, y, x, y, …]"""
    pairs = [point.split(",") for point in shape.attrib["points"].split(";")]
    return [float(v) for x, y in pairs for v in (x, y)]


def _mask(shape: Element, height: int, width: int) -> np.ndarray:
    """rle="n, n, …": lengths of the runs of 0 and 1 in turn, row after row -> (height, width) bool."""
    runs = np.array([int(v) for v in shape.attrib["rle"].split(",")], dtype=np.int64)
    if height < 1 or width < 1 or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"its runs cover {int(runs.sum())} pixels, not {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
