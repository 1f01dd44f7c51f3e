"""Datasets -> streams of `LoadedBatch`es: which images, in which order, through which workers."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from resdet.data.collate import LoadedBatch, Sample, collate
from resdet.data.dataset import DetectionDataset, aspect_groups, padded_sizes, repeat_factors
from resdet.errors import UserError

Item = tuple[int, int]  # (index, epoch)
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
    dataset: DetectionDataset, batch_size: int, workers: int, *, start: int = 0, context: str | None = None
) -> Iterator[LoadedBatch]:
    """Endless training batches from the `start`-th on. `context`: "fork", "spawn", … for the workers."""
    repeats = repeat_factors(dataset.annotations, dataset.data.repeat_threshold, dataset.data.negatives)
    order = training_order(aspect_groups(dataset.annotations), batch_size, dataset.seed, repeats)
    return batches(dataset, itertools.islice(order, start, None), workers, context)


def evaluation_loader(
    dataset: DetectionDataset, batch_size: int, workers: int, *, context: str | None = None
) -> Iterator[LoadedBatch]:
    """Each image once."""
    sizes = padded_sizes(dataset.annotations, dataset.data, dataset.input)
    return batches(dataset, evaluation_order(sizes, batch_size), workers, context)


def batches(
    dataset: DetectionDataset, order: Iterable[list[Item]], workers: int, context: str | None
) -> Iterator[LoadedBatch]:
    """Load what `order` says. Raises the `UserError` of a picture that cannot be used."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=partial(_collate, multiple=dataset.data.pad_multiple),
        worker_init_fn=_start_worker,
        multiprocessing_context=context if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for loaded in loader:
        if isinstance(loaded, UserError):
            raise loaded
        yield loaded


def _collate(samples: Sequence[Sample | UserError], multiple: int) -> LoadedBatch | UserError:
    whole = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        whole.append(sample)
    return collate(whole, multiple)


def _start_worker(worker: int) -> None:
    """One thread each; signals that ask the main process to stop are its own business."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
