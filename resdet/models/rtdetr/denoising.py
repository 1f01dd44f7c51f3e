"""Denoising groups (DN-DETR: Li et al. 2022, arXiv:2203.01305; contrastive: Zhang et al. 2022, 2203.03605, section 3.3).

Letters: G objects per image (padded), N positive and N negative denoising queries, D = 2 N, Q ordinary queries, C channels,
K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet.boxes import from_cxcywh, to_cxcywh
from resdet.models.matching import gather_rows, uniform
from resdet.models.rtdetr.decoder import inverse_sigmoid
from resdet.models.rtdetr.losses import Objects


class Noisy(NamedTuple):
    """Denoising queries: content (B, D, C), boxes (B, D, 4) unbounded.

    mask (B, D + Q, D + Q) bool: the queries that each denoising and ordinary query attends to.
    owner (B, D) int64: the object that a query must predict; -1: none, for negatives and unused queries.
    share (B, D) float32: the weight of a query in the loss: 1 / number of groups; 0 for unused queries.
    num_objects (): the number of objects denoised.
    """

    content: Tensor
    boxes: Tensor
    mask: Tensor
    owner: Tensor
    share: Tensor
    num_objects: Tensor


class Denoising(nn.Module):
    """An image's objects with noise, repeated in as many groups as fit into N queries; each group has its own noise.

    Positives must predict their object, negatives, which have more noise, no object. In an image of more than N objects the
    first N are used.

    label_noise: half this fraction of the labels is replaced at random. box_noise: the corners of positives move by up to this
    fraction of half a side, those of negatives by one to two times as much.
    """

    def __init__(self, width: int, num_classes: int, count: int, label_noise: float, box_noise: float) -> None:
        super().__init__()
        self.num_classes, self.count = num_classes, count
        self.label_noise, self.box_noise = label_noise, box_noise
        self.embedding = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)

    def forward(self, objects: Objects, keys: Tensor, queries: int) -> Noisy:
        """keys (B,): seeds of the noise (see `Batch`). queries: Q."""
        slot = torch.arange(2 * self.count, device=keys.device)
        count = objects.valid.sum(1, keepdim=True).clamp(max=self.count)  # (B, 1)
        size = count.clamp(min=1)
        groups = torch.where(count > 0, self.count // size, 0)
        group, in_group = slot // (2 * size), slot % (2 * size)  # a group: all positives, then all negatives
        used, negative, owner = group < groups, in_group >= size, in_group % size  # (B, D)
        random = uniform(keys, len(slot) * 10).view(len(keys), -1, 10)
        labels = self._labels(objects.labels.gather(1, owner), random[..., :2])
        boxes = self._boxes(gather_rows(objects.boxes, owner), negative, random[..., 2:6], random[..., 6:])
        return Noisy(
            content=self.embedding(torch.where(used, labels, self.num_classes)),
            boxes=torch.where(used[..., None], inverse_sigmoid(boxes), 0.0),
            mask=_mask(torch.where(used, group, -1), queries),
            owner=torch.where(used & ~negative, owner, -1),
            share=used / groups.clamp(min=1),
            num_objects=count.sum(),
        )

    def _labels(self, labels: Tensor, random: Tensor) -> Tensor:
        other = (random[..., 1] * self.num_classes).long()
        return torch.where(random[..., 0] < 0.5 * self.label_noise, other, labels)

    def _boxes(self, boxes: Tensor, negative: Tensor, signs: Tensor, amounts: Tensor) -> Tensor:
        scale = (0.5 * self.box_noise * boxes[..., 2:]).repeat(1, 1, 2)
        noise = (amounts + negative[..., None]) * torch.where(signs < 0.5, -1.0, 1.0)
        return to_cxcywh((from_cxcywh(boxes) + noise * scale).clamp(0, 1))


def _mask(group: Tensor, queries: int) -> Tensor:
    """group (B, D), -1 for unused queries -> (B, D + Q, D + Q). Denoising queries attend to their group and the ordinary
    queries, ordinary queries only to each other."""
    b, d = group.shape
    same = (group[:, :, None] == group[:, None]) & (group >= 0)[:, None]
    none = torch.zeros(b, queries, d, dtype=torch.bool, device=group.device)
    all_ordinary = torch.ones(b, d + queries, queries, dtype=torch.bool, device=group.device)
    return torch.cat([torch.cat([same, none], dim=1), all_ordinary], dim=2)
