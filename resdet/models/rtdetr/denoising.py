"""Denoising groups (DN-DETR: Li et al. 2022, arXiv:2203.01305; contrastive: Zhang et al. 2022, 2203.03605, section 3.3).

Letters: G objects an image (padded), N queries of each sign, D = 2 N of both, Q ordinary queries, C channels, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet.models.matching import gather_rows, uniform
from resdet.models.rtdetr.decoder import unbounded
from resdet.models.rtdetr.losses import Objects, corners


class Noisy(NamedTuple):
    """Disturbed objects as queries: content (B, D, C), boxes (B, D, 4) unbounded.

    mask (B, D + Q, D + Q) bool: what each of these and of the ordinary queries may look at.
    owner (B, D) int64: the object that a query is to find; -1: none, as it was disturbed too much.
    share (B, D) float32: of a query in its object's loss, 1 over the number of groups; 0 for queries that are not used.
    num_objects (): that take part.
    """

    content: Tensor
    boxes: Tensor
    mask: Tensor
    owner: Tensor
    share: Tensor
    num_objects: Tensor


class Denoising(nn.Module):
    """An image's objects, repeated in as many groups as fit into N queries of each sign, each group with a noise of its own.

    Positives have to find their object's box, negatives, which are farther away, nothing. Of an image with more than N objects
    the first N take part.

    label_noise: half this share of the labels is drawn anew. box_noise: corners of positives move by up to this share of half a
    side, those of negatives by that and up to as much again.
    """

    def __init__(self, width: int, num_classes: int, count: int, label_noise: float, box_noise: float) -> None:
        super().__init__()
        self.num_classes, self.count = num_classes, count
        self.label_noise, self.box_noise = label_noise, box_noise
        self.embedding = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)

    def forward(self, objects: Objects, keys: Tensor, queries: int) -> Noisy:
        """keys (B,): of the noise (see `Batch`). queries: Q."""
        slot = torch.arange(2 * self.count, device=keys.device)
        count = objects.valid.sum(1, keepdim=True).clamp(max=self.count)  # (B, 1)
        size = count.clamp(min=1)
        groups = torch.where(count > 0, self.count // size, 0)
        group, place = slot // (2 * size), slot % (2 * size)  # a group: all positives, then all negatives
        used, negative, owner = group < groups, place >= size, place % size  # (B, D)
        draws = uniform(keys, len(slot) * 10).view(len(keys), -1, 10)
        labels = self._labels(objects.labels.gather(1, owner), draws[..., :2])
        boxes = self._boxes(gather_rows(objects.boxes, owner), negative, draws[..., 2:6], draws[..., 6:])
        return Noisy(
            content=self.embedding(torch.where(used, labels, self.num_classes)),
            boxes=torch.where(used[..., None], unbounded(boxes), 0.0),
            mask=_mask(torch.where(used, group, -1), queries),
            owner=torch.where(used & ~negative, owner, -1),
            share=used / groups.clamp(min=1),
            num_objects=count.sum(),
        )

    def _labels(self, labels: Tensor, draws: Tensor) -> Tensor:
        anew = (draws[..., 1] * self.num_classes).long()
        return torch.where(draws[..., 0] < 0.5 * self.label_noise, anew, labels)

    def _boxes(self, boxes: Tensor, negative: Tensor, signs: Tensor, parts: Tensor) -> Tensor:
        reach = (0.5 * self.box_noise * boxes[..., 2:]).repeat(1, 1, 2)
        moves = (parts + negative[..., None]) * torch.where(signs < 0.5, -1.0, 1.0)
        low, high = (corners(boxes) + moves * reach).clamp(0, 1).chunk(2, dim=-1)
        return torch.cat([0.5 * (low + high), high - low], dim=-1)


def _mask(group: Tensor, queries: int) -> Tensor:
    """group (B, D), -1 for queries that are not used. Disturbed objects see their group and the ordinary queries, which do not
    see them."""
    b, d = group.shape
    same = (group[:, :, None] == group[:, None]) & (group >= 0)[:, None]
    seen = torch.zeros(b, queries, d, dtype=torch.bool, device=group.device)
    ordinary = torch.ones(b, d + queries, queries, dtype=torch.bool, device=group.device)
    return torch.cat([torch.cat([same, seen], dim=1), ordinary], dim=2)
