"""A run's settings when it is resumed: those of its checkpoint against the present ones, applied and told, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resdet.checkpoints.checkpoint import Checkpoint
from resdet.config import Config, dump_config, load_yaml, parse_config
from resdet.errors import UserError, listed

# Settings of the model that hold no weights and change none of their meaning: a resumed run may have others. Every other
# key below `model` is refused; every key elsewhere, but for those in FIXED, applies.
MODEL_KEYS_THAT_APPLY = {
    "model.fold_norm", "model.pool.sampling_ratio", "model.mask.paste",
    "model.keypoint.decode", "model.keypoint.skeleton",
    *(f"model.rpn.{key}" for key in (
        "pre_nms_train", "pre_nms_predict", "post_nms_train", "post_nms_predict", "nms_threshold", "min_size", "samples",
        "positive_fraction", "high", "low", "loss_beta", "clamp_shrink", "rank", "fixed_divisor",
    )),
    *(f"model.box.{key}" for key in (
        "samples", "positive_fraction", "iou_threshold", "low_quality", "focal_gamma", "class_weights", "loss_beta",
        "objectness", "score_threshold", "nms_threshold", "soft_sigma", "max_detections", "min_size", "empty",
        "clamp_shrink",
    )),
    *(f"model.cascade.{key}" for key in ("ious", "loss_weights", "resample", "scale_gradients", "average")),
}  # fmt: skip
FIXED = {"train.optimizer"}  # its state means nothing to another
# What a resumed run takes from its checkpoint whatever these say; named only where they ask for other weights.
UNUSED = {"model.weights", "model.backbone.weights"}
SCHEDULE = {f"train.{key}" for key in ("max_iters", "lr", "schedule", "milestones", "warmup_iters", "warmup_factor")}


class Change(NamedTuple):
    """A key whose value is not what it was when the checkpoint was written."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} is {self.now}, was {self.was}"


def config_of(checkpoint: Checkpoint) -> Config | None:
    """The config that a checkpoint was written under; None where this version does not know its keys."""
    try:
        return parse_config(load_yaml(checkpoint.config))
    except UserError:
        return None


def refuse_unresumable(checkpoint: Checkpoint, config: Config, source: Path) -> None:
    """Raises one `UserError` that names every setting that a resumed run cannot change, with both values."""
    before = config_of(checkpoint)
    refused = [change for change in differences(before, config) if not _applies(change)] if before else []
    if refused:
        fix = f"to start a new run from these weights: model.weights={source} and another --output"
        raise listed(
            f"{source}: a run cannot be resumed with another model or optimizer. Set these back, or,\n{fix}:",
            [str(change) for change in refused],
        )


def changes(checkpoint: Checkpoint, config: Config, world: int) -> list[str]:
    """What resuming under `config`, in `world` processes, changes: a line for each setting."""
    before = config_of(checkpoint)
    lines = []
    for change in differences(before, config) if before else []:
        note = ""
        if change.key == "train.batch_size":
            note = (
                f": iterations are counted on and the learning rate stays train.lr; the order of images continues where "
                f"{checkpoint.iteration} batches of {change.now} would have ended, so some are seen once more or once less "
                "in this epoch"
            )
        elif change.key in SCHEDULE:
            note = ": the schedule counts from iteration 1, as if it had always been so"
        if _applies(change):
            lines.append(f"{change}{note}")
    if (was := checkpoint.training["world"]) != world:
        lines.append(
            f"{world} process(es), were {was}: the same batches of {config.train.batch_size}, shared out differently; "
            "results differ by rounding"
        )
    return lines


def differences(before: Config, now: Config) -> Iterator[Change]:
    """Every key, dotted, whose value differs and means something to a resumed run."""
    defaults = dict(_leaves(Config().model_dump()))
    was, are = (dict(_leaves(load_yaml(dump_config(config)))) for config in (before, now))
    for key in was | are:
        old, new = was.get(key), are.get(key)
        if old != new and key != "output" and not (key in UNUSED and new == defaults[key]):
            yield Change(key, old, new)


def _applies(change: Change) -> bool:
    if change.key in FIXED:
        return False
    return not change.key.startswith("model.") or change.key in MODEL_KEYS_THAT_APPLY


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
