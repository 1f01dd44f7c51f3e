"""Normalisation layers and the convolution that carries one: the smallest parts of every model here."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torchvision.ops import deform_conv2d

from resdet.kernels.convolution import add_relu, convolve

Norm = Literal["none", "frozen_bn", "bn", "sync_bn", "gn"]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and affine: (N, C, H, W) -> the same; no parameter, four buffers (C,).

    `eps` is part of the numerics of a checkpoint: 1e-5 nearly everywhere, 0 in torchvision's first COCO weights.
    """

    fold = True  # see `conv_norm`
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not self.eps:  # which torch 2.11 refuses
            scale, shift = fixed_affine(self)
            return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # a trained batch norm's weights fit a frozen one
        super()._load_from_state_dict(state_dict, prefix, *args)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics can leave padded rows out and can span processes.

    forward(x (N, C, H, W), valid (N,) bool or None): the mean and variance come from the valid rows alone, since
    padded RoIs are no data. `sync` adds the sums of all processes (differentiably, also on gloo and CPUs).
    """

    fold = True  # see `conv_norm`

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, sync: bool = False) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.sync = sync

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        sync = self.sync and dist.is_initialized() and dist.get_world_size() > 1
        if not self.training or (valid is None and not sync):
            return super().forward(x)
        y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        weight = y.new_ones(len(y)) if valid is None else valid.to(y.dtype)
        rows = weight[:, None, None, None]
        area = float(y.shape[2] * y.shape[3])
        sums = torch.cat([(y * rows).sum((0, 2, 3)), (y * y * rows).sum((0, 2, 3)), weight.sum()[None] * area])
        if sync:
            sums = all_reduce(sums)  # type: ignore[no-untyped-call]
        channels = y.shape[1]
        count = sums[-1].clamp(min=1)
        mean = sums[:channels] / count
        variance = (sums[channels:-1] / count - mean * mean).clamp(min=0)
        with torch.no_grad():
            # No valid row anywhere: leave the running statistics alone.
            momentum = torch.where(sums[-1] > 0, self.momentum or 0.0, 0.0)
            assert self.running_mean is not None
            assert self.running_var is not None
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (y * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def fixed_affine(norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm with fixed statistics multiplies by and adds: (C,), (C,)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def conv_norm(
    conv: nn.Module,
    norm: nn.Module,
    x: Tensor,
    *,
    shortcut: Tensor | None = None,
    relu: bool = False,
    valid: Tensor | None = None,
) -> Tensor:
    """`norm(conv(x))`, plus a shortcut, rectified: x (B, C, H, W), shortcut and result (B, K, H', W').

    valid (B,) bool: rows that are data, for batch norm's statistics in training; None: all.

    Fixed statistics are folded into the convolution, in training too: a pass over the activations less, forward and backward;
    unless `norm.fold` is off, for the last bit's sake. What follows may work in place.
    """
    if isinstance(conv, nn.Conv2d):
        if isinstance(norm, nn.Identity):
            return convolve(x, conv, conv.weight, conv.bias, shortcut, relu)
        if (isinstance(norm, FrozenBatchNorm2d) or (isinstance(norm, BatchNorm2d) and not norm.training)) and norm.fold:
            return convolve(x, conv, *folded(conv, norm), shortcut, relu)
    y = norm(conv(x), valid) if isinstance(norm, BatchNorm2d) else norm(conv(x))
    return add_relu(y, shortcut, relu)


def folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d | BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that is `conv` and then `norm`, whose statistics are fixed."""
    scale, shift = fixed_affine(norm)
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift


@torch.no_grad()
def fuse_conv_bn(module: nn.Module) -> None:
    """Each norm that stands right behind a convolution among the module's children becomes part of it, as `conv_norm` would
    do anew in each call. For a module that will not train again."""
    for (_, conv), (name, norm) in pairwise(module.named_children()):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d | BatchNorm2d) and norm.fold:
            weight, bias = folded(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            setattr(module, name, nn.Identity())


class Conv2d(nn.Conv2d):
    """torch's, computed the fastest way."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self, self.weight, self.bias)


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose weights have mean 0 and standard deviation 1 over each output channel (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return convolve(x, self, (self.weight - mean) / (deviation + 1e-5), self.bias)


class DeformableConv2d(nn.Module):
    """3x3 convolution whose samples move by predicted offsets, and in version 2 have predicted weights: Dai et al. 2017
    (arXiv:1703.06211), Zhu et al. 2018 (1811.11168). Starts as a plain one (version 2: halved)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, dilation: int, groups: int, offset_groups: int, modulated: bool
    ) -> None:
        super().__init__()
        self.stride, self.dilation, self.modulated = stride, dilation, modulated
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, 3, 3))
        channels = (27 if modulated else 18) * offset_groups
        self.offset = nn.Conv2d(inputs, channels, 3, stride, padding=dilation, dilation=dilation)
        self.start_plain()

    def start_plain(self) -> None:
        """Offsets of zero."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        offset, mask = self.offset(x), None
        if self.modulated:
            split = offset.shape[1] // 3 * 2
            offset, mask = offset[:, :split], offset[:, split:].sigmoid()
        with torch.autocast(x.device.type, enabled=False):  # the operator has no half precision on a CPU
            dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
            given = (x, offset, self.weight) if mask is None else (x, offset, self.weight, mask)
            x, offset, weight, *rest = (t.to(dtype).contiguous() for t in given)
            y: Tensor = deform_conv2d(
                x, offset, weight, None, self.stride, self.dilation, self.dilation, rest[0] if rest else None
            )
        return y


def make_norm(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """The normalisation layer of that name over `channels`; "gn" has 32 groups (Wu & He 2018)."""
    if norm == "none":
        return nn.Identity()
    if norm == "frozen_bn":
        return FrozenBatchNorm2d(channels, eps)
    if norm == "gn":
        return nn.GroupNorm(min(32, channels), channels, eps)
    return BatchNorm2d(channels, eps, sync=norm == "sync_bn")


class ConvNorm(nn.Module):
    """Convolution with "same" padding and its normalisation: (N, C, H, W) -> (N, out, H, W); a bias only without norm.

    standardized: its weights are (`StandardizedConv2d`).
    """

    def __init__(
        self, channels: int, out: int, kernel: int, norm: Norm = "none", *, standardized: bool = False
    ) -> None:
        super().__init__()
        kind = StandardizedConv2d if standardized else Conv2d
        self.conv = kind(channels, out, kernel, padding=kernel // 2, bias=norm == "none")
        self.norm = make_norm(norm, out)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid` (N,) bool: rows that are data, for batch norm's statistics."""
        return conv_norm(self.conv, self.norm, x, valid=valid)
