"""One function for every convolution: torch's own or, on x86 CPUs, a faster kernel (see `kernels.FAST_CPU`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.kernels import FAST_CPU, winograd


def convolve(
    x: Tensor,
    conv: nn.Conv2d,
    weight: Tensor,
    bias: Tensor | None,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`relu(conv(x) + shortcut)`, shortcut and ReLU optional, with the given weight and bias instead of the module's own:
    x (B, C, H, W) -> (B, K, H', W').

    The reference is the last two lines; the kernels above them are used where they are faster.
    """
    if FAST_CPU and x.device.type == "cpu":
        plain = conv.stride == conv.dilation == (1, 1) and conv.padding == (1, 1) and conv.groups == 1
        if plain and winograd.pays(x, weight):
            return add_relu(winograd.conv3x3(x, weight, bias), shortcut, relu)
        if can_fuse(x, weight, bias, shortcut) and (relu if shortcut is None else _adds(conv, weight, shortcut)):
            return _fused(x, conv, weight, bias, shortcut, relu)
    y = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return add_relu(y, shortcut, relu)


def can_fuse(x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None) -> bool:
    """Whether oneDNN can fuse the addition and ReLU into the convolution: without gradients, on an x86 CPU."""
    given = [x, weight] if shortcut is None else [x, weight, shortcut]
    dtype = winograd.autocast_dtype(x)
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*given, bias)))
        and all(t.is_contiguous(memory_format=torch.channels_last) for t in given)
        and (torch.is_autocast_enabled("cpu") or all(t.dtype == dtype for t in given))
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


def _adds(conv: nn.Conv2d, weight: Tensor, shortcut: Tensor) -> bool:
    """Whether the shortcut can be fused: not with grouped convolutions (torch fails in bfloat16) nor, in torch 2.11, with maps
    of a single pixel or channel."""
    return conv.groups == 1 and min(weight.shape[:2]) > 1 and shortcut.shape[2:] != (1, 1)


def _fused(
    x: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None, relu: bool
) -> Tensor:
    """The operators that torch's compiler uses for a convolution with an epilogue."""
    dtype = winograd.autocast_dtype(x)
    x, (_, c, h, w) = x.to(dtype), weight.shape
    # The strides of 1 x 1 kernels are ambiguous; if they were taken for another layout, the sum would not be fused.
    weight = weight.to(dtype).as_strided(weight.shape, (c * h * w, 1, w * c, c))
    parameters = weight, bias if bias is None else bias.to(dtype), conv.padding, conv.stride, conv.dilation, conv.groups
    activation = "relu" if relu else None
    y: Tensor
    if shortcut is None:
        y = torch.ops.mkldnn._convolution_pointwise(x, *parameters, activation or "none", [], "")
    else:
        y = torch.ops.mkldnn._convolution_pointwise.binary(
            x, shortcut.to(dtype), *parameters, "add", 1.0, activation, [], None
        )
    return y


def add_relu(y: Tensor, shortcut: Tensor | None, relu: bool) -> Tensor:
    """`relu(y + shortcut)`, shortcut and ReLU optional, in place."""
    y = y if shortcut is None else y.add_(shortcut)
    return F.relu(y, inplace=True) if relu else y
