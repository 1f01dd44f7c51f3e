"""Attention among tokens (Vaswani et al. 2017, arXiv:1706.03762), and deformable, to maps (Zhu et al. 2020, 2010.04159).

Letters: T tokens, Q queries, C channels, M heads, L levels, P points of a head on all levels together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.kernels import FAST_CPU


class Attention(nn.Module):
    """Self-attention whose queries and keys know where they are: tokens and positions (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)  # as one matrix for all three would have
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (B, T, T) bool: which tokens (columns) each token (row) may look at; None: all."""
        placed = tokens + positions
        found = F.scaled_dot_product_attention(
            self._split(self.query(placed)),
            self._split(self.key(placed)),
            self._split(self.value(tokens)),
            None if mask is None else mask[:, None],
        )
        output: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return output

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, M, T, C / M)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Memory(NamedTuple):
    """What the decoder looks at: tokens (B, T, C), the pixels of all levels from fine to coarse, row by row, and the sizes
    (H, W) of the levels."""

    tokens: Tensor
    sizes: list[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Each query looks at a few points of every level around its box: queries (B, Q, C), boxes (B, Q, 4) -> (B, Q, C).

    points:       of a head, on each level.
    offset_scale: a point's predicted offset is in units of its box's sides times this over the level's number of points.
    sampling:     "bilinear", or "discrete": the nearest pixel, for devices that cannot interpolate, whose offsets do not learn
                  (version 2, section 2).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        points: Sequence[int],
        offset_scale: float,
        sampling: Literal["bilinear", "discrete"],
    ) -> None:
        super().__init__()
        self.heads, self.points, self.offset_scale, self.sampling = heads, tuple(points), offset_scale, sampling
        count = heads * sum(points)
        self.offsets, self.weights = nn.Linear(width, 2 * count), nn.Linear(width, count)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        scale = torch.tensor([offset_scale / n for n in points for _ in range(n)])
        self.register_buffer("scale", scale[:, None], persistent=False)  # (P, 1)
        self._initialise()

    scale: Tensor

    def _initialise(self) -> None:
        """Heads look in directions of their own, their points one after the other farther out, all weighing the same."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1, n + 1) for n in self.points])
        nn.init.zeros_(self.offsets.weight)
        self.offsets.bias.data = (direction[:, None] * steps[:, None]).flatten()
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.sampling == "discrete":
            self.offsets.requires_grad_(False)

    def forward(self, queries: Tensor, boxes: Tensor, memory: Memory) -> Tensor:
        """boxes: (x, y, width, height), centres, as shares of the input's sides."""
        b, q = queries.shape[:2]
        offsets = upcast(self.offsets(queries)).view(b, q, self.heads, -1, 2)  # (B, Q, M, P, 2)
        weights = self.weights(queries).view(b, q, self.heads, -1).softmax(-1)  # (B, Q, M, P)
        places = boxes[:, :, None, None, :2] + offsets * self.scale * boxes[:, :, None, None, 2:]
        value = self.value(memory.tokens).view(b, -1, self.heads, queries.shape[2] // self.heads)  # (B, T, M, C / M)
        if self.sampling == "bilinear" and not (FAST_CPU and value.device.type == "cpu"):
            found = self._by_level(value, places, weights, memory.sizes)
        else:
            found = self._by_gather(value, places, weights, memory.sizes)
        output: Tensor = self.output(found)
        return output

    def _by_level(self, value: Tensor, places: Tensor, weights: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """torch's operator on each level."""
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1).to(value.dtype)  # (B M, Q, P, 2)
        maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B M, C / M, T)
        levels = torch.split(maps, [h * w for h, w in sizes], dim=-1)
        sampled = [
            F.grid_sample(level.reshape(*level.shape[:2], *size), here, align_corners=False)
            for level, size, here in zip(levels, sizes, torch.split(grid, list(self.points), dim=2), strict=True)
        ]  # (B M, C / M, Q, points of the level) each
        weights = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)  # (B M, 1, Q, P)
        found = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # (B M, C / M, Q)
        return found.view(len(value), -1, found.shape[2]).transpose(1, 2)

    def _by_gather(self, value: Tensor, places: Tensor, weights: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """The same as one weighted gather: every token of every head is a row of one table, every query of a head a short
        list of rows and weights. Twice as fast on a CPU."""
        b, tokens = value.shape[:2]
        q = places.shape[1]
        rows, shares, first = [], [], 0
        for (h, w), here in zip(sizes, torch.split(places, list(self.points), dim=3), strict=True):
            at, share = (_neighbours if self.sampling == "bilinear" else _nearest)(here, h, w)
            rows.append(at + first)  # (B, Q, M, points of the level, 4 or 1)
            shares.append(share)
            first += h * w
        weighted = torch.cat(shares, dim=3) * weights[..., None]
        image = torch.arange(b, device=value.device)[:, None, None, None, None]
        head = torch.arange(self.heads, device=value.device)[:, None, None]
        row = (image * tokens + torch.cat(rows, dim=3)) * self.heads + head
        table = value.flatten(0, 2)
        if torch.is_grad_enabled():  # in half precision the gradients of many queries would not add up in a token
            table = upcast(table)
        found = F.embedding_bag(
            row.flatten(3).flatten(0, 2),
            table,
            mode="sum",
            per_sample_weights=weighted.flatten(3).flatten(0, 2).to(table),
        )
        return found.view(b, q, -1).to(value.dtype)


def _neighbours(places: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """(…, 2) x and y in 0..1 -> the numbers of the four pixels around each and their shares, (…, 4); 0 outside the map."""
    x, y = places[..., 0] * w - 0.5, places[..., 1] * h - 0.5
    left, top = x.floor(), y.floor()
    right, bottom = left + 1, top + 1
    columns = torch.stack([left, right, left, right], dim=-1)
    rows = torch.stack([top, top, bottom, bottom], dim=-1)
    dx, dy = x - left, y - top
    shares = torch.stack([(1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy], dim=-1)
    inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    at = rows.clamp(0, h - 1).to(torch.int64) * w + columns.clamp(0, w - 1).to(torch.int64)
    return at, torch.where(inside, shares, 0.0)


def _nearest(places: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The same of one pixel each, the last one outside the map; the half pixel that is added is version 2's."""
    column = (places[..., 0] * w + 0.5).to(torch.int64).clamp(0, w - 1)
    row = (places[..., 1] * h + 0.5).to(torch.int64).clamp(0, h - 1)
    return (row * w + column)[..., None], torch.ones_like(places[..., :1])
