"""What the `model` section of every kind of detector has: input, backbone, weights."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from resdet.config.types import Count, Positive, Section, expanded

if TYPE_CHECKING:  # --help must not import torch
    from resdet.structures import Output

NormName = Literal["none", "frozen_bn", "bn", "sync_bn", "gn"]
HeadNorm = Literal["none", "bn", "sync_bn", "gn"]
RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, in 0..255


def for_channels(rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number for each of R, G, B -> one for each of any channels: the first three theirs, others their average; fewer than
    three all the average."""
    average = sum(rgb) / 3
    return (*rgb, *(average,) * (channels - 3)) if channels >= 3 else (average,) * channels


CUSTOM = "custom"  # the name of a backbone that is a module of the user's, given to `build_model`
# Keys of `model.backbone` that describe resdet's own ResNets.
OF_RESNETS = (
    "norm_eps", "stride_in_1x1", "zero_init_last", "deep_stem", "avg_down", "project_first", "residual",
    "weight_standardization", "deformable", "deformable_stages", "deformable_groups", "c5_dilation",
)  # fmt: skip

OF_LIBRARIES = ("drop_path", "checkpointing")  # of timm's and torchvision's


def _known_backbone(name: str) -> str:
    """The library knows whether it has a name after "timm:" or "torchvision:" (`models/backbones/libraries.py`)."""
    if name == CUSTOM or re.fullmatch(r"(timm|torchvision):[\w.]+", name):
        return name
    if not re.fullmatch(r"resnet(18|34|50|101|152)|wide_resnet(50|101)_2|resnext(50|101|152)_[1-9]\d*x[1-9]\d*d", name):
        raise ValueError(
            f"unknown backbone {name!r}; known are resnet18, 34, 50, 101, 152, wide_resnet50_2, wide_resnet101_2 and "
            "resnextDEPTH_GROUPSxWIDTHd such as resnext50_32x4d, resnext101_32x8d, resnext101_64x4d; timm:NAME and "
            "torchvision:NAME; custom, a module of your own"
        )
    return name


class InputConfig(Section):
    """Pixels as the network wants them; part of a checkpoint's numerics."""

    channels: Annotated[int, Field(gt=0, le=512)] = 3  # 1: grey, 3: RGB, others: the bands of a TIFF or an .npy
    mean: tuple[float, ...] = RGB_MEAN  # of RGB (BGR with `bgr`) in 0..255; its default follows `channels`
    std: tuple[Annotated[float, Field(gt=0)], ...] = RGB_STD
    bgr: bool = False
    # "opencv": bilinear on uint8; "pillow": the same with antialiasing (detectron2); "torch": on floats (torchvision)
    resize: Literal["opencv", "pillow", "torch"] = "opencv"
    rounding: Literal["nearest", "floor"] = "nearest"  # of the resized height and width
    keep_ratio: bool = True  # False: both sides become data.min_size, whatever the image's proportions

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> InputConfig:
        for key in ("mean", "std"):
            if key not in self.model_fields_set:
                default = type(self).model_fields[key].default
                setattr(self, key, for_channels(default, self.channels))
                self.model_fields_set.discard(key)
            elif len(getattr(self, key)) != self.channels:
                raise ValueError(f"{key} has {len(getattr(self, key))} numbers, channels is {self.channels}")
        if self.bgr and self.channels != 3:
            raise ValueError(f"bgr is an order of 3 channels, channels is {self.channels}")
        return self


class BackboneConfig(Section):
    name: Annotated[str, AfterValidator(_known_backbone)] = (
        "resnet50"  # resnet18…152, wide_resnet50_2, resnext101_32x8d, …; timm:NAME, torchvision:NAME; custom
    )
    weights: Annotated[str, BeforeValidator(lambda v: "none" if v is None else expanded(v))] = (
        "imagenet"  # imagenet (that is _v1), imagenet_v1, imagenet_v2, timm:NAME, a file, none
    )
    norm: NormName = "frozen_bn"
    norm_eps: Annotated[float, Field(ge=0)] = 1e-5
    stride_in_1x1: bool = False
    frozen_stages: Count = 2  # 0 none, 1 stem, 2 stem and layer1, …
    zero_init_last: bool = False
    deep_stem: bool = False  # with avg_down: ResNet-D
    avg_down: bool = False
    project_first: bool = (
        False  # layer1's first shortcut has a convolution though shapes agree (RT-DETR's ResNet-18, 34)
    )
    residual: bool = True
    weight_standardization: bool = False  # for group norm
    deformable: Literal["none", "v1", "v2"] = "none"  # 3x3 convolutions of deformable_stages
    deformable_stages: list[Literal["c2", "c3", "c4", "c5"]] = ["c3", "c4", "c5"]
    deformable_groups: Positive = 1
    c5_dilation: Literal[1, 2] = 1  # 2: c5 stays at stride 16 (DC5)
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0  # stochastic depth, of timm's and torchvision's
    checkpointing: bool = False  # recompute activations in backward: less memory, slower; timm's

    @property
    def own(self) -> bool:
        """Whether it is one of resdet's ResNets."""
        return self.name != CUSTOM and ":" not in self.name

    @model_validator(mode="after")
    def _keys_of_the_name(self) -> BackboneConfig:
        """Each key means something for the backbone that is named."""
        fields, problems = type(self).model_fields, []
        given = [key for key in fields if getattr(self, key) != fields[key].get_default(call_default_factory=True)]
        if self.own:
            if self.frozen_stages > 5:
                problems.append(f"frozen_stages={self.frozen_stages}: {self.name} has 5, the stem and layer1 to layer4")
            of_others: list[str] = [key for key in OF_LIBRARIES if key in given]
        else:
            of_others = [key for key in OF_RESNETS if key in given]
            if self.norm in ("sync_bn", "gn", "none") and "norm" in given:
                problems.append(
                    f"norm={self.norm}: the norms of {self.name} are its own; bn trains them, frozen_bn does not"
                )
        if self.name == CUSTOM:
            of_others += [key for key in OF_LIBRARIES if key in given]
            if self.weights not in ("none", fields["weights"].default):
                problems.append(f"weights={self.weights}: load them into your module, then give it to build_model")
        problems += [f"{key}={getattr(self, key)} is not for {self.name}: leave it out" for key in of_others]
        if problems:
            raise ValueError("; ".join(problems))
        return self


class FPNConfig(Section):
    channels: Positive = 256
    norm: HeadNorm = "none"
    weight_standardization: bool = False


class ModelConfig(Section):
    """The kinds (`config/schema.py`) are its subclasses."""

    kind: str
    num_classes: Positive | None = None  # without background; None: as many as the annotations have categories
    # A whole detector to start from: any tool's checkpoint, or torchvision:NAME. It brings its architecture and numerics;
    # what is set here takes precedence.
    weights: Annotated[str | None, BeforeValidator(expanded)] = None
    # Norms with fixed statistics become part of their convolutions: faster, rounded otherwise. Off for checkpoints of
    # detectron2 and mmdetection, to round as these do.
    fold_norm: bool = True
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = BackboneConfig()

    @property
    def outputs(self) -> frozenset[Output]:
        """The kinds of results that the detector gives, as `Detector.outputs`."""
        return frozenset({"boxes"})

    @property
    def limit(self) -> tuple[str, int] | None:
        """The key that limits the detections of an image, and its value; None for a model of pixels alone."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _kind_is_set(self) -> ModelConfig:
        """Whatever else a section holds means nothing without its kind, so that is never left out as a default."""
        if self.kind != "rcnn":
            self.model_fields_set.add("kind")
        return self

    @model_validator(mode="after")
    def _train_what_is_random(self) -> ModelConfig:
        """Without weights nothing is frozen: defaults of `norm` and `frozen_stages` change, explicit settings are refused.
        The weights of a custom backbone are its owner's affair: nothing is frozen by default."""
        b = self.backbone
        if b.name == CUSTOM:
            defaults = {"weights": "none", "norm": "bn", "frozen_stages": 0}
            self.backbone = b.model_copy(update={k: v for k, v in defaults.items() if k not in b.model_fields_set})
            self.backbone.model_fields_set.intersection_update(b.model_fields_set)
            return self
        if problems := frozen_but_random(self, b.model_fields_set):
            raise ValueError("; ".join(problems))
        if frozen_but_random(self):
            norm = "bn" if b.norm == "frozen_bn" else b.norm
            self.backbone = b.model_copy(update={"frozen_stages": 0, "norm": norm})
            self.backbone.model_fields_set.intersection_update(b.model_fields_set)
        return self


def frozen_but_random(model: ModelConfig, keys: Set[str] = frozenset({"norm", "frozen_stages"})) -> list[str]:
    """What is frozen although no weights are loaded, one line for each of these keys of `model.backbone`."""
    b, problems = model.backbone, []
    if model.weights is not None or b.weights != "none" or b.name == CUSTOM:
        return []
    if b.norm == "frozen_bn" and "norm" in keys:
        problems.append(
            "model.backbone.norm=frozen_bn with model.backbone.weights=none: without pretrained statistics, frozen batch norm "
            "does not normalize; set model.backbone.norm=bn (or gn), or name weights"
        )
    if b.frozen_stages and "frozen_stages" in keys:
        problems.append(
            f"model.backbone.frozen_stages={b.frozen_stages} with model.backbone.weights=none: the frozen stages would stay "
            "random; set model.backbone.frozen_stages=0, or name weights"
        )
    return problems
