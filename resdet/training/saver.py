"""Checkpoints of a run, written in the background: `last.pt`, `best.pt`, and the newest few by iteration."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from resdet.checkpoints.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from resdet.errors import UserError
from resdet.runtime.console import console
from resdet.runtime.distributed import WRITER
from resdet.writing import atomic_write


class Saver:
    """Writes checkpoints in a thread, from a copy of the state; a save waits for the previous one, so one copy at most.

    keep: how many numbered checkpoints to keep; None in processes other than the main one, which write nothing.
    `last.pt` is a hard link to the newest of them.
    A failed write is reported, training continues, and earlier files stay intact. Leaving the context waits for the write in
    progress, also after an error.
    """

    def __init__(self, folder: Path, keep: int | None) -> None:
        self.folder, self.keep = folder, keep
        self.failure: UserError | None = None  # of the latest write of `last.pt`
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.wait()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `ITERATION.pt`, and `last.pt` as a link to it."""
        self._start(self._write_last, checkpoint)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write `best.pt`."""
        self._start(self._write_best, checkpoint)

    def _start(self, write: Callable[[Checkpoint], None], checkpoint: Checkpoint) -> None:
        if self.keep is None:
            return
        self.wait()
        copied = Checkpoint(**_copy(vars(checkpoint)))
        self._thread = threading.Thread(target=write, args=(copied,), name=WRITER)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the write in progress; needed before forking processes too, since threads do not survive a fork."""
        if self._thread:
            self._thread.join()
            self._thread = None

    def _write_best(self, checkpoint: Checkpoint) -> None:
        try:
            save_checkpoint(checkpoint, self.folder / "best.pt")
        except UserError as error:
            console.print(f"warning: {error}")

    def _write_last(self, checkpoint: Checkpoint) -> None:
        path = self.folder / f"{checkpoint.iteration:08d}.pt"
        try:
            save_checkpoint(checkpoint, path)
            link(path, self.folder / "last.pt")
            self.failure = None
        except UserError as error:
            self.failure = error
            console.print(f"warning: {error}; training continues, earlier checkpoints are intact")
            return
        for old in numbered(self.folder)[self.keep :]:
            with contextlib.suppress(OSError):
                old.unlink()


def numbered(folder: Path) -> list[Path]:
    """The numbered checkpoints, newest first."""
    return sorted((p for p in folder.glob("*.pt") if p.stem.isdigit()), key=lambda p: int(p.stem), reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest readable checkpoint of a run, None if it has none. Unreadable ones are reported and skipped.

    Raises `UserError` if there are checkpoints, but none is readable.
    """
    best: tuple[Path, int] | None = None
    problems = []
    for path in [p for p in (folder / "last.pt", *numbered(folder)) if p.is_file()]:
        if best and path.stem.isdigit() and int(path.stem) <= best[1]:
            break  # the rest are older
        try:
            best = path, read_checkpoint(path).iteration
        except UserError as error:
            problems.append(str(error))
            console.print(f"skipped: {error}")
    if problems and not best:
        raise UserError(f"{folder}: no readable checkpoint:\n  " + "\n  ".join(problems))
    return best and best[0]


def link(path: Path, name: Path) -> None:
    """Atomically make `name` a hard link to `path`, or a copy if the file system has no links. Raises `UserError`."""
    with atomic_write(name) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _copy(value: Any) -> Any:
    """Nested containers with all tensors copied to the host."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(entry) for entry in value)
    return value
