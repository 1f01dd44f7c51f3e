"""Normalisation layers and convolutions: the building blocks of every model."""

from __future__ import annotations

import math
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
# The initial logit of every class of a one-stage detector, a probability of 0.01 (Lin et al. 2017, section 4.1)
PRIOR_LOGIT = -math.log((1 - 0.01) / 0.01)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and a fixed affine: (N, C, H, W) -> the same; no parameters, four (C,) buffers.

    `eps` is part of a checkpoint's numerics: 1e-5 almost everywhere, 0 in torchvision's first COCO weights.
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
        if not self.eps:  # F.batch_norm of torch 2.11 refuses eps = 0
            scale, shift = fixed_affine(self)
            return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # in the state of a trainable batch norm
        super()._load_from_state_dict(state_dict, prefix, *args)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics can exclude padded rows and span processes.

    forward(x (N, C, H, W), valid (N,) bool or None): only valid rows enter the mean and variance, so that padded RoIs
    do not count. `sync` sums over all processes (differentiably, on gloo and CPUs too).
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
            # Without a valid row in any process, leave the running statistics alone.
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
    """Scale (C,) and shift (C,) of a batch norm with fixed statistics."""
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
    """`relu(norm(conv(x)) + shortcut)`, shortcut and ReLU optional: x (B, C, H, W), shortcut and result (B, K, H', W').

    valid (B,) bool: the rows that are not padding, for batch norm's training statistics; None: all.

    A norm with fixed statistics is folded into the convolution, in training too, which saves a pass over the activations in
    forward and backward; `norm.fold = False` turns this off where results must match to the last bit. The result may be
    modified in place.
    """
    if isinstance(conv, nn.Conv2d):
        if isinstance(norm, nn.Identity):
            return convolve(x, conv, conv.weight, conv.bias, shortcut, relu)
        if (isinstance(norm, FrozenBatchNorm2d) or (isinstance(norm, BatchNorm2d) and not norm.training)) and norm.fold:
            return convolve(x, conv, *folded(conv, norm), shortcut, relu)
    y = norm(conv(x), valid) if isinstance(norm, BatchNorm2d) else norm(conv(x))
    return add_relu(y, shortcut, relu)


def folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d | BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that equals `conv` followed by `norm` with fixed statistics."""
    scale, shift = fixed_affine(norm)
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    return conv.weight * scale[:, None, None, None], shift


@torch.no_grad()
def fuse_conv_bn(module: nn.Module) -> None:
    """Permanently fold each norm that directly follows a convolution among the module's children; `conv_norm` does so on
    every call. For modules that will not be trained again."""
    for (_, conv), (name, norm) in pairwise(module.named_children()):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d | BatchNorm2d) and norm.fold:
            weight, bias = folded(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            setattr(module, name, nn.Identity())


class Conv2d(nn.Conv2d):
    """torch's, through the fastest available kernel (`kernels/convolution.py`)."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self, self.weight, self.bias)


class StandardizedConv2d(nn.Conv2d):
    """Convolution with weight standardization: mean 0 and standard deviation 1 per output channel (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return convolve(x, self, (self.weight - mean) / (deviation + 1e-5), self.bias)


class DeformableConv2d(nn.Module):
    """Deformable 3x3 convolution: sampling points move by predicted offsets (Dai et al. 2017, arXiv:1703.06211) and, if
    `modulated`, have predicted weights (Zhu et al. 2018, 1811.11168). Initialised to a plain one (modulated: half of it)."""

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
        """Initialise with offsets of zero."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        offset, mask = self.offset(x), None
        if self.modulated:
            split = offset.shape[1] // 3 * 2
            offset, mask = offset[:, :split], offset[:, split:].sigmoid()
        with torch.autocast(x.device.type, enabled=False):  # the operator does not support half precision on CPUs
            dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
            x, offset, weight = (t.to(dtype).contiguous() for t in (x, offset, self.weight))
            mask = None if mask is None else mask.to(dtype).contiguous()
            y: Tensor = deform_conv2d(x, offset, weight, None, self.stride, self.dilation, self.dilation, mask)
        return y


def make_norm(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """The normalisation layer for `channels` channels; "gn" has 32 groups (Wu & He 2018)."""
    if norm == "none":
        return nn.Identity()
    if norm == "frozen_bn":
        return FrozenBatchNorm2d(channels, eps)
    if norm == "gn":
        return nn.GroupNorm(min(32, channels), channels, eps)
    return BatchNorm2d(channels, eps, sync=norm == "sync_bn")


def initialise_convs(root: nn.Module) -> None:
    """He et al.'s normal initialisation (fan out) of all convolutions, transposed ones included; zero biases."""
    for module in root.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ConvNorm(nn.Module):
    """Convolution with "same" padding and its norm: (N, C, H, W) -> (N, out, H/stride, W/stride).

    bias: of the convolution; None: only without a norm. standardized: use weight standardization (`StandardizedConv2d`).
    """

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: int,
        norm: Norm = "none",
        *,
        bias: bool | None = None,
        stride: int = 1,
        dilation: int = 1,
        standardized: bool = False,
    ) -> None:
        super().__init__()
        kind = StandardizedConv2d if standardized else Conv2d
        bias = norm == "none" if bias is None else bias
        self.conv = kind(channels, out, kernel, stride, padding=kernel // 2 * dilation, dilation=dilation, bias=bias)
        self.norm = make_norm(norm, out)

    def forward(self, x: Tensor, valid: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """`valid` (N,) bool: the rows that are not padding, for batch norm's statistics. relu: apply ReLU."""
        return conv_norm(self.conv, self.norm, x, valid=valid, relu=relu)
