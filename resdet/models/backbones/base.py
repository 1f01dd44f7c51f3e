"""What every backbone is: normalised images (B, C, H, W) -> feature maps by name, fine to coarse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from resdet.models.layers import fuse_conv_bn


class Backbone(nn.Module):
    """A subclass sets `channels` and `strides` of its maps ("c2", …), has `forward` and `stages`, and ends by `freeze`."""

    channels: Mapping[str, int]
    strides: Mapping[str, int]
    frozen_stages = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> {"c2": (B, channels["c2"], H / strides["c2"], W / strides["c2"]), …}."""
        raise NotImplementedError

    def stages(self) -> list[list[nn.Module]]:
        """Its modules from the pixels up, each parameter in one stage: first the stem, then one for each map,
        last what heads compute on RoIs, if there is such.

        Stages are frozen from the first on, and learn the slower under layer decay the closer to the pixels they are.
        """
        raise NotImplementedError

    def freeze(self, count: int) -> None:
        """The first `count` stages do not train from now on, running statistics of their norms included."""
        self.frozen_stages = count
        for module in self._frozen():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def fuse_norms(self) -> None:
        """Make norms with fixed statistics part of their convolutions; for a backbone that will not train again."""
        for module in self.modules():
            fuse_conv_bn(module)

    def _frozen(self) -> list[nn.Module]:
        return [module for stage in self.stages()[: self.frozen_stages] for module in stage]
