"""3x3 convolutions with fewer multiplications (Winograd 1980; Lavin & Gray 2015, arXiv:1509.09308).

A tile of outputs, 4 x 4 or 2 x 2, is a polynomial product: the inputs, two more along each axis, and the 3 x 3 kernel are
evaluated at as many points as there are inputs, multiplied point by point, which over all channels is one matrix product a
point, and the outputs interpolated from the results. That is a quarter of the multiplications with 4 x 4, 1 / 2.25 with 2 x 2.

Letters: K output channels, T tiles, P points.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import polynomial
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = 1024  # tiles: enough that the kernel is read seldom, few enough that the rest stays near
MIN_CHANNELS, MIN_PIXELS = 256, 4096  # below, the detour costs more than it saves


class Method(NamedTuple):
    """tile: outputs along an axis. Of flattened tiles, and as matrices: inputs (P, P), kernels (P, 9), outputs (tile², P)."""

    tile: int
    of_input: Tensor
    of_kernel: Tensor
    of_output: Tensor


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` is faster than `F.conv2d(x, weight, padding=1)`: on a CPU, for large maps, where both are laid out as
    channels_last (a model that must round as another tool does is not) and nothing is compiled. In float32, and in bfloat16 on
    CPUs with AVX-512's instructions for it: AMX multiplies so fast that moving the data decides."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and len(x) * x.shape[2] * x.shape[3] >= MIN_PIXELS
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight))
        and (_dtype(x) == torch.float32 == weight.dtype or (_dtype(x) == torch.bfloat16 and _bfloat16_by_avx512()))
    )


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W), (K, C, 3, 3), (K,) -> (B, K, H, W): stride 1, padding 1, channels_last, in autocast's dtype where that is
    on. Rounds about as `F.conv2d` does in float32, three times as much in bfloat16. Once differentiable."""
    dtype = _dtype(x)
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
        of_x, of_weight, of_bias = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            return (
                _convolve(grad, weight.transpose(0, 1).flip(2, 3), None).permute(0, 3, 1, 2) if of_x else None,
                _weight_gradient(x.permute(0, 2, 3, 1), grad) if of_weight else None,
                grad.sum((0, 1, 2)) if of_bias else None,
            )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, W, C) -> (B, H, W, K)."""
    (b, h, w, c), k = x.shape, len(weight)
    method, memory = _method(x.dtype), _Memory(x)
    tile = method.tile
    kernel = (method.of_kernel @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, c, k)
    out = x.new_empty(b, -(-h // tile) * tile, -(-w // tile) * tile, k)
    windows = out.view(b, -(-h // tile), tile, -(-w // tile), tile, k)
    padded = _padded(x, tile, margin=1)
    for part in _parts(x, tile):
        here = windows[part].permute(2, 4, 0, 1, 3, 5)  # (tile, tile, images, rows, columns, K)
        values = _at_points(padded, part, method, memory)
        products = torch.bmm(values, kernel, out=memory("products", len(values), values.shape[1], k))
        outputs = memory("outputs", tile * tile, products[0].numel())
        torch.mm(method.of_output, products.view(len(products), -1), out=outputs)
        torch.add(outputs.view(here.shape), 0 if bias is None else bias, out=here)
    if out.shape[1:3] == (h, w):
        return out
    return out[:, :h, :w].clone(memory_format=torch.contiguous_format)  # a view could not be changed in place


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """(B, H, W, C), (B, H, W, K) -> (K, C, 3, 3): the steps of `_convolve` that concern the kernel, transposed."""
    c, k = x.shape[3], grad.shape[3]
    method, memory = _method(x.dtype), _Memory(x)
    tile, of_grad = method.tile, method.of_output.T.contiguous()
    total = x.new_zeros(len(of_grad), k, c, dtype=torch.float32)
    x, grad = _padded(x, tile, margin=1), _padded(grad, tile, margin=0)
    for part in _parts(grad, tile):
        values = _at_points(x, part, method, memory)
        tiles = _tiles(grad, part, tile, margin=0, memory=memory)
        products = torch.mm(of_grad, tiles, out=memory("products", len(of_grad), tiles.shape[1]))
        products = products.view(len(of_grad), -1, k).transpose(1, 2)
        if x.dtype == torch.float32:
            total.baddbmm_(products, values)
        else:
            total += torch.bmm(products, values, out=memory("sums", *total.shape))
    gradient = method.of_kernel.to(total).T @ total.flatten(1)
    return gradient.view(3, 3, k, c).permute(2, 3, 0, 1).to(x.dtype)


def _at_points(padded: Tensor, part: tuple[slice, slice], method: Method, memory: _Memory) -> Tensor:
    """(B, H, W, C) -> (P, T, C): the inputs of this part's tiles, evaluated."""
    c, side = padded.shape[3], method.tile + 2
    if method.tile == 2:  # the matrix holds 0, 1 and -1: additions, axis by axis, move less memory
        images, rows = part
        x = padded[images, 2 * rows.start : 2 * rows.stop + 2]
        b, h, w = len(x), rows.stop - rows.start, padded.shape[2]
        half = _at_four_points(x, 1, memory("half", 4, b, h, w, c), 0)
        values = memory("values", 4, 4, b, h, w // 2 - 1, c)
        return _at_four_points(half, 3, values, 1).view(side * side, -1, c)
    tiles = _tiles(padded, part, method.tile, margin=1, memory=memory)
    return torch.mm(method.of_input, tiles, out=memory("values", *tiles.shape)).view(side * side, -1, c)


def _at_four_points(x: Tensor, dim: int, out: Tensor, out_dim: int) -> Tensor:
    """What 2 x 2 tiles' `of_input` does along one axis, put into `out` along `out_dim`."""
    a, b, c, d = x.unfold(dim, 4, 2).unbind(-1)
    at_0, at_1, at_minus_1, at_infinity = out.unbind(out_dim)
    torch.sub(c, a, out=at_0)
    torch.add(b, c, out=at_1)
    torch.sub(c, b, out=at_minus_1)
    torch.sub(d, b, out=at_infinity)
    return out


def _tiles(padded: Tensor, part: tuple[slice, slice], tile: int, margin: int, memory: _Memory) -> Tensor:
    """(B, H, W, C) -> (side * side, T * C), side = tile + 2 * margin."""
    side = tile + 2 * margin
    windows = padded.unfold(1, side, tile).unfold(2, side, tile)[part]  # (images, rows, columns, C, side, side), a view
    windows = windows.permute(4, 5, 0, 1, 2, 3)
    return memory("tiles", *windows.shape).copy_(windows).view(side * side, -1)


def _padded(x: Tensor, tile: int, margin: int) -> Tensor:
    """(B, H, W, C) with zeros around it, for whole tiles."""
    h, w = x.shape[1:3]
    return F.pad(x, (0, 0, margin, -w % tile + margin, margin, -h % tile + margin))


def _parts(x: Tensor, tile: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles, about `AT_ONCE` tiles together, so that little memory is needed and the cache is near."""
    images, rows, columns = len(x), -(-x.shape[1] // tile), -(-x.shape[2] // tile)
    images_at_once, rows_at_once = max(1, AT_ONCE // (rows * columns)), -(-AT_ONCE // columns)
    for i in range(0, images, images_at_once):
        for r in range(0, rows, rows_at_once):
            yield slice(i, i + images_at_once), slice(r, min(r + rows_at_once, rows))


class _Memory:
    """One piece of memory a name, for part after part: fresh memory would never be in the cache."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.pieces = like, dict[str, Tensor]()

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of that shape."""
        if name not in self.pieces:
            self.pieces[name] = self.like.new_empty(0)
        return self.pieces[name].resize_(shape)


def _dtype(x: Tensor) -> torch.dtype:
    """What a convolution of x is computed in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _bfloat16_by_avx512() -> bool:
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


@functools.cache
def _method(dtype: torch.dtype) -> Method:
    """Toom's and Cook's construction. Tiles of 4 in bfloat16 would lose three bits more than those of 2."""
    # Where polynomials are evaluated, besides infinity. The textbook's 0, 1, -1, 2, -2 lose twice as many bits.
    points = (0.0, 1.0, -1.0) if dtype == torch.bfloat16 else (0.0, 0.75, -0.75, 1.5, -1.5)
    side, tile = len(points) + 1, len(points) - 1
    of_input, of_kernel, of_output = np.zeros((side, side)), np.zeros((side, 3)), np.zeros((tile, side))
    for j, point in enumerate(points):
        others = [other for other in points if other != point]
        of_input[j, :-1] = polynomial.polyfromroots(others)
        of_kernel[j] = point ** np.arange(3) / np.prod(point - np.array(others))
        of_output[:, j] = point ** np.arange(tile)
    of_input[-1] = polynomial.polyfromroots(points)
    of_kernel[-1, -1] = of_output[-1, -1] = 1  # at infinity only the highest power counts
    with torch.inference_mode(False):  # or a cached one could never be used elsewhere
        return Method(tile, *(torch.from_numpy(np.kron(t, t)).to(dtype) for t in (of_input, of_kernel, of_output)))
