"""File names that differ from the annotated ones by case or Unicode form only, as another file system makes them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

REMARK = "file names that differ from the annotated ones by case or Unicode form (taken)"


def take_variants(entries: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], int, list[str]]:
    """COCO's "images" -> the same with every `file_name` that is not in `folder`, but has one variant there, replaced by it;
    how many these are; and problems: variants of which there are several, or that several entries would take."""
    listings = _Listings(folder)
    names = [entry.get("file_name") for entry in entries]
    usable = [name if isinstance(name, str) and name and "\0" not in name else None for name in names]
    found = [name if name is None else listings.find(name) for name in usable]
    claims = Counter(ways[0] for ways in found if ways is not None and len(ways) == 1)
    result, taken, problems = list(entries), 0, []
    for k, (name, ways) in enumerate(zip(usable, found, strict=True)):
        if name is None or ways is None or ways == [name] or not ways:
            continue
        what = f"image {entries[k].get('id')}: file_name {name!r} is not there, but {' and '.join(map(repr, ways))}"
        if len(ways) > 1:
            problems.append(f"{what} are, which differ by case or Unicode form: write the one that is meant")
        elif claims[ways[0]] > 1:
            problems.append(f"{what} is, which another image has: correct one of the names")
        else:
            result[k] = {**entries[k], "file_name": ways[0]}
            taken += 1
    return result, taken, problems


class _Listings:
    """The folders below one, each listed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._exact: dict[str, frozenset[str]] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> list[str]:
        """The name itself where it is there; else its variants."""
        parent, base = os.path.split(name)
        if base in self._names(parent):
            return [name]
        if os.path.isabs(name) or ".." in name.split("/"):
            return []
        ways = [""]
        for part in name.split("/"):
            ways = [os.path.join(way, n) for way in ways for n in self._variants(way, part)]
        return ways

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._exact:
            try:
                self._exact[folder] = frozenset(os.listdir(self.root / folder))
            except (OSError, ValueError):
                self._exact[folder] = frozenset()
        return self._exact[folder]

    def _variants(self, folder: str, part: str) -> list[str]:
        names = self._names(folder)
        if part in names or part in ("", "."):
            return [part]
        if folder not in self._folded:
            table = self._folded[folder] = {}
            for name in sorted(names):
                table.setdefault(_folded(name), []).append(name)
        return self._folded[folder].get(_folded(part), [])


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
