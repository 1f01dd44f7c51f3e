"""mmdetection's configs, of versions 2 and 3 -> ours: files with their bases, or the text in a checkpoint's `meta.cfg`."""

from __future__ import annotations

from typing import Any

from resdet.migration import mmdetection_data as steps
from resdet.migration import mmdetection_dense as dense
from resdet.migration import mmdetection_panoptic as panoptic
from resdet.migration.conventions import MMDETECTION, OF_HEADS
from resdet.migration.keys import (
    Kind,
    Leaves,
    Row,
    Table,
    account,
    leaves,
)
from resdet.migration.mmdetection_cascade import one_head
from resdet.migration.mmdetection_data import TRAIN
from resdet.migration.mmdetection_model import MODEL, has_heads
from resdet.migration.mmdetection_training import TRAINING
from resdet.migration.python_config import PythonConfig
from resdet.migration.report import Migration

# What mmdetection's runner reads; other names are variables of the file, taken where they are used.
RUNNER = {
    "model", "train_dataloader", "val_dataloader", "test_dataloader", "train_cfg", "val_cfg", "test_cfg", "optim_wrapper",
    "param_scheduler", "val_evaluator", "test_evaluator", "default_hooks", "custom_hooks", "load_from", "resume",
    "env_cfg", "log_processor", "log_level", "visualizer", "default_scope", "randomness", "auto_scale_lr", "work_dir",
    "custom_imports", "data", "optimizer", "optimizer_config", "lr_config", "runner", "total_epochs", "checkpoint_config",
    "log_config", "evaluation", "workflow", "dist_params", "resume_from", "fp16", "launcher",
}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "model.backbone.frozen_stages": -1, "model.backbone.style": "pytorch", "model.backbone.norm_eval": True,
    "model.backbone.norm_cfg.type": "BN", "model.backbone.norm_cfg.requires_grad": True,
    "model.backbone.strides": (1, 2, 2, 2), "model.backbone.dilations": (1, 1, 1, 1),
    "model.neck.num_outs": 5, "model.neck.type": None, "model.roi_head.type": None,
}  # fmt: skip


def migrate(config: PythonConfig, origin: str, images: int | None = None) -> Migration:
    """images: how many the training data have, for schedules in epochs. Raises `UserError`."""
    values = {key: value for key, value in config.values.items() if key in RUNNER}
    for name in ("train_cfg", "test_cfg"):  # of version 2, beside the model
        if isinstance(values.get(name), dict) and {"rpn", "rcnn", "assigner", "nms_pre"} & values[name].keys():
            values["model"] = {**values["model"], name: values.pop(name)}
    if not isinstance(values.get("model"), dict):
        raise NotAConfig(origin)
    stages = one_head(leaves(values, origin))
    given = stages.given
    table, of_kind, numerics = _model(given)
    defaults = {**DEFAULTS, **of_kind, **_absent(given), **steps.require_images(images)}
    rows, ours, always = account(given, defaults, {**table, **TRAINING}, origin, {"model": numerics}, stages.names)
    rows += stages.rows
    variables = [key for key in config.values if key not in RUNNER]
    rows += [Row(Kind.SAME, key, config.values[key], {}, "a variable, taken where it is used") for key in variables]
    rows += [Row(Kind.WARNING, text, "", {}, "a statement that is not run") for text in config.skipped]
    return Migration(origin, rows, ours, always)


def one_stage(model: dict[str, Any], origin: str) -> dict[str, Any]:
    """Our `model` section of a one-stage detector's, as a checkpoint's config text has it; {} for another detector's.
    Raises `UserError`."""
    given = leaves({"model": model}, origin)
    if not dense.dense(given):
        return {}
    table, defaults, numerics = _model(given)
    _, ours, _ = account(given, {**DEFAULTS, **defaults}, table, origin, {"model": numerics}, {})
    section: dict[str, Any] = ours.get("model", {})
    return section


def _model(given: Leaves) -> tuple[Table, dict[str, Any], dict[str, Any]]:
    """The rules for the model's keys, defaults of its kind, and what mmdetection computes without having keys for it."""
    if kind := dense.dense(given):
        return (
            {**dense.TABLE, **MODEL, **dense.TABLE},
            {**kind.defaults, **dense.without_norm(given)},
            dense.always(kind),
        )
    always = {key: value for key, value in MMDETECTION.items() if has_heads(given) or key not in OF_HEADS}
    if panoptic.panoptic(given):
        return {**panoptic.PANOPTIC, **MODEL}, panoptic.DEFAULTS, always
    return MODEL, {}, always


def _absent(given: Leaves) -> dict[str, Any]:
    """What holds where a whole part is not there: no warm-up, no steps, no flip, torch's own optimizer."""
    found: dict[str, Any] = {}
    parts = {key.partition(".")[0] for key in given}
    steps_there = any(key.startswith(("param_scheduler.M", "param_scheduler.C")) for key in given)
    if "optim_wrapper" in parts:
        found |= {"optim_wrapper.optimizer.momentum": 0, "optim_wrapper.optimizer.weight_decay": 0}
        found |= {"optim_wrapper.paramwise_cfg.norm_decay_mult": 1}
        if not any(key.startswith("param_scheduler.LinearLR") for key in given):
            found |= {"param_scheduler.LinearLR.end": 0, "param_scheduler.LinearLR.by_epoch": False}
        if not steps_there:
            found |= {"param_scheduler.MultiStepLR.milestones": []}
    if "optimizer" in parts:
        found |= {"optimizer.momentum": 0, "optimizer.weight_decay": 0, "paramwise_cfg.norm_decay_mult": 1}
    if "lr_config" in parts:
        found |= {"lr_config.warmup_iters": 0}
    pipeline = next((key for key in given if "pipeline." in key and key.startswith(TRAIN)), None)
    if pipeline and not any(key.startswith(TRAIN) and "RandomFlip" in key for key in given):
        found |= {f"{pipeline.partition('pipeline.')[0]}pipeline.RandomFlip.prob": 0.0}
    if "custom_hooks.EMAHook.type" in given:
        found |= {"custom_hooks.EMAHook.momentum": 0.0002}
    return {key: value for key, value in found.items() if key not in given}


class NotAConfig(ValueError):
    """Python without `model = dict(...)`."""
