"""A dataset, looked at by a model: loaded batches -> COCO results entries, written while the device has the next batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resdet.data.collate import LoadedBatch, to_device
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import evaluation_loader
from resdet.inference.batch import predict_batch
from resdet.inference.postprocess import to_coco, to_instances
from resdet.models.detector import Detector
from resdet.runtime.device import AsyncHostCopy, autocast
from resdet.structures import Detections


class Predicted(NamedTuple):
    """Of a batch: what is on its way from the device. losses: (2,) sum and count of each."""

    loaded: LoadedBatch
    detections: AsyncHostCopy[Detections]
    losses: dict[str, AsyncHostCopy[Tensor]]


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
        detections = predict_batch(model.predict, batch, amp)
        with torch.no_grad(), autocast(device, amp):
            values = model.losses(batch) if losses else {}
        pairs = {name: torch.stack([loss.sum, loss.count.to(loss.sum)]) for name, loss in values.items()}
        return Predicted(loaded, AsyncHostCopy(detections), {name: AsyncHostCopy(pair) for name, pair in pairs.items()})

    def found(predicted: Predicted) -> Found:
        loaded = predicted.loaded
        instances = to_instances(predicted.detections.value(), [infos[i].size for i in loaded.indices])
        entries = [
            entry
            for index, of_image in zip(loaded.indices, instances, strict=True)
            if index not in loaded.problems
            for entry in to_coco(of_image, infos[index].image_id, ids)
            if entry["category_id"] is not None
        ]
        losses = {name: tuple(pair.value().tolist()) for name, pair in predicted.losses.items()}
        return Found(loaded, entries, losses)

    was_training = model.training
    model.eval()
    try:
        before: Predicted | None = None
        for loaded in evaluation_loader(dataset, batch_size, dataset.data.workers, rank=rank, world=world):
            now = predicted(loaded)
            if before:  # only now, when a GPU has something to do while the host writes run lengths
                yield found(before)
            before = now
        if before:
            yield found(before)
    finally:
        model.train(was_training)
