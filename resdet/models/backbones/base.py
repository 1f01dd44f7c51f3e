"""The interface of every backbone: normalised images (B, C, H, W) -> feature maps by name, fine to coarse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from resdet.models.layers import fuse_conv_bn


class Backbone(nn.Module):
    """A subclass sets the `channels` and `strides` of its maps ("c2", …), defines `forward` and `stages`, and calls `freeze`
    last in its constructor."""

    channels: Mapping[str, int]
    strides: Mapping[str, int]
    frozen_stages = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {"c2": (B, channels["c2"], H / strides["c2"], W / strides["c2"]), …}."""
        raise NotImplementedError

    def stages(self) -> list[list[nn.Module]]:
        """The modules in the order of forward, each parameter in one stage at most: the stem, one stage per map (per block in a
        ViT) and, in C4 detectors, the one that the heads run on RoIs.

        Freezing starts at the first stage; layer decay gives earlier stages smaller learning rates.
        """
        raise NotImplementedError

    def undecayed(self) -> list[nn.Parameter]:
        """Parameters without weight decay, besides those of norms."""
        return []

    def freeze(self, count: int) -> None:
        """Freeze the first `count` stages, including the running statistics of their norms."""
        self.frozen_stages = count
        for module in self._frozen():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def fuse_norms(self) -> None:
        """Fold norms with fixed statistics into their convolutions, for a backbone that will not be trained again."""
        for module in self.modules():
            fuse_conv_bn(module)

    def _frozen(self) -> list[nn.Module]:
        return [module for stage in self.stages()[: self.frozen_stages] for module in stage]
