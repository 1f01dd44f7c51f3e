"""Which images of a split: by class, number and size of objects, file name, and findings of the data check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from resdet.data.index import ImageList
from resdet.errors import UserError
from resdet.evaluation.coco import AREAS

SIZES = {"s": "small (up to 32² pixels)", "m": "medium (up to 96²)", "l": "large"}
MANY = 10**9


class Query(NamedTuple):
    """label: of the objects that count, None for any. size: theirs, "s", "m", "l", or "" for any. least, most: how many there
    are; least is by default 1 with a label or size, else 0. name: a part of the file name, of any case. finding: its code."""

    label: int | None = None
    size: str = ""
    least: int | None = None
    most: int | None = None
    name: str = ""
    finding: str = ""

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Query:
        """From the values of a URL's query. Raises `UserError`."""
        numbers: dict[str, int | None] = {}
        for key in ("label", "least", "most"):
            text = values.get(key, "")
            if text and not text.isdecimal():
                raise UserError(f"{key}={text!r} is not a number")
            numbers[key] = min(int(text), MANY) if text else None
        size = values.get("size", "")
        if size and size not in SIZES:
            raise UserError(f"size={size!r} is none of {', '.join(SIZES)}")
        return cls(size=size, name=values.get("name", ""), finding=values.get("finding", ""), **numbers)


class Search:
    """Over the flat arrays of a split, so that a hundred thousand images take milliseconds."""

    def __init__(self, images: ImageList) -> None:
        self.images = images
        self.owners = np.repeat(np.arange(len(images)), images.counts)
        sides = images.boxes[:, 2:] - images.boxes[:, :2]
        self.areas = sides[:, 0] * sides[:, 1]  # of boxes
        self.findings: dict[str, np.ndarray] = {}  # by code, the images concerned
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """The file names in lower case, made when first asked for."""
        if self._names is None:
            ends = self.images.arrays["name_ends"].tolist()
            text = bytes(self.images.arrays["names"])
            starts = [0, *ends[:-1]]
            self._names = [text[a:b].decode(errors="replace").lower() for a, b in zip(starts, ends, strict=True)]
        return self._names

    def find(self, query: Query) -> np.ndarray:
        """(n,) int64: the indices of the images, in their order."""
        counted = np.ones(len(self.owners), bool)
        if query.label is not None:
            counted &= np.asarray(self.images.labels) == query.label
        if query.size:
            low, high = AREAS[query.size]
            counted &= (self.areas >= low) & (self.areas < high)
        counts = np.bincount(self.owners[counted], minlength=len(self.images))
        asked = query.label is not None or bool(query.size)
        least = int(asked) if query.least is None else query.least
        found = (counts >= least) & (counts <= (MANY if query.most is None else query.most))
        if query.finding:
            concerned = np.zeros(len(self.images), bool)
            concerned[self.findings.get(query.finding, np.zeros(0, np.int64))] = True
            found &= concerned
        rows = np.flatnonzero(found)
        if query.name:
            part, names = query.name.lower(), self.names
            rows = np.array([k for k in rows.tolist() if part in names[k]], np.int64)
        return rows

    def concerned(self, identities: set[Any]) -> np.ndarray:
        """The indices of images, by their ids."""
        return np.array([k for k, i in enumerate(self.images.arrays["ids"].tolist()) if i in identities], np.int64)
