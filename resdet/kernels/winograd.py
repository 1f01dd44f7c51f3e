"""3x3 convolutions with fewer multiplications (Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308).

A tile of outputs is a polynomial product. The inputs (two more along each axis) and the 3 x 3 kernel are evaluated at as many
points as there are inputs; the values are multiplied point by point, which is one matrix product over the channels per point;
the outputs are interpolated from the products. Tiles of 4 x 4 take a quarter of the multiplications, tiles of 2 x 2 a little
under half.

Letters: K output channels, T tiles, P points, S side of a tile.
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

MIN_CHANNELS, MIN_PIXELS = 256, 4096  # below, the transforms cost more than they save
Part = tuple[slice, slice]  # images, and rows of tiles


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` is faster than `F.conv2d(x, weight, padding=1)`: on x86 CPUs, outside of a compiled graph, for large
    maps, if both tensors are channels_last (they are not in models that must round like another tool). In float32, and in
    bfloat16 with AVX-512 but not with AMX, which multiplies so fast that memory traffic dominates."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and len(x) * x.shape[2] * x.shape[3] >= MIN_PIXELS
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
        and (x.dtype == weight.dtype or torch.is_autocast_enabled("cpu"))
        and _bound_by_arithmetic(autocast_dtype(x))
    )


def _bound_by_arithmetic(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return dtype == torch.float32 and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a convolution of x is computed in."""
    casts = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if casts else x.dtype


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W), (K, C, 3, 3), (K,) -> (B, K, H, W): stride 1, padding 1, channels_last, in autocast's dtype if enabled.
    Rounding errors are about those of `F.conv2d` in float32, three times as large in bfloat16. Once differentiable."""
    dtype = autocast_dtype(x)
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _Conv3x3.apply(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
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
        need_x, need_weight, need_bias = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            return (
                _convolve(grad, weight.transpose(0, 1).flip(2, 3), None).permute(0, 3, 1, 2) if need_x else None,
                _weight_gradient(x.permute(0, 2, 3, 1), grad) if need_weight else None,
                grad.sum((0, 1, 2)) if need_bias else None,
            )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, W, C) -> (B, H, W, K)."""
    b, h, w, _ = x.shape
    tiles = _tiles(x)
    s, kernel = tiles.side, tiles.kernel(weight)
    out = x.new_empty(b, -(-h // s) * s, -(-w // s) * s, len(weight))
    windows = out.view(b, -(-h // s), s, -(-w // s), s, -1).transpose(2, 3)  # (B, rows, columns, S, S, K)
    for part in _parts(x, tiles):
        values = tiles.values(tiles.strip(x, part, margin=1))
        outputs = tiles.outputs(tiles.products(values, kernel), windows[part].shape)
        torch.add(outputs, 0 if bias is None else bias, out=windows[part])
    if out.shape[1:3] == (h, w):
        return out
    return out[:, :h, :w].clone(memory_format=torch.contiguous_format)  # a view could not be modified in place


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """(B, H, W, C), (B, H, W, K) -> (K, C, 3, 3): `_convolve` transposed with respect to the kernel."""
    tiles = _tiles(x)
    k, c = grad.shape[3], x.shape[3]
    total = x.new_zeros(len(tiles.of_input), k, c, dtype=torch.float32)  # bfloat16 is too coarse for long sums
    for part in _parts(grad, tiles):
        values = tiles.values(tiles.strip(x, part, margin=1))
        tiles.add_products(total, tiles.gradients(tiles.strip(grad, part, margin=0)), values)
    gradient = tiles.of_kernel.float().T @ total.flatten(1)
    return gradient.view(3, 3, k, c).permute(2, 3, 0, 1).to(x.dtype)


def _parts(x: Tensor, tiles: _Four | _Two) -> Iterator[Part]:
    images, rows, columns = len(x), -(-x.shape[1] // tiles.side), -(-x.shape[2] // tiles.side)
    images_at_once, rows_at_once = max(1, tiles.at_once // (rows * columns)), -(-tiles.at_once // columns)
    for i in range(0, images, images_at_once):
        for r in range(0, rows, rows_at_once):
            yield slice(i, i + images_at_once), slice(r, min(r + rows_at_once, rows))


class _Tiles:
    """side: S. at_once: tiles per part, few enough for the intermediate results to stay in the cache. points: of evaluation,
    besides infinity."""

    side: int
    at_once = 1024
    points: tuple[float, ...]

    def __init__(self, like: Tensor) -> None:
        self.of_input, self.of_kernel, self.of_output = (t.to(like) for t in _transforms(self.points))
        self.like, self.buffers = like, dict[str, Tensor]()

    def memory(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor that reuses the memory of the last one of that name, which is still in the cache."""
        if name not in self.buffers:
            self.buffers[name] = self.like.new_empty(0)
        return self.buffers[name].resize_(shape)

    def strip(self, x: Tensor, part: Part, margin: int) -> Tensor:
        """(B, H, W, C) -> (images, rows * S + 2 * margin, columns * S + 2 * margin, C): the pixels of a part's tiles with a
        margin around them, zero outside the map."""
        images, rows = part
        (h, w, c), s = x.shape[1:], self.side
        start, stop = rows.start * s - margin, rows.stop * s + margin
        x = x[images, max(start, 0) : stop]
        strip = self.memory("strip", len(x), stop - start, -(-w // s) * s + 2 * margin, c)
        above, below = max(-start, 0), max(stop - h, 0)
        inside = strip[:, above : stop - start - below]
        for border in (
            strip[:, :above],
            strip[:, stop - start - below :],
            inside[:, :, :margin],
            inside[:, :, margin + w :],
        ):
            border.zero_()
        inside[:, :, margin : margin + w].copy_(x)
        return strip


class _Four(_Tiles):
    """4 x 4 outputs, for float32. The points of a tile are contiguous in memory: (T, P, C)."""

    side = 4
    points = (0.0, 0.75, -0.75, 1.5, -1.5)  # the usual 0, 1, -1, 2, -2 lose twice as many bits

    def kernel(self, weight: Tensor) -> Tensor:
        """(K, C, 3, 3) -> (P * K, C, 1, 1)."""
        return (self.of_kernel @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, weight.shape[1], 1, 1)

    def values(self, strip: Tensor) -> Tensor:
        """-> (T, P, C): the inputs of the tiles, evaluated at the points."""
        return self._times("values", self.of_input, strip, 6)

    def products(self, values: Tensor, kernel: Tensor) -> Tensor:
        """-> (T, P, K)."""
        t, p, c = values.shape
        pixels = values.view(1, t, 1, p * c).permute(0, 3, 1, 2)
        products = F.conv2d(pixels, kernel, groups=p)  # faster than a product of matrices
        return products.permute(0, 2, 3, 1).reshape(t, p, -1)

    def outputs(self, products: Tensor, shape: torch.Size) -> Tensor:
        """-> (images, rows, columns, S, S, K)."""
        matrix = self.of_output.expand(len(products), -1, -1)
        return torch.bmm(matrix, products, out=self.memory("outputs", len(products), 16, shape[-1])).view(shape)

    def gradients(self, strip: Tensor) -> Tensor:
        """-> (T, P, K): the gradient to `products` from the gradient to the outputs (transposed `outputs`)."""
        return self._times("gradients", self.of_output.T.contiguous(), strip, 4)

    def add_products(self, total: Tensor, gradients: Tensor, values: Tensor) -> None:
        """Add to total (P, K, C)."""
        total.baddbmm_(gradients.permute(1, 2, 0), values.transpose(0, 1))

    def _times(self, name: str, matrix: Tensor, strip: Tensor, side: int) -> Tensor:
        """(N, side * side) -> (T, N, C): the matrix times each window."""
        windows = _windows(strip, self.side, side).permute(0, 1, 2, 4, 5, 3)
        tiles = self.memory("windows", *windows.shape).copy_(windows).view(-1, side * side, windows.shape[-1])
        t, _, c = tiles.shape
        return torch.bmm(matrix.expand(t, -1, -1), tiles, out=self.memory(name, t, len(matrix), c))


class _Two(_Tiles):
    """2 x 2 outputs, for bfloat16, where 4 x 4 would triple the rounding errors again. The tiles of a point are contiguous in
    memory: (P, T, C)."""

    side = 2
    points = (0.0, 1.0, -1.0)

    def kernel(self, weight: Tensor) -> Tensor:
        """(K, C, 3, 3) -> (P, C, K)."""
        evaluated = self.of_kernel @ weight.permute(2, 3, 0, 1).reshape(9, -1)
        return evaluated.view(-1, *weight.shape[:2]).transpose(1, 2)

    def values(self, strip: Tensor) -> Tensor:
        """-> (P, T, C). The matrix has entries 0, 1 and -1 only: additions, axis by axis, move less memory."""
        b, h, w, c = strip.shape
        half = self.memory("half", 4, b, h // 2 - 1, w, c)
        values = self.memory("values", 4, 4, b, h // 2 - 1, w // 2 - 1, c)
        for inputs, outputs in ((strip.unfold(1, 4, 2), half.unbind(0)), (half.unfold(3, 4, 2), values.unbind(1))):
            first, second, third, fourth = inputs.unbind(-1)
            torch.sub(third, first, out=outputs[0])
            torch.add(second, third, out=outputs[1])
            torch.sub(third, second, out=outputs[2])
            torch.sub(fourth, second, out=outputs[3])
        return values.view(16, -1, c)

    def products(self, values: Tensor, kernel: Tensor) -> Tensor:
        """-> (P, T, K)."""
        return torch.bmm(values, kernel, out=self.memory("products", *values.shape[:2], kernel.shape[2]))

    def outputs(self, products: Tensor, shape: torch.Size) -> Tensor:
        """-> (images, rows, columns, S, S, K)."""
        memory = self.memory("outputs", 4, products[0].numel())
        outputs = torch.mm(self.of_output, products.view(16, -1), out=memory)
        return outputs.view(2, 2, *shape[:3], -1).permute(2, 3, 4, 0, 1, 5)

    def gradients(self, strip: Tensor) -> Tensor:
        """-> (P, T, K)."""
        windows = _windows(strip, 2, 2).permute(4, 5, 0, 1, 2, 3)
        pixels = self.memory("windows", *windows.shape).copy_(windows).view(4, -1)
        gradients = torch.mm(self.of_output.T.contiguous(), pixels, out=self.memory("gradients", 16, pixels.shape[1]))
        return gradients.view(16, -1, windows.shape[-1])

    def add_products(self, total: Tensor, gradients: Tensor, values: Tensor) -> None:
        """Add to total (P, K, C), float32."""
        total += torch.bmm(gradients.transpose(1, 2), values, out=self.memory("sums", *total.shape))


def _tiles(x: Tensor) -> _Four | _Two:
    return _Two(x) if x.dtype == torch.bfloat16 else _Four(x)


def _windows(strip: Tensor, step: int, side: int) -> Tensor:
    """(B, H, W, C) -> a view (B, rows, columns, C, side, side) of windows at every `step` pixels."""
    return strip.unfold(1, side, step).unfold(2, side, step)


@functools.cache
def _transforms(points: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The matrices, float64, for flattened tiles: inputs (P, P), kernels (P, 9), outputs (S * S, P), by the Toom-Cook
    construction: polynomials are evaluated at `points` and at infinity."""
    n = len(points) + 1
    of_input, of_kernel, of_output = np.zeros((n, n)), np.zeros((n, 3)), np.zeros((n - 2, n))
    for j, point in enumerate(points):
        others = [other for other in points if other != point]
        of_input[j, :-1] = polynomial.polyfromroots(others)
        of_kernel[j] = point ** np.arange(3) / np.prod(point - np.array(others))
        of_output[:, j] = point ** np.arange(n - 2)
    of_input[-1] = polynomial.polyfromroots(points)
    of_kernel[-1, -1] = of_output[-1, -1] = 1  # at infinity only the highest power counts
    with torch.inference_mode(False):  # cached inference tensors could not be used in training
        a, b, c = (torch.from_numpy(np.kron(t, t)) for t in (of_input, of_kernel, of_output))
    return a, b, c
