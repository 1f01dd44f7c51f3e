"""A dataset, looked at by a model: loaded batches -> COCO results entries, encoded while the device goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resdet.data.collate import LoadedBatch, split_batch, to_device
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import evaluation_loader
from resdet.engine.device import autocast
from resdet.engine.faults import out_of_memory
from resdet.models.detector import Detector
from resdet.predict import to_coco, to_instances
from resdet.structures import Batch, Detections

AHEAD = 2  # batches that are predicted before the results of the first one are waited for


class Found(NamedTuple):
    """Of a batch: its COCO results entries and, if asked for, its losses."""

    loaded: LoadedBatch
    entries: list[dict[str, Any]]
    losses: dict[str, float]


def predict_dataset(
    model: Detector,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    batch_size: int,
    amp: str = "off",
    losses: bool = False,
    paste: str = "resdet",
    category_ids: Sequence[int | None] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Found]:
    """Every batch of the dataset, in order.

    Process `rank` of `world` takes its share of the images. On CUDA a batch that does not fit is predicted in halves.
    category_ids: label by label, where the model's classes are not the dataset's; None leaves a class out.
    The model is in evaluation mode while this runs (no statistics of a batch norm move) and as before afterwards.
    """
    infos, ids = dataset.annotations.images, category_ids or dataset.annotations.category_ids

    def found(loaded: LoadedBatch, detections: Detections, values: dict[str, Tensor]) -> Found:
        """In a thread, which waits for the device and writes run lengths, while that has the next batch in hand."""
        instances = to_instances(detections, [infos[i].size for i in loaded.indices], paste)
        entries = [
            entry
            for index, of_image in zip(loaded.indices, instances, strict=True)
            if index not in loaded.problems
            for entry in to_coco(of_image, infos[index].image_id, ids)
            if entry["category_id"] is not None
        ]
        return Found(loaded, entries, {name: float(value) for name, value in values.items()})

    was_training = model.training
    model.eval()
    try:
        with ThreadPoolExecutor(1, "encoding") as thread:
            waiting: deque[Future[Found]] = deque()
            for loaded in evaluation_loader(dataset, batch_size, dataset.data.workers, rank=rank, world=world):
                batch = to_device(loaded.batch, device)
                with torch.no_grad(), autocast(device, amp):
                    detections = predict_in_parts(model, batch)
                    values = model(batch) if losses else {}
                waiting.append(thread.submit(found, loaded, detections, values))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            for future in waiting:
                yield future.result()
    finally:
        model.train(was_training)


def predict_in_parts(model: Detector, batch: Batch) -> Detections:
    """`model.predict`, of ever smaller parts of the batch where the device's memory does not hold it whole."""
    try:
        return model.predict(batch)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not out_of_memory(error) or len(batch.images) == 1:
            raise
    parts = [predict_in_parts(model, part) for part in split_batch(batch, 2)]
    return Detections(*(None if t[0] is None else torch.cat(t) for t in zip(*parts, strict=True)))  # type: ignore[arg-type]
