"""The typed configuration: the only place with defaults. A YAML file holds what differs from them (`config/io.py`)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Set
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NormName = Literal["none", "frozen_bn", "bn", "sync_bn", "gn"]
RangeRule = Literal["auto", "dtype", "percentile"]
HeadNorm = Literal["none", "bn", "sync_bn", "gn"]
Triple = tuple[float, float, float]
RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, in 0..255


def for_channels(rgb: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A number for each of R, G, B -> one for each of any channels: the first three theirs, others their average; fewer than
    three all the average."""
    average = sum(rgb) / 3
    return (*rgb, *(average,) * (channels - 3)) if channels >= 3 else (average,) * channels


def _pixel_range(given: Any) -> Any:
    if given in get_args(RangeRule):
        return given
    numbers = isinstance(given, list | tuple) and len(given) == 2 and all(type(v) in (int, float) for v in given)
    if not numbers or not -math.inf < given[0] < given[1] < math.inf:
        raise ValueError(
            f"must be [low, high] with low < high, or one of {', '.join(get_args(RangeRule))}, got {given!r}"
        )
    return float(given[0]), float(given[1])


def _known_backbone(name: str) -> str:
    if not re.fullmatch(r"resnet(18|34|50|101|152)|wide_resnet(50|101)_2|resnext(50|101|152)_[1-9]\d*x[1-9]\d*d", name):
        raise ValueError(
            f"unknown backbone {name!r}; known are resnet18, 34, 50, 101, 152, wide_resnet50_2, wide_resnet101_2 and "
            "resnextDEPTH_GROUPSxWIDTHd such as resnext50_32x4d, resnext101_32x8d, resnext101_64x4d"
        )
    return name


def _expanded(value: object) -> object:
    """~ and ~NAME at the start of a path are a home folder."""
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~") else value


UserPath = Annotated[Path, BeforeValidator(_expanded)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


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
    weights: Annotated[str, BeforeValidator(lambda v: "none" if v is None else _expanded(v))] = (
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
                f"low ({self.low}) is above high ({self.high}): an anchor would be foreground and background"
            )
        return self


class PoolConfig(Section):
    sampling_ratio: Count = 2  # 0: adaptive, as detectron2 and mmdetection; slower
    aligned: bool = True


class BoxConfig(Section):
    trunk: Literal["2fc", "4conv1fc", "res5"] = "2fc"  # res5: the backbone's layer4, on RoIs of c4 (model.neck: c4)
    width: Positive = 1024
    norm: HeadNorm = "none"  # of 4conv1fc's convolutions
    class_agnostic: bool = False  # one box for all classes instead of one for each
    samples: Positive = 512
    positive_fraction: Share = 0.25
    iou_threshold: Share = 0.5
    low_quality: bool = False
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0  # above 0, the focal loss in place of cross-entropy
    class_weights: list[Annotated[float, Field(ge=0)]] | None = None  # of each class, then of the background
    delta_weights: tuple[float, float, float, float] = (10, 10, 5, 5)
    loss_beta: float = 0.0
    objectness: bool = False  # the proposal's score counts, too
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.5
    soft_sigma: Annotated[float, Field(ge=0)] = 0.0  # above 0, Soft-NMS lowers scores in the place of nms_threshold
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


class MaskConfig(Section):
    num_convs: Count = 4
    width: Positive = 256
    norm: HeadNorm = "none"
    pool_size: Positive = 14  # masks have twice this side; the same with box.trunk: res5
    paste: Literal["resdet", "torchvision"] = "resdet"
    point_rend: PointRendConfig | None = None  # this head in place of the convolutions above


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
    # what is set here beside it goes first.
    weights: Annotated[str | None, BeforeValidator(_expanded)] = None
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
    box: BoxConfig = BoxConfig()
    mask: MaskConfig | None = None  # None: Faster R-CNN
    keypoint: KeypointConfig | None = None  # {}: Keypoint R-CNN

    @model_validator(mode="after")
    def _neck_fits(self) -> ModelConfig:
        problems = []
        if self.neck == "fpn" and len(self.anchors.sizes) != 5:
            problems.append(
                f"anchors.sizes has {len(self.anchors.sizes)} numbers: an FPN needs 5, one for each of p2..p6"
            )
        if self.box.trunk == "res5" and self.neck != "c4":
            problems.append(f"box.trunk=res5 computes c5 on RoIs of c4, but neck={self.neck}: set model.neck=c4")
        if self.neck != "fpn" and self.mask and self.mask.point_rend:
            problems.append(f"mask.point_rend needs the fine maps of an FPN, but neck={self.neck}")
        if self.neck == "c4" and self.backbone.c5_dilation != 1:
            problems.append("backbone.c5_dilation=2 has no effect with neck=c4: DC5 is model.neck=c5")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _train_what_is_random(self) -> ModelConfig:
        """Without weights nothing is frozen: defaults of `norm` and `frozen_stages` follow, what was set is refused."""
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
            "model.backbone.norm=frozen_bn with model.backbone.weights=none: without pretrained statistics a frozen batch norm "
            "normalizes nothing; set model.backbone.norm=bn (or gn), or name weights"
        )
    if b.frozen_stages and "frozen_stages" in keys:
        problems.append(
            f"model.backbone.frozen_stages={b.frozen_stages} with model.backbone.weights=none: the frozen stages would stay "
            "random; set model.backbone.frozen_stages=0, or name weights"
        )
    return problems


# ---- data ------------------------------------------------------------------------------------------------------------


# read by `data/formats`
DataFormat = Literal[
    "coco", "voc", "yolo", "labelme", "via", "cvat", "label_studio", "supervisely", "open_images", "kitti", "mot", "cityscapes"
]  # fmt: skip


class SplitConfig(Section):
    root: UserPath | None = None  # None: data.root
    format: Literal["auto"] | DataFormat | None = None  # None: data.format
    images: UserPath | None = None  # folder; None: `root`/train2017 or val2017
    # COCO's JSON (None: `root`/annotations/instances_train2017.json or …val2017.json), YOLO's data.yaml, or a folder
    annotations: UserPath | None = None
    # The source's own name for it: VOC's ImageSets/Main/NAME.txt, a key of YOLO's data.yaml, a folder of Roboflow's COCO
    # export, NAME of COCO's annotations/instances_NAME.json
    split: str | None = None
    files: UserPath | None = None  # only the images that this text file names, one a line


class TrainSplitConfig(SplitConfig):
    # The classes that the annotations are complete for; objects of others are left out. None: those that the files list
    known_classes: Annotated[list[str], Field(min_length=1)] | None = None
    augmentations: list[dict[str, Any]] = []  # albumentations: [{name: RandomBrightnessContrast, p: 0.5}, …]


class SyntheticConfig(Section):
    """A generated dataset of coloured shapes (`data/shapes.py`), written to `data.root` when it is not there yet."""

    num_train: Positive = 400
    num_val: Positive = 80
    size: Annotated[int, Field(ge=64)] = 160
    seed: Count = 0


class DataConfig(Section):
    # None: $RESDET_DATASETS/coco, or datasets/coco
    root: UserPath | None = None
    format: Literal["auto"] | DataFormat = "auto"
    # what Pascal VOC's corners count the first pixel as; None: found from the files
    voc_origin: Literal[0, 1] | None = None
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None  # held out of data.train for validation
    split_seed: Count = 0
    group: str | None = None  # a regular expression on file names: images that match equally stay in one split
    # One source, or a list of several, whose classes are joined by name (docs/data.md)
    train: Annotated[
        Annotated[TrainSplitConfig, Tag("<one>")]
        | Annotated[list[TrainSplitConfig], Field(min_length=1), Tag("<list>")],
        Discriminator(lambda value: "<list>" if isinstance(value, list | tuple) else "<one>"),
    ] = TrainSplitConfig()
    val: SplitConfig = SplitConfig()
    synthetic: SyntheticConfig | None = None
    min_size: Annotated[list[Positive], BeforeValidator(lambda v: v if isinstance(v, list | tuple) else [v])] = [
        640,
        672,
        704,
        736,
        768,
        800,
    ]  # fmt: skip; short sides to draw from; evaluation takes the last
    max_size: Positive = 1333
    flip: Share = 0.5
    limit: Positive | None = None  # use the first so many images only
    repeat_threshold: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # repeat images of classes rarer than this share
    )
    negatives: Annotated[float, Field(ge=0, lt=1)] | None = None  # share of images without objects in an epoch
    workers: Count = Field(default_factory=lambda: min(4, os.cpu_count() or 1))  # of each process
    max_unreadable: Share = 0.01  # share of a split's pictures that may turn out unreadable before a run stops
    # Which values of 16-bit and floating-point images become 0..255: [low, high], "dtype" (all that the type holds), or by a
    # sample of data.train "auto" (the range found) and "percentile" (1 to 99). Kept in the checkpoint; 8-bit images stay.
    pixel_range: Annotated[RangeRule | tuple[float, float], BeforeValidator(_pixel_range)] = "auto"
    pad_multiple: Annotated[int, Field(gt=0, multiple_of=32)] = 32  # larger: fewer shapes to compile for
    mask_size: Positive = 112  # side of the cropped ground-truth masks, four times the predicted ones
    # Names of keypoints that change places in a mirrored image; None: those that differ by left and right, or l and r
    keypoint_flip_pairs: list[tuple[str, str]] | None = None
    # Of each keypoint, for OKS; None: COCO's where the names are COCO's, else 0.05 each
    keypoint_sigmas: list[Annotated[float, Field(gt=0)]] | None = None

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, values: Any) -> Any:
        """`split`, the older name of `val_fraction`."""
        if not isinstance(values, dict) or "split" not in values:
            return values
        share = values["split"]
        if share is not None and values.get("val_fraction", share) != share:
            raise ValueError(
                f"data.split={share} is the older name of data.val_fraction={values['val_fraction']}: set one"
            )
        return {"val_fraction": share} | {k: v for k, v in values.items() if k != "split"}

    @model_validator(mode="after")
    def _means_something(self) -> DataConfig:
        """Each key has an effect beside the others."""
        problems = []
        if self.val_fraction and isinstance(self.train, list) and self.val.files:
            problems.append(
                f"data.val.files={self.val.files} beside data.val_fraction and a list in data.train: name the images with "
                "files of each source"
            )
        if self.synthetic and isinstance(self.train, list):
            problems.append("data.synthetic beside a list in data.train: generate the set first, then name it there")
        if self.val_fraction:
            problems += [
                f"data.val.{key}={value} beside data.val_fraction={self.val_fraction}, which takes the validation images from "
                "data.train: set one of them to null"
                for key in ("root", "format", "images", "annotations", "split")
                if (value := getattr(self.val, key)) is not None
            ]
        if self.group is not None:
            if not self.val_fraction:
                problems.append("data.group has no effect without data.val_fraction")
            try:
                re.compile(self.group)
            except re.error as error:
                problems.append(f"data.group={self.group!r}: not a regular expression ({error})")
        if self.synthetic and self.format not in ("auto", "coco"):
            problems.append(f"data.format={self.format} beside data.synthetic, which is written as COCO")
        if problems:
            raise ValueError("; ".join(problems))
        return self


# ---- training --------------------------------------------------------------------------------------------------------


class TrainConfig(Section):
    max_iters: Positive = 90000
    batch_size: Positive = 16  # of all processes together
    accumulate: Positive = (
        1  # parts of the batch, one after another: less memory; losses are the mean of the parts' losses
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.02
    head_lr: Annotated[float, Field(gt=0)] = 1.0  # the heads' learning rate, times this
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # layer4's rate times this, layer3's times its square, …
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # not of norms and biases of norms
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: list[Positive] = [60000, 80000]  # multistep: a tenth from each on
    warmup_iters: Count = 1000
    warmup_factor: Share = 0.001
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    amp: Annotated[Literal["off", "bf16", "fp16"], BeforeValidator(lambda v: "off" if v is False else v)] = "off"
    # torch.compile; "reduce-overhead" is its mode that replays CUDA graphs
    compile: bool | Literal["reduce-overhead"] = False
    channels_last: bool = True  # the memory layout that convolutions are fastest in
    log_every: Positive = 20
    checkpoint_every: Positive = 5000
    keep: Positive = 2  # numbered checkpoints that stay beside last.pt and best.pt
    eval_every: Count = 5000  # and at the end; 0: never
    val_loss: bool = True  # with each evaluation, the losses on the validation set
    # What best.pt is the best of, and patience waits for; None: the AP of keypoints or masks if evaluated, else of boxes
    best_metric: (
        Literal[
            "bbox_AP", "bbox_AP50", "bbox_AP75", "bbox_APs", "bbox_APm", "bbox_APl", "bbox_AR100",
            "segm_AP", "segm_AP50", "segm_AP75", "segm_APs", "segm_APm", "segm_APl", "segm_AR100",
            "keypoints_AP", "keypoints_AP50", "keypoints_AP75", "keypoints_APm", "keypoints_APl", "keypoints_AR",
        ]
        | None
    ) = None  # fmt: skip
    patience: Positive | None = None  # stop after so many evaluations without a better one
    tensorboard: bool = False
    timeout: Annotated[float, Field(gt=0)] = 600.0  # seconds that processes wait for one another


class Config(Section):
    seed: Count = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, …
    output: UserPath = Path("outputs")  # `--output` on the command line
    auto: bool = False  # what is not set is chosen from the data (`data/auto.py`), and told
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


def data_root(config: DataConfig) -> Path:
    """`data.root`, or where COCO is looked for without one."""
    return config.root or Path(os.environ.get("RESDET_DATASETS", "datasets")) / "coco"


def train_sources(config: DataConfig) -> list[TrainSplitConfig]:
    """The sources of `data.train`, one or several."""
    return config.train if isinstance(config.train, list) else [config.train]


def of_source(config: DataConfig, given: SplitConfig) -> DataConfig:
    """The settings that a source is read under: its own root and format go before those of the whole."""
    return config.model_copy(update={"root": given.root or config.root, "format": given.format or config.format})
