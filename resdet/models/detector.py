"""What every detector here is: losses or detections from a batch. Nothing outside `models/` asks which detector it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from resdet.models.backbones.base import Backbone
from resdet.models.fpn import FPN, SingleLevel
from resdet.models.layers import ConvNorm, fuse_conv_bn
from resdet.models.selection import Selection
from resdet.structures import Batch, Detections, Loss, Output


class Detector(nn.Module):
    """Backbone and neck, and what a subclass builds on them.

    outputs: the kinds of results that `predict` gives. selection: which candidates become detections.
    num_classes: K, without background. pixel_mean, pixel_std: of each channel, RGB (or BGR with `bgr`), in 0..255.
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
        neck: FPN | SingleLevel,
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
        """The mean losses of this batch by name, in training and in evaluation mode alike."""
        return {name: loss.mean() for name, loss in self.losses(batch).items()}

    def losses(self, batch: Batch) -> dict[str, Loss]:
        """The losses by name as sums and counts, whose counts the training step adds over processes."""
        raise NotImplementedError

    def predict(self, batch: Batch) -> Detections:
        """Detections in the network's input frame; `batch.targets` and `batch.keys` are not used."""
        raise NotImplementedError

    def limit(self, *, score_threshold: float | None = None, max_detections: int | None = None) -> None:
        """Change which detections `predict` gives; None leaves a limit as it is."""
        if score_threshold is not None:
            self.selection.score_threshold = score_threshold
        if max_detections is not None:
            self.selection.max_detections = max_detections

    def prepare_for_inference(self, dtype: torch.dtype | None = None) -> Self:
        """Itself, made ready to predict and nothing else: in evaluation mode, with fixed norms folded into their convolutions
        for good and, to run under autocast with that dtype, the weights below the heads cast for good. Detections stay the
        same; a GPU starts a third fewer kernels for them."""
        self.eval()
        self.backbone.fuse_norms()
        for module in self.modules():
            if isinstance(module, ConvNorm):
                fuse_conv_bn(module)
        for part in self.below_heads():  # a head of your own may want its weights as they are
            for module in part.modules():
                if dtype and isinstance(module, nn.Conv2d):
                    module.to(dtype)
        return self

    def below_heads(self) -> list[nn.Module]:
        """The parts that compute feature maps, which may run in half precision as a whole."""
        return [self.backbone, self.fpn]

    def features(self, batch: Batch) -> dict[str, Tensor]:
        """Images (B, C, H, W) in 0..255 -> {"p2": (B, C, H/4, W/4), …, "p6": …}, or the single level."""
        features: dict[str, Tensor] = self.fpn(self.backbone(self.normalize(batch)))
        return features

    def normalize(self, batch: Batch) -> Tensor:
        """Mean, std and channel order; the padding is zero afterwards, as every published model was trained."""
        images = batch.images.flip(1) if self.bgr else batch.images
        images = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        h, w = batch.image_sizes[:, :, None].unbind(1)  # (B, 1)
        rows = torch.arange(images.shape[2], device=images.device) < h
        columns = torch.arange(images.shape[3], device=images.device) < w
        return images * (rows[:, None, :, None] & columns[:, None, None, :])


class LossSums(nn.Module):
    """`Detector.losses` as a module's forward: what data parallelism and the compiler wrap."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, Loss]:
        return self.model.losses(batch)
