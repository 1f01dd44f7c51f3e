"""Checkpoints of a run, written while training goes on: `last.pt`, `best.pt`, and the newest few by iteration."""

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
    """Writes in a thread of its own, from a copy of the state; a save waits for the one before, so there is one copy at most.

    keep: how many numbered checkpoints stay; None in a process that leaves writing to the main one.
    `last.pt` is the newest of them under a second name, not a second file.
    A failed write is reported in one line and training continues; earlier files stay whole. Leaving the context waits until the
    write in progress is on disk, also when training failed.
    """

    def __init__(self, folder: Path, keep: int | None) -> None:
        self.folder, self.keep = folder, keep
        self.failure: UserError | None = None  # of the last write
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.wait()

    def save(self, checkpoint: Checkpoint) -> None:
        """`last.pt`."""
        self._start(self._write_last, checkpoint)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """`best.pt`."""
        self._start(self._write_best, checkpoint)

    def _start(self, write: Callable[[Checkpoint], None], checkpoint: Checkpoint) -> None:
        if self.keep is None:
            return
        self.wait()
        copied = Checkpoint(**_copy(vars(checkpoint)))
        self._thread = threading.Thread(target=write, args=(copied,), name=WRITER)
        self._thread.start()

    def wait(self) -> None:
        """Until what is being written is on disk. Also before new processes are forked, which threads do not survive."""
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
            console.print(f"warning: {error}; training goes on, and what was saved before is whole")
            return
        for old in numbered(self.folder)[self.keep :]:
            with contextlib.suppress(OSError):
                old.unlink()


def numbered(folder: Path) -> list[Path]:
    """Checkpoints by iteration, the newest first."""
    return sorted((p for p in folder.glob("*.pt") if p.stem.isdigit()), key=lambda p: int(p.stem), reverse=True)


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; None without any. One that is torn is named and passed over.

    Raises `UserError` if there are checkpoints, but none is whole.
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
            console.print(f"passed over: {error}")
    if problems and not best:
        raise UserError(f"{folder}: no whole checkpoint is left:\n  " + "\n  ".join(problems))
    return best and best[0]


def link(path: Path, name: Path) -> None:
    """Make `name` mean `path`'s content, in one step; a copy where the file system has no links. Raises `UserError`."""
    with atomic_write(name) as temporary:
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def _copy(value: Any) -> Any:
    """Nested containers with their tensors copied to the host, so that training may change its own."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copy(entry) for entry in value)
    return value
