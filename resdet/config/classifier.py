"""Classification, to train backbones: the `model` section of a classifier, and `data.classification`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from resdet.config.model import ModelConfig
from resdet.config.types import Positive, Section, Share

if TYPE_CHECKING:  # --help must not import torch
    from resdet.structures import Output

Alpha = Annotated[float, Field(ge=0)]


class ClassificationConfig(Section):
    """How pictures become the network's input, and are mixed. The defaults are He et al.'s as torchvision has them."""

    crop: Positive = 224  # training: side of a random crop,
    scale: tuple[Share, Share] = (0.08, 1.0)  # which has this share of the picture's area
    augment: Literal["none", "randaugment", "trivial"] = "none"  # torchvision's RandAugment or TrivialAugmentWide
    erase: Share = 0.0  # share of crops in which a rectangle becomes grey (Zhong et al. 2017, arXiv:1708.04896)
    # Batches are mixed by either one, drawn with equal chances where both are set; these are the alphas of their shares
    mixup: Alpha = 0.0  # Zhang et al. 2017, arXiv:1710.09412
    cutmix: Alpha = 0.0  # Yun et al. 2019, arXiv:1905.04899
    val_resize: Positive = 256  # evaluation: the short side becomes this, and
    val_crop: Positive = 224  # the middle of this side is cut out
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _from_small_to_large(self) -> ClassificationConfig:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"data.classification.scale={list(self.scale)}: must be [low, high] with 0 < low <= high")
        if self.val_crop > self.val_resize:
            raise ValueError(
                f"data.classification.val_crop={self.val_crop} is larger than val_resize={self.val_resize}: pictures would be "
                "padded with black; published weights were evaluated at val_resize of about val_crop / 0.875"
            )
        return self


class ClassifierConfig(ModelConfig):
    """A backbone with a linear layer on the mean of its last map."""

    kind: Literal["classifier"] = "classifier"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def outputs(self) -> frozenset[Output]:
        return frozenset({"classes"})

    @property
    def limit(self) -> None:
        return None

    @model_validator(mode="after")
    def _pictures(self) -> ClassifierConfig:
        if self.input.channels not in (1, 3):
            raise ValueError(
                f"input.channels={self.input.channels}: a classifier takes 8-bit pictures of 3 channels, or 1 (grey)"
            )
        return self
