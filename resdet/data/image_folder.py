"""A folder of images, and the file in it that an annotated name means: with a path or address of another machine before it, or
differing by case or Unicode form, as another file system makes it, or by the suffix of another kind of image."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from resdet.data.images import ARRAY, SUFFIXES

UPLOAD_HASH = re.compile(r"^[0-9a-f]{4,}-(?=.)")  # Label Studio's, before the name of what was uploaded
_BARE = "/"  # before names without suffix, in a table of file names, which have none
VARIANT = "file names that differ from the annotated ones by case, Unicode form or suffix (taken)"


class ImageFolder:
    """`path` with its listings, each read once: one listing per folder is faster than one look-up per file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listings: dict[str, frozenset[str]] = {}
        self._by_folded: dict[str, dict[str, list[str]]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether there is an entry of exactly this name, given relative to the folder or absolute."""
        parent, base = os.path.split(name)
        return base in self._listing(parent)

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(self.path / folder))
            except (OSError, ValueError):
                self._listings[folder] = frozenset()
        return self._listings[folder]

    def find(self, name: str) -> str | None:
        """The name itself if there is such a file; else its longest end that is one: "x/images/a.jpg", "C:\\x\\a.jpg" and
        "https://host/x/a.jpg?token=1" may all be a.jpg. None where none is there."""
        if not name or "\0" in name:
            return None
        if name in self:
            return name
        ways = [name.replace("\\", "/")]
        if "?d=" in name:  # Label Studio's local files
            ways.append(name.partition("?d=")[2].replace("\\", "/"))
        elif "://" in name:
            ways.append(_path_of_address(name))
        for way in dict.fromkeys([*ways, *map(unquote, ways)]):
            parts = [part for part in way.split("/") if part not in ("", ".", "..")]
            ends = ["/".join(parts[k:]) for k in range(len(parts))][-16:]
            if ends and UPLOAD_HASH.match(parts[-1]):
                ends.append(UPLOAD_HASH.sub("", parts[-1]))
            found = next((end for end in ends if "\0" not in end and end in self), None)
            if found:
                return found
        return None

    def variants(self, name: str) -> list[str]:
        """The name itself if there is such a file; else the files whose names differ from it by case or Unicode form only, or
        where there are none, the images that differ by their suffix too."""
        if name in self:
            return [name]
        if os.path.isabs(name) or ".." in name.split("/"):
            return []
        found = [""]
        for part in name.split("/"):
            found = [os.path.join(folder, entry) for folder in found for entry in self._variants_in(folder, part)]
        return found

    def _variants_in(self, folder: str, part: str) -> list[str]:
        names = self._listing(folder)
        if part in names or part in ("", "."):
            return [part]
        if folder not in self._by_folded:
            table = self._by_folded[folder] = {}
            for name in sorted(names):
                table.setdefault(folded(name), []).append(name)
                if without_suffix(name) != name:
                    table.setdefault(_BARE + folded(without_suffix(name)), []).append(name)
        table = self._by_folded[folder]
        return table.get(folded(part)) or table.get(_BARE + folded(without_suffix(part)), [])


def folded(name: str) -> str:
    """What is equal for names that differ by case or Unicode form (NFC or NFD) only."""
    return unicodedata.normalize("NFC", name).casefold()


def without_suffix(name: str) -> str:
    """Without the suffix of an image file; a dot in a name of another kind stays."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in {*SUFFIXES, ARRAY} else name


def take_variants(entries: list[dict[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], int, list[str]]:
    """COCO's "images" -> the same, each `file_name` that is not in `folder` replaced by its only variant there; how many were
    replaced; and problems: names with several variants, and variants that several entries would take."""
    present = ImageFolder(folder)
    names = [entry.get("file_name") for entry in entries]
    found = [present.variants(name) if isinstance(name, str) and name and "\0" not in name else [] for name in names]
    claims = Counter(files[0] for files in found if len(files) == 1)
    result, taken, problems = list(entries), 0, []
    for k, (name, files) in enumerate(zip(names, found, strict=True)):
        if not files or files == [name]:
            continue
        what = f"image {entries[k].get('id')}: file_name {name!r} is not there, but {' and '.join(map(repr, files))}"
        if len(files) > 1:
            problems.append(f"{what} are, which differ by case, Unicode form or suffix: write the one that is meant")
        elif claims[files[0]] > 1:
            problems.append(f"{what} is, which another image has: correct one of the names")
        else:
            result[k] = {**entries[k], "file_name": files[0]}
            taken += 1
    return result, taken, problems


def _path_of_address(name: str) -> str:
    try:
        return urlsplit(name).path
    except ValueError:  # such as an unfinished IPv6 address
        return name
