"""The settings of a resumed run against those in its checkpoint: changes are applied and reported, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resdet.checkpoints.checkpoint import Checkpoint
from resdet.config import Config, dump_config, load_yaml, parse_config
from resdet.errors import UserError, listed

# Settings of the model that a resumed run may change, since the weights keep their shapes and meaning. Every other key under
# `model` is refused; every key elsewhere, except those in FIXED, may change.
MODEL_KEYS_THAT_APPLY = {
    "model.fold_norm", "model.label_smoothing", "model.pool.sampling_ratio", "model.mask.paste",
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
    "model.queries", "model.norm", "model.score_threshold", "model.max_detections", "model.decoder.predict_layers",
    *(f"model.matching.{key}" for key in ("class_cost", "box_cost", "giou_cost", "focal_alpha", "focal_gamma")),
    *(f"model.loss.{key}" for key in ("class_weight", "box_weight", "giou_weight", "alpha", "gamma")),
    *(f"model.denoising.{key}" for key in ("queries", "label_noise", "box_noise")),
    *(f"model.cascade.{key}" for key in ("ious", "loss_weights", "resample", "scale_gradients", "average")),
    *(f"model.head.{key}" for key in (
        "candidates", "score_threshold", "nms_threshold", "max_detections", "empty", "clip", "high", "low", "box_loss",
        "loss_beta", "divisor", "clamp_shrink", "radius", "weighted", "score", "nearest", "matches", "class_weights",
        "loss_weight",
    )),
    *(f"model.semantic.{key}" for key in ("class_weights", "loss_weight")),
}  # fmt: skip
FIXED = {"train.optimizer"}  # the saved state belongs to it
# Weights come from the checkpoint of the run, whatever these say; a change is reported only if it names other weights.
UNUSED = {"model.weights", "model.backbone.weights"}
SCHEDULE = {f"train.{key}" for key in ("max_iters", "lr", "schedule", "milestones", "warmup_iters", "warmup_factor")}


class Change(NamedTuple):
    """A key whose value has changed since the checkpoint was written."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} is {self.now}, was {self.was}"


def config_of(checkpoint: Checkpoint) -> Config | None:
    """The config in a checkpoint; None if this version of resdet cannot read it."""
    try:
        return parse_config(load_yaml(checkpoint.config))
    except UserError:
        return None


def refuse_unresumable(checkpoint: Checkpoint, config: Config, source: Path) -> None:
    """Raises one `UserError` that names every changed setting that a resumed run cannot change, with both values."""
    before = config_of(checkpoint)
    refused = [change for change in differences(before, config) if not _applies(change)] if before else []
    if refused:
        fix = f"to start a new run from these weights: model.weights={source} and another --output"
        raise listed(
            f"{source}: a run cannot be resumed with another model or optimizer. Set these back, or,\n{fix}:",
            [str(change) for change in refused],
        )


def changes(checkpoint: Checkpoint, config: Config, world: int) -> list[str]:
    """One line per setting that is changed by resuming with `config` in `world` processes."""
    before = config_of(checkpoint)
    lines = []
    for change in differences(before, config) if before else []:
        note = ""
        if change.key == "train.batch_size":
            note = (
                f": the iteration count continues and the learning rate stays train.lr; images continue as after "
                f"{checkpoint.iteration} batches of {change.now}, so in this epoch some are seen twice or not at all"
            )
        elif change.key in SCHEDULE:
            note = ": the new schedule applies from iteration 1"
        if _applies(change):
            lines.append(f"{change}{note}")
    if (was := checkpoint.training["world"]) != world:
        lines.append(
            f"{world} process(es), was {was}: the same batches of {config.train.batch_size}, split differently; "
            "results differ by rounding"
        )
    return lines


def differences(before: Config, now: Config) -> Iterator[Change]:
    """Every dotted key whose value differs and matters to a resumed run."""
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
