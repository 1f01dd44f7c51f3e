"""3x3 convolutions with a quarter of the multiplications (Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308).

A tile of 4 x 4 outputs is a polynomial product: 6 x 6 inputs and the 3 x 3 kernel are evaluated at 6 x 6 points, multiplied
point by point, which over all channels is one matrix product a point, and the outputs interpolated from the 36 results.

Letters: K output channels, T tiles, P = 36 points.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import polynomial
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE, SIDE = 4, 6  # outputs and inputs of a tile along an axis
P = SIDE * SIDE
# Where polynomials are evaluated, besides infinity. The textbook's 0, 1, -1, 2, -2 lose twice as many bits.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
AT_ONCE = 512  # tiles
MIN_CHANNELS, MIN_PIXELS = 256, 4096  # below, the detour costs more than it saves


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` is faster than `F.conv2d(x, weight, padding=1)`: on a CPU, in float32, for large maps, where both are
    laid out as channels_last (a model that must round as another tool does is not) and nothing is compiled."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and len(x) * x.shape[2] * x.shape[3] >= MIN_PIXELS
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
    )


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W), (K, C, 3, 3), (K,) -> (B, K, H, W): stride 1, padding 1, channels_last, to about the rounding error of
    `F.conv2d`. Once differentiable."""
    y: Tensor = _Conv3x3.apply(x, weight, bias)
    return y.permute(0, 3, 1, 2)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x.permute(0, 2, 3, 1), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _convolve(grad, weight.transpose(0, 1).flip(2, 3), None).permute(0, 3, 1, 2) if of_x else None,
            _weight_gradient(x.permute(0, 2, 3, 1), grad) if of_weight else None,
            grad.sum((0, 1, 2)) if of_bias else None,
        )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, W, C) -> (B, H, W, K)."""
    (b, h, w, c), k = x.shape, len(weight)
    of_input, of_kernel, of_output = (t.to(x) for t in _transforms())
    kernel = (of_kernel @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(P, k, c).transpose(1, 2)
    rows, columns = -(-h // TILE), -(-w // TILE)
    out = x.new_empty(b, rows * TILE, columns * TILE, k)
    windows = out.view(b, rows, TILE, columns, TILE, k)
    for part in _parts(x):
        products = torch.bmm((of_input @ _tiles(x, *part, margin=1)).view(P, -1, c), kernel)  # (P, T, K)
        here = windows[part]
        found = (of_output @ products.view(P, -1)).view(TILE, TILE, *here.shape[:2], columns, k)
        torch.add(found.permute(2, 3, 0, 4, 1, 5), 0 if bias is None else bias, out=here)
        del products, found  # the next part needs their memory
    if out.shape[1:3] == (h, w):
        return out
    return out[:, :h, :w].clone(memory_format=torch.contiguous_format)  # a view could not be changed in place


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """(B, H, W, C), (B, H, W, K) -> (K, C, 3, 3): the steps of `_convolve` that concern the kernel, transposed."""
    c, k = x.shape[3], grad.shape[3]
    of_input, of_kernel, of_output = (t.to(x) for t in _transforms())
    total = x.new_zeros(P, k, c)
    for part in _parts(x):
        points = (of_input @ _tiles(x, *part, margin=1)).view(P, -1, c)
        products = (of_output.T @ _tiles(grad, *part, margin=0)).view(P, -1, k)
        total.baddbmm_(products.transpose(1, 2), points)
        del points, products
    return (of_kernel.T @ total.view(P, -1)).view(3, 3, k, c).permute(2, 3, 0, 1)


def _parts(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles, about `AT_ONCE` tiles together, so that little memory is needed and the cache is near."""
    images, rows, columns = len(x), -(-x.shape[1] // TILE), -(-x.shape[2] // TILE)
    images_at_once, rows_at_once = max(1, AT_ONCE // (rows * columns)), -(-AT_ONCE // columns)
    for i in range(0, images, images_at_once):
        for r in range(0, rows, rows_at_once):
            yield slice(i, i + images_at_once), slice(r, min(r + rows_at_once, rows))


def _tiles(x: Tensor, images: slice, rows: slice, margin: int) -> Tensor:
    """(B, H, W, C) -> (side * side, T * C), side = TILE + 2 * margin: windows every 4 pixels, zeros around the map."""
    h, w, side = x.shape[1], x.shape[2], TILE + 2 * margin
    top, bottom = TILE * rows.start - margin, TILE * rows.stop + margin
    around = (margin, -w % TILE + margin, max(-top, 0), max(bottom - h, 0))
    padded = F.pad(x[images, max(top, 0) : bottom], (0, 0, *around))
    windows = padded.unfold(1, side, TILE).unfold(2, side, TILE)  # (images, rows, columns, C, side, side), a view
    return windows.permute(4, 5, 0, 1, 2, 3).reshape(side * side, -1)


@functools.cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of flattened tiles, float64: inputs (36, 36), kernels (36, 9), outputs (16, 36). Toom's and Cook's construction."""
    of_input, of_kernel, of_output = np.zeros((SIDE, SIDE)), np.zeros((SIDE, 3)), np.zeros((TILE, SIDE))
    for j, point in enumerate(POINTS):
        others = [other for other in POINTS if other != point]
        of_input[j, :-1] = polynomial.polyfromroots(others)
        of_kernel[j] = point ** np.arange(3) / np.prod(point - np.array(others))
        of_output[:, j] = point ** np.arange(TILE)
    of_input[-1] = polynomial.polyfromroots(POINTS)
    of_kernel[-1, -1] = of_output[-1, -1] = 1  # at infinity only the highest power counts
    with torch.inference_mode(False):  # or a cached one could never be used elsewhere
        a, b, c = (torch.from_numpy(np.kron(t, t)) for t in (of_input, of_kernel, of_output))
    return a, b, c
