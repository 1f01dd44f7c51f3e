"""Matching of anchors and RoIs to objects, and sampling for the loss; batched, with static shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from resdet.boxes import iou
from resdet.structures import Samples, Targets

# Objects matched at a time: the IoU of 268 thousand anchors (800 x 1333) and 16 objects takes 17 MB per image.
CHUNK = 16
MULTIPLIER = 0x9E3779B1
INVERSE = pow(MULTIPLIER, -1, 2**32)


class Matches(NamedTuple):
    """positive, negative (B, N) bool (neither: ignored); gt_index (B, N) int64: the object of highest IoU;
    best (B, N) float32: that IoU."""

    positive: Tensor
    negative: Tensor
    gt_index: Tensor
    best: Tensor


def match(
    boxes: Tensor, gt_boxes: Tensor, gt_valid: Tensor, *, high: float, low: float, low_quality: bool = False
) -> Matches:
    """Match boxes (N, 4) or (B, N, 4) to objects (B, G, 4) with gt_valid (B, G) by IoU.

    Positive at IoU >= `high`, negative below `low`. With `low_quality`, the boxes of highest IoU with an object are positive
    too (Ren et al. 2015, section 3.1.2, case i); they are still assigned the object that they themselves overlap most.
    """
    b, g = gt_valid.shape
    n = boxes.shape[-2]
    best = boxes.new_zeros(b, n)
    index = torch.zeros(b, n, dtype=torch.int64, device=boxes.device)
    best_of_object = torch.zeros(b, n, dtype=torch.bool, device=boxes.device)
    for start in range(0, g, CHUNK):
        stop = min(start + CHUNK, g)
        overlaps = iou(boxes, gt_boxes[:, start:stop]) * gt_valid[:, None, start:stop]  # (B, N, chunk)
        chunk_best, chunk_index = first_maximum(overlaps)
        better = chunk_best > best
        index = torch.where(better, chunk_index + start, index)
        best = torch.where(better, chunk_best, best)
        if low_quality:
            highest = overlaps.amax(dim=1, keepdim=True)  # (B, 1, chunk)
            best_of_object = best_of_object | ((overlaps == highest) & (highest > 0)).any(dim=-1)
    return Matches((best >= high) | best_of_object, (best < low) & ~best_of_object, index, best)


def first_maximum(overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """(..., C) -> the maximum along C, and the index (int64) of its first occurrence."""
    if not torch.compiler.is_compiling():
        return tuple(overlaps.max(dim=-1))  # type: ignore[return-value]
    # Twice as slow, but correct: with 8 or 16 columns on CPUs, inductor of torch 2.11 returns another index for ties.
    best = overlaps.amax(dim=-1)
    columns = torch.arange(overlaps.shape[-1], device=overlaps.device)
    return best, torch.where(overlaps == best.unsqueeze(-1), columns, overlaps.shape[-1]).amin(dim=-1)


def sample(
    positive: Tensor, negative: Tensor, keys: Tensor, count: int, max_positive: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw `count` of N candidates per image at random, at most `max_positive` of them positive.

    positive, negative (B, N) bool, keys (B,) int64 -> index (B, R) int64, positive (B, R) bool, valid (B, R) bool with
    R = min(count, N): positives first, then negatives, then padding if there are too few of both.
    """
    n = positive.shape[1]
    count, max_positive = min(count, n), min(max_positive, n)
    random = uniform(keys, n)
    rank = torch.where(positive, random, -1.0)
    threshold = rank.topk(max_positive, dim=1).values[:, -1:]
    chosen = positive & (random >= threshold)
    rank = torch.where(chosen, random + 2, torch.where(negative, random, -1.0))
    value, index = rank.topk(count, dim=1)
    return index, value >= 2, value >= 0


def uniform(keys: Tensor, n: int) -> Tensor:
    """(B,) int64 keys -> (B, n) float32 in [0, 1), by hashing (key, position) with MurmurHash3's finaliser.

    A pure function: an image gets the same numbers on any device, in any batch, in eager mode and compiled.
    """
    mask = 0xFFFFFFFF
    # (position * M + key) mod 2**32, written so that the compiler cannot fold the constants: their product overflows
    # Triton's int32.
    x = ((torch.arange(n, device=keys.device) + ((keys[:, None] * INVERSE) & mask)) * MULTIPLIER) & mask
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        x = ((x ^ (x >> shift)) * multiplier) & mask
    x = x ^ (x >> 16)
    return (x >> 8).float() / 2**24


def sample_rois(
    boxes: Tensor, valid: Tensor, targets: Targets, keys: Tensor, image_sizes: Tensor, *,
    count: int, positive_fraction: float, iou_threshold: float, low_quality: bool, num_classes: int,
) -> Samples:  # fmt: skip
    """Match proposals (B, P, 4) with valid (B, P) to the objects and draw `count` per image to train the heads on.

    The ground-truth boxes are added to the proposals, so that the heads see good boxes from the first step on.
    """
    boxes = torch.cat([boxes, targets.boxes], dim=1)
    valid = torch.cat([valid, targets.valid], dim=1)
    found = match(boxes, targets.boxes, targets.valid, high=iou_threshold, low=iou_threshold, low_quality=low_quality)
    index, positive, chosen = sample(
        found.positive & valid, found.negative & valid, keys, count, int(count * positive_fraction)
    )
    return _labelled(
        gather_rows(boxes, index),
        found.gt_index.gather(1, index),
        positive,
        chosen,
        targets,
        keys,
        image_sizes,
        num_classes,
    )


def relabel(samples: Samples, boxes: Tensor, valid: Tensor, *, iou_threshold: float, num_classes: int) -> Samples:
    """The samples with new boxes (B, R, 4) and valid (B, R), matched to the objects again; positives come first."""
    targets = samples.targets
    found = match(boxes, targets.boxes, targets.valid, high=iou_threshold, low=iou_threshold)
    order = (found.positive & valid).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    valid = valid.gather(1, order)
    return _labelled(
        gather_rows(boxes, order), found.gt_index.gather(1, order), found.positive.gather(1, order) & valid, valid,
        targets, samples.keys, samples.image_sizes, num_classes,
    )  # fmt: skip


def _labelled(
    boxes: Tensor, gt_index: Tensor, positive: Tensor, valid: Tensor,
    targets: Targets, keys: Tensor, image_sizes: Tensor, num_classes: int,
) -> Samples:  # fmt: skip
    labels = torch.where(positive, targets.labels.gather(1, gt_index), num_classes)
    return Samples(
        boxes=boxes,
        labels=torch.where(valid, labels, -1),
        positive=positive,
        valid=valid,
        gt_index=gt_index,
        gt_boxes=gather_rows(targets.boxes, gt_index),
        targets=targets,
        keys=keys,
        image_sizes=image_sizes,
    )


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """rows (B, N, C), index (B, R) -> (B, R, C)."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))
