"""Loader worker processes: how they start, which signals end them, and the error when one dies."""

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

UNGUARDED = 86  # exit code of a worker that ran the main script
NO_GUARD = (
    "the script calls resdet when it is imported, and spawned loader workers import it again: put the call "
    'under `if __name__ == "__main__":`, or set data.workers=0'
)


def refuse_unguarded_script() -> None:
    """End this process if it is a worker that is importing the main script; its parent reports why."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(UNGUARDED)


def load(loader: DataLoader[Any], held_by: Callable[[Collection[int | None]], list[str]]) -> Iterator[Any]:
    """Iterate over the loader. held_by: the files that the workers with the given pids were loading.

    Raises `UserError` if a worker dies, and for a script without a main guard.
    """
    refuse_unguarded_script()
    others = active_children()
    children = []
    try:
        with stop_signals_blocked():
            iterator = iter(loader)
        children = [child for child in active_children() if child not in others]
        _defer_worker_errors()
        yield from iterator
    except (RuntimeError, OSError, EOFError) as error:
        children = children or [child for child in active_children() if child not in others]
        if not isinstance(error, RuntimeError):  # a broken pipe may be noticed before the worker has ended
            time.sleep(1)
        dead = {child.pid: child.exitcode for child in children if child.exitcode}
        if UNGUARDED in dead.values() or (not children and isinstance(error, ConnectionError | EOFError)):
            raise UserError(NO_GUARD) from None
        if not dead:
            raise
        files = held_by(dead)
        if not files and set(dead.values()) == {1} and _imports_script(loader):
            raise UserError(f"a loader worker failed to start, with the traceback above. Possibly {NO_GUARD}") from None
        raise _worker_died(dead, files, loader.num_workers) from None


def _imports_script(loader: DataLoader[Any]) -> bool:
    """Whether the loader's workers import the main script."""
    context = loader.multiprocessing_context or multiprocessing
    return bool(context.get_start_method() != "fork")


def _worker_died(dead: dict[int | None, int], files: list[str], workers: int) -> UserError:
    """dead: exit codes by pid."""
    codes = [signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in dead.values()]
    return UserError(
        f"a loader worker died ({', '.join(codes)}) while loading {' or '.join(files) or 'no image yet'}: if the machine ran "
        f"out of memory, lower data.workers (now {workers}); otherwise check that file; then continue with --resume"
    )


def _defer_worker_errors() -> None:
    """Make the loader report a dead worker when it next waits for it, instead of raising from torch's signal handler wherever
    the main process happens to be."""
    on_death = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    silent = isinstance(on_death, partial) and on_death.func is _silently
    if callable(on_death) and not silent and current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, partial(_silently, on_death))


def _silently(handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None) -> None:
    with suppress(RuntimeError):
        handler(number, frame)


def start_worker(worker: int) -> None:
    """Initialise a worker: one thread; signals that ask the main process to stop are ignored."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    waited_for = {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()  # not on macOS
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS) - waited_for)
    if waited_for:
        Thread(target=_exit_on_parents_sigterm, daemon=True).start()


def _exit_on_parents_sigterm() -> None:
    """Exit only on a SIGTERM from the parent. Clusters and `timeout` send it to every process of a job, but workers must keep
    loading until the parent has finished its step and saved."""
    parent = parent_process()
    assert parent
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
