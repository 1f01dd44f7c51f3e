"""PointRend mask head (Kirillov et al. 2020, arXiv:1912.08193): a coarse mask, refined point by point where it is uncertain.

The coarse head predicts 7 x 7 logits per class from 14 x 14 points of the finest level. The point head classifies single
points from the finest level's features and the coarse logits. Training samples points where the coarse mask is uncertain;
prediction doubles the side of the mask five times and recomputes the most uncertain points each time.

Letters: P RoIs, N points, C channels, K classes, S side of the coarse mask. Points are (x, y) in 0..1 of the RoI's sides.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import upcast
from resdet.fields import replace
from resdet.models.heads.mask import mask_loss, mask_targets, masked_rois
from resdet.models.heads.rois import scatter_rows
from resdet.models.layers import initialise_convs
from resdet.models.matching import uniform
from resdet.models.roi_align import flatten_rois, occupied
from resdet.structures import Detections, Loss, Output, Samples


class CoarseHead(nn.Module):
    """(P, 2 S, 2 S, C) features -> (P, K, S, S) logits: a 2 x 2 convolution of stride 2 and fully connected layers."""

    def __init__(self, channels: int, num_classes: int, side: int, width: int, num_fc: int) -> None:
        super().__init__()
        self.side, self.num_classes = side, num_classes
        self.reduce = nn.Conv2d(channels, channels, 2, stride=2)
        initialise_convs(self.reduce)
        sizes = [channels * side * side] + [width] * num_fc
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for fc in self.fcs:
            nn.init.kaiming_uniform_(fc.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(fc.bias)  # type: ignore[arg-type]
        self.logits = nn.Linear(width, num_classes * side * side)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.reduce(x.permute(0, 3, 1, 2))).flatten(1)
        for fc in self.fcs:
            x = F.relu(fc(x))
        return upcast(self.logits(x)).view(len(x), self.num_classes, self.side, self.side)


class PointHead(nn.Module):
    """Point features (P, N, C) and coarse logits (P, N, K) -> a logit per point (P, N), of its RoI's class.

    A per-point MLP; every layer takes the coarse logits as additional input.
    """

    def __init__(self, channels: int, num_classes: int, width: int, num_fc: int) -> None:
        super().__init__()
        inputs = [channels] + [width] * (num_fc - 1)
        self.fcs = nn.ModuleList(nn.Linear(n + num_classes, width) for n in inputs)
        for fc in self.fcs:
            nn.init.kaiming_normal_(fc.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(fc.bias)  # type: ignore[arg-type]
        self.logits = nn.Linear(width + num_classes, num_classes)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)

    def forward(self, features: Tensor, coarse: Tensor, labels: Tensor) -> Tensor:
        """labels (P,) int64: the class of each RoI."""
        x = features
        for fc in self.fcs:
            x = F.relu(fc(torch.cat([x, coarse.to(x.dtype)], dim=-1)))
        x = torch.cat([x, coarse.to(x.dtype)], dim=-1)
        weight, bias = self.logits.weight[labels], self.logits.bias[labels]  # (P, width + K), (P,)
        return upcast(torch.baddbmm(bias[:, None, None], x, weight[:, :, None]).squeeze(-1))


class PointRendHead(nn.Module):
    """side: S. points: N in the loss; a fraction `importance` of them are the most uncertain of oversample * N random ones.

    steps, subdivision_points: how often the mask's side doubles in prediction, and how many points are recomputed each time.
    max_rois, paste: as in `MaskHead`.
    """

    outputs: tuple[Output, ...] = ("masks",)

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        side: int = 7,
        width: int = 1024,
        num_fc: int = 2,
        point_width: int = 256,
        point_num_fc: int = 3,
        points: int = 196,
        oversample: int = 3,
        importance: float = 0.75,
        steps: int = 5,
        subdivision_points: int = 784,
        max_rois: int = 128,
        paste: str = "resdet",
    ) -> None:
        super().__init__()
        self.coarse = CoarseHead(channels, num_classes, side, width, num_fc)
        self.point = PointHead(channels, num_classes, point_width, point_num_fc)
        self.side, self.points, self.oversample, self.importance = side, points, oversample, importance
        self.steps, self.subdivision_points, self.max_rois = steps, subdivision_points, max_rois
        self.paste = paste

    def coarse_logits(self, feature: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
        """feature (B, C, H/4, W/4), boxes (P, 4), image (P,) -> (P, K, S, S)."""
        side = 2 * self.side
        x = sample_feature(feature, regular_grid(side, boxes), boxes, image)
        logits: Tensor = self.coarse(x.view(len(boxes), side, side, -1))
        return logits

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        """mask, of the coarse masks, and mask_point, of the points; both over the positive RoIs whose object has a mask."""
        rois, crops = masked_rois(samples, self.max_rois)
        labels = rois.labels.clamp(0, self.coarse.num_classes - 1)
        feature = next(iter(features.values()))
        coarse = self.coarse_logits(feature, rois.boxes, rois.image)
        own = own_class(coarse, labels)
        with torch.no_grad(), torch.autocast(crops.device.type, enabled=False):
            points = self.uncertain_points(own, rois.boxes)
            covered = sample_crops(crops, rois.gt_boxes, points, rois.boxes)
        point_features = sample_feature(feature, points, rois.boxes, rois.image)
        point_logits = self.point(point_features, sample_maps(coarse, points), labels)  # (P, N)
        return {
            "mask": mask_loss(own, mask_targets(rois, crops, self.side), rois.positive),
            "mask_point": mask_loss(point_logits, covered, rois.positive),
        }

    def uncertain_points(self, own: Tensor, boxes: Tensor) -> Tensor:
        """(P, S, S) logits, boxes (P, 4) -> (P, N, 2): the most uncertain of many random points, and some random ones.

        The random numbers are a hash of the boxes, so that a step is reproducible.
        """
        many, some = self.points * self.oversample, int(self.points * self.importance)
        primes = torch.tensor([1, 7919, 104729, 1299709], device=boxes.device)
        keys = ((boxes * 64).to(torch.int64) * primes).sum(dim=1)
        random = uniform(keys, 2 * many + 2 * (self.points - some)).view(len(boxes), -1, 2)
        candidates, rest = random[:, :many], random[:, many:]
        certainty = sample_maps(own[:, None], candidates).squeeze(-1).abs()
        best = certainty.topk(some, dim=1, largest=False).indices
        return torch.cat([candidates.gather(1, best[..., None].expand(-1, -1, 2)), rest], dim=1)

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Adds `mask_probs` (B, D, m, m) of each detection's own class, m = S * 2 ** steps."""
        rows = occupied(detections.valid)
        all_boxes, all_images = flatten_rois(detections.boxes)
        boxes, image, labels = all_boxes[rows], all_images[rows], detections.labels.flatten()[rows]
        feature = next(iter(features.values()))
        coarse = self.coarse_logits(feature, boxes, image)
        own = own_class(coarse, labels)
        for step in range(self.steps):
            own = F.interpolate(own[:, None], scale_factor=2.0, mode="bilinear", align_corners=False)[:, 0]
            size = own.shape[-1]
            if self.subdivision_points >= 4 * size * size and step < self.steps - 1:
                continue  # the next step recomputes every point
            count = min(self.subdivision_points, size * size)
            place = own.flatten(1).abs().topk(count, dim=1, largest=False).indices  # (P, N)
            points = (torch.stack([place % size, place // size], dim=-1) + 0.5) / size
            logits = self.point(sample_feature(feature, points, boxes, image), sample_maps(coarse, points), labels)
            own = own.flatten(1).scatter(1, place, logits).view_as(own)
        b, d = detections.valid.shape
        probs = own.sigmoid() * detections.valid.flatten()[rows][:, None, None]
        return replace(detections, mask_probs=scatter_rows(probs, rows, (b, d)), paste=self.paste)


def regular_grid(side: int, boxes: Tensor) -> Tensor:
    """The centres of side x side cells, row by row: (P, side * side, 2)."""
    steps = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5) / side
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2).expand(len(boxes), -1, -1)


def own_class(logits: Tensor, labels: Tensor) -> Tensor:
    """(P, K, S, S), (P,) -> (P, S, S)."""
    return logits[torch.arange(len(labels), device=labels.device), labels]


def sample_maps(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of each RoI's own maps (P, K, S, S) at its points (P, N, 2) -> (P, N, K); zero outside."""
    values = F.grid_sample(maps, (points * 2 - 1)[:, None].to(maps.dtype), align_corners=False)  # (P, K, 1, N)
    return values[:, :, 0].transpose(1, 2)


def sample_crops(crops: Tensor, gt_boxes: Tensor, points: Tensor, boxes: Tensor) -> Tensor:
    """The masks (P, M, M) of the objects in `gt_boxes`, at points (P, N, 2) of `boxes` -> (P, N) in 0..1."""
    pixels = boxes[:, None, :2] + points * (boxes[:, 2:] - boxes[:, :2])[:, None]
    extent = (gt_boxes[:, 2:] - gt_boxes[:, :2]).clamp(min=1e-6)
    in_crop = (pixels - gt_boxes[:, None, :2]) / extent[:, None]
    return sample_maps(crops[:, None].float(), in_crop).squeeze(-1).clamp(0, 1)


def sample_feature(feature: Tensor, points: Tensor, boxes: Tensor, image: Tensor) -> Tensor:
    """Bilinear features at points of RoIs: feature (B, C, h, w) of stride 4, points (P, N, 2), boxes (P, 4) in the input frame,
    image (P,) -> (P, N, C); zero outside the map."""
    c, h, w = feature.shape[1:]
    at = (boxes[:, None, :2] + points * (boxes[:, 2:] - boxes[:, :2])[:, None]) / 4 - 0.5  # (P, N, 2) in feature pixels
    low = at.floor()
    share = at - low
    table = feature.permute(0, 2, 3, 1).reshape(-1, c)
    if torch.is_grad_enabled():  # half precision is too coarse to sum the gradients of many points in one pixel
        table = upcast(table)
    rows, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
            weight = (share[..., 0] if dx else 1 - share[..., 0]) * (share[..., 1] if dy else 1 - share[..., 1])
            place = y.clamp(0, h - 1).to(torch.int64) * w + x.clamp(0, w - 1).to(torch.int64)
            rows.append(place + (image * (h * w))[:, None])
            weights.append(torch.where(inside, weight, 0.0))
    bags = F.embedding_bag(
        torch.stack(rows, dim=-1).flatten(0, 1),
        table,
        mode="sum",
        per_sample_weights=torch.stack(weights, dim=-1).flatten(0, 1).to(table.dtype),
    )
    return bags.view(*points.shape[:2], c)
