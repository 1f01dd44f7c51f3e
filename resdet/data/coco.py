"""COCO JSON -> `Annotations`: checked, in our conventions. The only place where COCO's XYWH comes in.

Format: https://cocodataset.org/#format-data. Segmentations are lists of polygons, uncompressed or compressed RLE.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from resdet.data.index import ImageInfo, ImageList, Objects, Polygons, pack
from resdet.errors import UserError, listed
from resdet.masks import Rle, rle_covers

MAX_PIXELS = 2**28  # of one picture; a bitmap of it takes as many bytes
MAX_POINTS = 100_000  # of one object's outline


@dataclass
class Annotations:
    """A dataset split. `category_ids[label]` is the JSON's id of a label; `skipped` counts what does not train, by reason;
    `content` is COCO's structure, kept where it is evaluated against."""

    source: Path
    images: ImageList
    class_names: list[str]
    category_ids: list[int]
    skipped: Counter[str] = field(default_factory=Counter)
    content: dict[str, Any] | None = None

    def summary(self) -> str:
        """One line for people: how many pictures, objects, classes, and what was skipped."""
        empty = int((self.images.counts == 0).sum())
        line = f"{len(self.images)} images, {len(self.images.labels)} objects, {len(self.class_names)} classes"
        line += f", {empty} images without objects (kept as negatives)" if empty else ""
        return line + "".join(f"; {count} {reason}" for reason, count in sorted(self.skipped.items()))


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `UserError`."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_coco_json(path: Path) -> dict[str, Any]:
    """A COCO annotation file as a dict with its three lists. Raises `UserError`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object with images, annotations and categories, not a list")
    problems = [
        f'"{key}" is missing or is not a list of objects'
        for key in ("images", "annotations", "categories")
        if not isinstance(content.get(key), list) or not all(isinstance(entry, dict) for entry in content[key])
    ]
    if problems:
        raise listed(f"{path}: not a COCO annotation file:", problems)
    return content


def read_coco(annotations: Path, images: Path) -> Annotations:
    """Read and check a COCO file whose pictures are in the folder `images`. Raises `UserError`."""
    content = read_coco_json(annotations)
    if not images.is_dir():
        raise UserError(f"{images}: no such image folder (the pictures of {annotations})")
    return parse_coco(content, images, annotations)


def parse_coco(
    content: dict[str, Any], images: Path, annotations: Path, origins: dict[int, str] | None = None
) -> Annotations:
    """Check COCO's structure. Raises one `UserError` that lists every problem.

    annotations: what messages name; origins: annotation id -> what they call it, where it came from another format.
    Crowds, boxes without area inside the image and polygons of under three points are skipped and counted.
    """
    problems: list[str] = []
    categories = read_categories(content["categories"], problems)
    records = _images(content["images"], images, problems)
    label_of = {identity: label for label, identity in enumerate(categories)}
    skipped: Counter[str] = Counter()
    found: dict[int, list[tuple[list[float], int, Polygons | Rle | None]]] = {identity: [] for identity in records}
    known = {entry["id"] for entry in content["images"] if is_id(entry.get("id"))}
    for i, entry in enumerate(content["annotations"]):
        identity = entry.get("id", f"number {i}")
        what = (origins or {}).get(identity if is_id(identity) else 0, f"annotation {str(identity)[:40]}")
        image_id, category = check_ids(entry, known, categories, what, problems)
        if image_id is None or category is None:
            continue  # a problem already
        check_flags(entry, what, problems)
        if image_id in records:
            box = parse_box(entry.get("bbox"), records[image_id][1], what, problems)
            if entry.get("iscrowd"):
                skipped["crowd regions (no target of training)"] += 1
            elif box is None:
                pass  # a problem already
            elif box[2] <= box[0] or box[3] <= box[1]:
                skipped["boxes without area inside their image"] += 1
            else:
                segmentation = parse_segmentation(
                    entry.get("segmentation"), records[image_id][1], what, problems, skipped
                )
                found[image_id].append((box, label_of[category], segmentation))
    if problems:
        raise listed(f"{annotations}: {len(problems)} problem(s):", problems)
    infos = []
    for identity, (file, size) in records.items():
        entries = found[identity]
        boxes = np.array([box for box, _, _ in entries], dtype=np.float32).reshape(-1, 4)
        labels = np.array([label for _, label, _ in entries], dtype=np.int64)
        infos.append(ImageInfo(identity, file, size, Objects(boxes, labels, [s for _, _, s in entries])))
    if not infos:
        raise UserError(f'{annotations}: "images" is empty')
    return Annotations(annotations, pack(infos, images), list(categories.values()), list(categories), skipped)


def read_categories(entries: list[dict[str, Any]], problems: list[str]) -> dict[int, str]:
    """{id: name} by rising id: label k is the k-th, however the ids are spaced."""
    categories: dict[int, str] = {}
    for entry in entries:
        identity = entry.get("id")
        if not is_id(identity):
            problems.append(f"category {entry.get('name')!r}: its id {identity!r} is not an integer")
        elif identity in categories:
            problems.append(f"category id {identity} is used twice: {categories[identity]!r}, {entry.get('name')!r}")
        else:
            categories[identity] = str(entry.get("name", identity))
    if not entries:
        problems.append('"categories" is empty, so there is no class to learn')
    return dict(sorted(categories.items()))


def _images(
    entries: list[dict[str, Any]], folder: Path, problems: list[str]
) -> dict[int, tuple[Path, tuple[int, int]]]:
    records: dict[int, tuple[Path, tuple[int, int]]] = {}
    present: dict[Path, set[str]] = {}  # one listing a folder is faster than one look a file
    for i, entry in enumerate(entries):
        identity, name = entry.get("id"), entry.get("file_name")
        height, width = entry.get("height"), entry.get("width")
        if not is_id(identity) or identity in records:
            problems.append(f"image number {i} ({name}): id {identity!r} is used twice or is not an integer")
            continue
        if not isinstance(name, str) or not name:
            problems.append(f"image {identity}: file_name {name!r} is not a name")
            continue
        if not is_size(height, width):
            problems.append(
                f"image {identity} ({name}): height {height!r} and width {width!r} must be positive integers, and the "
                f"picture of no more than {MAX_PIXELS} pixels"
            )
            continue
        if "\x00" in name:
            problems.append(f"image {identity}: file_name {name!r} is not a name")
            continue
        file = folder / name
        if ".." in file.parts and not file.resolve().is_relative_to(folder.resolve()):
            problems.append(f"image {identity}: file_name {name!r} leads out of the image folder {folder}")
            continue
        if file.parent not in present:
            present[file.parent] = {p.name for p in file.parent.iterdir()} if file.parent.is_dir() else set()
        if file.name not in present[file.parent]:
            problems.append(f"image {identity}: {file} does not exist")
            continue
        assert isinstance(height, int)
        assert isinstance(width, int)
        records[identity] = (file, (height, width))
    return records


def check_ids(
    entry: dict[str, Any], images: Collection[Any], categories: Collection[int], what: str, problems: list[str]
) -> tuple[int | None, int | None]:
    """(image_id, category_id) of an annotation or a result, None for one that is unknown, with a problem that says so."""
    image_id, category = entry.get("image_id"), entry.get("category_id")
    if not is_id(image_id) or image_id not in images:
        problems.append(f'{what}: image_id {image_id!r} is not among the "images"')
        image_id = None
    if not is_id(category) or category not in categories:
        problems.append(f'{what}: category_id {category!r} is not among the "categories" ({_few(categories)})')
        category = None
    return image_id, category


def check_flags(entry: dict[str, Any], what: str, problems: list[str]) -> None:
    """Report an iscrowd that is neither 0 nor 1, or an area that is no number."""
    if entry.get("iscrowd", 0) not in (0, 1, None):
        problems.append(f"{what}: iscrowd {str(entry['iscrowd'])[:40]} is neither 0 nor 1")
    if entry.get("area") is not None and not is_number(entry["area"]):
        problems.append(f"{what}: area {str(entry['area'])[:40]} is not a number")


def parse_box(bbox: Any, size: tuple[int, int], what: str, problems: list[str]) -> list[float] | None:
    """XYWH -> XYXY, cut to the image of `size` (H, W); None, with a problem, if it is no box."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(is_number(v) for v in bbox):
        problems.append(f"{what}: bbox {str(bbox)[:60]} is not [x, y, width, height] in pixels")
        return None
    x, y, w, h = bbox
    return [max(x, 0), max(y, 0), min(x + w, size[1]), min(y + h, size[0])]


def parse_segmentation(
    value: Any, size: tuple[int, int], what: str, problems: list[str], skipped: Counter[str]
) -> Polygons | Rle | None:
    """Checked polygons or RLE of an annotation in an image of `size` (H, W); None, or a problem, where there is none."""
    if not value:
        return None
    if isinstance(value, dict):
        counts = value.get("counts")
        if value.get("size") != list(size):
            problems.append(f"{what}: RLE of size {str(value.get('size'))[:40]} in an image of {list(size)}")
            return None
        if not rle_covers(counts, size[0] * size[1]):
            problems.append(f"{what}: the RLE counts do not add up to {size[0]} x {size[1]} pixels")
            return None
        return value
    whole = isinstance(value, list) and all(
        isinstance(p, list) and len(p) % 2 == 0 and all(is_number(v) for v in p) for p in value
    )
    if not whole:
        problems.append(f"{what}: segmentation {str(value)[:60]} is neither polygons [[x, y, …], …] nor RLE")
        return None
    if any(abs(v) > 16 * max(size) for p in value for v in p):
        problems.append(f"{what}: its polygon reaches far outside its image of {size[0]} x {size[1]} (H x W)")
        return None
    if sum(map(len, value)) > 2 * MAX_POINTS:
        problems.append(
            f"{what}: its outline has {sum(map(len, value)) // 2} points; more than {MAX_POINTS} is no outline"
        )
        return None
    polygons = [p for p in value if len(p) >= 6]
    skipped["polygons of under three points"] += len(value) - len(polygons)
    if not skipped["polygons of under three points"]:
        del skipped["polygons of under three points"]
    return polygons or None


def is_id(value: Any) -> TypeGuard[int]:
    """An integer that fits 64 bits; not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: Any) -> bool:
    """Below a thousand million, as coordinates, areas and scores are; not a bool, an infinity or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def is_size(height: Any, width: Any) -> bool:
    """Sides of a picture that memory can hold."""
    return type(height) is type(width) is int and height > 0 and width > 0 and height * width <= MAX_PIXELS


def _few(items: Any, count: int = 8) -> str:
    items = list(items)
    return ", ".join(map(str, items[:count])) + (f", … {len(items)} in all" if len(items) > count else "")
