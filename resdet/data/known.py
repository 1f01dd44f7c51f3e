"""Which classes the annotations of an image are complete for, in COCO's structure. For other classes, a missing annotation
does not mean that there is no object.

An entry of "images" states it with "known_category_ids", a list that resdet writes where sources with different classes are
joined, or as LVIS does (Gupta et al. 2019, arXiv:1908.03195): "neg_category_ids" are known to have no object, categories with
an object are known, too, unless they are in "not_exhaustive_category_ids". Without these keys, all classes are known.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

KNOWN, NEGATIVE, PARTIAL = "known_category_ids", "neg_category_ids", "not_exhaustive_category_ids"
KEYS = (KNOWN, NEGATIVE, PARTIAL)


class Known(NamedTuple):
    """table (R, K) bool: the distinct sets of known classes; rows (N,) int32: each image's."""

    table: np.ndarray
    rows: np.ndarray


def known_ids(image: dict[str, Any], annotated: Collection[Any]) -> set[Any] | None:
    """The ids of the categories known in an image; None for all. annotated: those of its objects."""
    if KNOWN in image:
        return set(image[KNOWN])
    if NEGATIVE in image:
        return {*annotated, *image[NEGATIVE]}.difference(image.get(PARTIAL) or ())
    return None


def says_known(images: Sequence[dict[str, Any]]) -> bool:
    """Whether any entry has one of the keys."""
    return any(KNOWN in image or NEGATIVE in image for image in images)


def check_known(image: dict[str, Any], categories: Collection[Any], problems: list[str]) -> bool:
    """Whether the lists of an image are ones of ids in `categories`; if not, with a problem that says what is wrong."""
    for key in KEYS:
        value = image.get(key, [])
        if not isinstance(value, list):
            problems.append(f"image {image.get('id')}: {key} {str(value)[:40]} is not a list of category ids")
            return False
        if unknown := [v for v in value if not isinstance(v, int | str) or v not in categories]:
            problems.append(
                f"image {image.get('id')}: {key} has {str(unknown[0])[:40]}, which is not among the categories"
            )
            return False
    return True


def known_table(
    images: Sequence[dict[str, Any]], annotated: dict[Any, set[Any]], label_of: dict[Any, int]
) -> Known | None:
    """The known classes of checked images; None if all classes are known in all of them.

    annotated: the categories of the objects, by image id.
    """
    rows, numbers = [], dict[bytes, int]()
    table: list[np.ndarray] = []
    for image in images:
        ids = known_ids(image, annotated.get(image["id"], ()))
        row = np.full(len(label_of), ids is None)
        if ids is not None:
            row[[label_of[identity] for identity in ids]] = True
        key = row.tobytes()
        if key not in numbers:
            numbers[key] = len(table)
            table.append(row)
        rows.append(numbers[key])
    return None if all(row.all() for row in table) else Known(np.stack(table), np.array(rows, np.int32))
