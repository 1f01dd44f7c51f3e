"""A folder of images, and the file in it that a name of another machine means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

UPLOAD_HASH = re.compile(r"^[0-9a-f]{4,}-(?=.)")  # Label Studio's, before the name of what was uploaded


class ImageFolder:
    """`path` with its listings, each read once: one listing a folder is faster than one look a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listings: dict[str, frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether there is an entry of exactly this name, given relative to the folder or absolute."""
        parent, base = os.path.split(name)
        if parent not in self._listings:
            try:
                self._listings[parent] = frozenset(os.listdir(self.path / parent))
            except (OSError, ValueError):
                self._listings[parent] = frozenset()
        return base in self._listings[parent]

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


def _path_of_address(name: str) -> str:
    try:
        return urlsplit(name).path
    except ValueError:  # such as an unfinished IPv6 address
        return name
