"""The interface of every detector: a batch -> losses or detections. Code outside `models/` relies on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from resdet.models.backbones.base import Backbone
from resdet.models.fpn import Neck
from resdet.models.layers import ConvNorm, fuse_conv_bn
from resdet.models.selection import Selection
from resdet.structures import Batch, Detections, Loss, Output


class Detector(nn.Module):
    """Backbone and neck; a subclass adds the heads, `losses` and `predict`.

    outputs: the kinds of results that `predict` returns. selection: which candidates become detections.
    num_classes: K, without background. pixel_mean, pixel_std: per channel, RGB (BGR if `bgr`), in 0..255.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @property
    def outputs(self) -> frozenset[Output]:
        raise NotImplementedError

    @property
    def selection(self) -> Selection:
        raise NotImplementedError

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        *,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        bgr: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.fpn, self.num_classes, self.bgr = backbone, neck, num_classes, bgr
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The mean losses of the batch by name, in training and evaluation mode alike."""
        return {name: loss.mean() for name, loss in self.losses(batch).items()}

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The losses by name as sums and counts; the training step adds the counts of all processes."""
        raise NotImplementedError

    def predict(self, batch: Batch) -> Detections:
        """Detections in the network's input frame; `batch.targets` and `batch.keys` are not used."""
        raise NotImplementedError

    def limit(self, *, score_threshold: float | None = None, max_detections: int | None = None) -> None:
        """Set the score threshold and the number of detections per image; None leaves a limit unchanged."""
        if score_threshold is not None:
            self.selection.score_threshold = score_threshold
        if max_detections is not None:
            self.selection.max_detections = max_detections

    def prepare_for_inference(self, dtype: torch.dtype | None = None) -> Self:
        """Optimise the model in place for prediction, and return it; it can no longer be trained.

        Switches to evaluation mode, folds frozen norms into their convolutions and, given the dtype of the autocast it will
        run under, casts the convolutions below the heads to it. The detections stay the same; a GPU launches a third fewer
        kernels.
        """
        self.eval()
        self.backbone.fuse_norms()
        for module in self.modules():
            if isinstance(module, ConvNorm):
                fuse_conv_bn(module)
        for part in self.below_heads():  # a custom head may need its weights in full precision
            for module in part.modules():
                if dtype and isinstance(module, nn.Conv2d):
                    module.to(dtype)
        return self

    def below_heads(self) -> list[nn.Module]:
        """The convolutional parts before the heads, whose weights may be cast to half precision."""
        return [self.backbone, self.fpn]

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Images (B, C, H, W) in 0..255 -> {"p2": (B, C, H/4, W/4), …, "p6": …}, or a single level."""
        features: dict[str, Tensor] = self.fpn(self.backbone(self.normalize(batch)))
        return features

    def normalize(self, batch: Batch) -> Tensor:
        """Apply channel order, mean and std. Padding is zero afterwards, as in the training of every published model."""
        images = batch.images.flip(1) if self.bgr else batch.images
        images = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        h, w = batch.image_sizes[:, :, None].unbind(1)  # (B, 1)
        rows = torch.arange(images.shape[2], device=images.device) < h
        columns = torch.arange(images.shape[3], device=images.device) < w
        return images * (rows[:, None, :, None] & columns[:, None, None, :])


class LossSums(nn.Module):
    """`Detector.losses` as the forward of a module, for DistributedDataParallel and torch.compile to wrap."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Loss]:
        return self.model.losses(batch)
