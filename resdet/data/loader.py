"""Datasets -> streams of `LoadedBatch`es: sampling order, sharding over processes, worker processes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from resdet.data.collate import LoadedBatch, Sample
from resdet.data.dataset import DetectionDataset, aspect_groups, padded_sizes, repeat_factors
from resdet.errors import UserError
from resdet.runtime.workers import load, start_worker

Item = tuple[int, ...]  # (index, epoch), in training followed by those of the whole batch's first image


def training_order(
    groups: np.ndarray, batch_size: int, seed: int, repeats: np.ndarray | None = None
) -> Iterator[list[Item]]:
    """Endless batches of (index, epoch), each of one group; every epoch is a permutation drawn from (seed, epoch).

    An incomplete batch waits for the next epoch, so no image is left out. repeats (N,): how often an image occurs in
    an epoch, on average: 2.3 is twice, and a third time in three epochs of ten.
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
    mine = (
        [(*item, *items[0]) for item in items[rank * share : (rank + 1) * share]]
        for items in itertools.islice(order, start, None)
    )
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
    """Load what `order` says. Raises the `UserError` of images that cannot be used, and of a worker that died."""
    held = torch.full((max(workers, 1), 2), -1).share_memory_()  # type: ignore[no-untyped-call]
    loader: DataLoader[Any] = DataLoader(
        _Watched(dataset, held),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=partial(_collate, collate=dataset.collate),
        worker_init_fn=start_worker,
        multiprocessing_context=context if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or each loader would advance the global one, which a head may use
    )

    def held_by(pids: Collection[int | None]) -> list[str]:
        images = dataset.annotations.images
        return [str(images[index].file) for pid, index in held.tolist() if index >= 0 and pid in pids]

    for loaded in load(loader, held_by):
        if isinstance(loaded, UserError):
            raise loaded
        yield loaded


class _Watched(Dataset[Sample | UserError]):
    """The dataset, recording which image each worker is loading (a row: its pid, the index)."""

    def __init__(self, dataset: DetectionDataset, held: Tensor) -> None:
        self.dataset, self.held = dataset, held

    def __getitem__(self, item: Item) -> Sample | UserError:
        worker = get_worker_info()
        if worker:
            self.held[worker.id] = torch.tensor([os.getpid(), item[0]])
        return self.dataset[item]


def _collate(
    samples: Sequence[Sample | UserError], collate: Callable[[Sequence[Sample]], LoadedBatch]
) -> LoadedBatch | UserError:
    whole = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        whole.append(sample)
    return collate(whole)
