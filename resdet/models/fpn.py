"""Feature pyramid (Lin et al. 2016, arXiv:1612.03144): {"c2": …, "c5": …} -> {"p2": (B, C, H/4, W/4), …, "p6": …/64}; and the
neck of detectors without a pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.models.layers import Conv2d, ConvNorm, Norm


class Neck(nn.Module):
    """Backbone maps -> the maps that the heads use. A subclass sets their `channels` and `strides` (by name, fine to coarse)
    and defines `forward`."""

    channels: int
    strides: Mapping[str, int]

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


class FPN(Neck):
    """1x1 lateral convolutions, nearest-neighbour top-down path, 3x3 output convolutions, and the coarser levels of `top`.

    in_channels: of the maps up to c5: four for c2..c5, three for c3..c5. channels: of every output.
    top: computes the levels above p5; by default p6 is p5 subsampled by 2. standardized: see `ConvNorm`.
    strides: of the outputs, p2..p6, or p3..p7 from c3 with `ConvTop`.
    """

    def __init__(
        self,
        in_channels: list[int],
        channels: int = 256,
        *,
        norm: Norm = "none",
        standardized: bool = False,
        top: PooledTop | ConvTop | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.lateral = nn.ModuleList(ConvNorm(c, channels, 1, norm, standardized=standardized) for c in in_channels)
        self.output = nn.ModuleList(
            ConvNorm(channels, channels, 3, norm, standardized=standardized) for _ in in_channels
        )
        self.top = top or PooledTop()
        self.strides = {f"p{k}": 2**k for k in range(6 - len(in_channels), 6 + self.top.levels)}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = list(features.values())[-len(self.lateral) :]
        merged = [lateral(c) for lateral, c in zip(self.lateral, maps, strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i].add_(F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest"))
        levels = [output(m) for output, m in zip(self.output, merged, strict=True)]
        return dict(zip(self.strides, levels + self.top(maps[-1], levels[-1]), strict=True))


class PooledTop(nn.Module):
    """p6 is p5 subsampled by 2: max pooling with kernel 1 and stride 2 (Faster R-CNN with FPN)."""

    levels = 1

    def forward(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        return [p5[:, :, ::2, ::2].contiguous()]


class ConvTop(nn.Module):
    """p6 and p7 from 3x3 convolutions of stride 2 (Lin et al. 2017, arXiv:1708.02002, section 4).

    c5_channels: of c5, if p6 is computed from it; None: from p5. relu: on p6 before p7's convolution; mmdetection has none in
    RetinaNet, ATSS and GFL.
    """

    levels = 2

    def __init__(self, channels: int, c5_channels: int | None = None, *, relu: bool = True) -> None:
        super().__init__()
        self.source: Literal["c5", "p5"] = "c5" if c5_channels else "p5"
        self.relu = relu
        self.p6 = Conv2d(c5_channels or channels, channels, 3, 2, padding=1)
        self.p7 = Conv2d(channels, channels, 3, 2, padding=1)

    def forward(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5 if self.source == "c5" else p5)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


class SingleLevel(Neck):
    """No pyramid: one of the backbone's maps, unchanged ("c4" in C4 detectors, "c5" in DC5 ones).

    channels, strides: of that map.
    """

    def __init__(self, name: str, channels: int, stride: int) -> None:
        super().__init__()
        self.name, self.channels = name, channels
        self.strides = {name: stride}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self.name: features[self.name]}
