"""Self-attention (Vaswani et al. 2017, arXiv:1706.03762) and multi-scale deformable attention (Zhu et al. 2020, 2010.04159).

Letters: T tokens, Q queries, C channels, M heads, L levels, P points per head, on all levels together.
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
    """Multi-head self-attention with positions added to queries and keys: tokens and positions (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)  # like torch's single matrix for all three
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.output.bias)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask (B, T, T) bool: the tokens (columns) that each token (row) attends to; None: all."""
        positioned = tokens + positions
        attended = F.scaled_dot_product_attention(
            self._split(self.query(positioned)),
            self._split(self.key(positioned)),
            self._split(self.value(tokens)),
            None if mask is None else mask[:, None],
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, M, T, C / M)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class Memory(NamedTuple):
    """The encoder's output: tokens (B, T, C), the pixels of all levels from fine to coarse, row by row, and the levels' sizes
    (H, W)."""

    tokens: Tensor
    sizes: list[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Each query attends to a few points of every level around its box: queries (B, Q, C), boxes (B, Q, 4) -> (B, Q, C).

    points:       per head, on each level.
    offset_scale: predicted offsets are in units of the box's sides * offset_scale / points of the level.
    sampling:     "bilinear", or "discrete": the nearest pixel with fixed offsets, for devices that cannot interpolate
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
        """Each head starts with its own direction, along which its points lie at increasing distances, with equal weights."""
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
        """boxes: (centre x, centre y, width, height), relative to the input's sides."""
        b, q = queries.shape[:2]
        offsets = upcast(self.offsets(queries)).view(b, q, self.heads, -1, 2)  # (B, Q, M, P, 2)
        weights = self.weights(queries).view(b, q, self.heads, -1).softmax(-1)  # (B, Q, M, P)
        points = boxes[:, :, None, None, :2] + offsets * self.scale * boxes[:, :, None, None, 2:]
        value = self.value(memory.tokens).view(b, -1, self.heads, queries.shape[2] // self.heads)  # (B, T, M, C / M)
        if self.sampling == "bilinear" and not (FAST_CPU and value.device.type == "cpu"):
            sampled = self._by_level(value, points, weights, memory.sizes)
        else:
            sampled = self._by_gather(value, points, weights, memory.sizes)
        output: Tensor = self.output(sampled)
        return output

    def _by_level(self, value: Tensor, points: Tensor, weights: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """torch's operator on each level."""
        grid = (2 * points - 1).transpose(1, 2).flatten(0, 1)  # (B M, Q, P, 2)
        maps = upcast(value).permute(0, 2, 3, 1).flatten(0, 1)  # (B M, C / M, T)
        levels = torch.split(maps, [h * w for h, w in sizes], dim=-1)
        sampled = [
            F.grid_sample(level.reshape(*level.shape[:2], *size), here, align_corners=False)
            for level, size, here in zip(levels, sizes, torch.split(grid, list(self.points), dim=2), strict=True)
        ]  # (B M, C / M, Q, points of the level) each
        weights = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)  # (B M, 1, Q, P)
        total = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # (B M, C / M, Q)
        return total.view(len(value), -1, total.shape[2]).transpose(1, 2).to(value.dtype)

    def _by_gather(self, value: Tensor, points: Tensor, weights: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """The same as one weighted gather: the tokens of all heads are the rows of one table, and the output of each head
        for a query is a weighted sum of a few rows. Twice as fast on CPUs."""
        b, tokens = value.shape[:2]
        q = points.shape[1]
        rows, pixel_weights, first = [], [], 0
        for (h, w), here in zip(sizes, torch.split(points, list(self.points), dim=3), strict=True):
            pixels, of_pixels = (_neighbours if self.sampling == "bilinear" else _nearest)(here, h, w)
            rows.append(pixels + first)  # (B, Q, M, points of the level, 4 or 1)
            pixel_weights.append(of_pixels)
            first += h * w
        weighted = torch.cat(pixel_weights, dim=3) * weights[..., None]
        image = torch.arange(b, device=value.device)[:, None, None, None, None]
        head = torch.arange(self.heads, device=value.device)[:, None, None]
        row = (image * tokens + torch.cat(rows, dim=3)) * self.heads + head
        table = value.flatten(0, 2)
        if torch.is_grad_enabled():  # half precision is too coarse to sum the gradients of many queries in one token
            table = upcast(table)
        total = F.embedding_bag(
            row.flatten(3).flatten(0, 2),
            table,
            mode="sum",
            per_sample_weights=weighted.flatten(3).flatten(0, 2).to(table),
        )
        return total.view(b, q, -1).to(value.dtype)


def _neighbours(points: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """(…, 2) x and y in 0..1 -> the indices of the four pixels around each point and their bilinear weights, (…, 4) each; the
    weights are 0 outside the map."""
    x, y = points[..., 0] * w - 0.5, points[..., 1] * h - 0.5
    left, top = x.floor(), y.floor()
    right, bottom = left + 1, top + 1
    columns = torch.stack([left, right, left, right], dim=-1)
    rows = torch.stack([top, top, bottom, bottom], dim=-1)
    dx, dy = x - left, y - top
    weights = torch.stack([(1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy], dim=-1)
    inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    # Clamped as integers, so that a point that is not a number is inside the map, too.
    pixels = rows.to(torch.int64).clamp(0, h - 1) * w + columns.to(torch.int64).clamp(0, w - 1)
    return pixels, torch.where(inside, weights, 0.0)


def _nearest(points: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """The same with a single pixel each, clamped to the map; adding half a pixel is what version 2 does."""
    column = (points[..., 0] * w + 0.5).to(torch.int64).clamp(0, w - 1)
    row = (points[..., 1] * h + 0.5).to(torch.int64).clamp(0, h - 1)
    return (row * w + column)[..., None], torch.ones_like(points[..., :1])
