"""The heads of a C4 detector (He et al. 2015, appendix A): RoIs of c4 -> the backbone's last stage, on each RoI.

Letters: P pooled RoIs, s side of the pooled RoI (14), C4 and C5 channels of c4 and c5.
"""

from __future__ import annotations

from torch import Tensor, nn


class RoIStage:
    """The backbone's layer4 on RoIs: (P, C4, s, s), valid (P,) bool -> (P, C5, s/2, s/2).

    Box and mask head share it, and it belongs to the backbone, with whose weights it starts. So this is no module: a
    parameter has one owner and one name.
    """

    def __init__(self, blocks: nn.Sequential, channels: int) -> None:
        self.blocks, self.channels = blocks, channels

    def __call__(self, x: Tensor, valid: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, valid)
        return x


class Res5(nn.Module):
    """Trunk of a box head: (P, C4, s, s) -> (P, C5), the mean of the stage's map."""

    def __init__(self, stage: RoIStage) -> None:
        super().__init__()
        self.stage, self.width = stage, stage.channels

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return self.stage(x, valid).mean((2, 3))
