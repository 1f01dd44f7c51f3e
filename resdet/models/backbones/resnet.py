"""ResNet, ResNeXt and Wide ResNet: image (B, C, H, W) -> {"c2": (B, C, H/4, W/4), …, "c5": (B, C, H/32, W/32)}.

He et al. 2015 (arXiv:1512.03385), Xie et al. 2016 (1611.05431), Zagoruyko & Komodakis 2016 (1605.07146).
Parameter names are torchvision's, since every ImageNet checkpoint uses them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.models.backbones.base import Backbone
from resdet.models.layers import Conv2d, DeformableConv2d, Norm, StandardizedConv2d, conv_norm, make_norm


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
    "wide_resnet50_2": Architecture(True, (3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": Architecture(True, (3, 4, 23, 3), base_width=128),
}


def architecture(name: str) -> Architecture:
    """The architecture with a name in `RESNETS` or of the form resnextDEPTH_GROUPSxWIDTHd. Raises `KeyError`."""
    match = re.fullmatch(r"resnext(\d+)_(\d+)x(\d+)d", name)
    if match is None:
        return RESNETS[name]
    return RESNETS[f"resnet{match[1]}"]._replace(groups=int(match[2]), base_width=int(match[3]))


def architecture_name(arch: Architecture) -> str | None:
    """The inverse of `architecture`; None if the architecture has no name."""
    for name, known in RESNETS.items():
        if known == arch:
            return name
    for name in ("resnet50", "resnet101", "resnet152"):
        if arch.bottleneck and RESNETS[name].blocks == arch.blocks:
            return f"{name.replace('net', 'next')}_{arch.groups}x{arch.base_width}d"
    return None


class Style(NamedTuple):
    """The options shared by the blocks of a stage; see `ResNet`."""

    norm: Norm = "frozen_bn"
    norm_eps: float = 1e-5
    stride_in_1x1: bool = False
    residual: bool = True
    avg_down: bool = False
    standardized: bool = False
    deformable: Literal["none", "v1", "v2"] = "none"
    deformable_groups: int = 1
    dilation: int = 1
    project: bool = False

    def conv3x3(self, inputs: int, channels: int, stride: int = 1, groups: int = 1) -> nn.Module:
        """Plain, dilated, standardized or deformable."""
        if self.deformable != "none":
            return DeformableConv2d(
                inputs, channels, stride, self.dilation, groups, self.deformable_groups, self.deformable == "v2"
            )
        kind = StandardizedConv2d if self.standardized else Conv2d
        return kind(inputs, channels, 3, stride, self.dilation, self.dilation, groups, bias=False)

    def conv1x1(self, inputs: int, channels: int, stride: int = 1) -> nn.Conv2d:
        kind = StandardizedConv2d if self.standardized else nn.Conv2d
        return kind(inputs, channels, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C, H, W) -> (B, channels, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, arch: Architecture, style: Style) -> None:
        super().__init__()
        self.conv1 = style.conv3x3(inputs, channels, stride)
        self.bn1 = make_norm(style.norm, channels, style.norm_eps)
        self.conv2 = style.conv3x3(channels, channels)
        self.bn2 = make_norm(style.norm, channels, style.norm_eps)
        self.residual = style.residual
        self.downsample = _shortcut(inputs, channels, stride, style)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        y = conv_norm(self.conv1, self.bn1, x, relu=True, valid=valid)
        shortcut = self.downsample(x, valid) if self.residual else None
        return conv_norm(self.conv2, self.bn2, y, shortcut=shortcut, relu=True, valid=valid)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: (B, C, H, W) -> (B, 4 * channels, H/stride, W/stride).

    The stride sits in the 3x3 convolution (torchvision, "ResNet 1.5") or in the first 1x1 (the original, MSRA's weights).
    """

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, arch: Architecture, style: Style) -> None:
        super().__init__()
        width = channels * arch.base_width // 64 * arch.groups
        first, second = (stride, 1) if style.stride_in_1x1 else (1, stride)
        self.conv1 = style.conv1x1(inputs, width, first)
        self.bn1 = make_norm(style.norm, width, style.norm_eps)
        self.conv2 = style.conv3x3(width, width, second, arch.groups)
        self.bn2 = make_norm(style.norm, width, style.norm_eps)
        self.conv3 = style.conv1x1(width, channels * 4)
        self.bn3 = make_norm(style.norm, channels * 4, style.norm_eps)
        self.residual = style.residual
        self.downsample = _shortcut(inputs, channels * 4, stride, style)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        y = conv_norm(self.conv1, self.bn1, x, relu=True, valid=valid)
        y = conv_norm(self.conv2, self.bn2, y, relu=True, valid=valid)
        shortcut = self.downsample(x, valid) if self.residual else None
        return conv_norm(self.conv3, self.bn3, y, shortcut=shortcut, relu=True, valid=valid)


def _shortcut(inputs: int, outputs: int, stride: int, style: Style) -> nn.Module:
    """A projection where shapes differ or the style asks for one, else the identity."""
    if not style.residual or (stride == 1 and inputs == outputs and not style.project):
        return _Identity()
    norm = make_norm(style.norm, outputs, style.norm_eps)
    if not style.avg_down:
        return _Projection(style.conv1x1(inputs, outputs, stride), norm)
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
    return _Projection(pool, style.conv1x1(inputs, outputs), norm)


class _Identity(nn.Module):
    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        return x


class _Projection(nn.Sequential):
    """(pooling,) convolution, norm; a `Sequential` so that parameters have torchvision's names."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        *before, conv, norm = self.children()
        for module in before:
            x = module(x)
        return conv_norm(conv, norm, x, valid=valid)


def _stem(inputs: int, style: Style, deep: bool) -> nn.Module:
    """A 7x7 convolution, or three 3x3 ones (`deep`); either way the last norm is `ResNet.bn1`."""
    kind = StandardizedConv2d if style.standardized else nn.Conv2d
    if not deep:
        return kind(inputs, 64, 7, 2, padding=3, bias=False)
    return nn.Sequential(
        kind(inputs, 32, 3, 2, padding=1, bias=False), make_norm(style.norm, 32, style.norm_eps), nn.ReLU(),
        kind(32, 32, 3, padding=1, bias=False), make_norm(style.norm, 32, style.norm_eps), nn.ReLU(),
        kind(32, 64, 3, padding=1, bias=False),
    )  # fmt: skip


class ResNet(Backbone):
    """The network without its classifier.

    inputs:            channels of the image.
    norm_eps:          batch norm's epsilon.
    stride_in_1x1:     bottlenecks downsample in their first 1x1 convolution.
    frozen_stages:     how many stages are frozen, from the stem on: 0 none, 1 stem, 2 stem and layer1, … 5 all.
    zero_init_last:    the last norm of each residual branch starts at zero (Goyal et al. 2017).
    deep_stem:         the stem is three 3x3 convolutions (ResNet-C).
    avg_down:          shortcuts downsample by average pooling before their 1x1 convolution. With `deep_stem` this is
                       ResNet-D (He et al. 2018, arXiv:1812.01187), with timm's parameter names.
    project_first:     layer1's first shortcut has a 1x1 convolution even where shapes agree, as in PaddleDetection's
                       ResNet-18 and 34.
    residual:          False removes every shortcut: the plain network of He et al. 2015, section 3.3.
    weight_standardization: of all convolutions (Qiao et al. 2019, arXiv:1903.10520), for group norm.
    deformable:        deformable 3x3 convolutions ("v1": Dai et al. 2017, arXiv:1703.06211; "v2": Zhu et al. 2018,
                       arXiv:1811.11168) in `deformable_stages` (of c2..c5), with `deformable_groups` offset groups.
    c5_dilation:       2 keeps c5 at stride 16 and dilates its 3x3 convolutions ("DC5").
    c5:                "map": an output like the others. "rois": not computed by `forward`; the heads run layer4 on RoIs of
                       c4 (`heads.res5`). "none": there is no layer4.
    """

    def __init__(
        self,
        arch: Architecture,
        *,
        inputs: int = 3,
        norm: Norm = "frozen_bn",
        norm_eps: float = 1e-5,
        stride_in_1x1: bool = False,
        frozen_stages: int = 0,
        zero_init_last: bool = False,
        deep_stem: bool = False,
        avg_down: bool = False,
        project_first: bool = False,
        residual: bool = True,
        weight_standardization: bool = False,
        deformable: Literal["none", "v1", "v2"] = "none",
        deformable_stages: Sequence[str] = ("c3", "c4", "c5"),
        deformable_groups: int = 1,
        c5_dilation: int = 1,
        c5: Literal["map", "rois", "none"] = "map",
    ) -> None:
        super().__init__()
        block = Bottleneck if arch.bottleneck else BasicBlock
        style = Style(norm, norm_eps, stride_in_1x1, residual, avg_down, weight_standardization)
        last = 5 if c5 == "map" else 4
        self.channels = {f"c{k}": 2 ** (k + 4) * block.expansion for k in range(2, last + 1)}
        self.strides = {f"c{k}": 32 // c5_dilation if k == 5 else 2**k for k in range(2, last + 1)}
        self.conv1 = _stem(inputs, style, deep_stem)
        self.bn1 = make_norm(norm, 64, norm_eps)
        inputs = 64
        for k, count in enumerate(arch.blocks[: 3 if c5 == "none" else 4], 1):
            channels = 32 * 2**k
            stage = []
            dilation = c5_dilation if k == 4 else 1
            here = style._replace(dilation=dilation)
            if f"c{k + 1}" in deformable_stages:
                here = here._replace(deformable=deformable, deformable_groups=deformable_groups)
            for i in range(count):
                stride = 2 if k > 1 and i == 0 and dilation == 1 else 1
                project = project_first and k == 1 and i == 0
                stage.append(block(inputs, channels, stride, arch, here._replace(project=project)))
                inputs = channels * block.expansion
            self.add_module(f"layer{k}", nn.Sequential(*stage))
        self._initialise(zero_init_last)
        self.freeze(frozen_stages)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        *before, conv = self.conv1.children() if isinstance(self.conv1, nn.Sequential) else [self.conv1]
        for module in before:
            x = module(x)
        x = conv_norm(conv, self.bn1, x, relu=True)
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        features = {}
        for name in self.channels:
            x = self.get_submodule(f"layer{int(name[1]) - 1}")(x)
            features[name] = x
        return features

    def stages(self) -> list[list[nn.Module]]:
        layers = [module for name, module in self.named_children() if name.startswith("layer")]
        return [[self.conv1, self.bn1], *([layer] for layer in layers)]

    def _initialise(self, zero_init_last: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_last and isinstance(module, BasicBlock | Bottleneck):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                nn.init.zeros_(last.get_parameter("weight"))
        for module in self.modules():
            if isinstance(module, DeformableConv2d):
                module.start_plain()
