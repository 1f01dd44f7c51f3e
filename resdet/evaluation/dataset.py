"""A model on an annotated dataset -> COCO metrics, for evaluation during training and for `eval`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from resdet.data.collate import LoadedBatch
from resdet.data.dataset import DetectionDataset
from resdet.evaluation.coco import Evaluation, Metrics
from resdet.evaluation.pixels import PixelEvaluation
from resdet.evaluation.tables import COCO_LIMIT
from resdet.inference.dataset import predict_dataset
from resdet.models.detector import Detector
from resdet.runtime.distributed import Distributed


class Scores(NamedTuple):
    """images: how many were evaluated. entries: COCO results. losses: their means over the dataset, by name."""

    metrics: Metrics
    tables: str
    images: int
    entries: list[dict[str, Any]]
    losses: dict[str, float]


def evaluate_dataset(
    model: Detector,
    dataset: DetectionDataset,
    evaluation: Evaluation,
    seen: Callable[[LoadedBatch], object],
    *,
    device: torch.device,
    batch_size: int,
    amp: str = "off",
    losses: bool = False,
    distributed: Distributed | None = None,
) -> Scores | None:
    """Predict all images and score every kind of result that the model predicts and the dataset has annotations of.

    All detections that the model keeps per image count, and at least COCO's 100.
    seen: called after each batch.
    distributed: the images are split over its processes; the main one scores, the others return None.
    """
    distributed = distributed or Distributed()
    entries: list[dict[str, Any]] = []
    sums: dict[str, tuple[float, float]] = {}  # of the terms, and their counts
    images = 0
    pixels = PixelEvaluation(dataset.annotations, model.outputs)
    for loaded, instances, found, values in predict_dataset(
        model, dataset, device=device, batch_size=batch_size, amp=amp, losses=losses,
        rank=distributed.rank, world=distributed.world,
    ):  # fmt: skip
        seen(loaded)
        for index, of_image in zip(loaded.indices, instances, strict=True):
            if index not in loaded.problems:
                pixels.add(index, of_image)
        entries += found
        images += len(loaded.indices)
        for name, (value, count) in values.items():
            value_before, count_before = sums.get(name, (0.0, 0.0))
            sums[name] = value_before + value, count_before + count
    shares = distributed.gather((entries, sums, images, (pixels.semantic, pixels.panoptic)))
    if not distributed.main:
        return None
    entries = [entry for share, *_ in shares for entry in share]
    images = sum(count for _, _, count, _ in shares)
    for *_, (semantic, panoptic) in shares[1:]:
        pixels.merge(semantic, panoptic)
    kinds = evaluation.kinds(model.outputs)
    metrics, tables = evaluation.score(entries, kinds, limit=max(COCO_LIMIT, model.selection.max_detections))
    pixel_metrics, pixel_tables = pixels.score()
    metrics |= pixel_metrics
    tables = "\n".join([*([tables] if tables else []), *pixel_tables])
    means = {}
    for name in sums:
        totals, counts = zip(*(share.get(name, (0.0, 0.0)) for _, share, *_ in shares), strict=True)
        means[name] = sum(totals) / max(sum(counts), 1.0)
    return Scores(metrics, tables, images, entries, means)
