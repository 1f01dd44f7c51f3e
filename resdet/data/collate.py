"""Lists of single images and objects -> padded `Batch`es of few distinct shapes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resdet.fields import chunk, map_tensors
from resdet.structures import UNLABELLED, Batch, Targets

# Padded object counts; few, so that few graphs are compiled.
OBJECT_LADDER = (8, 32, 128, 512, 2048, 8192)
PADDING = {"labels": -1}  # of `Targets`' fields; 0 in all others
OF_IMAGE = ("known",)  # its fields that have a row for each image, not for each object


class Sample(NamedTuple):
    """One image in the network's input frame, as the dataset gives it.

    image (H, W, C) uint8 RGB (or float32 in 0..255), boxes (G, 4) float32 XYXY, labels (G,) int64,
    masks (G, M, M) uint8 or None, key: seed of the image's random sampling, row: the image's index in its dataset,
    problems: why other images, which this one replaces, could not be read,
    keypoints (G, K, 3) float32: x, y, visibility, or None, known (K,) bool: classes that are fully annotated, or None for all,
    semantic (H, W) uint8: the label map, or None.
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
    semantic: np.ndarray | None = None


class LoadedBatch(NamedTuple):
    """A batch, and what stays on the host: the dataset indices of its images, and why an image replaces another or, in
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


def pad_targets(samples: Sequence[Sample], size: tuple[int, int]) -> Targets:
    """Objects of several images, padded to the next rung of `OBJECT_LADDER`; label maps to `size` (H, W), the images'."""
    counts = [len(s.boxes) for s in samples]
    slots = next((rung for rung in OBJECT_LADDER if rung >= max(counts)), max(counts))
    fields: dict[str, Tensor | None] = {
        "valid": torch.arange(slots) < torch.tensor(counts)[:, None],
        "semantic": _pad_label_maps([s.semantic for s in samples], size),
        "shares": None,
    }
    for name in Targets._fields:
        if name not in fields:
            arrays = [getattr(s, name) for s in samples]
            fields[name] = None if arrays[0] is None else _stack(arrays, name, slots)
    return Targets(**fields)  # type: ignore[arg-type]


def _pad_label_maps(maps: Sequence[np.ndarray | None], size: tuple[int, int]) -> Tensor | None:
    if any(labels is None for labels in maps):
        return None
    padded = torch.full((len(maps), *size), UNLABELLED, dtype=torch.uint8)
    for row, labels in zip(padded, maps, strict=True):
        assert labels is not None
        row[: labels.shape[0], : labels.shape[1]] = torch.from_numpy(labels)
    return padded


def _stack(arrays: Sequence[np.ndarray], name: str, slots: int) -> Tensor:
    tensors = [torch.from_numpy(array) for array in arrays]
    if name in OF_IMAGE:
        return torch.stack(tensors)
    rows = torch.full((len(tensors), slots, *tensors[0].shape[1:]), PADDING.get(name, 0), dtype=tensors[0].dtype)
    for row, tensor in zip(rows, tensors, strict=True):
        row[: len(tensor)] = tensor
    return rows


def collate(samples: Sequence[Sample], multiple: int = 32) -> LoadedBatch:
    """Samples -> one `Batch` with targets."""
    images, sizes = pad_images([s.image for s in samples], multiple)
    keys = torch.tensor([s.key for s in samples])
    problems = {s.row: s.problems for s in samples if s.problems}
    return LoadedBatch(
        Batch(images, sizes, keys, pad_targets(samples, (images.shape[2], images.shape[3]))),
        [s.row for s in samples],
        problems,
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`. A GPU copies from pinned memory on a separate stream, while the previous step computes."""
    if device.type != "cuda" or batch.images.is_cuda:
        return map_tensors(lambda t: t.to(device), batch)
    computing, copying = torch.cuda.current_stream(device), _copying(device)
    with torch.cuda.stream(copying):
        moved = map_tensors(lambda t: t.to(device, non_blocking=True), batch)
    computing.wait_stream(copying)

    def used(t: Tensor) -> Tensor:
        t.record_stream(computing)  # or its memory could be reused for another batch before it is read
        return t

    return map_tensors(used, moved)


@functools.cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Equal parts of a batch at its padded size, the last one smaller where it does not divide; no more than images."""
    return chunk(batch, min(parts, len(batch.images)))
