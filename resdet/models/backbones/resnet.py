"""ResNet, ResNeXt and Wide ResNet: image (B, 3, H, W) -> {"c2": (B, C, H/4, W/4), …, "c5": (B, C, H/32, W/32)}.

He et al. 2015 (arXiv:1512.03385), Xie et al. 2016 (1611.05431), Zagoruyko & Komodakis 2016 (1605.07146).
Parameter names are torchvision's: they are an interface, for every ImageNet checkpoint speaks them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.models.layers import Conv2d, Norm, conv_norm, make_norm


class Architecture(NamedTuple):
    bottleneck: bool
    blocks: tuple[int, int, int, int]
    groups: int = 1
    base_width: int = 64


RESNETS = {
    "resnet18": Architecture(False, (2, 2, 2, 2)),
    "resnet34": Architecture(False, (3, 4, 6, 3)),
    "resnet50": Architecture(True, (3, 4, 6, 3)),
    "resnet101": Architecture(True, (3, 4, 23, 3)),
    "resnet152": Architecture(True, (3, 8, 36, 3)),
    "resnext50_32x4d": Architecture(True, (3, 4, 6, 3), groups=32, base_width=4),
    "resnext101_32x8d": Architecture(True, (3, 4, 23, 3), groups=32, base_width=8),
    "wide_resnet50_2": Architecture(True, (3, 4, 6, 3), base_width=128),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C, H, W) -> (B, channels, H/stride, W/stride)."""

    expansion = 1

    def __init__(
        self, inputs: int, channels: int, stride: int, arch: Architecture, norm: Norm, eps: float,
        stride_in_1x1: bool, residual: bool, avg_down: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv1 = Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = make_norm(norm, channels, eps)
        self.conv2 = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = make_norm(norm, channels, eps)
        self.residual = residual
        self.downsample = _shortcut(inputs, channels, stride, norm, eps, residual, avg_down)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm(self.conv1, self.bn1, x, relu=True)
        shortcut = self.downsample(x) if self.residual else None
        return conv_norm(self.conv2, self.bn2, y, shortcut=shortcut, relu=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: (B, C, H, W) -> (B, 4 * channels, H/stride, W/stride).

    The stride sits in the 3x3 convolution (torchvision, "ResNet 1.5") or in the first 1x1 (the original, MSRA's weights).
    """

    expansion = 4

    def __init__(
        self, inputs: int, channels: int, stride: int, arch: Architecture, norm: Norm, eps: float,
        stride_in_1x1: bool, residual: bool, avg_down: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        width = channels * arch.base_width // 64 * arch.groups
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = make_norm(norm, width, eps)
        self.conv2 = Conv2d(width, width, 3, second, padding=1, groups=arch.groups, bias=False)
        self.bn2 = make_norm(norm, width, eps)
        self.conv3 = nn.Conv2d(width, channels * 4, 1, bias=False)
        self.bn3 = make_norm(norm, channels * 4, eps)
        self.residual = residual
        self.downsample = _shortcut(inputs, channels * 4, stride, norm, eps, residual, avg_down)

    def forward(self, x: Tensor) -> Tensor:
        y = conv_norm(self.conv1, self.bn1, x, relu=True)
        y = conv_norm(self.conv2, self.bn2, y, relu=True)
        shortcut = self.downsample(x) if self.residual else None
        return conv_norm(self.conv3, self.bn3, y, shortcut=shortcut, relu=True)


def _shortcut(
    inputs: int, outputs: int, stride: int, norm: Norm, eps: float, residual: bool, avg_down: bool
) -> nn.Module:
    """The projection of a shortcut where shapes differ; the identity, without parameters, elsewhere."""
    if not residual or (stride == 1 and inputs == outputs):
        return nn.Identity()
    if not avg_down:
        return _Projection(nn.Conv2d(inputs, outputs, 1, stride, bias=False), make_norm(norm, outputs, eps))
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
    return _Projection(pool, nn.Conv2d(inputs, outputs, 1, bias=False), make_norm(norm, outputs, eps))


class _Projection(nn.Sequential):
    """What comes first, a convolution, its norm; a `Sequential` for the sake of the parameters' names."""

    def forward(self, x: Tensor) -> Tensor:
        *before, conv, norm = self.children()
        for module in before:
            x = module(x)
        return conv_norm(conv, norm, x)


def _deep_stem(norm: Norm, eps: float) -> nn.Module:
    """Three 3x3 convolutions in the place of one 7x7; the last one's norm is the stem's."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, padding=1, bias=False), make_norm(norm, 32, eps), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, bias=False), make_norm(norm, 32, eps), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
    )  # fmt: skip


class ResNet(nn.Module):
    """A residual backbone without its classifier.

    channels, strides: of c2..c5, declared for what is built on top.
    norm_eps:          batch norm's epsilon.
    stride_in_1x1:     bottlenecks downsample in their first 1x1 convolution.
    frozen_stages:     how many stages do not train, from the stem on: 0 none, 1 stem, 2 stem and layer1, … 5 all.
    zero_init_last:    the last norm of each residual branch starts at zero (Goyal et al. 2017).
    deep_stem:         three 3x3 convolutions as the stem, and
    avg_down:          shortcuts that average before their 1x1 convolution: both together are ResNet-D (He et al. 2018,
                       arXiv:1812.01187), with timm's parameter names.
    residual:          False removes every shortcut: the plain network of He et al. 2015, section 3.3.
    """

    def __init__(
        self,
        arch: Architecture,
        *,
        norm: Norm = "frozen_bn",
        norm_eps: float = 1e-5,
        stride_in_1x1: bool = False,
        frozen_stages: int = 0,
        zero_init_last: bool = False,
        deep_stem: bool = False,
        avg_down: bool = False,
        residual: bool = True,
    ) -> None:
        super().__init__()
        block = Bottleneck if arch.bottleneck else BasicBlock
        self.channels = {f"c{k}": 2 ** (k + 4) * block.expansion for k in range(2, 6)}
        self.strides = {f"c{k}": 2**k for k in range(2, 6)}
        self.conv1 = _deep_stem(norm, norm_eps) if deep_stem else nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = make_norm(norm, 64, norm_eps)
        inputs = 64
        for k, count in enumerate(arch.blocks, 1):
            channels = 32 * 2**k
            stage = []
            for i in range(count):
                stride = 2 if k > 1 and i == 0 else 1
                stage.append(block(inputs, channels, stride, arch, norm, norm_eps, stride_in_1x1, residual, avg_down))
                inputs = channels * block.expansion
            self.add_module(f"layer{k}", nn.Sequential(*stage))
        self._initialise(zero_init_last)
        self.frozen_stages = frozen_stages
        for module in self._frozen():
            module.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        *before, conv = self.conv1.children() if isinstance(self.conv1, nn.Sequential) else [self.conv1]
        for module in before:
            x = module(x)
        x = conv_norm(conv, self.bn1, x, relu=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = {}
        for k in range(1, 5):
            x = self.get_submodule(f"layer{k}")(x)
            features[f"c{k + 1}"] = x
        return features

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        for module in self._frozen():  # a frozen stage's batch norm keeps its statistics too
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        stages = [(self.conv1, self.bn1), *((self.get_submodule(f"layer{k}"),) for k in range(1, 5))]
        return [module for stage in stages[: self.frozen_stages] for module in stage]

    def _initialise(self, zero_init_last: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_last and isinstance(module, BasicBlock | Bottleneck):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                nn.init.zeros_(last.get_parameter("weight"))
