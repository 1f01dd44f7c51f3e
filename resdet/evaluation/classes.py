"""A classifier on pictures of known classes -> top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from resdet.data.collate import LoadedBatch, to_device
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import evaluation_loader
from resdet.evaluation.dataset import Scores
from resdet.evaluation.tables import numbers_table
from resdet.inference.batch import predict_batch
from resdet.models.detector import Detector
from resdet.runtime.device import autocast
from resdet.runtime.distributed import Distributed

LISTED = 20  # classes at most whose accuracies are printed


def evaluate_classes(
    model: Detector,
    dataset: DetectionDataset,
    seen: Callable[[LoadedBatch], object],
    *,
    device: torch.device,
    batch_size: int,
    amp: str = "off",
    losses: bool = False,
    distributed: Distributed | None = None,
) -> Scores | None:
    """Predict all pictures. -> the shares whose class is the most probable one (top1) or among the first five (top5).

    An unreadable picture counts as wrong. Arguments and the result are as of `evaluate_dataset`; an entry is a picture's file,
    class and most probable classes.
    """
    distributed = distributed or Distributed()
    names, images = dataset.annotations.class_names, dataset.annotations.images
    entries: list[dict[str, Any]] = []
    loss = (0.0, 0.0)
    was_training = model.training
    model.eval()
    try:
        workers = dataset.data.workers
        for loaded in evaluation_loader(dataset, batch_size, workers, rank=distributed.rank, world=distributed.world):
            seen(loaded)
            batch = to_device(loaded.batch, device)
            found = predict_batch(model.predict, batch, amp)
            if losses:
                with torch.no_grad(), autocast(device, amp):
                    (term,) = model.losses(batch).values()
                loss = (loss[0] + float(term.sum), loss[1] + float(term.count))
            for index, labels, scores in zip(loaded.indices, found.labels.tolist(), found.scores.tolist(), strict=True):
                classes = [] if index in loaded.problems else [names[k] for k in labels]
                truth = names[int(images[index].objects.labels[0])]
                entry = {"file": images[index].image_id, "class": truth, "predicted": classes}
                entries.append({**entry, "scores": [round(s, 5) for s in scores[: len(classes)]]})
    finally:
        model.train(was_training)
    shares = distributed.gather((entries, loss))
    if not distributed.main:
        return None
    entries = sorted((entry for share, _ in shares for entry in share), key=lambda entry: str(entry["file"]))
    total, count = (sum(values) for values in zip(*(share for _, share in shares), strict=True))
    metrics: dict[str, float | None] = {"top1": _accuracy(entries, 1), "top5": _accuracy(entries, 5)}
    tables = numbers_table(f"accuracy, percent, of {len(names)} classes", metrics) + _by_class(entries, names)
    return Scores({"classes": metrics}, tables, len(entries), entries, {"class": total / count} if count else {})


def _accuracy(entries: Sequence[dict[str, Any]], first: int) -> float:
    return float(np.mean([entry["class"] in entry["predicted"][:first] for entry in entries]))


def accuracy_by_class(entries: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The top-1 accuracy of each class that has pictures."""
    of: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        of.setdefault(entry["class"], []).append(entry)
    return {name: _accuracy(found, 1) for name, found in of.items()}


def _by_class(entries: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """The top-1 accuracy of each class, or of the worst where there are many."""
    accuracies = sorted((value or 0.0, name) for name, value in accuracy_by_class(entries).items())
    title = "top-1 by class" if len(names) <= LISTED else f"the {LISTED} classes of the lowest top-1"
    return f"{title}: " + ", ".join(f"{name} {100 * value:.1f}" for value, name in accuracies[:LISTED]) + "\n"
