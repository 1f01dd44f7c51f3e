"""The `model` section of Semantic FPN, and that of its head, which Panoptic FPN has beside Mask R-CNN's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from resdet.config.model import FPNConfig, HeadNorm, ModelConfig
from resdet.config.types import Positive, Section

if TYPE_CHECKING:  # --help must not import torch
    from resdet.structures import Output

MOST_CLASSES = 255  # label maps are bytes, and 255 is no class


class SemanticHeadConfig(Section):
    width: Positive = 128
    norm: HeadNorm = "gn"
    class_weights: list[Annotated[float, Field(ge=0)]] | None = None  # in the loss, one for each class
    loss_weight: Annotated[float, Field(gt=0)] = 1.0


class PanopticHeadConfig(SemanticHeadConfig):
    """Beside an R-CNN, whose classes are the things. Label 0 stands for all of these in the label maps, 1, 2, … are stuff."""

    num_classes: Annotated[int, Field(gt=1, le=MOST_CLASSES)] | None = None  # with label 0; these three:
    names: list[str] = []  # None and empty for what the annotations list
    category_ids: list[int] = []  # of the stuff in the annotations; names and ids begin with label 1


class SemanticConfig(ModelConfig):
    """num_classes: of the label maps, 255 at most."""

    kind: Literal["semantic"] = "semantic"
    fpn: FPNConfig = FPNConfig()
    head: SemanticHeadConfig = SemanticHeadConfig()

    @property
    def outputs(self) -> frozenset[Output]:
        return frozenset({"semantic"})

    @property
    def limit(self) -> None:
        return None

    @model_validator(mode="after")
    def _fits_a_byte(self) -> SemanticConfig:
        if self.num_classes and self.num_classes > MOST_CLASSES:
            raise ValueError(f"num_classes={self.num_classes}: label maps are bytes, so {MOST_CLASSES} is the most")
        return self
