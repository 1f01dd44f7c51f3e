"""The `data` section: where images and annotations are, how they are split, resized and augmented."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from resdet.config.classifier import ClassificationConfig
from resdet.config.types import Count, Positive, Section, Share, UserPath

RangeRule = Literal["auto", "dtype", "percentile"]


def _pixel_range(given: Any) -> Any:
    if given in get_args(RangeRule):
        return given
    numbers = isinstance(given, list | tuple) and len(given) == 2 and all(type(v) in (int, float) for v in given)
    if not numbers or not -math.inf < given[0] < given[1] < math.inf:
        raise ValueError(
            f"must be [low, high] with low < high, or one of {', '.join(get_args(RangeRule))}, got {given!r}"
        )
    return float(given[0]), float(given[1])


# read by `data/formats`
DataFormat = Literal[
    "coco", "voc", "yolo", "labelme", "via", "cvat", "label_studio", "supervisely", "open_images", "kitti", "mot", "cityscapes",
    "masks", "coco_panoptic", "label_maps",
]  # fmt: skip


class SplitConfig(Section):
    root: UserPath | None = None  # None: data.root
    format: Literal["auto"] | DataFormat | None = None  # None: data.format
    images: UserPath | None = None  # folder; None: `root`/train2017 or val2017
    # COCO's JSON (None: `root`/annotations/instances_train2017.json or …val2017.json), YOLO's data.yaml, or a folder
    annotations: UserPath | None = None
    # The dataset's own name of the split: VOC's ImageSets/Main/NAME.txt, a key of YOLO's data.yaml, a folder of Roboflow's COCO
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
    limit: Positive | None = None  # use only the first images, this many
    repeat_threshold: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # repeat images of classes rarer than this share
    )
    negatives: Annotated[float, Field(ge=0, lt=1)] | None = (
        None  # fraction of an epoch that images without objects make up
    )
    workers: Count = Field(default_factory=lambda: min(4, os.cpu_count() or 1))  # of each process
    max_unreadable: Share = 0.01  # fraction of a split's images that may turn out unreadable before a run stops
    # Which values of 16-bit and floating-point images become 0..255: [low, high], "dtype" (the type's range), or from a sample
    # of data.train, "auto" (0.1 to 99.9 percentiles) or "percentile" (1 to 99). Kept in the checkpoint; 8-bit stays as it is.
    pixel_range: Annotated[RangeRule | tuple[float, float], BeforeValidator(_pixel_range)] = "auto"
    pad_multiple: Annotated[int, Field(gt=0, multiple_of=32)] = 32  # larger: fewer shapes to compile for
    mask_size: Positive = 112  # side of the cropped ground-truth masks, four times the predicted ones
    # Pairs of keypoints that swap in a mirrored image; None: those that differ by left and right, or l and r
    keypoint_flip_pairs: list[tuple[str, str]] | None = None
    # One per keypoint, for OKS; None: COCO's where the names are COCO's, else 0.05 each
    keypoint_sigmas: list[Annotated[float, Field(gt=0)]] | None = None
    classification: ClassificationConfig = ClassificationConfig()  # of model.kind=classifier

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
        """Every key has an effect, given the others."""
        problems = []
        if self.val_fraction and isinstance(self.train, list) and self.val.files:
            problems.append(
                f"data.val.files={self.val.files} beside data.val_fraction and a list in data.train: name the images by "
                "`files` in each source"
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


def data_root(config: DataConfig) -> Path:
    """`data.root`, or the default place for COCO."""
    return config.root or Path(os.environ.get("RESDET_DATASETS", "datasets")) / "coco"


def train_sources(config: DataConfig) -> list[TrainSplitConfig]:
    """The sources of `data.train`, one or several."""
    return config.train if isinstance(config.train, list) else [config.train]


def of_source(config: DataConfig, given: SplitConfig) -> DataConfig:
    """The settings for reading one source: its own root and format take precedence."""
    return config.model_copy(update={"root": given.root or config.root, "format": given.format or config.format})
