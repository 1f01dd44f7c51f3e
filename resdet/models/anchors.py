"""Anchors: the grid of reference boxes that an RPN or a dense head classifies and regresses (Ren et al. 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Anchors(nn.Module):
    """Feature maps {"p2": (B, C, h, w), …} -> per level (h * w * A, 4) float32 XYXY boxes, A = sizes per level * ratios.

    sizes:     sides of the square anchors in input pixels: one list per level, all of the same length. The A anchors of a
               cell are ordered by size, then by ratio (detectron2).
    ratios:    height / width; the area stays size**2.
    offset:    centre of the first anchor, in strides: 0.5 is the centre of a cell, 0 its corner (detectron2, torchvision).
    rounded:   round the corners of the anchor shapes to whole pixels (torchvision).
    grid_stride: compute the stride as padded input size // map size (torchvision) instead of 2**k; they differ on p6
               when a side is not a multiple of 64.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,)),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        *,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        offset: float = 0.5,
        rounded: bool = False,
        grid_stride: bool = False,
    ) -> None:
        super().__init__()
        self.strides, self.offset, self.grid_stride = tuple(strides), offset, grid_stride
        self.per_location = len(sizes[0]) * len(ratios)
        root = torch.tensor(ratios, dtype=torch.float32).sqrt()
        for k, level_sizes in enumerate(sizes):
            side = torch.tensor(level_sizes, dtype=torch.float32)[:, None]
            # Multiply by the reciprocal as torchvision does: dividing differs in the last bit.
            heights, widths = (side * root).flatten(), (side * (1 / root)).flatten()
            shapes = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
            self.register_buffer(f"shapes{k}", shapes.round() if rounded else shapes, persistent=False)

    def forward(self, features: dict[str, Tensor], input_size: tuple[int, int]) -> list[Tensor]:
        """`input_size` is the padded input's (H, W)."""
        levels = []
        for k, (stride, feature) in enumerate(zip(self.strides, features.values(), strict=True)):
            h, w = feature.shape[-2:]
            step_y, step_x = (input_size[0] // h, input_size[1] // w) if self.grid_stride else (stride, stride)
            shapes = self.get_buffer(f"shapes{k}")
            y = (torch.arange(h, device=feature.device, dtype=shapes.dtype) + self.offset) * step_y
            x = (torch.arange(w, device=feature.device, dtype=shapes.dtype) + self.offset) * step_x
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            centers = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)  # (h, w, 4)
            levels.append((centers[:, :, None] + shapes).reshape(-1, 4))
        return levels
