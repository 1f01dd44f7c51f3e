"""The name of an image as an annotation file gives it -> the file that it means. Never another image's file."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable

from resdet.data.image_folder import folded, without_suffix
from resdet.errors import UserError


class NameIndex:
    """Image files by name, relative to the data set's folder and with forward slashes.

    A name finds a file where one is the end of the other, whole folders at a time: "C:\\data\\train\\a.jpg" finds
    "train/a.jpg" and "a.jpg" finds "train/a.jpg", but "train/a.jpg" does not find "val/a.jpg". A name that differs in
    case, Unicode form (NFC or NFD) or suffix is accepted if a single file matches.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        self._by_key: list[dict[str, list[str]]] = []
        for key, _ in _TIERS:
            table: dict[str, list[str]] = {}
            for name in self.names:
                table.setdefault(key(posixpath.basename(name)), []).append(name)
            self._by_key.append(table)

    def find(self, name: str, remarks: Counter[str], near: str = "") -> str:
        """The file that `name`, written in a file of the folder `near`, means; a near miss is counted in `remarks`.

        Raises `UserError` where there is none, or more than one.
        """
        given = re.sub(r"^[A-Za-z]:", "", name.strip().replace("\\", "/"))
        there = posixpath.normpath(posixpath.join(near, given))
        given = posixpath.normpath("/" + given)[1:]
        for (key, remark), table in zip(_TIERS, self._by_key, strict=True):
            candidates = table.get(key(posixpath.basename(given)), [])
            found = [c for c in candidates if key(c) == key(there)] or [
                c for c in candidates if _ends_alike(key(c), key(given)) or _ends_alike(key(c), key(there))
            ]
            if len(found) > 1:
                raise UserError(
                    f"the image {name!r} may be {' or '.join(found[:4])}: name it with its folder and suffix"
                )
            if found:
                if remark and key(posixpath.basename(given)) != posixpath.basename(given):
                    remarks[remark] += 1
                return found[0]
        same = self._by_key[-1].get(_folded_stem(posixpath.basename(given)), [])
        raise UserError(f"its image {name!r} is not there" + (f" ({same[0]} lies elsewhere)" if same else ""))


def _ends_alike(a: str, b: str) -> bool:
    return a == b or a.endswith("/" + b) or b.endswith("/" + a)


def _folded_stem(name: str) -> str:
    return folded(without_suffix(name))


_TIERS: list[tuple[Callable[[str], str], str]] = [
    (lambda name: name, ""),
    (
        folded,
        "images whose file name differs in case or Unicode form from the annotated one (the only match)",
    ),
    (without_suffix, "images whose suffix differs from the annotated one (the only match)"),
    (_folded_stem, "images whose case and suffix differ from the annotated name (the only match)"),
]
