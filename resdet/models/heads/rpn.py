"""Region proposal network (Ren et al. 2015, arXiv:1506.01497): pyramid -> objectness and box deltas -> proposals.

Letters: L levels, A anchors of all levels, k candidates per level, R proposals per image.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import big_enough, clip, decode, delta_distance, encode, upcast
from resdet.kernels.nms import nms, place
from resdet.models.anchors import Anchors
from resdet.models.layers import Conv2d
from resdet.models.matching import gather_rows, match, sample
from resdet.structures import Loss, Targets

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class Scores(NamedTuple):
    """The RPN's output for every anchor, one list entry per level: logits (B, A_l), deltas (B, A_l, 4), anchors (A_l, 4)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]


class Limits(NamedTuple):
    """Proposals per image: `pre_nms` per level before NMS, `post_nms` over all levels after it."""

    pre_nms: int
    post_nms: int


class RPN(nn.Module):
    """num_convs: 3x3 convolutions before the predictors (1, or 2 in detectron2's "new baselines").
    nms_threshold: IoU within a level. min_size: proposals with a side below it, in input pixels, are dropped.
    samples: anchors per image in the loss, at most positive_fraction of them positive. high, low: positive at IoU >= high,
    negative below low. loss_beta: of the smooth L1 box loss (0: L1). clamp_shrink: see `boxes.decode`.
    rank: order proposals by logit, or by sigmoid (mmdetection), which has ties where it saturates.
    fixed_divisor: divide the losses by samples * images (detectron2) instead of the number of anchors sampled.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        *,
        num_convs: int = 1,
        train_limits: Limits = Limits(2000, 1000),  # noqa: B008 (a tuple)
        predict_limits: Limits = Limits(1000, 1000),  # noqa: B008
        nms_threshold: float = 0.7,
        min_size: float = 0.0,
        samples: int = 256,
        positive_fraction: float = 0.5,
        high: float = 0.7,
        low: float = 0.3,
        loss_beta: float = 0.0,
        clamp_shrink: bool = False,
        rank: Literal["logit", "sigmoid"] = "logit",
        fixed_divisor: bool = False,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.convs = nn.ModuleList(Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs))
        self.objectness = nn.Conv2d(channels, anchors.per_location, 1)
        self.deltas = nn.Conv2d(channels, anchors.per_location * 4, 1)
        for module in (*self.convs, self.objectness, self.deltas):
            assert isinstance(module, nn.Conv2d)
            nn.init.normal_(module.weight, std=0.01)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        self.train_limits, self.predict_limits = train_limits, predict_limits
        self.nms_threshold, self.min_size = nms_threshold, min_size
        self.samples, self.max_positive = samples, int(samples * positive_fraction)
        self.high, self.low, self.loss_beta = high, low, loss_beta
        self.clamp_shrink, self.rank, self.fixed_divisor = clamp_shrink, rank, fixed_divisor

    def forward(self, features: dict[str, Tensor], input_size: tuple[int, int]) -> Scores:
        """`input_size` is the padded input's (H, W). Anchors are ordered (level, row, column, shape)."""
        logits, deltas = [], []
        for x in features.values():
            for conv in self.convs:
                x = F.relu(conv(x), inplace=True)
            logits.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return Scores(logits, deltas, self.anchors(features, input_size))

    @torch.no_grad()  # proposals are constants to the heads
    def propose(self, scores: Scores, image_sizes: Tensor, limits: Limits) -> tuple[Tensor, Tensor, Tensor]:
        """-> boxes (B, R, 4), scores (B, R) in 0..1, valid (B, R), by descending score; R = limits.post_nms."""
        all_ranks, all_deltas, all_anchors = [], [], []
        k = limits.pre_nms
        for logits, deltas, anchors in zip(*scores, strict=True):
            rank, index = self._best(upcast(logits), k)
            index = index.clamp(max=len(anchors) - 1)
            all_ranks.append(rank)
            all_deltas.append(gather_rows(deltas, index))
            all_anchors.append(anchors[index])
        ranks, deltas, anchors = (torch.cat(t, dim=1) for t in (all_ranks, all_deltas, all_anchors))  # (B, L * k, …)
        boxes = clip(decode(deltas, anchors, DELTA_WEIGHTS, clamp_shrink=self.clamp_shrink), image_sizes)
        objectness = ranks if self.rank == "sigmoid" else ranks.sigmoid()
        valid = (ranks > -torch.inf) & big_enough(boxes, self.min_size)
        if self.rank == "sigmoid":
            ranks = place(ranks, valid)
        by_level = boxes.view(-1, k, 4), ranks.view(-1, k), None, valid.view(-1, k)  # levels do not suppress each other
        keep = nms(*by_level, self.nms_threshold, limits.post_nms).view(valid.shape)
        rank, index = torch.where(keep, ranks, -torch.inf).topk(min(limits.post_nms, keep.shape[1]), dim=1)
        valid = rank > -torch.inf
        objectness = torch.where(valid, objectness.gather(1, index), 0.0)
        return torch.where(valid.unsqueeze(-1), gather_rows(boxes, index), 0.0), objectness, valid

    def _best(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best anchors of a level: ranks (B, k), descending, -inf where there are fewer, and indices (B, k).

        Padded, so that there are k candidates however small the map: an exported model's H and W stay dynamic.
        """
        if self.rank == "logit":
            rank, index = F.pad(logits, (0, k), value=-torch.inf).topk(k, dim=1)
            return rank, index
        rank, index = logits.sigmoid(), torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
        if logits.shape[1] > k:
            rank, index = torch.sort(rank, dim=1, descending=True)  # unstable, as in `kernels.nms.place`
        return F.pad(rank, (0, k), value=-torch.inf)[:, :k], F.pad(index, (0, k))[:, :k]

    def at(self, features: dict[str, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        """The output of `forward` for the anchors `index` (B, S) into all levels: logits (B, S), deltas (B, S, 4).

        Computed on the receptive field of each anchor alone. The loss samples a few hundred anchors; backpropagation through
        the convolutions on whole maps, with nearly all gradients zero, would take a fifth of a training step.
        """
        maps, a = list(features.values()), self.anchors.per_location
        pixel = (index // a).flatten()
        start, height, width = torch.zeros_like(pixel), torch.zeros_like(pixel), torch.zeros_like(pixel)
        first = 0
        for m in maps:  # no tensor of sizes: it would have to be copied to the device
            here = pixel >= first
            start = torch.where(here, first, start)
            height, width = torch.where(here, m.shape[2], height), torch.where(here, m.shape[3], width)
            first += m.shape[2] * m.shape[3]
        reach = torch.arange(-len(self.convs), len(self.convs) + 1, device=index.device)
        y = (pixel - start).div(width, rounding_mode="floor")[:, None] + reach  # (B * S, side of the receptive field f)
        x = ((pixel - start) % width)[:, None] + reach
        rows_in = (y >= 0) & (y < height[:, None])
        columns_in = (x >= 0) & (x < width[:, None])
        inside = (rows_in[:, :, None] & columns_in[:, None, :])[:, None]  # (B * S, 1, f, f)
        table = torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1)  # (B, pixels, C)
        image = torch.arange(len(index), device=index.device).repeat_interleave(index.shape[1]) * table.shape[1]
        y, x = y.clamp(min=0).minimum(height[:, None] - 1), x.clamp(min=0).minimum(width[:, None] - 1)
        rows = (image + start)[:, None, None] + y[:, :, None] * width[:, None, None] + x[:, None, :]
        patch = F.embedding(rows, table.flatten(0, 1)).permute(0, 3, 1, 2) * inside  # (B * S, C, f, f)
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            inside = inside[:, :, 1:-1, 1:-1]
            patch = F.relu(F.conv2d(patch, conv.weight, conv.bias)) * inside  # zero padding outside the map
        shape = (index % a).view(-1, 1)
        logits = self.objectness(patch).flatten(1).gather(1, shape)
        deltas = gather_rows(self.deltas(patch).view(len(shape), a, 4), shape)
        return logits.view(index.shape), deltas.view(*index.shape, 4)

    def loss(self, features: dict[str, Tensor], anchors: Tensor, targets: Targets, keys: Tensor) -> dict[str, Loss]:
        """rpn_objectness and rpn_box of the sampled anchors, both over their number (but see `fixed_divisor`).

        anchors: (A, 4) of all levels. In an image with unknown classes, a sampled negative that the network scores above 0.5
        may be an object that was not annotated, so it is left out. The image's other negatives are kept: a random anchor is
        hardly ever on an object, and if every image had unknown classes there would be no negatives at all. (Wu et al. 2019,
        arXiv:1806.06986, down-weight doubtful negatives instead.)
        """
        found = match(anchors, targets.boxes, targets.valid, high=self.high, low=self.low, low_quality=True)
        index, positive, valid = sample(found.positive, found.negative, keys, self.samples, self.max_positive)
        logits, deltas = self.at(features, index)
        if targets.known is not None:
            incomplete = ~targets.known.all(dim=1, keepdim=True)
            valid = valid & ~(incomplete & ~positive & (logits.detach() > 0))
        count = valid.sum()
        if self.fixed_divisor:
            count = torch.full_like(count, self.samples * len(valid))
        objectness = F.binary_cross_entropy_with_logits(
            upcast(logits), positive.to(anchors.dtype), weight=valid.to(anchors.dtype), reduction="sum"
        )
        target = encode(gather_rows(targets.boxes, found.gt_index.gather(1, index)), anchors[index], DELTA_WEIGHTS)
        distance = delta_distance(deltas, target, self.loss_beta)
        return {
            "rpn_objectness": Loss(objectness, count),
            "rpn_box": Loss(torch.where(positive, distance, 0.0).sum(), count),
        }
