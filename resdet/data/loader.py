"""Datasets -> streams of `LoadedBatch`es: which images, in which order, through which workers."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import active_children, parent_process
from threading import Thread, current_thread, main_thread
from types import FrameType
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from resdet.data.collate import LoadedBatch, Sample, collate
from resdet.data.dataset import DetectionDataset, aspect_groups, padded_sizes, repeat_factors
from resdet.errors import UserError

Item = tuple[int, int]  # (index, epoch)
STOP_SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, n)]
T = TypeVar("T")


def training_order(
    groups: np.ndarray, batch_size: int, seed: int, repeats: np.ndarray | None = None
) -> Iterator[list[Item]]:
    """Endless batches of (index, epoch), each of one group; every epoch is a permutation drawn from (seed, epoch).

    An incomplete batch waits for the next epoch, so no image is left out. repeats (N,): how often an image comes in an
    epoch, on average: 2.3 is twice, and a third time in three epochs of ten.
    """
    waiting: dict[bool, list[Item]] = {False: [], True: []}
    for epoch in itertools.count():
        rng = np.random.default_rng([seed, epoch])
        indices = np.arange(len(groups))
        if repeats is not None:
            times = np.floor(repeats).astype(int)
            indices = np.repeat(indices, times + (rng.random(len(groups)) < repeats - times))
        for index in rng.permutation(indices):
            batch = waiting[bool(groups[index])]
            batch.append((int(index), epoch))
            if len(batch) == batch_size:
                yield list(batch)
                batch.clear()


def evaluation_order(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[Item]]:
    """Batches of equal padded size, so that no result depends on an image's neighbours; each image once."""
    by_size: dict[tuple[int, int], list[Item]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append((index, 0))
    return [group[i : i + batch_size] for group in by_size.values() for i in range(0, len(group), batch_size)]


def training_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, *,
    start: int = 0, rank: int = 0, world: int = 1, context: str | None = None,
) -> Iterator[LoadedBatch]:  # fmt: skip
    """Endless training batches from the `start`-th on. `context`: "fork", "spawn", … for the workers.

    Of each batch, process `rank` of `world` gets its equal share.
    """
    repeats = repeat_factors(dataset.annotations, dataset.data.repeat_threshold, dataset.data.negatives)
    order = training_order(aspect_groups(dataset.annotations), batch_size, dataset.seed, repeats)
    share = batch_size // world
    mine = (items[rank * share : (rank + 1) * share] for items in itertools.islice(order, start, None))
    return batches(dataset, mine, workers, context)


def evaluation_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, *,
    rank: int = 0, world: int = 1, context: str | None = None,
) -> Iterator[LoadedBatch]:  # fmt: skip
    """Each image once, in one of the processes."""
    sizes = padded_sizes(dataset.annotations, dataset.data, dataset.input)
    return batches(dataset, evaluation_order(sizes, batch_size)[rank::world], workers, context)


def batches(
    dataset: DetectionDataset, order: Iterable[list[Item]], workers: int, context: str | None
) -> Iterator[LoadedBatch]:
    """Load what `order` says. Raises the `UserError` of pictures that cannot be used, and of a worker that died."""
    held = torch.full((max(workers, 1), 2), -1).share_memory_()  # type: ignore[no-untyped-call]
    loader: DataLoader[Any] = DataLoader(
        _Watched(dataset, held),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=partial(_collate, multiple=dataset.data.pad_multiple),
        worker_init_fn=_start_worker,
        multiprocessing_context=context if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or each loader would draw from the global one, which a head may use
    )
    others = active_children()
    with _signals_held():
        iterator = iter(loader)
    children = [child for child in active_children() if child not in others]
    _notice_deaths_here()
    try:
        for loaded in iterator:
            if isinstance(loaded, UserError):
                raise loaded
            yield loaded
    except (RuntimeError, ConnectionError, EOFError) as error:
        if not isinstance(error, RuntimeError):  # the pipe broke first; its owner may be still about to die
            time.sleep(1)
        dead = {child.pid: child.exitcode for child in children if child.exitcode}
        if not dead:
            raise
        raise _worker_died(dataset, held, dead) from None


def _notice_deaths_here() -> None:
    """torch, when a worker dies, raises wherever the main process happens to be, in the middle of a step, say. From here on it
    does not; the loader finds its dead by itself when it next waits for them."""
    on_death = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    silent = isinstance(on_death, partial) and on_death.func is _silently
    if callable(on_death) and not silent and current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, partial(_silently, on_death))


def _silently(handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None) -> None:
    with suppress(RuntimeError):
        handler(number, frame)


class _Watched(Dataset[Sample | UserError]):
    """The dataset, leaving word of which image each worker (a row: its pid, the index) has in hand."""

    def __init__(self, dataset: DetectionDataset, held: Tensor) -> None:
        self.dataset, self.held = dataset, held

    def __getitem__(self, item: Item) -> Sample | UserError:
        worker = get_worker_info()
        if worker:
            self.held[worker.id] = torch.tensor([os.getpid(), item[0]])
        return self.dataset[item]


def _worker_died(dataset: DetectionDataset, held: Tensor, dead: Mapping[int | None, int]) -> UserError:
    """held: see `_Watched`; dead: exit codes by pid."""
    files = [str(dataset.annotations.images[index].file) for pid, index in held.tolist() if index >= 0 and pid in dead]
    codes = [signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in dead.values()]
    return UserError(
        f"a loader worker died ({', '.join(codes)}) while it held {' or '.join(files) or 'no picture yet'}: if the machine "
        f"ran out of memory, lower data.workers (now {dataset.data.workers}); otherwise look at that file; then go on with "
        "--resume"
    )


def _collate(samples: Sequence[Sample | UserError], multiple: int) -> LoadedBatch | UserError:
    whole = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        whole.append(sample)
    return collate(whole, multiple)


@contextmanager
def _signals_held() -> Iterator[None]:
    """What asks a run to stop waits meanwhile: processes that are started have not yet said that it is not their business."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(worker: int) -> None:
    """One thread each; signals that ask the main process to stop are its own business, whoever else is told."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    waited_for = {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()  # not on macOS
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS) - waited_for)
    if waited_for:
        Thread(target=_leave_when_told, daemon=True).start()


def _leave_when_told() -> None:
    """End this process on its parent's SIGTERM alone. A cluster, or `timeout`, sends one to every process of a job; batches
    must go on coming then, until the parent has finished its step and saved."""
    parent = parent_process()
    assert parent
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
