"""The hybrid encoder (section 4.2): {"c3", "c4", "c5"} -> {"p3": (B, C, H/8, W/8), "p4": …, "p5": (B, C, H/32, W/32)}."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.models.fpn import Neck
from resdet.models.layers import ConvNorm, Norm
from resdet.models.rtdetr.attention import Attention

LEVELS = {"c3": 8, "c4": 16, "c5": 32}  # the backbone's maps that the encoder uses, and their strides


class ConvSiLU(ConvNorm):
    """Convolution, norm and SiLU."""

    def forward(self, x: Tensor, valid: Tensor | None = None, *, relu: bool = False) -> Tensor:
        return silu(super().forward(x, valid))


def silu(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())


class EncoderLayer(nn.Module):
    """A post-norm transformer layer: tokens and positions (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        tokens = self.norm1(tokens + self.attention(tokens, positions))
        output: Tensor = self.norm2(tokens + self.linear2(F.gelu(self.linear1(tokens))))
        return output


class RepBlock(nn.Module):
    """Parallel 3x3 and 1x1 convolutions (RepVGG: Ding et al. 2021, arXiv:2101.03697), which `merge` makes one."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.conv3x3, self.conv1x1 = ConvNorm(width, width, 3, norm), ConvNorm(width, width, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3x3(x)
        return silu(y if isinstance(self.conv1x1, nn.Identity) else y + self.conv1x1(x))

    @torch.no_grad()
    def merge(self) -> None:
        """Merge both into one 3x3 convolution, if their norms are folded; the block can no longer be trained."""
        if isinstance(self.conv1x1, nn.Identity) or not isinstance(self.conv3x3.norm, nn.Identity):
            return
        large, small = self.conv3x3.conv, self.conv1x1.conv
        assert large.bias is not None
        assert small.bias is not None
        large.weight = nn.Parameter(large.weight + F.pad(small.weight, [1, 1, 1, 1]), False)
        large.bias = nn.Parameter(large.bias + small.bias, False)
        self.conv1x1 = nn.Identity()  # type: ignore[assignment]


class Fusion(nn.Module):
    """Two adjacent levels, concatenated (B, 2 C, H, W) -> (B, C, H, W): figure 5.

    expansion: width of the inner convolutions, relative to C.
    """

    def __init__(self, width: int, expansion: float, norm: Norm, blocks: int = 3) -> None:
        super().__init__()
        inner = int(width * expansion)
        self.conv1, self.conv2 = ConvSiLU(2 * width, inner, 1, norm), ConvSiLU(2 * width, inner, 1, norm)
        self.blocks = nn.Sequential(*(RepBlock(inner, norm) for _ in range(blocks)))
        self.conv3 = nn.Identity() if inner == width else ConvSiLU(inner, width, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(self.blocks(self.conv1(x)) + self.conv2(x))
        return y


class HybridEncoder(Neck):
    """Self-attention within c5 (AIFI), then fusion of the levels top-down and bottom-up (CCFM).

    in_channels: of c3, c4, c5. channels: C, of each output. strides: of the outputs. layers: of attention.
    norm: of the convolutions, "bn" or "sync_bn".
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        layers: int,
        heads: int,
        ffn: int,
        expansion: float,
        norm: Norm = "bn",
    ) -> None:
        super().__init__()
        self.channels = channels
        self.strides = {name.replace("c", "p"): stride for name, stride in LEVELS.items()}
        steps = range(len(in_channels) - 1)
        self.input = nn.ModuleList(ConvNorm(c, channels, 1, norm) for c in in_channels)
        self.aifi = nn.ModuleList(EncoderLayer(channels, heads, ffn) for _ in range(layers))
        self.lateral = nn.ModuleList(ConvSiLU(channels, channels, 1, norm) for _ in steps)
        self.top_down = nn.ModuleList(Fusion(channels, expansion, norm) for _ in steps)
        self.downsample = nn.ModuleList(ConvSiLU(channels, channels, 3, norm, stride=2) for _ in steps)
        self.bottom_up = nn.ModuleList(Fusion(channels, expansion, norm) for _ in steps)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        *fine, coarsest = [conv(features[name]) for conv, name in zip(self.input, LEVELS, strict=True)]
        levels = [self.attend(coarsest)]
        for finer, lateral, fuse in zip(reversed(fine), self.lateral, self.top_down, strict=True):
            levels[0] = lateral(levels[0])
            enlarged = F.interpolate(levels[0], size=finer.shape[-2:], mode="nearest")
            levels.insert(0, fuse(torch.cat([enlarged, finer], dim=1)))
        outputs = levels[:1]
        for coarser, downsample, fuse in zip(levels[1:], self.downsample, self.bottom_up, strict=True):
            outputs.append(fuse(torch.cat([downsample(outputs[-1]), coarser], dim=1)))
        return dict(zip(self.strides, outputs, strict=True))

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention among the pixels of a map (B, C, H, W)."""
        h, w = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        positions = sine_positions(h, w, self.channels, x.device).to(x.dtype)
        for layer in self.aifi:
            tokens = layer(tokens, positions)
        return tokens.transpose(1, 2).reshape(-1, self.channels, h, w)


def sine_positions(h: int, w: int, channels: int, device: torch.device, temperature: float = 10000.0) -> Tensor:
    """(H W, C): sines of y, cosines of y, sines of x, cosines of x, each at C / 4 frequencies."""
    count = channels // 4
    frequency = temperature ** -(torch.arange(count, dtype=torch.float64, device=device) / count)
    y, x = (torch.arange(n, dtype=torch.float64, device=device)[:, None] * frequency for n in (h, w))
    rows = torch.cat([y.sin(), y.cos()], dim=1)[:, None].expand(-1, w, -1)
    columns = torch.cat([x.sin(), x.cos()], dim=1)[None].expand(h, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).float()
