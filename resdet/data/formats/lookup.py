"""The images below a folder, found by the names that annotation tools give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from resdet.data.formats.common import picture_sizes
from resdet.data.images import SUFFIXES

UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")  # that Label Studio puts before an uploaded file's name


class ImageFolder:
    """Every image below `root`, by its name with as many folders before it as a name in a file gives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_name: dict[str, list[Path]] = {}
        for path in sorted(root.rglob("*")) if root.is_dir() else []:
            if path.suffix.lower() in SUFFIXES:
                self.by_name.setdefault(path.name, []).append(path)

    def find(self, name: str) -> Path | str:
        """The one file that `name` (a path, a URL, a Windows path) means, or what is wrong with it.

        The file that agrees with `name` in most folders is meant; the last part must be equal.
        """
        parts = PurePosixPath(_path_of(name)).parts
        parts = tuple(part for part in parts if part not in ("/", ".", ".."))
        if not parts:
            return f"{name!r} names no file"
        candidates = self.by_name.get(parts[-1], [])
        if not candidates and (plain := UPLOAD_PREFIX.sub("", parts[-1])) != parts[-1]:
            candidates, parts = self.by_name.get(plain, []), (*parts[:-1], plain)
        if not candidates:
            return f"image {name!r} is not below {self.root}"
        agreement = [_equal_tail(path.parts, parts) for path in candidates]
        best = [path for path, equal in zip(candidates, agreement, strict=True) if equal == max(agreement)]
        if len(best) > 1:
            return f"image {name!r} may be {best[0]} or {best[1]}: give the folder in the name, or rename one"
        return best[0]

    def sized(
        self, names: Iterable[str], source: Path, problems: list[str]
    ) -> Iterator[tuple[Path, tuple[int, int], str]]:
        """(file, (H, W), name) of each name whose image is there and readable; the others become `problems`."""
        files: dict[Path, str] = {}
        for name in names:
            found = self.find(name)
            if isinstance(found, str):
                problems.append(f"{source}: {found}")
            elif found in files:
                problems.append(f"{source}: {files[found]!r} and {name!r} are the same image, {found}")
            else:
                files[found] = name
        for (path, name), size in zip(files.items(), picture_sizes(list(files), problems), strict=True):
            if size is not None:
                yield path, size, name


def _path_of(name: str) -> str:
    """The path in a URL (also Label Studio's /data/local-files/?d=PATH) or in a Windows path."""
    if "://" in name or "?d=" in name:
        address = urlsplit(name)
        return parse_qs(address.query).get("d", [unquote(address.path)])[0]
    return name.replace("\\", "/")


def _equal_tail(path: tuple[str, ...], parts: tuple[str, ...]) -> int:
    count = 0
    for a, b in zip(reversed(path), reversed(parts), strict=False):
        if a != b:
            break
        count += 1
    return count
