"""The typed configuration: the only place with defaults. A YAML file holds what differs from them (`config/io.py`)."""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from resdet.config.data import DataConfig
from resdet.config.train import TrainConfig
from resdet.config.types import Count, Positive, Section, Share, UserPath, expanded

NormName = Literal["none", "frozen_bn", "bn", "sync_bn", "gn"]
HeadNorm = Literal["none", "bn", "sync_bn", "gn"]
Triple = tuple[float, float, float]
RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, in 0..255


def for_channels(rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number for each of R, G, B -> one for each of any channels: the first three theirs, others their average; fewer than
    three all the average."""
    average = sum(rgb) / 3
    return (*rgb, *(average,) * (channels - 3)) if channels >= 3 else (average,) * channels


def _known_backbone(name: str) -> str:
    if not re.fullmatch(r"resnet(18|34|50|101|152)|wide_resnet(50|101)_2|resnext(50|101|152)_[1-9]\d*x[1-9]\d*d", name):
        raise ValueError(
            f"unknown backbone {name!r}; known are resnet18, 34, 50, 101, 152, wide_resnet50_2, wide_resnet101_2 and "
            "resnextDEPTH_GROUPSxWIDTHd such as resnext50_32x4d, resnext101_32x8d, resnext101_64x4d"
        )
    return name


# ---- model -----------------------------------------------------------------------------------------------------------


class InputConfig(Section):
    """Pixels as the network wants them; part of a checkpoint's numerics."""

    channels: Annotated[int, Field(gt=0, le=512)] = 3  # 1: grey, 3: RGB, others: the bands of a TIFF or an .npy
    mean: tuple[float, ...] = RGB_MEAN  # of RGB (BGR with `bgr`) in 0..255; its default follows `channels`
    std: tuple[Annotated[float, Field(gt=0)], ...] = RGB_STD
    bgr: bool = False
    # "opencv": bilinear on uint8; "pillow": the same with antialiasing (detectron2); "torch": on floats (torchvision)
    resize: Literal["opencv", "pillow", "torch"] = "opencv"
    rounding: Literal["nearest", "floor"] = "nearest"  # of the resized height and width

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> InputConfig:
        for key, default in (("mean", RGB_MEAN), ("std", RGB_STD)):
            if key not in self.model_fields_set:
                setattr(self, key, for_channels(default, self.channels))
                self.model_fields_set.discard(key)
            elif len(getattr(self, key)) != self.channels:
                raise ValueError(f"{key} has {len(getattr(self, key))} numbers, channels is {self.channels}")
        if self.bgr and self.channels != 3:
            raise ValueError(f"bgr is an order of 3 channels, channels is {self.channels}")
        return self


class BackboneConfig(Section):
    name: Annotated[str, AfterValidator(_known_backbone)] = (
        "resnet50"  # resnet18…152, wide_resnet50_2, resnext101_32x8d, …
    )
    weights: Annotated[str, BeforeValidator(lambda v: "none" if v is None else expanded(v))] = (
        "imagenet"  # imagenet (that is _v1), imagenet_v1, imagenet_v2, timm:NAME, a file, none
    )
    norm: NormName = "frozen_bn"
    norm_eps: Annotated[float, Field(ge=0)] = 1e-5
    stride_in_1x1: bool = False
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2  # 0 none, 1 stem, 2 stem and layer1, …
    zero_init_last: bool = False
    deep_stem: bool = False  # with avg_down: ResNet-D
    avg_down: bool = False
    residual: bool = True
    weight_standardization: bool = False  # for group norm
    deformable: Literal["none", "v1", "v2"] = "none"  # 3x3 convolutions of deformable_stages
    deformable_stages: list[Literal["c2", "c3", "c4", "c5"]] = ["c3", "c4", "c5"]
    deformable_groups: Positive = 1
    c5_dilation: Literal[1, 2] = 1  # 2: c5 stays at stride 16 (DC5)


class FPNConfig(Section):
    channels: Positive = 256
    norm: HeadNorm = "none"
    weight_standardization: bool = False


class AnchorConfig(Section):
    sizes: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        32,
        64,
        128,
        256,
        512,
    )  # fmt: skip; with an FPN one for each of p2..p6, otherwise all on the one map
    ratios: list[float] = [0.5, 1.0, 2.0]  # height / width
    offset: Share = 0.5
    rounded: bool = False
    grid_stride: bool = False


class RPNConfig(Section):
    num_convs: Positive = 1
    pre_nms_train: Positive = 2000
    pre_nms_predict: Positive = 1000
    post_nms_train: Positive = 1000
    post_nms_predict: Positive = 1000
    nms_threshold: Share = 0.7
    min_size: float = 0.0
    samples: Positive = 256
    positive_fraction: Share = 0.5
    high: Share = 0.7
    low: Share = 0.3
    loss_beta: float = 0.0
    clamp_shrink: bool = False  # bound how far a delta shrinks a box, too (mmdetection)
    rank: Literal["logit", "sigmoid"] = "logit"  # by what proposals are ordered (mmdetection: sigmoid)
    fixed_divisor: bool = False  # of the losses: samples * images (detectron2) instead of the sampled anchors' number

    @model_validator(mode="after")
    def _in_order(self) -> RPNConfig:
        if self.low > self.high:
            raise ValueError(
                f"low ({self.low}) is above high ({self.high}): an anchor could be both foreground and background"
            )
        return self


class PoolConfig(Section):
    sampling_ratio: Count = 2  # 0: adaptive, as detectron2 and mmdetection; slower
    aligned: bool = True


class BoxConfig(Section):
    trunk: Literal["2fc", "4conv1fc", "res5"] = "2fc"  # res5: the backbone's layer4, on RoIs of c4 (model.neck: c4)
    width: Positive = 1024
    norm: HeadNorm = "none"  # of 4conv1fc's convolutions
    weight_standardization: bool = False  # of the same
    class_agnostic: bool = False  # one box for all classes instead of one for each
    samples: Positive = 512
    positive_fraction: Share = 0.25
    iou_threshold: Share = 0.5
    low_quality: bool = False
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0  # above 0, focal loss instead of cross-entropy
    class_weights: list[Annotated[float, Field(ge=0)]] | None = None  # of each class, then of the background
    delta_weights: tuple[float, float, float, float] = (10, 10, 5, 5)
    loss_beta: float = 0.0
    objectness: bool = False  # the proposal's score counts, too
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.5
    soft_sigma: Annotated[float, Field(ge=0)] = 0.0  # above 0, Soft-NMS lowers scores, instead of nms_threshold
    max_detections: Positive = 100
    min_size: float = 0.0
    # Boxes without area: dropped before suppression, after it (detectron2), or never (mmdetection)
    empty: Literal["drop_first", "drop_last", "keep"] = "drop_first"
    clamp_shrink: bool = False


class PointRendConfig(Section):
    side: Positive = 7  # of the coarse mask
    width: Positive = 1024
    num_fc: Positive = 2
    point_width: Positive = 256
    point_num_fc: Positive = 3
    points: Positive = 196  # of the loss
    steps: Count = 5  # how often the mask's side doubles in prediction: 7 becomes 224
    subdivision_points: Positive = 784


class CascadeConfig(Section):
    """Box heads in a row (`models/heads/cascade.py`), one for each entry of `ious`; one box serves all classes."""

    ious: Annotated[list[Share], Field(min_length=1)] = [0.5, 0.6, 0.7]  # from which a box is positive
    delta_weights: list[tuple[float, float, float, float]] = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    loss_weights: list[Annotated[float, Field(ge=0)]] = [1.0, 1.0, 1.0]
    resample: bool = False  # box.samples drawn anew at each stage (mmdetection), not only at the first (detectron2)
    scale_gradients: bool = True  # the stages move the features no more than one head would (detectron2)
    average: Literal["scores", "logits"] = "scores"  # of all stages (mmdetection: logits, before the softmax)
    mask_heads: Literal["one", "each"] = "one"  # for all stages, or for each stage (mmdetection)

    @model_validator(mode="after")
    def _as_many_stages(self) -> CascadeConfig:
        counts = {key: len(getattr(self, key)) for key in ("ious", "delta_weights", "loss_weights")}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{key} has {count}" for key, count in counts.items())
            raise ValueError(f"needs one entry for each stage in each list, but {told}")
        return self


class MaskConfig(Section):
    num_convs: Count = 4
    width: Positive = 256
    norm: HeadNorm = "none"
    weight_standardization: bool = False
    class_agnostic: bool = False  # one mask for all classes instead of one for each
    pool_size: Positive = 14  # masks have twice this side; the same with box.trunk: res5
    paste: Literal["resdet", "torchvision"] = "resdet"
    point_rend: PointRendConfig | None = None  # this head instead of the convolutions above


class KeypointConfig(Section):
    num_keypoints: Positive | None = None  # these three: None and empty for what the annotations list
    names: list[str] = []
    skeleton: list[tuple[int, int]] = []  # pairs of keypoints' numbers, from 0, drawn as limbs
    num_convs: Count = 8
    width: Positive = 512
    norm: HeadNorm = "none"
    pool_size: Positive = 14  # heatmaps have four times this side
    decode: Literal["detectron2", "torchvision"] = "detectron2"  # scores: shares of the softmax, or logits


class ModelConfig(Section):
    num_classes: Positive | None = None  # without background; None: as many as the annotations have categories
    # A whole detector to start from: any tool's checkpoint, or torchvision:NAME. It brings its architecture and numerics;
    # what is set here takes precedence.
    weights: Annotated[str | None, BeforeValidator(expanded)] = None
    # Norms with fixed statistics become part of their convolutions: faster, rounded otherwise. Off for checkpoints of
    # detectron2 and mmdetection, to round as these do.
    fold_norm: bool = True
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = BackboneConfig()
    # What RPN and heads look at: p2..p6 of a pyramid, or one map of the backbone, c4 (C4 detectors) or c5 (with
    # backbone.c5_dilation: 2, DC5)
    neck: Literal["fpn", "c4", "c5"] = "fpn"
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RPNConfig = RPNConfig()
    pool: PoolConfig = PoolConfig()
    box: BoxConfig | None = BoxConfig()  # null: the RPN alone, whose proposals have no class
    cascade: CascadeConfig | None = None  # None: one box head; {} : Cascade R-CNN
    mask: MaskConfig | None = None  # None: Faster R-CNN
    keypoint: KeypointConfig | None = None  # {}: Keypoint R-CNN

    @model_validator(mode="after")
    def _neck_fits(self) -> ModelConfig:
        problems = []
        if self.neck == "fpn" and len(self.anchors.sizes) != 5:
            problems.append(
                f"anchors.sizes has {len(self.anchors.sizes)} numbers: an FPN needs 5, one for each of p2..p6"
            )
        if self.box and self.box.trunk == "res5" and self.neck != "c4":
            problems.append(f"box.trunk=res5 computes c5 on RoIs of c4, but neck={self.neck}: set model.neck=c4")
        if self.box and self.box.trunk == "res5" and self.cascade:
            problems.append("cascade needs box heads of their own at each stage: set box.trunk=2fc or 4conv1fc")
        if self.neck != "fpn" and self.mask and self.mask.point_rend:
            problems.append(f"mask.point_rend needs the fine maps of an FPN, but neck={self.neck}")
        if self.neck == "c4" and self.backbone.c5_dilation != 1:
            problems.append("backbone.c5_dilation=2 has no effect with neck=c4: DC5 is model.neck=c5")
        without = [name for name in ("cascade", "mask", "keypoint") if self.box is None and getattr(self, name)]
        if without:
            fix = ", ".join(f"model.{name}=null" for name in without)
            problems.append(
                f"box=null is the RPN alone, whose proposals no other head completes: set {fix}, or give model.box a section"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _train_what_is_random(self) -> ModelConfig:
        """Without weights nothing is frozen: defaults of `norm` and `frozen_stages` change, explicit settings are refused."""
        b = self.backbone
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
    if model.weights is not None or b.weights != "none":
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


class Config(Section):
    seed: Count = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, …
    output: UserPath = Path("outputs")  # `--output` on the command line
    auto: bool = False  # choose what is not set from the data (`data/auto.py`), and print it
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _agree(self) -> Config:
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                f"train.batch_size ({self.train.batch_size}) must be a multiple of train.accumulate "
                f"({self.train.accumulate}): the batch is split into equal parts"
            )
        if max(self.data.min_size) > self.data.max_size:
            raise ValueError(f"data.max_size ({self.data.max_size}) is below data.min_size ({max(self.data.min_size)})")
        return self
