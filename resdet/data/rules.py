"""What a valid annotation is: one set of rules for readers, training, evaluation and `check`.

They judge the plain form that `normalise.py` makes. A problem is a line of text for the user; the caller names file and entry.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeGuard

from resdet.class_names import few
from resdet.data.images import MAX_PIXELS
from resdet.data.index import Polygons
from resdet.masks import Rle, rle_covers

Id = int | str
MAX_POINTS = 100_000  # of one object's outline
MAX_TEXT = 1000  # characters of an id that is text
NUMBERS = frozenset((int, float))
IDS: frozenset[type] = frozenset((int, str))
_LIMIT = 1e9
NUMBER = re.compile(r"\s*[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,3})?\s*", re.ASCII)


def read_categories(entries: list[dict[str, Any]], problems: list[str]) -> dict[Any, str]:
    """{id: name} by rising id: label k is the k-th, however the ids are spaced."""
    categories: dict[Any, str] = {}
    kind = id_kind(entries)
    for entry in entries:
        identity = entry.get("id")
        if not is_id(identity, kind):
            problems.append(f"category {entry.get('name')!r}: its id {identity!r} is not an integer")
        elif identity in categories:
            problems.append(f"category id {identity} is used twice: {categories[identity]!r}, {entry.get('name')!r}")
        else:
            categories[identity] = class_name(entry)
            if not categories[identity]:
                problems.append(f"category {identity!r}: its name {entry['name']!r} is no name: give it one")
    if not entries:
        problems.append('"categories" is empty, so there is no class to learn')
    return dict(sorted(categories.items()))


def class_name(category: dict[str, Any]) -> str:
    """The name of a category, its id where no name is given; "" for a name that is blank, null or otherwise none."""
    name = category.get("name", category.get("id"))
    return str(name) if (isinstance(name, str) and name.strip()) or type(name) in NUMBERS else ""


def check_ids(
    entry: dict[str, Any], images: Collection[Any], categories: Collection[Id], problems: list[str]
) -> tuple[Id | None, Id | None]:
    """(image_id, category_id) of an annotation or a result, None for one that is unknown, with a problem that says so."""
    image_id, category = entry.get("image_id"), entry.get("category_id")
    if not isinstance(image_id, int | str) or type(image_id) is bool or image_id not in images:
        problems.append(f'image_id {image_id!r} is not among the "images"')
        image_id = None
    if not isinstance(category, int | str) or type(category) is bool or category not in categories:
        problems.append(
            f'category_id {category!r} is not among the "categories" ({few(list(map(str, categories)), 8)})'
        )
        category = None
    return image_id, category


def title_of(annotation: dict[str, Any], number: int, origins: Mapping[int, str]) -> str:
    """What messages call an annotation: where it came from, its id, or its number in the list."""
    identity = annotation.get("id")
    known = origins.get(identity) if isinstance(identity, int) else None
    return known or f"annotation {str(f'number {number}' if identity is None else identity)[:40]}"


def check_flags(entry: dict[str, Any], problems: list[str]) -> None:
    """Report an iscrowd that is neither 0 nor 1, or an area that is not a number."""
    area, crowd = entry.get("area"), entry.get("iscrowd")
    if crowd is not None and (type(crowd) is not int or crowd not in (0, 1)):
        problems.append(f"iscrowd {str(crowd)[:40]} is neither 0 nor 1")
    if area is not None and not is_number(area):
        problems.append(f"area {str(area)[:40]} is not a number")


def parse_box(bbox: Any, size: tuple[int, int], problems: list[str]) -> tuple[float, float, float, float] | None:
    """XYWH -> XYXY, cut to the image of `size` (H, W); None, with a problem, if it is not a box."""
    if not is_box(bbox):
        problems.append(f"bbox {str(bbox)[:60]} is not [x, y, width, height] in pixels")
        return None
    x, y, w, h = bbox
    right, bottom = x + w, y + h
    height, width = size
    return (  # rather than min and max: the innermost line when reading 30 million boxes
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
        problems.append(f"its polygon extends far outside its image of {size[0]} x {size[1]} (H x W)")
        return None
    if sum(map(len, value)) > 2 * MAX_POINTS:
        problems.append(f"its outline has {sum(map(len, value)) // 2} points; the limit is {MAX_POINTS}")
        return None
    polygons = [polygon for polygon in value if len(polygon) >= 6]
    if len(polygons) < len(value):
        skipped["polygons of fewer than three points"] += len(value) - len(polygons)
    return polygons or None


def is_id(value: Any, kind: type[int] | type[str] = int) -> bool:
    """An integer that fits 64 bits, not a bool; where ids are text (`id_kind`), a text that arrays and files can hold."""
    if type(value) is not kind:
        return False
    return 0 < len(value) <= MAX_TEXT and "\0" not in value if isinstance(value, str) else -(2**63) <= value < 2**63


def id_kind(entries: Iterable[dict[str, Any]]) -> type[int] | type[str]:
    """`str` where the ids of the images or categories are all text and not all of them numbers, as COCO's own tools allow;
    else `int`."""
    ids = [entry.get("id") for entry in entries]
    text = bool(ids) and all(is_id(value, str) for value in ids) and any(plain_int(value) is None for value in ids)
    return str if text else int


def is_name(value: Any) -> TypeGuard[str]:
    """A file name."""
    return isinstance(value, str) and bool(value) and "\0" not in value


def leads_out(name: str) -> bool:
    """Whether a file name leaves its folder. By the name alone: a link inside may point anywhere."""
    return ".." in name and os.path.normpath(name).split(os.sep)[0] == ".."


def is_number(value: Any) -> bool:
    """Whether it is a finite number below 1e9, as coordinates, areas and scores are, and not a bool."""
    return type(value) in NUMBERS and abs(value) < 1e9


def is_numbers(value: Any) -> bool:
    """A list of numbers."""
    return type(value) is list and NUMBERS.issuperset(map(type, value)) and all(map(_LIMIT.__gt__, map(abs, value)))


def is_box(value: Any) -> bool:
    """A list of four numbers."""
    return (
        type(value) is list
        and len(value) == 4
        and NUMBERS.issuperset(map(type, value))
        and all(map(_LIMIT.__gt__, map(abs, value)))
    )


def ordered_box(box: list[float]) -> list[float]:
    """XYWH whose negative sides run from the far corner to the near one -> the same box with positive sides."""
    x, y, w, h = box
    return [x + min(w, 0), y + min(h, 0), abs(w), abs(h)]


def is_polygons(value: Any) -> bool:
    """A list of lists of numbers x, y, x, y, …"""
    return isinstance(value, list) and all(is_numbers(p) and len(p) % 2 == 0 for p in value)


def is_size(height: Any, width: Any) -> bool:
    """Whether an image of these sides is within the limit."""
    return type(height) is type(width) is int and height > 0 and width > 0 and height * width <= MAX_PIXELS


def size_of(image: dict[str, Any]) -> tuple[int, int] | None:
    """(H, W) of an entry of "images"; None for one without a valid size."""
    height, width = image.get("height"), image.get("width")
    return (height, width) if is_size(height, width) else None  # type: ignore[return-value]


def plain_number(value: Any) -> int | float | None:
    """A number as it is, or the one that text writes ("13", "1.5e2"); None for anything else, such as "nan"."""
    if type(value) in NUMBERS:
        return value  # type: ignore[no-any-return]
    if not isinstance(value, str) or not NUMBER.fullmatch(value):
        return None
    try:
        return int(value)
    except ValueError:
        return float(value)


def plain_int(value: Any) -> int | None:
    """The whole number of 64 bits that a number or text is; None for anything else."""
    number = plain_number(value)
    if number is None or not abs(number) < 2**63 or number != int(number):
        return None
    return int(number)


def unquoted(value: Any) -> Any:
    """Of text that is a JSON list or object, as tables exported through CSV hold, its value; anything else as it is."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
