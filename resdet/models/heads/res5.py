"""C4 detectors (He et al. 2015, appendix A): the heads run the backbone's last stage, res5, on RoIs pooled from c4.

Letters: P pooled RoIs of s x s (14 x 14), C4 and C5 channels of c4 and c5.
"""

from __future__ import annotations

from torch import Tensor, nn


class RoIStage:
    """The backbone's layer4 on RoIs: (P, C4, s, s), valid (P,) bool -> (P, C5, s/2, s/2).

    The box head and the mask head share it, and it belongs to the backbone. This class is not a module, so that its
    parameters are registered once.
    """

    def __init__(self, blocks: nn.Sequential, channels: int) -> None:
        self.blocks, self.channels = blocks, channels

    def __call__(self, x: Tensor, valid: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, valid)
        return x


class Res5(nn.Module):
    """Trunk of a box head: (P, C4, s, s) -> (P, C5), the average of layer4's output."""

    def __init__(self, stage: RoIStage) -> None:
        super().__init__()
        self.stage, self.width = stage, stage.channels

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.stage(x, valid).mean((2, 3))
