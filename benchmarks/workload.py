"""What each side of `tools/benchmark.py` computes: the size of the work, a batch of noise, and what a side can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from resdet.structures import Batch, Targets


class Load(NamedTuple):
    """What is computed: images of size (H, W), batch of them a training step, with so many objects each."""

    size: tuple[int, int]
    batch: int
    objects: int
    repeats: int


class Sides(NamedTuple):
    """One model's training step and prediction, with whole pasted masks, which stay on the device; predict tells how many
    detections came out."""

    train: Callable[[], object]
    predict: Callable[[int], int]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def made_batch(load: Load, count: int, classes: int, device: torch.device) -> Batch:
    """Noise with boxes of all sizes; half of each object's box is its mask."""
    chance = torch.Generator().manual_seed(0)
    height, width = load.size
    padded = [-(-side // 32) * 32 for side in load.size]
    images = torch.zeros(count, 3, *padded, dtype=torch.uint8)
    images[:, :, :height, :width] = torch.randint(
        0, 256, (count, 3, height, width), generator=chance, dtype=torch.uint8
    )
    extent = torch.tensor([width, height])
    low = torch.rand(count, load.objects, 2, generator=chance) * extent * 0.6
    side = torch.rand(count, load.objects, 2, generator=chance) ** 2 * extent * 0.39 + 4
    masks = torch.zeros(count, load.objects, 112, 112, dtype=torch.uint8)
    masks[:, :, :, :56] = 1
    targets = Targets(
        torch.cat([low, low + side], -1).to(device),
        torch.randint(0, classes, (count, load.objects), generator=chance).to(device),
        torch.ones(count, load.objects, dtype=torch.bool, device=device),
        masks.to(device),
    )
    sizes = torch.tensor([load.size] * count)
    return Batch(images.to(device), sizes.to(device), torch.arange(count, device=device), targets)
