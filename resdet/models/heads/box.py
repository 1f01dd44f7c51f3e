"""Box head (Girshick 2015, arXiv:1504.08083): pooled RoIs -> class scores and refined boxes -> detections.

Letters: P = B * R pooled RoIs; K' is K, or 1 for class-agnostic boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resdet.boxes import decode, delta_distance, encode, upcast
from resdet.models.heads.res5 import Res5
from resdet.models.layers import ConvNorm, Norm
from resdet.models.roi_align import RoIAlign, flatten_rois
from resdet.models.selection import Selection
from resdet.structures import Detections, Loss, Output, Samples


class TwoFC(nn.Module):
    """(P, C, size, size) -> (P, width) through two fully connected layers."""

    def __init__(self, channels: int, size: int, width: int = 1024) -> None:
        super().__init__()
        self.width = width
        self.fc1 = _linear(channels * size * size, width)
        self.fc2 = _linear(width, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


class FourConvOneFC(nn.Module):
    """(P, C, size, size) -> (P, width) through four 3x3 convolutions and one fully connected layer (Wu & He 2018)."""

    def __init__(
        self, channels: int, size: int, width: int = 1024, *, norm: Norm = "none", standardized: bool = False
    ) -> None:
        super().__init__()
        self.width = width
        self.convs = nn.ModuleList(ConvNorm(channels, channels, 3, norm, standardized=standardized) for _ in range(4))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc = _linear(channels * size * size, width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x, valid))
        return F.relu(self.fc(x.flatten(1)))


def known_logits(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Class logits (B, R, K + 1), with -inf for the classes that the softmax must leave out for a RoI.

    labels (B, R) as in `Samples`; known (B, K) as in `Targets`. The softmax is over the image's known classes, the background
    and the RoI's own label. Background is therefore no negative example of a class that was not annotated in the image, and
    neither is an object of another class: the logits of unknown classes get no gradient. This is the federated loss (Zhou et
    al. 2021, arXiv:2103.07461) for a softmax. The alternative, to merge background and unknown classes into one event (Zhao
    et al. 2020, arXiv:2008.06614), would raise the logits of unknown classes on all background.
    """
    own = labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    included = F.pad(known, (0, 1), value=True).unsqueeze(1) | own
    return upcast(logits).masked_fill(~included, -torch.inf)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.bias)
    return layer


class BoxHead(nn.Module):
    """trunk: (P, C, s, s), valid (P,) -> (P, trunk.width). num_classes: K, without background, which has index K here.

    class_agnostic: one box for all classes instead of one per class.
    focal_gamma: of the focal loss (Lin et al. 2017, arXiv:1708.02002), applied to the softmax; 0 is cross-entropy.
    class_weights: (K + 1,) factors of the classification loss, the background's last.
    delta_weights: scale of the box deltas. loss_beta: as in `RPN`. clamp_shrink: see `boxes.decode`.
    objectness: a score is the geometric mean of class and proposal score (Zhou et al. 2021, arXiv:2103.07461).
    selection: which candidates become detections.
    """

    class_weights: Tensor | None
    outputs: tuple[Output, ...] = ("boxes",)

    def __init__(
        self,
        pool: RoIAlign,
        trunk: TwoFC | FourConvOneFC | Res5,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        focal_gamma: float = 0.0,
        class_weights: Sequence[float] | None = None,
        delta_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        loss_beta: float = 0.0,
        clamp_shrink: bool = False,
        objectness: bool = False,
        selection: Selection | None = None,
    ) -> None:
        super().__init__()
        self.pool, self.trunk, self.num_classes = pool, trunk, num_classes
        self.box_classes = 1 if class_agnostic else num_classes
        self.classifier = nn.Linear(trunk.width, num_classes + 1)
        self.regressor = nn.Linear(trunk.width, self.box_classes * 4)
        for layer, std in ((self.classifier, 0.01), (self.regressor, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.focal_gamma, self.delta_weights, self.loss_beta = focal_gamma, delta_weights, loss_beta
        self.clamp_shrink, self.objectness = clamp_shrink, objectness
        self.selection = selection or Selection()

    def forward(self, features: dict[str, Tensor], boxes: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """boxes (B, R, 4), valid (B, R) -> class logits (B, R, K + 1), deltas (B, R, K', 4)."""
        b, r = valid.shape
        x = self.trunk(self.pool(features, *flatten_rois(boxes)), valid.flatten())
        return self.classifier(x).view(b, r, -1), self.regressor(x).view(b, r, self.box_classes, 4)

    def loss(self, features: dict[str, Tensor], samples: Samples) -> dict[str, Loss]:
        """box_class and box_reg, both over the number of sampled RoIs. For unknown classes see `known_logits`."""
        logits, deltas = self(features, samples.boxes, samples.valid)
        return self.losses_of(logits, deltas, samples)

    def losses_of(self, logits: Tensor, deltas: Tensor, samples: Samples) -> dict[str, Loss]:
        """`loss` from the output of `forward`."""
        count = samples.valid.sum()
        label = samples.labels
        if samples.targets.known is not None:
            logits = known_logits(logits, label, samples.targets.known)
        entropy = F.cross_entropy(
            upcast(logits).flatten(0, 1), label.flatten(), ignore_index=-1, reduction="none"
        )  # (B * R,), 0 where padded
        if self.focal_gamma:
            # 1 - p of the true class, bounded below: for gamma < 1 the gradient of its power at 0 is infinite.
            entropy = entropy * (-torch.expm1(-entropy)).clamp(min=1e-6) ** self.focal_gamma
        if self.class_weights is not None:
            entropy = entropy * self.class_weights[label.flatten().clamp(min=0)]
        of_class = label.clamp(0, self.box_classes - 1)[:, :, None, None].expand(-1, -1, 1, 4)
        target = encode(samples.gt_boxes, samples.boxes, self.delta_weights)
        distance = delta_distance(deltas.gather(2, of_class).squeeze(2), target, self.loss_beta)
        return {
            "box_class": Loss(entropy.sum(), count),
            "box_reg": Loss(torch.where(samples.positive, distance, 0.0).sum(), count),
        }

    def predict(self, features: dict[str, Tensor], detections: Detections) -> Detections:
        """Proposals -> detections: classified and refined boxes after NMS."""
        scores, boxes = self.scores_and_boxes(features, detections)
        return self.selection.select(boxes, scores, detections.valid, detections.image_sizes)

    def scores_and_boxes(self, features: dict[str, Tensor], proposals: Detections) -> tuple[Tensor, Tensor]:
        """Class probabilities (B, R, K) and refined boxes (B, R, K', 4), not clipped, of the proposals (B, R)."""
        logits, deltas = self(features, proposals.boxes, proposals.valid)
        scores = upcast(logits).softmax(-1)[..., :-1]
        if self.objectness:
            scores = (scores * proposals.scores.unsqueeze(-1)).sqrt()
        return scores, self.refine(deltas, proposals.boxes)

    def refine(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Apply deltas (B, R, K', 4) to boxes (B, R, 4) -> (B, R, K', 4), not clipped."""
        return decode(deltas, boxes.unsqueeze(2), self.delta_weights, clamp_shrink=self.clamp_shrink)
