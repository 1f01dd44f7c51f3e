"""Non-maximum suppression on GPUs with an output of fixed size, without host synchronisation (Triton; imported on CUDA only).

torchvision's operator returns a list of unknown length, so the host must wait for its length. Here two kernels compute a mask.
The first stores in bits, for every pair of boxes, whether the one of higher score would suppress the other. The second goes
through the boxes by score in blocks of 32, one program per image, and keeps a box unless one kept before suppresses it, until
enough are kept. Invalid boxes are sorted last and blocks of them are skipped: a typical image has a hundred candidates
of 8,192.

Letters: B images, N boxes by descending score, W = ceil(N / 32) words of 32 bits.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHUNK = 64, 128  # boxes and words that a program processes at a time


@triton.jit
def _overlap_bits(boxes, groups, counts, bits, n, words: tl.constexpr, threshold, ROWS: tl.constexpr):
    """bits (B, N, W), initially zero: bit j % 32 of word j // 32 in row i is set if box i suppresses box j > i.
    counts (B,): the number of valid boxes of each image."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * 32 + tl.arange(0, 32)
    first = tl.program_id(2).to(tl.int64) * n
    after = tl.program_id(1) * 32 + 31 > tl.program_id(0) * ROWS  # otherwise all j <= i
    if after & (tl.program_id(1) * 32 < tl.load(counts + tl.program_id(2))):
        x1 = tl.load(boxes + (first + rows) * 4, rows < n, 0.0)[:, None]
        y1 = tl.load(boxes + (first + rows) * 4 + 1, rows < n, 0.0)[:, None]
        x2 = tl.load(boxes + (first + rows) * 4 + 2, rows < n, 0.0)[:, None]
        y2 = tl.load(boxes + (first + rows) * 4 + 3, rows < n, 0.0)[:, None]
        group = tl.load(groups + first + rows, rows < n, -1)[:, None]
        u1 = tl.load(boxes + (first + columns) * 4, columns < n, 0.0)[None, :]
        v1 = tl.load(boxes + (first + columns) * 4 + 1, columns < n, 0.0)[None, :]
        u2 = tl.load(boxes + (first + columns) * 4 + 2, columns < n, 0.0)[None, :]
        v2 = tl.load(boxes + (first + columns) * 4 + 3, columns < n, 0.0)[None, :]
        other = tl.load(groups + first + columns, columns < n, -2)[None, :]
        width = tl.maximum(tl.minimum(x2, u2) - tl.maximum(x1, u1), 0.0)
        height = tl.maximum(tl.minimum(y2, v2) - tl.maximum(y1, v1), 0.0)
        shared = width * height
        union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
        # For two empty boxes, 0 / 0 > threshold is False. IEEE division, to agree with other devices.
        above = tl.div_rn(shared, union) > threshold
        hit = above & (group == other) & (columns[None, :] > rows[:, None])
        word = tl.sum(hit.to(tl.int32) << tl.arange(0, 32)[None, :], axis=1)
        tl.store(bits + (first + rows) * words + tl.program_id(1), word, rows < n)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _walk(bits, removed, counts, n, words: tl.constexpr, enough, CHUNK: tl.constexpr):
    """removed (B, W): bits of the invalid boxes on input, of all boxes not kept on output; correct up to the block that reaches
    `enough` kept boxes, where the walk ends."""
    first = tl.program_id(0).to(tl.int64) * n
    mine = removed + tl.program_id(0).to(tl.int64) * words
    lanes = tl.arange(0, 32)
    used = tl.cdiv(tl.load(counts + tl.program_id(0)), 32)  # words that hold a valid box
    k, found = 0, 0
    while (k < used) & (found < enough):
        rows = k * 32 + lanes
        within = tl.load(bits + (first + rows) * words + k, rows < n, 0)
        gone = tl.load(mine + k)
        for i in range(32):  # each kept box of the block suppresses later ones
            alive = 1 - ((gone >> i) & 1)
            gone = gone | (tl.sum(tl.where(lanes == i, within, 0), axis=0) * alive)
        tl.store(mine + k, gone)
        kept = ((gone >> lanes) & 1) == 0
        found += tl.sum(kept.to(tl.int32), axis=0)
        start = k + 1
        while start < used:  # Triton 3.6's interpreter fails on a `range` of loaded numbers with NumPy 2.4
            columns = start + tl.arange(0, CHUNK)
            mask = (kept & (rows < n))[:, None] & (columns < used)[None, :]
            block = tl.load(bits + (first + rows)[:, None] * words + columns[None, :], mask, 0)
            before = tl.load(mine + columns, columns < used, 0)
            tl.store(mine + columns, before | tl.reduce(block, 0, _either), columns < used)
            start += CHUNK
        tl.debug_barrier()  # other threads wrote the next block's word
        k += 1


def keep_mask(
    boxes: Tensor, scores: Tensor, groups: Tensor | None, valid: Tensor, threshold: float, count: int
) -> Tensor:
    """The same as `nms.nms`: (B, N, 4), (B, N), (B, N) int64 or None, (B, N) bool -> (B, N) bool."""
    b, n = valid.shape
    groups = torch.zeros_like(valid, dtype=torch.int64) if groups is None else groups
    keep = torch.zeros_like(valid)
    if not keep.numel():
        return keep
    lowest = torch.finfo(torch.float32).min  # so that invalid boxes come last
    order = torch.where(valid, scores.float().clamp(min=lowest), -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    ranked = boxes.float().gather(1, order[:, :, None].expand(-1, -1, 4)).contiguous()
    words, candidates = triton.cdiv(n, 32), valid.sum(1)
    bits = torch.zeros(b, n, words, dtype=torch.int32, device=boxes.device)
    grid = (triton.cdiv(n, ROWS), words, b)
    _overlap_bits[grid](ranked, groups.gather(1, order), candidates, bits, n, words, threshold, ROWS=ROWS)
    lanes = torch.arange(32, device=boxes.device)
    invalid = torch.nn.functional.pad(~valid.gather(1, order), (0, words * 32 - n), value=True)
    removed = (invalid.view(b, words, 32).long() << lanes).sum(-1).to(torch.int32)
    _walk[(b,)](bits, removed, candidates, n, words, count, CHUNK=CHUNK)
    kept = ((removed[:, :, None] >> lanes) & 1 == 0).flatten(1)[:, :n]
    return keep.scatter(1, order, kept & (kept.cumsum(1) <= count))
