"""A dataset, looked at by a model: loaded batches -> COCO results entries, written while the device has the next batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from resdet.data.collate import LoadedBatch, split_batch, to_device
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import evaluation_loader
from resdet.inference.predictor import to_coco, to_instances
from resdet.models.detector import Detector
from resdet.runtime.device import AsyncHostCopy, autocast, out_of_memory
from resdet.structures import Batch, Detections


class Predicted(NamedTuple):
    """Of a batch: what is on its way from the device; `Detections` without masks have a None."""

    loaded: LoadedBatch
    detections: list[AsyncHostCopy | None]
    losses: dict[str, AsyncHostCopy]


class Found(NamedTuple):
    """Of a batch: its COCO results entries and, if asked for, its losses as (sum, count)."""

    loaded: LoadedBatch
    entries: list[dict[str, Any]]
    losses: dict[str, tuple[float, float]]


def predict_dataset(
    model: Detector,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    batch_size: int,
    amp: str = "off",
    losses: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Found]:
    """Every batch of the dataset, in order.

    Process `rank` of `world` takes its share of the images. On CUDA a batch that does not fit is predicted in halves.
    Detections of a class whose `annotations.category_ids` is None are left out.
    The model is in evaluation mode while this runs (no statistics of a batch norm move) and as before afterwards.
    """
    infos, ids = dataset.annotations.images, dataset.annotations.category_ids

    def predicted(loaded: LoadedBatch) -> Predicted:
        batch = to_device(loaded.batch, device)
        with torch.no_grad(), autocast(device, amp):
            detections = predict_in_parts(model, batch)
            values = model.losses(batch) if losses else {}
        later = [None if t is None else AsyncHostCopy(t) for t in detections]
        return Predicted(
            loaded, later, {name: AsyncHostCopy(torch.stack([x.sum, x.count.to(x.sum)])) for name, x in values.items()}
        )

    def found(loaded: LoadedBatch, detections: list[AsyncHostCopy | None], values: dict[str, AsyncHostCopy]) -> Found:
        arrived = Detections(*(None if t is None else t.tensor() for t in detections))  # type: ignore[arg-type]
        instances = to_instances(arrived, [infos[i].size for i in loaded.indices], model.decoding)
        entries = [
            entry
            for index, of_image in zip(loaded.indices, instances, strict=True)
            if index not in loaded.problems
            for entry in to_coco(of_image, infos[index].image_id, ids)
            if entry["category_id"] is not None
        ]
        return Found(loaded, entries, {name: tuple(value.read()) for name, value in values.items()})

    was_training = model.training
    model.eval()
    try:
        before: Predicted | None = None
        for loaded in evaluation_loader(dataset, batch_size, dataset.data.workers, rank=rank, world=world):
            now = predicted(loaded)
            if before:  # only now, when a GPU has something to do while the host writes run lengths
                yield found(*before)
            before = now
        if before:
            yield found(*before)
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
