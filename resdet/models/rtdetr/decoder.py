"""Query selection and decoder (sections 4.3 and 3): the encoder's maps -> boxes and class logits, refined layer by layer.

Letters: T tokens, Q queries, C channels, K classes. Boxes are (centre x, centre y, width, height), relative to the input's
sides; unbounded boxes are the logits of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.models.layers import PRIOR_LOGIT, ConvNorm, Norm
from resdet.models.matching import gather_rows
from resdet.models.rtdetr.attention import Attention, DeformableAttention, Memory

MARGIN = 0.01  # anchors closer to the border are invalid
ANCHOR_SIDE = 0.05  # on the finest level; doubled on each next one


class MLP(nn.Module):
    """(..., widths[0]) -> (..., widths[-1]): linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        output: Tensor = self.layers[-1](x)
        return output


def score_head(width: int, classes: int) -> nn.Linear:
    head = nn.Linear(width, classes)
    nn.init.constant_(head.bias, PRIOR_LOGIT)
    return head


def box_head(width: int) -> MLP:
    """Initialised to deltas of zero."""
    head = MLP(width, width, width, 4)
    for parameter in head.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return head


class Queries(NamedTuple):
    """content (B, Q, C), boxes (B, Q, 4) unbounded, logits (B, Q, K): the encoder's predictions for the selected tokens."""

    content: Tensor
    boxes: Tensor
    logits: Tensor


class QuerySelection(nn.Module):
    """The `count` tokens with the highest class scores become queries (all, if there are fewer). This is the paper's
    "uncertainty-minimal" selection: the loss trains the scores to predict the IoU."""

    def __init__(self, width: int, classes: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.project, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        nn.init.xavier_uniform_(self.project.weight)
        self.score, self.box = score_head(width, classes), box_head(width)

    def forward(self, memory: Memory) -> Queries:
        anchors, inside = anchors_of(memory.sizes, memory.tokens.device)
        content = self.norm(self.project(memory.tokens * inside[:, None].to(memory.tokens)))
        logits = self.score(content)
        best = logits.amax(-1).topk(min(self.count, logits.shape[1]), dim=1).indices
        content = gather_rows(content, best)
        return Queries(content, upcast(self.box(content)) + anchors[best], gather_rows(logits, best))


def anchors_of(sizes: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The anchor box of each token: (T, 4) unbounded, and whether it is valid, not too close to the border: (T,) bool; invalid
    ones have the largest float."""
    levels = []
    for k, (h, w) in enumerate(sizes):
        y, x = ((torch.arange(n, dtype=torch.float32, device=device) + 0.5) / n for n in (h, w))
        side = torch.full((h, w), ANCHOR_SIDE * 2.0**k, device=device)
        levels.append(torch.stack([x.expand(h, w), y[:, None].expand(h, w), side, side], dim=-1).flatten(0, 1))
    boxes = torch.cat(levels)
    inside = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(-1)
    return torch.where(inside[:, None], torch.logit(boxes), torch.finfo(torch.float32).max), inside


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention to the image around each box, and MLP: content and positions (B, Q, C)."""

    def __init__(
        self,
        width: int,
        heads: int,
        ffn: int,
        points: Sequence[int],
        offset_scale: float,
        sampling: Literal["bilinear", "discrete"],
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.cross_attention = DeformableAttention(width, heads, points, offset_scale, sampling)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, content: Tensor, positions: Tensor, boxes: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        content = self.norm1(content + self.attention(content, positions, mask))
        content = self.norm2(content + self.cross_attention(content + positions, boxes, memory))
        output: Tensor = self.norm3(content + self.linear2(F.relu(self.linear1(content))))
        return output


class Decoder(nn.Module):
    """in_channels: of the encoder's maps. width: C. points, offset_scale, sampling: see `DeformableAttention`. norm: of the
    convolutions that read the maps.

    predict_layers: the number of layers used in prediction; every layer is trained to predict.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        num_classes: int,
        *,
        layers: int,
        predict_layers: int | None,
        heads: int,
        ffn: int,
        points: Sequence[int],
        offset_scale: float,
        sampling: Literal["bilinear", "discrete"],
        norm: Norm = "bn",
    ) -> None:
        super().__init__()
        self.predict_layers = predict_layers or layers
        self.input = nn.ModuleList(ConvNorm(in_channels, width, 1, norm) for _ in points)
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, ffn, points, offset_scale, sampling) for _ in range(layers)
        )
        self.position = MLP(4, 2 * width, width)
        for layer in self.position.layers:
            nn.init.xavier_uniform_(layer.get_parameter("weight"))
        self.scores = nn.ModuleList(score_head(width, num_classes) for _ in range(layers))
        self.boxes = nn.ModuleList(box_head(width) for _ in range(layers))

    def memory(self, features: dict[str, Tensor]) -> Memory:
        maps = [conv(x) for conv, x in zip(self.input, features.values(), strict=True)]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        return Memory(tokens, [(x.shape[2], x.shape[3]) for x in maps])

    def forward(
        self, content: Tensor, boxes: Tensor, memory: Memory, layers: int, mask: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """content (B, Q, C) and boxes (B, Q, 4), unbounded -> content and boxes in 0..1 after each of the first `layers`.

        Each layer refines the boxes of the previous one. The gradient of its loss also reaches the previous layer's deltas, but
        none before ("look forward twice": Zhang et al. 2022, arXiv:2203.03605, section 3.5).
        """
        contents, refined = [], []
        reference = previous = boxes.sigmoid()  # `reference` is detached
        for k in range(layers):
            content = self.layers[k](content, self.position(reference), reference, memory, mask)
            deltas = upcast(self.boxes[k](content))
            contents.append(content)
            refined.append((deltas + inverse_sigmoid(previous)).sigmoid())
            previous = (deltas + inverse_sigmoid(reference)).sigmoid()
            reference = previous.detach()
        return contents, refined


def inverse_sigmoid(boxes: Tensor, eps: float = 1e-5) -> Tensor:
    """The inverse of the sigmoid, of values clamped to eps..1 - eps."""
    boxes = boxes.clamp(0, 1)
    return torch.log(boxes.clamp(min=eps) / (1 - boxes).clamp(min=eps))
