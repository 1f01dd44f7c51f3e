"""Feature pyramid (Lin et al. 2016, arXiv:1612.03144): {"c2": …, "c5": …} -> {"p2": (B, C, H/4, W/4), …, "p6": …/64}; and the
neck of detectors without a pyramid."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from resdet.models.layers import ConvNorm, Norm


class FPN(nn.Module):
    """1x1 lateral convolutions, nearest-neighbour top-down path, 3x3 output convolutions; p6 is p5 subsampled by 2.

    in_channels: of c2..c5. channels: of every output. strides: of the outputs p2..p6. standardized: see `ConvNorm`.
    """

    def __init__(
        self, in_channels: list[int], channels: int = 256, *, norm: Norm = "none", standardized: bool = False
    ) -> None:
        super().__init__()
        self.channels = channels
        self.strides = {f"p{k}": 2**k for k in range(2, 7)}
        self.lateral = nn.ModuleList(ConvNorm(c, channels, 1, norm, standardized=standardized) for c in in_channels)
        self.output = nn.ModuleList(
            ConvNorm(channels, channels, 3, norm, standardized=standardized) for _ in in_channels
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        merged = [lateral(c) for lateral, c in zip(self.lateral, features.values(), strict=True)]
        for i in range(len(merged) - 2, -1, -1):
            merged[i].add_(F.interpolate(merged[i + 1], size=merged[i].shape[-2:], mode="nearest"))
        levels = [output(m) for output, m in zip(self.output, merged, strict=True)]
        levels.append(levels[-1][:, :, ::2, ::2].contiguous())  # max pooling with kernel 1 and stride 2
        return dict(zip(self.strides, levels, strict=True))


class SingleLevel(nn.Module):
    """No pyramid: one of the backbone's maps, unchanged ("c4" in C4 detectors, "c5" in DC5 ones).

    channels, strides: of that map.
    """

    def __init__(self, name: str, channels: int, stride: int) -> None:
        super().__init__()
        self.name, self.channels = name, channels
        self.strides = {name: stride}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self.name: features[self.name]}
