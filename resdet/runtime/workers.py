"""Loader worker processes: how they start, whom they obey, and what is said when one dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import active_children, parent_process
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader

from resdet.errors import UserError
from resdet.runtime.signals import STOP_SIGNALS, stop_signals_blocked

UNGUARDED = 86  # exit code of a worker whose start ran the main script
NO_GUARD = (
    "the script starts this work when it is imported, and a loader worker that is spawned imports it again: put the call "
    'under `if __name__ == "__main__":`, or set data.workers=0'
)


def refuse_unguarded_script() -> None:
    """End this process if it is a worker that got here by importing the main script; its parent says why."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(UNGUARDED)


def load(loader: DataLoader[Any], held_by: Callable[[Collection[int | None]], list[str]]) -> Iterator[Any]:
    """What the loader yields. held_by: the files that workers, given by their pids, were loading.

    Raises `UserError` for a worker that died, and for a script without a main guard.
    """
    refuse_unguarded_script()
    others = active_children()
    children = []
    try:
        with stop_signals_blocked():
            iterator = iter(loader)
        children = [child for child in active_children() if child not in others]
        _defer_death_notices()
        yield from iterator
    except (RuntimeError, OSError, EOFError) as error:
        children = children or [child for child in active_children() if child not in others]
        if not isinstance(error, RuntimeError):  # the pipe broke first; the process behind it may be about to die
            time.sleep(1)
        dead = {child.pid: child.exitcode for child in children if child.exitcode}
        if UNGUARDED in dead.values() or (not children and isinstance(error, ConnectionError | EOFError)):
            raise UserError(NO_GUARD) from None
        if not dead:
            raise
        files = held_by(dead)
        if not files and set(dead.values()) == {1} and _imports_script(loader):
            raise UserError(
                f"a loader worker failed at its start, with the traceback above. Perhaps {NO_GUARD}"
            ) from None
        raise _worker_died(dead, files, loader.num_workers) from None


def _imports_script(loader: DataLoader[Any]) -> bool:
    """Whether its workers begin by importing the main script."""
    context = loader.multiprocessing_context or multiprocessing
    return bool(context.get_start_method() != "fork")


def _worker_died(dead: dict[int | None, int], files: list[str], workers: int) -> UserError:
    """dead: exit codes by pid."""
    codes = [signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in dead.values()]
    return UserError(
        f"a loader worker died ({', '.join(codes)}) while it held {' or '.join(files) or 'no image yet'}: if the machine ran "
        f"out of memory, lower data.workers (now {workers}); otherwise look at that file; then continue with --resume"
    )


def _defer_death_notices() -> None:
    """By default torch raises a worker's death wherever the main process happens to be, in the middle of a step for instance.
    From here on it does not: the loader notices when it next waits for that worker."""
    on_death = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    silent = isinstance(on_death, partial) and on_death.func is _silently
    if callable(on_death) and not silent and current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, partial(_silently, on_death))


def _silently(handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None) -> None:
    with suppress(RuntimeError):
        handler(number, frame)


def start_worker(worker: int) -> None:
    """A worker's own settings: one thread, and no ear for the signals that ask the main process to stop."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    waited_for = {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()  # not on macOS
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS) - waited_for)
    if waited_for:
        Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """Exit on the parent's SIGTERM alone. A cluster, or `timeout`, sends one to every process of a job, while batches must
    keep coming until the parent has finished its step and saved."""
    parent = parent_process()
    assert parent
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
