"""Files and folders that a user names -> the image files among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resdet.data.images import ARRAY, SUFFIXES, images_among
from resdet.errors import UserError


def find_images(inputs: list[str | Path]) -> list[Path]:
    """Files and folders (searched recursively) -> image files, sorted within each folder. Raises `UserError`."""
    found: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            inside = images_among(entry.rglob("*"))
            if not inside:
                raise UserError(f"{entry}: no images in this folder ({', '.join(sorted({*SUFFIXES, ARRAY}))})")
            found += inside
        elif entry.is_file():
            found.append(entry)
        else:
            raise UserError(f"{entry}: no such file or folder")
    return found


def other_files(inputs: Sequence[str | Path]) -> Counter[str]:
    """What `find_images` leaves out of folders, counted by suffix."""
    counts: Counter[str] = Counter()
    for folder in (entry for entry in map(Path, inputs) if entry.is_dir()):
        files = [path for path in folder.rglob("*") if path.is_file()]
        counts.update(path.suffix for path in set(files) - set(images_among(files)))
    return counts
