"""The `model` sections of the one-stage detectors: RetinaNet, FCOS, ATSS, GFL, YOLOF."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from resdet.config.model import FPNConfig, HeadNorm, ModelConfig
from resdet.config.rcnn import AnchorConfig
from resdet.config.types import Count, Positive, Section, Share

PYRAMID = 5  # levels, p3..p7


class PyramidConfig(FPNConfig):
    """p3..p7."""

    p6_from: Literal["c5", "p5"] = "c5"
    relu: bool = True  # between p6 and the convolution of p7; mmdetection has it in FCOS only


class FCOSPyramidConfig(PyramidConfig):
    p6_from: Literal["c5", "p5"] = "p5"


class ATSSPyramidConfig(FCOSPyramidConfig):
    relu: bool = False


class PredictConfig(Section):
    """What every head has for its predictions."""

    candidates: Positive = 1000  # pairs of a place and a class, of each level, that NMS looks at
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.6
    max_detections: Positive = 100
    # Empty boxes: dropped before NMS, after it (detectron2), or never (torchvision)
    empty: Literal["drop_first", "drop_last", "keep"] = "drop_first"


class DenseConfig(ModelConfig):
    """What the one-stage detectors have in common."""

    head: PredictConfig

    @property
    def limit(self) -> tuple[str, int]:
        return "model.head.max_detections", self.head.max_detections


class OnPyramidConfig(DenseConfig):
    """All of them but YOLOF."""

    fpn: PyramidConfig = PyramidConfig()

    @model_validator(mode="after")
    def _strides_double(self) -> OnPyramidConfig:
        if self.backbone.c5_dilation != 1:
            raise ValueError(f"backbone.c5_dilation=2 keeps c5 at the stride of c4: model.kind={self.kind} needs 1")
        return self


def _octaves(scale: float = 4.0) -> tuple[float, ...]:
    """Three sizes for each level: a third of an octave apart."""
    return tuple(scale * stride * 2 ** (i / 3) for stride in (8, 16, 32, 64, 128) for i in range(3))


class RetinaNetAnchorConfig(AnchorConfig):
    """`sizes` has as many for each of p3..p7, fine to coarse."""

    sizes: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = _octaves()


class OneAnchorConfig(AnchorConfig):
    """One a place, eight strides wide."""

    sizes: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (64, 128, 256, 512, 1024)
    ratios: list[float] = [1.0]


class RetinaNetHeadConfig(PredictConfig):
    num_convs: Count = 4
    norm: HeadNorm = "none"
    high: Share = 0.5  # IoU from which an anchor is positive
    low: Share = 0.4  # below which it is negative
    box_loss: Literal["l1", "giou"] = "l1"
    loss_beta: Annotated[float, Field(ge=0)] = 0.0  # of the L1 loss, which is smooth below
    divisor: Literal["batch", "image"] = "batch"  # positives of the batch, or of each image (torchvision)
    clamp_shrink: bool = False
    nms_threshold: Share = 0.5
    clip: Literal["first", "last"] = "first"  # boxes to the image: before NMS, or after it (detectron2)

    @model_validator(mode="after")
    def _in_order(self) -> RetinaNetHeadConfig:
        if self.low > self.high:
            raise ValueError(
                f"low ({self.low}) is above high ({self.high}): an anchor could be both positive and negative"
            )
        return self


class RetinaNetConfig(OnPyramidConfig):
    kind: Literal["retinanet"] = "retinanet"
    anchors: RetinaNetAnchorConfig = RetinaNetAnchorConfig()
    head: RetinaNetHeadConfig = RetinaNetHeadConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> RetinaNetConfig:
        if len(self.anchors.sizes) % PYRAMID:
            raise ValueError(
                f"anchors.sizes has {len(self.anchors.sizes)} numbers: needs as many for each of the 5 levels p3..p7"
            )
        return self


class PointConfig(Section):
    """Where in its cell a point lies; see `AnchorConfig`."""

    offset: Share = 0.5
    grid_stride: bool = False


class FCOSHeadConfig(PredictConfig):
    num_convs: Count = 4
    norm: HeadNorm = "gn"
    bias: bool = True  # of convolutions with a norm
    scales: bool = True  # a learned factor on the distances of each level
    distances: Literal["relu", "exp"] = "relu"  # of the outputs: in strides, or in pixels
    centerness_on: Literal["box", "class"] = "box"  # the tower
    radius: Annotated[float, Field(gt=0)] | None = 1.5  # centre sampling, in strides; None: anywhere in the object
    box_loss: Literal["giou", "iou"] = "giou"
    weighted: bool = True  # box losses by centerness
    score: Literal["mean", "product"] = "product"  # of class and centerness; the geometric mean in torchvision


class FCOSConfig(OnPyramidConfig):
    kind: Literal["fcos"] = "fcos"
    fpn: FCOSPyramidConfig = FCOSPyramidConfig()
    points: PointConfig = PointConfig()
    head: FCOSHeadConfig = FCOSHeadConfig()


class ATSSHeadConfig(PredictConfig):
    num_convs: Count = 4
    norm: HeadNorm = "gn"
    nearest: Positive = 9  # anchors of each level that are an object's candidates


class GFLHeadConfig(ATSSHeadConfig):
    farthest: Positive = 16  # of a box's sides, in strides


class _OneAnchor(OnPyramidConfig):
    fpn: ATSSPyramidConfig = ATSSPyramidConfig()
    anchors: OneAnchorConfig = OneAnchorConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> _OneAnchor:
        a = self.anchors
        if (len(a.sizes), len(a.ratios)) != (PYRAMID, 1):
            raise ValueError(
                f"anchors has {len(a.sizes)} sizes and {len(a.ratios)} ratios: needs 5 sizes, one for each of p3..p7, "
                "and 1 ratio"
            )
        return self


class ATSSConfig(_OneAnchor):
    kind: Literal["atss"] = "atss"
    head: ATSSHeadConfig = ATSSHeadConfig()


class GFLConfig(_OneAnchor):
    kind: Literal["gfl"] = "gfl"
    head: GFLHeadConfig = GFLHeadConfig()


class EncoderConfig(Section):
    channels: Positive = 512
    width: Positive = 128  # of the dilated convolutions
    dilations: Annotated[list[Positive], Field(min_length=1)] = [2, 4, 6, 8]
    norm: HeadNorm = "bn"


class SingleMapAnchorConfig(AnchorConfig):
    """All on c5."""

    ratios: list[float] = [1.0]


class YOLOFHeadConfig(PredictConfig):
    class_convs: Count = 2
    box_convs: Count = 4
    norm: HeadNorm = "bn"
    matches: Positive = 4  # boxes, and as many anchors, that belong to each object
    low: Share = 0.15  # IoU of such an anchor below which it is ignored
    high: Share = 0.7  # IoU of any other box above which it is ignored


class YOLOFConfig(DenseConfig):
    kind: Literal["yolof"] = "yolof"
    encoder: EncoderConfig = EncoderConfig()
    anchors: SingleMapAnchorConfig = SingleMapAnchorConfig()
    head: YOLOFHeadConfig = YOLOFHeadConfig()
