"""COCO JSON -> `Annotations`: checked, in our conventions. The only place where COCO's XYWH comes in.

Format: https://cocodataset.org/#format-data. Segmentations are lists of polygons, uncompressed or compressed RLE.
"""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from resdet.data.images import MAX_PIXELS
from resdet.data.index import ImageList, Polygons, Segmentation, pack
from resdet.errors import UserError, listed
from resdet.masks import Rle, rle_covers

MAX_POINTS = 100_000  # of one object's outline


@dataclass
class Annotations:
    """A dataset split. `category_ids[label]` is the JSON's id of a label, None where labels are a model's and the JSON does
    not list that class (`relabel.for_classes`); `skipped` counts what does not train, by reason;
    `content` is COCO's structure, kept where it is evaluated against."""

    source: Path
    images: ImageList
    class_names: list[str]
    category_ids: Sequence[int | None]
    skipped: Counter[str] = field(default_factory=Counter)
    content: dict[str, Any] | None = None

    def summary(self) -> str:
        """One line for people: how many pictures, objects, classes, and what was skipped."""
        empty = int((self.images.counts == 0).sum())
        line = f"{len(self.images)} images, {len(self.images.labels)} objects, {len(self.class_names)} classes"
        line += f", {empty} images without objects (kept as negatives)" if empty else ""
        return line + "".join(f"; {count} {reason}" for reason, count in sorted(self.skipped.items()))


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's search for cycles: it would double the time to read millions of entries, none of them garbage."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `UserError`."""
    try:
        with no_collection():
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


@no_collection()
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
    known = {entry["id"] for entry in content["images"] if is_id(entry.get("id"))}
    number_of = {identity: number for number, identity in enumerate(records)}
    label_of = {identity: label for label, identity in enumerate(categories)}
    skipped: Counter[str] = Counter()
    owners: list[int] = []
    labels: list[int] = []
    corners: list[float] = []
    masks: list[Segmentation] = []
    for i, entry in enumerate(content["annotations"]):
        wrong: list[str] = []
        image_id, category = check_ids(entry, known, categories, wrong)
        if image_id in records and category is not None:
            size = records[image_id][1]
            check_flags(entry, wrong)
            box = parse_box(entry.get("bbox"), size, wrong)
            if entry.get("iscrowd"):
                skipped["crowd regions (no target of training)"] += 1
            elif box is None:
                pass  # a problem already
            elif box[2] <= box[0] or box[3] <= box[1]:
                skipped["boxes without area inside their image"] += 1
            else:
                owners.append(number_of[image_id])
                labels.append(label_of[category])
                corners += box
                masks.append(parse_segmentation(entry.get("segmentation"), size, wrong, skipped))
        if wrong:
            identity = entry.get("id", f"number {i}")
            what = (origins or {}).get(identity if is_id(identity) else 0, f"annotation {str(identity)[:40]}")
            problems += [f"{what}: {text}" for text in wrong]
    if problems:
        raise listed(f"{annotations}: {len(problems)} problem(s):", problems)
    if not records:
        raise UserError(f'{annotations}: "images" is empty')
    listing = pack(
        images, list(records), [name for name, _ in records.values()], [size for _, size in records.values()],
        owners, np.array(corners, np.float32).reshape(-1, 4), labels, masks,
    )  # fmt: skip
    return Annotations(annotations, listing, list(categories.values()), list(categories), skipped)


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


def _images(entries: list[dict[str, Any]], folder: Path, problems: list[str]) -> dict[int, tuple[str, tuple[int, int]]]:
    """{id: (file name as it is given, (height, width))} of the images that are as they should be."""
    records: dict[int, tuple[str, tuple[int, int]]] = {}
    present: dict[str, set[str]] = {}  # one listing a folder is faster than one look a file
    for i, entry in enumerate(entries):
        identity, name = entry.get("id"), entry.get("file_name")
        height, width = entry.get("height"), entry.get("width")
        if not is_id(identity) or identity in records:
            problems.append(f"image number {i} ({name}): id {identity!r} is used twice or is not an integer")
            continue
        if not isinstance(name, str) or not name or "\x00" in name:
            problems.append(f"image {identity}: file_name {name!r} is not a name")
            continue
        if not is_size(height, width):
            problems.append(
                f"image {identity} ({name}): height {height!r} and width {width!r} must be positive integers, and the "
                f"picture of no more than {MAX_PIXELS} pixels"
            )
            continue
        if leads_out(name):
            problems.append(f"image {identity}: file_name {name!r} leads out of the image folder {folder}")
            continue
        parent, base = os.path.split(name)
        if parent not in present:
            inside = folder / parent
            present[parent] = set(os.listdir(inside)) if inside.is_dir() else set()
        if base not in present[parent]:
            problems.append(f"image {identity}: {folder / name} does not exist")
            continue
        assert isinstance(height, int)
        assert isinstance(width, int)
        records[identity] = (name, (height, width))
    return records


def check_ids(
    entry: dict[str, Any], images: Collection[Any], categories: Collection[int], problems: list[str]
) -> tuple[int | None, int | None]:
    """(image_id, category_id) of an annotation or a result, None for one that is unknown, with a problem that says so."""
    image_id, category = entry.get("image_id"), entry.get("category_id")
    if not is_id(image_id) or image_id not in images:
        problems.append(f'image_id {image_id!r} is not among the "images"')
        image_id = None
    if not is_id(category) or category not in categories:
        problems.append(f'category_id {category!r} is not among the "categories" ({_few(categories)})')
        category = None
    return image_id, category


def check_flags(entry: dict[str, Any], problems: list[str]) -> None:
    """Report an iscrowd that is neither 0 nor 1, or an area that is no number."""
    area = entry.get("area")
    if entry.get("iscrowd", 0) not in (0, 1, None):
        problems.append(f"iscrowd {str(entry['iscrowd'])[:40]} is neither 0 nor 1")
    if area is not None and not is_number(area):
        problems.append(f"area {str(area)[:40]} is not a number")


def parse_box(bbox: Any, size: tuple[int, int], problems: list[str]) -> tuple[float, float, float, float] | None:
    """XYWH -> XYXY, cut to the image of `size` (H, W); None, with a problem, if it is no box."""
    if not is_box(bbox):
        problems.append(f"bbox {str(bbox)[:60]} is not [x, y, width, height] in pixels")
        return None
    x, y, w, h = bbox
    right, bottom = x + w, y + h
    height, width = size
    return (  # rather than min and max: this is the innermost line of the reading of 30 million boxes
        x if x > 0 else 0, y if y > 0 else 0, right if right < width else width, bottom if bottom < height else height
    )  # fmt: skip


def parse_segmentation(
    value: Any, size: tuple[int, int], problems: list[str], skipped: Counter[str]
) -> Polygons | Rle | None:
    """Checked polygons or RLE of an annotation in an image of `size` (H, W); None, or a problem, where there is none."""
    if not value:
        return None
    if isinstance(value, dict):
        counts = value.get("counts")
        if value.get("size") != list(size):
            problems.append(f"RLE of size {str(value.get('size'))[:40]} in an image of {list(size)}")
            return None
        if not rle_covers(counts, size[0] * size[1]):
            problems.append(f"the RLE counts do not add up to {size[0]} x {size[1]} pixels")
            return None
        return value
    if not is_polygons(value):
        problems.append(f"segmentation {str(value)[:60]} is neither polygons [[x, y, …], …] nor RLE")
        return None
    if any(max(map(abs, polygon), default=0) > 16 * max(size) for polygon in value):
        problems.append(f"its polygon reaches far outside its image of {size[0]} x {size[1]} (H x W)")
        return None
    if sum(map(len, value)) > 2 * MAX_POINTS:
        problems.append(f"its outline has {sum(map(len, value)) // 2} points; more than {MAX_POINTS} is no outline")
        return None
    polygons = [polygon for polygon in value if len(polygon) >= 6]
    if len(polygons) < len(value):
        skipped["polygons of under three points"] += len(value) - len(polygons)
    return polygons or None


def leads_out(name: str) -> bool:
    """Whether a file name climbs out of its folder. By the name alone: a link inside may point anywhere."""
    return ".." in name and os.path.normpath(name).split(os.sep)[0] == ".."


def is_id(value: Any) -> TypeGuard[int]:
    """An integer that fits 64 bits; not a bool."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: Any) -> bool:
    """Below a thousand million, as coordinates, areas and scores are; not a bool, an infinity or NaN."""
    return type(value) in _NUMBERS and abs(value) < 1e9


def is_numbers(value: Any) -> bool:
    """A list of numbers."""
    return type(value) is list and _NUMBERS.issuperset(map(type, value)) and all(map(_LIMIT.__gt__, map(abs, value)))


def is_box(value: Any) -> bool:
    """A list of four numbers."""
    return is_numbers(value) and len(value) == 4


def is_polygons(value: Any) -> bool:
    """A list of lists of numbers x, y, x, y, …"""
    return isinstance(value, list) and all(is_numbers(p) and len(p) % 2 == 0 for p in value)


_NUMBERS = frozenset((int, float))
_LIMIT = 1e9


def is_size(height: Any, width: Any) -> bool:
    """Sides of a picture that memory can hold."""
    return type(height) is type(width) is int and height > 0 and width > 0 and height * width <= MAX_PIXELS


def _few(items: Any, count: int = 8) -> str:
    items = list(items)
    return ", ".join(map(str, items[:count])) + (f", … {len(items)} in all" if len(items) > count else "")
