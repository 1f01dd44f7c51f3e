"""Segmentations as tools write them -> COCO's polygons [[x, y, …], …] or RLE {"size": [H, W], "counts": …}."""

from __future__ import annotations

import ast
import re
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from resdet.data.rules import NUMBERS, is_polygons, plain_int, plain_number, unquoted
from resdet.masks import encode_bitmap, rle_covers

BYTES = re.compile(r"b(['\"]).*\1", re.DOTALL)  # what str() makes of Python's bytes


class Outline(NamedTuple):
    """codes: of `READINGS`, what was read in another way than it is written."""

    value: Any
    codes: tuple[str, ...] = ()


def is_plain_outline(value: Any, size: Any) -> bool:
    """Whether a segmentation is written as COCO's are: polygons, or RLE of the image's (H, W); the fast path."""
    if type(value) is list:
        return all(type(p) is list and len(p) != 2 and NUMBERS.issuperset(map(type, p)) for p in value)
    if type(value) is dict:
        counts, sides = value.get("counts"), value.get("size")
        return type(counts) is str and counts[:1] != "b" and type(sides) is list and size == tuple(sides)
    return value is None


def plain_outline(value: Any, size: tuple[int, int] | None, box: Any) -> Outline:
    """A segmentation in COCO's form; as it is where it has no plain meaning. size: (H, W) of its image; box: XYWH."""
    given, value = value, unquoted(value)
    if isinstance(value, dict):
        return _plain_rle(value, size, box)
    if not isinstance(value, list) or not value or (is_polygons(value) and not _is_points(value)):
        return Outline(value, ("numbers-as-text",) if value is not given else ())
    if _is_points(value):
        polygons: list[Any] = [[plain_number(v) for point in value for v in point]]
    elif len(value) >= 6 and not any(isinstance(v, list) for v in value):
        polygons = [[plain_number(v) for v in value]]
    else:
        polygons = [_polygon(p) for p in value]
    if not is_polygons(polygons):
        return Outline(given)
    nested = all(isinstance(p, list) and not any(isinstance(v, list) for v in p) for p in value) and not _is_points(
        value
    )
    return Outline(polygons, ("numbers-as-text",) if nested else ("outline-nesting",))


def _is_points(value: Any) -> bool:
    """[[x, y], [x, y], [x, y], …], which are the corners of one polygon."""
    return (
        isinstance(value, list)
        and len(value) >= 3
        and all(isinstance(p, list) and len(p) == 2 and None not in map(plain_number, p) for p in value)
    )


def _polygon(value: Any) -> Any:
    """[x, y, …] of numbers, or of points; None for anything else."""
    if not isinstance(value, list):
        return None
    if _is_points(value):
        return [plain_number(v) for point in value for v in point]
    return [plain_number(v) for v in value]


def _plain_rle(value: dict[str, Any], size: tuple[int, int] | None, box: Any) -> Outline:
    codes: list[str] = []
    counts, sides = value.get("counts"), value.get("size")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii", "replace")
        codes.append("rle-as-bytes")
    elif isinstance(counts, str) and BYTES.fullmatch(counts):
        counts = _literal(counts)
        codes.append("rle-as-bytes")
    elif isinstance(counts, list) and not all(type(c) is int for c in counts):
        counts = [plain_int(c) for c in counts]
        codes.append("numbers-as-text")
    if isinstance(sides, list | tuple) and len(sides) == 2 and not all(type(s) is int for s in sides):
        sides = [plain_int(s) for s in sides]
        codes.append("numbers-as-text")
    if size and sides == [size[1], size[0]] and sides != list(size) and rle_covers(counts, size[0] * size[1]):
        turned = _transposed(counts, size, box)
        return Outline(turned, (*codes, "rle-transposed")) if turned else Outline(value)
    if not codes or (size and (sides != list(size) or not rle_covers(counts, size[0] * size[1]))):
        return Outline(value)
    return Outline({**value, "size": sides, "counts": counts}, tuple(dict.fromkeys(codes)))


def _literal(text: str) -> str | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return value.decode("ascii", "replace") if isinstance(value, bytes) else None


def _transposed(counts: Any, size: tuple[int, int], box: Any) -> dict[str, Any] | None:
    """The mask of an RLE whose size is [W, H]: either the bitmap was transposed or only its size; the box tells which.

    None where it fits neither, or both with different pixels.
    """
    height, width = size
    as_written = _encoded(counts, width, height)
    turned = encode_bitmap(coco_mask.decode(as_written).T.astype(bool))
    renamed = _encoded(counts, height, width)
    fitting = [rle for rle in (turned, renamed) if _fits(rle, box)]
    if not fitting or (len(fitting) == 2 and (coco_mask.decode(turned) != coco_mask.decode(renamed)).any()):
        return None
    text = fitting[0]["counts"]
    return {"size": [height, width], "counts": text.decode("ascii") if isinstance(text, bytes) else text}


def _encoded(counts: Any, height: int, width: int) -> dict[str, Any]:
    rle: dict[str, Any] = {"size": [height, width], "counts": counts}
    return coco_mask.frPyObjects(rle, height, width) if isinstance(counts, list) else rle


def _fits(rle: dict[str, Any], box: Any) -> bool:
    """Whether mask and box (XYWH) agree within two pixels, or a tenth of the box."""
    if not isinstance(box, list) or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
        return False
    around, given = _corners(coco_mask.toBbox(rle)), _corners(np.array(box, np.float64))
    reach = np.tile(np.maximum(0.1 * (given[2:] - given[:2]), 2), 2)
    return bool((np.abs(around - given) <= reach).all())


def _corners(box: np.ndarray) -> np.ndarray:
    corners: np.ndarray = np.concatenate([box[:2], box[:2] + box[2:]])
    return corners


def box_of(value: Any, size: tuple[int, int] | None) -> list[float] | None:
    """XYWH around polygons or RLE in an image of `size` (H, W); None where there is nothing, or nothing valid."""
    if isinstance(value, dict):
        if not size or value.get("size") != list(size) or not rle_covers(value.get("counts"), size[0] * size[1]):
            return None
        around: list[float] = coco_mask.toBbox(_encoded(value["counts"], *size)).tolist()
        return around
    if not value or not is_polygons(value):
        return None
    points = [p for p in value if len(p) >= 6]
    if not points:
        return None
    left, top = min(min(p[::2]) for p in points), min(min(p[1::2]) for p in points)
    return [left, top, max(max(p[::2]) for p in points) - left, max(max(p[1::2]) for p in points) - top]


def area_of(entry: dict[str, Any], size: tuple[int, int]) -> float:
    """Of an annotation's mask in an image of `size` (H, W), or of its box where it comes without one, in pixels."""
    value = entry.get("segmentation")
    if not value:
        return float(entry["bbox"][2] * entry["bbox"][3])
    if isinstance(value, dict):
        return float(coco_mask.area(_encoded(value["counts"], *size)))
    return float(coco_mask.area(coco_mask.merge(coco_mask.frPyObjects(value, *size))))
