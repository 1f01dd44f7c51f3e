"""Losses of dense heads, summed over anchors and classes, in at least float32.

Letters: A anchors of all levels, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resdet.boxes import upcast

ALPHA = 0.25  # weight of positives in the focal loss; negatives have 1 - ALPHA


def focal(logits: list[Tensor], labels: Tensor, known: Tensor | None) -> Tensor:
    """Sigmoid focal loss with gamma 2 (Lin et al. 2017, arXiv:1708.02002, equation 5), summed: (B,).

    logits (B, A_l, K) of each level, labels (B, A) as in `parts.Assigned`. known (B, K) bool: see `counted`.
    """
    sums = []
    for x, label in _by_level(logits, labels):
        is_label = _is_label(label, x.shape[2])
        x = torch.where(is_label, x, -x)  # the logit of the truth
        loss = x.neg().sigmoid().square() * F.softplus(-x)
        loss = loss * torch.where(is_label, ALPHA, 1 - ALPHA)
        sums.append(torch.where(counted(label, is_label, known), loss, 0.0).sum((1, 2)))
    return torch.stack(sums).sum(0)


def quality_focal(logits: list[Tensor], labels: Tensor, quality: Tensor, known: Tensor | None) -> Tensor:
    """Quality focal loss with beta 2 (Li et al. 2020, arXiv:2006.04388, equation 2), summed: (B,).

    Like `focal`, but the target of a positive's class is its `quality` (B, A) in 0..1 instead of 1.
    """
    sums = []
    for (x, label), (_, q) in zip(_by_level(logits, labels), _by_level(logits, quality), strict=True):
        is_label = _is_label(label, x.shape[2])
        target = torch.where(is_label, q.unsqueeze(-1), 0.0)
        entropy = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        loss = entropy * (x.sigmoid() - target).square()
        sums.append(torch.where(counted(label, is_label, known), loss, 0.0).sum((1, 2)))
    return torch.stack(sums).sum(0)


def counted(labels: Tensor, is_label: Tensor, known: Tensor | None) -> Tensor:
    """The (anchor, class) pairs that have a loss: labels (B, A), is_label (B, A, K) bool -> bool, broadcastable to (B, A, K).

    Anchors labelled -1 have none; for classes that an image's annotations are not complete for, only positives have one.
    """
    pairs = (labels >= 0).unsqueeze(-1)
    return pairs if known is None else pairs & (is_label | known.unsqueeze(1))


def _by_level(logits: list[Tensor], values: Tensor) -> list[tuple[Tensor, Tensor]]:
    parts, start = [], 0
    for x in logits:
        parts.append((upcast(x), values[:, start : start + x.shape[1]]))
        start += x.shape[1]
    return parts


def _is_label(labels: Tensor, k: int) -> Tensor:
    """(B, A) -> (B, A, K) bool."""
    return labels.unsqueeze(-1) == torch.arange(k, device=labels.device)


def distribution_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Distribution focal loss (Li et al. 2020, equation 6): cross-entropy of logits (..., n + 1) with the two integers around
    `target` (...) in 0..n, weighted by linear interpolation -> (...)."""
    below = target.floor()
    logs = F.log_softmax(upcast(logits), dim=-1)
    low = below.long().unsqueeze(-1)
    near, far = (logs.gather(-1, index).squeeze(-1) for index in (low, low + 1))
    return -(below + 1 - target) * near - (target - below) * far
