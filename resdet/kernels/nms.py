"""NMS and ranking as custom operators with outputs of fixed shape, so that they do not break a graph.

The CPU implementations call torchvision and are the reference; on CUDA `nms` runs `nms_triton`, without host synchronisation.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torchvision
from torch import Tensor

from resdet.boxes import paired_iou, upcast

# Above 1000 candidates torchvision runs NMS per class; below, it shifts classes apart, which rounds differently.
ENOUGH = 1001
TRITON = find_spec("triton") is not None


@torch.library.custom_op("resdet::place", mutates_args=())
def place(scores: Tensor, valid: Tensor) -> Tensor:
    """Minus the rank of each score among the valid ones: (B, N), (B, N) bool -> (B, N) float32, -inf where not valid.

    Ties are broken as by torch's unstable sort, which is how mmdetection breaks its many ties among saturated sigmoids. The
    result depends on the number of elements sorted, so padding is left out.
    """
    places = torch.full(scores.shape, -torch.inf, device=scores.device)
    for b in range(len(scores)):
        candidates = valid[b].nonzero().squeeze(1)
        order = torch.sort(scores[b, candidates], descending=True).indices
        places[b, candidates[order]] = -torch.arange(len(order), device=scores.device, dtype=places.dtype)
    return places


@place.register_fake
def _(scores: Tensor, valid: Tensor) -> Tensor:
    return torch.empty(scores.shape, device=scores.device)


@torch.library.custom_op("resdet::nms", mutates_args=())
def nms(boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, threshold: float, count: int) -> Tensor:
    """Non-maximum suppression with an output of fixed size: a keep mask instead of a list of indices.

    boxes (B, N, 4), scores (B, N), groups (B, N) int64 (such as classes: boxes suppress each other only within a group) or
    None for one group, valid (B, N) bool -> keep (B, N) bool: the `count` best remaining boxes.
    """
    if boxes.is_cuda and TRITON:
        from resdet.kernels.nms_triton import keep_mask

        with torch.cuda.device(boxes.device):  # Triton launches kernels on the current device
            return keep_mask(boxes, scores, groups, valid, threshold, count)
    keep = torch.zeros_like(valid)
    for b in range(len(boxes)):
        candidates = valid[b].nonzero().squeeze(1)
        candidates = candidates[scores[b, candidates].argsort(descending=True, stable=True)]
        best = candidates[: max(8 * count, ENOUGH)]  # usually enough
        kept = _suppress(boxes[b], scores[b], None if groups is None else groups[b], best, threshold)
        if len(kept) < count and len(best) < len(candidates):
            kept = _suppress(boxes[b], scores[b], None if groups is None else groups[b], candidates, threshold)
        keep[b, kept[:count]] = True
    return keep


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor | None, rows: Tensor, threshold: float) -> Tensor:
    """The rows that torchvision's NMS keeps, by descending score."""
    chosen = upcast(boxes[rows]), upcast(scores[rows])
    if groups is None:
        return rows[torchvision.ops.nms(*chosen, threshold)]
    return rows[torchvision.ops.batched_nms(*chosen, groups[rows], threshold)]


@nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, threshold: float, count: int) -> Tensor:
    return torch.empty_like(valid)


@torch.library.custom_op("resdet::soft_nms", mutates_args=())
def soft_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, sigma: float, count: int
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al. 2017, arXiv:1704.04503): no box is removed, but its score is multiplied by
    exp(-IoU ** 2 / sigma) for every better box of its group, best first.

    boxes (B, N, 4), scores (B, N), groups (B, N) int64, valid (B, N) bool -> the `count` best scores, descending, -inf where
    no box is left, and the indices of their boxes (int64), (B, count) each.
    """
    boxes, remaining = upcast(boxes), torch.where(valid, upcast(scores), -torch.inf)
    found, index = [], []
    for _ in range(count):
        best, at = remaining.max(dim=1, keepdim=True)  # (B, 1)
        overlap = paired_iou(boxes, boxes.gather(1, at[..., None].expand(-1, -1, 4)))
        decay = torch.where(groups == groups.gather(1, at), torch.exp(-overlap * overlap / sigma), 1.0)
        remaining = torch.where(remaining > -torch.inf, remaining * decay, remaining).scatter(1, at, -torch.inf)
        found.append(best)
        index.append(at)
    return torch.cat(found, dim=1), torch.cat(index, dim=1)


@soft_nms.register_fake
def _(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, sigma: float, count: int) -> tuple[Tensor, Tensor]:
    best = upcast(scores).new_empty(scores.shape[0], count)
    return best, torch.empty_like(best, dtype=torch.int64)
