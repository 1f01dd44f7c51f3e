"""The typed configuration: the only place with defaults. A YAML file and `key.sub=value` overrides -> `Config`.

A YAML file holds what differs from these defaults. Every mistake is listed at once, unknown keys with a suggestion.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from resdet.errors import UserError, listed

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NormName = Literal["none", "frozen_bn", "bn", "sync_bn", "gn"]
HeadNorm = Literal["none", "bn", "sync_bn", "gn"]
Triple = tuple[float, float, float]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True)


# ---- model -----------------------------------------------------------------------------------------------------------


class InputConfig(Section):
    """Pixels as the network wants them; part of a checkpoint's numerics."""

    mean: Triple = (123.675, 116.28, 103.53)  # of RGB (BGR with `bgr`) in 0..255
    std: Triple = (58.395, 57.12, 57.375)
    bgr: bool = False
    # "opencv": bilinear on uint8; "pillow": the same with antialiasing (detectron2); "torch": on floats (torchvision)
    resize: Literal["opencv", "pillow", "torch"] = "opencv"
    rounding: Literal["nearest", "floor"] = "nearest"  # of the resized height and width


class BackboneConfig(Section):
    name: Literal[
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
        "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2",
    ] = "resnet50"  # fmt: skip
    weights: Annotated[str, BeforeValidator(lambda v: "none" if v is None else v)] = (
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
    fold_norm: bool = (
        True  # compute frozen norms within their convolutions; off for mmdetection, whose ties show the last bit
    )


class FPNConfig(Section):
    channels: Positive = 256
    norm: HeadNorm = "none"


class AnchorConfig(Section):
    sizes: tuple[float, float, float, float, float] = (32, 64, 128, 256, 512)  # of p2..p6
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


class PoolConfig(Section):
    sampling_ratio: Count = 2  # 0: adaptive, as detectron2 and mmdetection; slower
    aligned: bool = True


class BoxConfig(Section):
    trunk: Literal["2fc", "4conv1fc"] = "2fc"
    width: Positive = 1024
    norm: HeadNorm = "none"  # of 4conv1fc's convolutions
    samples: Positive = 512
    positive_fraction: Share = 0.25
    iou_threshold: Share = 0.5
    low_quality: bool = False
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0  # above 0, the focal loss in place of cross-entropy
    class_weights: list[Annotated[float, Field(ge=0)]] | None = None  # of each class, then of the background
    delta_weights: tuple[float, float, float, float] = (10, 10, 5, 5)
    loss_beta: float = 0.0
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.5
    max_detections: Positive = 100
    min_size: float = 0.0
    # Boxes without area: dropped before suppression, after it (detectron2), or never (mmdetection)
    empty: Literal["drop_first", "drop_last", "keep"] = "drop_first"
    clamp_shrink: bool = False


class MaskConfig(Section):
    num_convs: Count = 4
    width: Positive = 256
    norm: HeadNorm = "none"
    pool_size: Positive = 14  # masks have twice this side
    paste: Literal["resdet", "torchvision"] = "resdet"


class ModelConfig(Section):
    num_classes: Positive | None = None  # without background; None: as many as the annotations have categories
    # A whole detector to start from: any tool's checkpoint, or torchvision:NAME. It brings its architecture and numerics;
    # what is set here beside it goes first.
    weights: str | None = None
    input: InputConfig = InputConfig()
    backbone: BackboneConfig = BackboneConfig()
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RPNConfig = RPNConfig()
    pool: PoolConfig = PoolConfig()
    box: BoxConfig = BoxConfig()
    mask: MaskConfig | None = None  # None: Faster R-CNN

    @model_validator(mode="after")
    def _train_what_is_random(self) -> ModelConfig:
        """Without weights, a frozen stage would stay random for ever, and a frozen batch norm an identity."""
        b = self.backbone
        if b.weights == "none" and self.weights is None and (b.frozen_stages or b.norm == "frozen_bn"):
            norm = "bn" if b.norm == "frozen_bn" else b.norm
            self.backbone = b.model_copy(update={"frozen_stages": 0, "norm": norm})
        return self


# ---- data ------------------------------------------------------------------------------------------------------------


class SplitConfig(Section):
    images: Path | None = None  # folder; None: `root`/train2017 or val2017
    # COCO's JSON (None: `root`/annotations/instances_train2017.json or …val2017.json), YOLO's data.yaml, or a folder
    annotations: Path | None = None
    split: str | None = None  # the source's own name for it: VOC's ImageSets/Main/NAME.txt, a key of YOLO's data.yaml
    files: Path | None = None  # only the images that this text file names, one a line


class TrainSplitConfig(SplitConfig):
    augmentations: list[dict[str, Any]] = []  # albumentations: [{name: RandomBrightnessContrast, p: 0.5}, …]


class SyntheticConfig(Section):
    """A generated dataset of coloured shapes (`data/shapes.py`), written to `data.root` when it is not there yet."""

    num_train: Positive = 400
    num_val: Positive = 80
    size: Annotated[int, Field(ge=64)] = 160
    seed: Count = 0


class DataConfig(Section):
    # None: $RESDET_DATASETS/coco, or datasets/coco
    root: Path | None = None
    format: Literal["auto", "coco", "voc", "yolo", "labelme"] = "auto"
    split: Annotated[float, Field(gt=0, lt=1)] | None = None  # hold out this share of data.train for validation
    split_seed: Count = 0
    group: str | None = None  # a regular expression on file names: images that match equally stay in one split
    train: TrainSplitConfig = TrainSplitConfig()
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
    workers: Count = 4  # of each process
    max_unreadable: Share = 0.01  # share of a split's pictures that may turn out unreadable before a run stops
    pad_multiple: Annotated[int, Field(gt=0, multiple_of=32)] = 32  # larger: fewer shapes to compile for
    mask_size: Positive = 112  # side of the cropped ground-truth masks, four times the predicted ones


# ---- training --------------------------------------------------------------------------------------------------------


class TrainConfig(Section):
    max_iters: Positive = 90000
    batch_size: Positive = 16  # of all processes together
    accumulate: Positive = 1  # forward passes a step: the batch is split into so many parts
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
    compile: bool = False
    channels_last: bool = False
    log_every: Positive = 20
    checkpoint_every: Positive = 5000
    keep: Positive = 2  # numbered checkpoints that stay beside last.pt and best.pt
    eval_every: Count = 5000  # 0: only at the end
    val_loss: bool = True  # with each evaluation, the losses on the validation set
    patience: Positive | None = None  # stop after so many evaluations without a better AP
    tensorboard: bool = False
    timeout: Annotated[float, Field(gt=0)] = 600.0  # seconds that processes wait for one another


class Config(Section):
    seed: Count = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1, …
    output: Path = Path("outputs")  # `--output` on the command line
    auto: bool = False  # what is not set is chosen from the data (`engine/auto.py`), and told
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


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-4 is a number, and only true and false are booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+0123456789."),
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML too) and check everything.

    `path` may also name a shipped config: `configs/maskrcnn_r50.yaml` or `maskrcnn_r50`. Raises `UserError`.
    """
    file = find_config(path)
    try:
        values = load_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: must hold `key: value` pairs, not a {type(values).__name__}")
    for override in overrides:
        _apply(values, override)
    return parse_config(values, source=str(path))


def load_yaml(text: str) -> Any:
    """YAML 1.2 scalars, no Python objects, no aliases that stand for more than a file would hold. Raises `yaml.YAMLError`."""
    value = yaml.load(text, Loader=_Loader)
    if _expanded_size(value, {}) > 1_000_000:
        raise yaml.YAMLError("its aliases stand for more than a million values")
    return value


def _expanded_size(value: Any, known: dict[int, float]) -> float:
    """How many values it stands for, an alias counted each time; infinite where one contains itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")  # while its own content is being counted
        entries = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded_size(entry, known) for entry in entries)
    return known[id(value)]


def parse_config(values: dict[str, Any], source: str = "config") -> Config:
    """Nested values -> `Config`; raises one `UserError` that lists every mistake."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise listed(f"{source}: {error.error_count()} mistake(s):", [_explain(e) for e in error.errors()]) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def find_config(path: str | Path) -> Path:
    """The file at `path`, or the shipped config of that name. Raises `UserError` with near names."""
    path = Path(path)
    if path.is_file():
        return path
    here = Path(__file__).parent
    shipped = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (shipped / relative, shipped / f"{relative}.yaml"):
        if not path.is_absolute() and candidate.is_file():
            return candidate
    names = sorted(str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml"))
    near = difflib.get_close_matches(f"{path.stem}.yaml", names, n=1)
    hint = f"; did you mean configs/{near[0]}?" if near else ""
    raise UserError(f"config not found: {path}{hint}\nshipped: {', '.join(names)}")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"override {override!r}: write it as key.sub=value, for example train.lr=0.01")
    try:
        value = load_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value cannot be read: {error}") from None
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.get(parent)
        if not isinstance(child, dict):
            child = node[parent] = {}
        node = child
    node[last] = value


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key{_did_you_mean(path)}"
    given = error.get("input")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    if error["type"] == "literal_error":
        near = difflib.get_close_matches(str(given), re.findall(r"'([^']+)'", error["ctx"]["expected"]), n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    return f"{path}: {message} (given: {_shortened(given)})"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _did_you_mean(path: str) -> str:
    known = list(_keys(Config))
    parent, _, last = path.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    near = difflib.get_close_matches(last, siblings, n=1)
    if near:
        return f"; did you mean {siblings[near[0]]}?"
    elsewhere = [k for k in known if k.rpartition(".")[2] == last] or difflib.get_close_matches(path, known, n=1)
    return f"; did you mean {' or '.join(elsewhere[:2])}?" if elsewhere else ""


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _keys(inner, f"{prefix}{name}.")


def data_root(config: DataConfig) -> Path:
    """`data.root`, or where COCO is looked for without one."""
    return config.root or Path(os.environ.get("RESDET_DATASETS", "datasets")) / "coco"


def split_paths(config: DataConfig, split: Literal["train", "val"]) -> tuple[Path, Path]:
    """(image folder, annotation file) of a split."""
    given: SplitConfig = config.train if split == "train" else config.val
    root = data_root(config)
    return (
        given.images or root / f"{split}2017",
        given.annotations or root / "annotations" / f"instances_{split}2017.json",
    )
