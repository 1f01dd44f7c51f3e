"""Lists of single images and objects -> padded `Batch`es of few distinct shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resdet.structures import Batch, Targets

# Padded object counts: few, so that few graphs are compiled.
OBJECT_LADDER = (8, 32, 128, 512, 2048, 8192)


class Sample(NamedTuple):
    """One image in the network's input frame, as the dataset gives it.

    image (H, W, C) uint8 RGB (or float32 in 0..255), boxes (G, 4) float32 XYXY, labels (G,) int64,
    masks (G, M, M) uint8 or None, key: seed of the image's random sampling, row: the image's place in its dataset,
    problems: why other pictures could not be read, in whose place this one came,
    keypoints (G, K, 3) float32: x, y, visibility, or None, known (K,) bool: classes that are fully annotated, or None for all.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    key: int
    row: int
    problems: tuple[str, ...] = ()
    keypoints: np.ndarray | None = None
    known: np.ndarray | None = None


class LoadedBatch(NamedTuple):
    """A batch, and what stays on the host: the dataset indices of its images, and why an image stands for another or, in
    evaluation, is blank."""

    batch: Batch
    indices: list[int]
    problems: dict[int, tuple[str, ...]]


def pad_images(images: Sequence[np.ndarray], multiple: int = 32) -> tuple[Tensor, Tensor]:
    """(H, W, C) arrays -> images (B, C, H, W) of their dtype, padded to a common multiple, and image_sizes (B, 2)."""
    sizes = torch.tensor([image.shape[:2] for image in images])
    height, width = (-(-int(side) // multiple) * multiple for side in sizes.amax(0))
    dtype = torch.from_numpy(images[0][:0]).dtype
    padded = torch.zeros(len(images), images[0].shape[2], height, width, dtype=dtype)
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(image).permute(2, 0, 1)
    return padded, sizes


def pad_targets(samples: Sequence[Sample]) -> Targets:
    """Objects of several images, padded to the next rung of `OBJECT_LADDER`."""
    most = max(len(s.boxes) for s in samples)
    g = next((rung for rung in OBJECT_LADDER if rung >= most), most)
    b = len(samples)
    boxes, labels = torch.zeros(b, g, 4), torch.full((b, g), -1)
    valid = torch.zeros(b, g, dtype=torch.bool)
    masks = None
    if samples[0].masks is not None:
        masks = torch.zeros(b, g, *samples[0].masks.shape[1:], dtype=torch.uint8)
    keypoints = None
    if samples[0].keypoints is not None:
        keypoints = torch.zeros(b, g, *samples[0].keypoints.shape[1:])
    for i, sample in enumerate(samples):
        n = len(sample.boxes)
        boxes[i, :n], labels[i, :n] = torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)
        valid[i, :n] = True
        if masks is not None:
            assert sample.masks is not None
            masks[i, :n] = torch.from_numpy(sample.masks)
        if keypoints is not None:
            assert sample.keypoints is not None
            keypoints[i, :n] = torch.from_numpy(sample.keypoints)
    known = None
    if samples[0].known is not None:
        known = torch.stack([torch.from_numpy(sample.known) for sample in samples])
    return Targets(boxes, labels, valid, masks, keypoints, known)


def collate(samples: Sequence[Sample], multiple: int = 32) -> LoadedBatch:
    """Samples -> one `Batch` with targets."""
    images, sizes = pad_images([s.image for s in samples], multiple)
    keys = torch.tensor([s.key for s in samples])
    problems = {s.row: s.problems for s in samples if s.problems}
    return LoadedBatch(Batch(images, sizes, keys, pad_targets(samples)), [s.row for s in samples], problems)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`. To a GPU it travels on a stream of its own: from pinned memory, while the step before computes."""
    if device.type != "cuda" or batch.images.is_cuda:
        return mapped(batch, lambda t: t.to(device))
    computing, copying = torch.cuda.current_stream(device), _copying(device)
    with torch.cuda.stream(copying):
        moved = mapped(batch, lambda t: t.to(device, non_blocking=True))
    computing.wait_stream(copying)

    def used(t: Tensor) -> Tensor:
        t.record_stream(computing)  # or its memory would be another batch's before it is read
        return t

    return mapped(moved, used)


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def mapped(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor's `function`."""
    fields = {name: function(t) for name, t in batch._asdict().items() if isinstance(t, Tensor)}
    targets = batch.targets
    if targets is not None:
        targets = Targets(*(None if t is None else function(t) for t in targets))  # type: ignore[arg-type]
    return batch._replace(**fields, targets=targets)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Equal parts of a batch at its padded size, the last one smaller where it does not divide; no more than images."""
    parts = min(parts, len(batch.images))
    if parts == 1:
        return [batch]

    def pieces(t: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * parts if t is None else t.chunk(parts)

    targets = [None] * parts if batch.targets is None else [
        Targets(*fields) for fields in zip(*map(pieces, batch.targets), strict=True)
    ]  # fmt: skip
    fields = zip(*map(pieces, (batch.images, batch.image_sizes, batch.keys)), targets, strict=True)
    return [Batch(*f) for f in fields]
