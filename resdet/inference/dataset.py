"""A model on a dataset: loaded batches -> COCO results, encoded while the device computes the next batch."""

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
from resdet.structures import Detections, Instances


class PendingBatch(NamedTuple):
    """A batch whose detections and losses are being copied to the host. losses: (2,) sum and count of each."""

    loaded: LoadedBatch
    detections: AsyncHostCopy[Detections]
    losses: dict[str, AsyncHostCopy[Tensor]]


class PredictedBatch(NamedTuple):
    """A batch, its instances, their COCO results entries and, if asked for, its losses as (sum, count)."""

    loaded: LoadedBatch
    instances: list[Instances]
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
) -> Iterator[PredictedBatch]:
    """Predict every batch of the dataset, in order; process `rank` of `world` takes its share of the images.

    Detections of classes that the dataset does not have (None in `annotations.category_ids`) are left out. The model is in
    evaluation mode meanwhile; its mode is restored afterwards.
    """
    infos, ids = dataset.annotations.images, dataset.annotations.category_ids

    def predict(loaded: LoadedBatch) -> PendingBatch:
        batch = to_device(loaded.batch, device)
        detections = predict_batch(model.predict, batch, amp)
        with torch.no_grad(), autocast(device, amp):
            values = model.losses(batch) if losses else {}
        pairs = {name: torch.stack([loss.sum, loss.count.to(loss.sum)]) for name, loss in values.items()}
        copies = {name: AsyncHostCopy(pair) for name, pair in pairs.items()}
        return PendingBatch(loaded, AsyncHostCopy(detections), copies)

    def encode(pending: PendingBatch) -> PredictedBatch:
        loaded = pending.loaded
        instances = to_instances(pending.detections.value(), [infos[i].size for i in loaded.indices])
        entries = [
            entry
            for index, of_image in zip(loaded.indices, instances, strict=True)
            if index not in loaded.problems
            for entry in to_coco(of_image, infos[index].image_id, ids)
            if entry["category_id"] is not None
        ]
        losses = {name: tuple(pair.value().tolist()) for name, pair in pending.losses.items()}
        return PredictedBatch(loaded, instances, entries, losses)

    was_training = model.training
    model.eval()
    try:
        previous: PendingBatch | None = None
        for loaded in evaluation_loader(dataset, batch_size, dataset.data.workers, rank=rank, world=world):
            current = predict(loaded)
            if previous:  # the GPU computes the current batch while the host encodes the previous one
                yield encode(previous)
            previous = current
        if previous:
            yield encode(previous)
    finally:
        model.train(was_training)
