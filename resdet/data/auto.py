"""`auto: true`: what the config leaves open is chosen from the data, each choice with its reason; what it sets is kept."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from resdet.config.schema import Config
from resdet.data.coco import Annotations

FEWEST_SEEN = 24_000  # images that fine-tuning sees at least, repetitions included
MOST_EPOCHS = 100
EPOCHS = 12  # at least, as in the published 1x schedule


class Choice(NamedTuple):
    """key: of the config. reason: for people."""

    key: str
    value: Any
    reason: str


def choose(config: Config, train: Annotations, pretrained: bool) -> tuple[Config, list[Choice]]:
    """Fill in what the config does not set: classes, input size, schedule, learning rate, frozen stages, a mask head or not."""
    names = ", ".join(train.class_names[:8]) + ", …" * (len(train.class_names) > 8)
    classes = Choice("model.num_classes", len(train.class_names), f"as in the dataset: {names}")
    choices = [classes, *_inputs(config, train), *_schedule(config, len(train.images))]
    stages, why = 0, "nothing is pretrained"
    if pretrained:
        stages = type(config.model.backbone).model_fields["frozen_stages"].default
        why = f"pretrained: {'stem and layer1 stay' if stages == 2 else 'the stem stays'} frozen"
    choices.append(Choice("model.backbone.frozen_stages", stages, why))
    if "masks" in config.model.outputs and not train.images.any_masks:
        # Set by the weights rather than by the user: a mask head has nothing to learn from here.
        choices.append(Choice("model.mask", None, "no object has a mask"))
    if "keypoints" in config.model.outputs and train.skeleton is None:
        choices.append(Choice("model.keypoint", None, "no category lists keypoints"))
    taken = []
    for choice in choices:
        section, given = _parent(config, choice.key)
        name = choice.key.rpartition(".")[2]
        if choice.key in ("model.mask", "model.keypoint") or name not in given or getattr(section, name) is None:
            setattr(section, name, choice.value)
            taken.append(choice)
    return config, taken


def as_trained(config: Config, train: Annotations) -> Config:
    """The config with the input size that `auto` would choose, to look at the data as training would see them."""
    return choose(config.model_copy(deep=True), train, pretrained=True)[0] if config.auto else config


def _parent(config: Config, key: str) -> tuple[BaseModel, set[str]]:
    """The section that holds a key, and the names that the user has set in it."""
    section: BaseModel = config
    for part in key.split(".")[:-1]:
        section = getattr(section, part)
    return section, section.model_fields_set


def _inputs(config: Config, train: Annotations) -> list[Choice]:
    """A short side, or a square's, at which the median object is at least 32 pixels, within 320 to 800 and at most twice the
    images' own."""
    boxes = train.images.boxes
    short = float(np.median(train.images.sizes.min(1)))
    if len(boxes):
        median = float(np.median(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))))
        objects = f", the median object a size of {median:.0f}"
    else:  # a model of pixels alone
        median, objects = 32.0, ""
    wanted = short * min(max(32 / max(median, 1), 1.0), 2.0)
    size = int(min(max(round(wanted / 32) * 32, 320), 800))
    sizes = [size - 32 * k for k in range(5, -1, -1) if size - 32 * k >= 0.8 * size]
    reason = f"the median image has a short side of {short:.0f} pixels{objects}"
    if not config.model.input.keep_ratio:
        sizes = [*range(32 * round(size * 0.75 / 32), 32 * round(size * 1.25 / 32) + 1, 32), size]
        return [Choice("data.min_size", sizes, f"{reason}; batches vary by a quarter, as published")]
    return [
        Choice("data.min_size", sizes, reason),
        Choice("data.max_size", math.ceil(size * 5 / 3), "five thirds of the short side, as published"),
    ]


def _schedule(config: Config, images: int) -> list[Choice]:
    t = config.train
    seen = min(MOST_EPOCHS * images, max(FEWEST_SEEN, EPOCHS * images))
    iterations = max(100, math.ceil(seen / t.batch_size))
    if "max_iters" in t.model_fields_set:
        iterations = t.max_iters
    rate = {"sgd": 0.02, "adamw": 2e-4}[t.optimizer] * t.batch_size / 16
    often = max(1, iterations // 10)
    steps = [round(iterations * 2 / 3), round(iterations * 8 / 9)]
    return [
        Choice(
            "train.max_iters",
            iterations,
            f"{images} images, each seen {iterations * t.batch_size / images:.0f} times",
        ),
        Choice("train.warmup_iters", min(1000, max(10, iterations // 10)), "a tenth of the schedule, 1000 at most"),
        *([Choice("train.milestones", steps, "two thirds and eight ninths")] if t.schedule == "multistep" else []),
        Choice("train.lr", rate, f"linear in the batch size: {rate * 16 / t.batch_size:g} at 16 ({t.optimizer})"),
        Choice("train.eval_every", often, "ten times per run"),
        Choice("train.checkpoint_every", often, "ten times per run"),
    ]
