"""Losses of dense heads, summed over anchors and classes. Everything here runs in at least float32.

Letters: A anchors of all levels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resdet.boxes import upcast

ALPHA = 0.25  # the weight of positives in the focal loss; that of negatives is the rest


def focal(logits: list[Tensor], labels: Tensor, known: Tensor | None) -> Tensor:
    """Focal loss of independent classes with gamma 2 (Lin et al. 2017, arXiv:1708.02002, equation 5), summed: (B,).

    logits (B, A_l, K) of each level, labels (B, A) as `parts.Assigned` has them. known (B, K) bool: see `counted`.
    """
    sums = []
    for x, label in _by_level(logits, labels):
        right = _is_label(label, x.shape[2])
        x = torch.where(right, x, -x)  # how sure it is of the truth
        loss = x.neg().sigmoid().square() * F.softplus(-x)
        loss = loss * torch.where(right, ALPHA, 1 - ALPHA)
        sums.append(torch.where(counted(label, right, known), loss, 0.0).sum((1, 2)))
    return torch.stack(sums).sum(0)


def quality_focal(logits: list[Tensor], labels: Tensor, quality: Tensor, known: Tensor | None) -> Tensor:
    """Quality focal loss with beta 2 (Li et al. 2020, arXiv:2006.04388, equation 2), summed: (B,).

    As `focal`, but the target of a positive's class is its `quality` (B, A) in 0..1 instead of 1.
    """
    sums = []
    for (x, label), (_, q) in zip(_by_level(logits, labels), _by_level(logits, quality), strict=True):
        right = _is_label(label, x.shape[2])
        wanted = torch.where(right, q.unsqueeze(-1), 0.0)
        entropy = F.binary_cross_entropy_with_logits(x, wanted, reduction="none")
        loss = entropy * (x.sigmoid() - wanted).square()
        sums.append(torch.where(counted(label, right, known), loss, 0.0).sum((1, 2)))
    return torch.stack(sums).sum(0)


def counted(labels: Tensor, right: Tensor, known: Tensor | None) -> Tensor:
    """Which pairs of an anchor and a class have a loss: right (B, A, K) bool, labels (B, A) -> broadcastable to (B, A, K).

    Not those of anchors labelled -1; and of classes that an image's annotations are not complete for only the positives.
    """
    pairs = (labels >= 0).unsqueeze(-1)
    return pairs if known is None else pairs & (right | known.unsqueeze(1))


def _by_level(logits: list[Tensor], values: Tensor) -> list[tuple[Tensor, Tensor]]:
    parts, start = [], 0
    for x in logits:
        parts.append((upcast(x), values[:, start : start + x.shape[1]]))
        start += x.shape[1]
    return parts


def _is_label(labels: Tensor, k: int) -> Tensor:
    """(B, A) -> (B, A, K) bool."""
    return labels.unsqueeze(-1) == torch.arange(k, device=labels.device)


def distribution_focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Distribution focal loss (Li et al. 2020, equation 6): the cross-entropy of logits (..., n + 1) with the two whole numbers
    around `wanted` (...) in 0..n, weighted by how near they are -> (...)."""
    below = wanted.floor()
    logs = F.log_softmax(upcast(logits), dim=-1)
    low = below.long().unsqueeze(-1)
    near, far = (logs.gather(-1, index).squeeze(-1) for index in (low, low + 1))
    return -(below + 1 - wanted) * near - (wanted - below) * far
