"""Atomic writing of files."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resdet.errors import UserError


def refuse_overwriting(outputs: Iterable[Path], read: Iterable[Path]) -> None:
    """Raises `UserError` if an output is one of the files to read."""
    sources = {path.resolve() for path in read}
    taken = [path for path in outputs if path.resolve() in sources]
    if taken:
        raise UserError(
            f"{taken[0]}{f' and {len(taken) - 1} more' if len(taken) > 1 else ''}: is an input and would be overwritten; "
            "choose another place for the output"
        )


def make_folder(path: Path) -> None:
    """Make a folder for results and check that it is writable, before any work. Raises `UserError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be a folder for results ({error.strerror}); choose another place") from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder to write to, which is then synced to disk and renamed to `path`.

    If that fails, raises `UserError` and leaves `path` unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)  # so that the new name is on disk too
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: could not be written ({reason})") from None
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write text atomically. Raises `UserError`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write JSON atomically. Raises `UserError`."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
