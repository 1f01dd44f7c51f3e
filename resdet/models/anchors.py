"""Anchors: the grid of boxes, one set of shapes a level, that the RPN classifies and moves (Ren et al. 2015, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Anchors(nn.Module):
    """Feature maps {"p2": (B, C, h, w), …} -> one (h * w * A, 4) float32 XYXY tensor a level, A = sizes a level * ratios.

    sizes:     sides of the square anchors in input pixels, a list a level, as many in each. The A shapes of a cell are ordered
               by size, then by ratio (detectron2).
    ratios:    height / width; the area stays size**2.
    offset:    centre of the first anchor, in strides: 0.5 is a cell's middle, 0 its corner (detectron2, torchvision).
    rounded:   corners of the shapes rounded to whole pixels (torchvision).
    grid_stride: the stride is the padded input's size // the map's (torchvision) instead of 2**k; they differ on p6
               when a side is no multiple of 64.
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
        for k, of_level in enumerate(sizes):
            side = torch.tensor(of_level, dtype=torch.float32)[:, None]
            # By the reciprocal, as torchvision has it: a quotient differs in the last bit.
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
