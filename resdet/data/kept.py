"""What reading many files gave, kept in the user's cache until one of them changes: nothing is decoded twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resdet.data.json_files import no_collection
from resdet.errors import UserError
from resdet.writing import write_json

MANY = 256  # files; fewer are read in seconds
VERSION = 1  # of what is kept, and of how files are read


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resdet"


class Kept:
    """A value of JSON that depends on `files`: on which there are, their sizes and times of change, and on the text `also`.

    what, place, part: name the value, of which the newest is kept: a kind, where its files lie, and which of them it is about.
    Nothing is kept of fewer than `MANY` files.
    """

    def __init__(self, what: str, place: Path, files: Iterable[Path], *, part: str = "", also: str = "") -> None:
        files = list(files)
        self.file: Path | None = None
        if len(files) >= MANY:
            name = hashlib.blake2b(f"{place.resolve()} {part}".encode(errors="surrogateescape"), digest_size=8)
            self.file = cache_folder() / "read" / f"{what}-{name.hexdigest()}.json"
            state = hashlib.blake2b(f"{VERSION} {also}".encode(errors="surrogateescape"), digest_size=16)
            for file in files:
                state.update(_state(file).encode(errors="surrogateescape"))
            self.state = state.hexdigest()

    def load(self) -> Any:
        """None if nothing is kept, or of another state of the files."""
        if self.file is None:
            return None
        try:
            with no_collection():
                found = json.loads(self.file.read_bytes())
            return found["value"] if found["state"] == self.state else None
        except (OSError, ValueError, LookupError, TypeError):  # damaged: it is only a cache
            return None

    def keep(self, value: Any) -> None:
        if self.file is not None:
            with contextlib.suppress(UserError):  # a full or read-only home: it is read again the next time
                write_json(self.file, {"state": self.state, "value": value})


def _state(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:
        return f"{file} missing\n"
    return f"{file} {found.st_size} {found.st_mtime_ns}\n"
