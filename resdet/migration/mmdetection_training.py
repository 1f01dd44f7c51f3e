"""mmdetection's keys of schedule, augmentation and data, one by one -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resdet.migration import mmdetection_data as steps
from resdet.migration import shared
from resdet.migration.keys import Leaves, NotTaken, Rule, find, no_effect, only, sets, take
from resdet.migration.mmdetection_backbone import backbone_norm
from resdet.migration.mmdetection_data import TRAIN, VAL, of


def _classes(value: Any, _: Leaves) -> dict[str, Any]:
    return {"model.num_classes": len([value] if isinstance(value, str) else value)}


def _format(value: Any, _: Leaves) -> dict[str, Any]:
    if value not in steps.READ:
        raise NotTaken("another format of annotations: see data.format")
    return {"data.format": "coco_panoptic"} if value == steps.PANOPTIC else {}


def _optimizer(value: Any, _: Leaves) -> str:
    known = {"SGD": "sgd", "AdamW": "adamw"}
    if value not in known:
        raise NotTaken("train.optimizer is sgd or adamw")
    return known[value]


def _norm_decay(value: Any, all_: Leaves) -> dict[str, Any]:
    fixed = backbone_norm(None, all_) == "frozen_bn" and find(all_, "model.[rn]*norm_cfg.type") is None
    if value != 0 and not fixed:
        raise NotTaken("scale and shift of norms do not decay here")
    return {}


def _epochs(ours: str) -> Rule:
    return take(ours, lambda v, all_: steps.iterations(v, all_))


def _warmup(value: Any, all_: Leaves) -> int:
    epochs = all_.get("param_scheduler.LinearLR.by_epoch", True)
    return steps.iterations(value, all_) if epochs else value


def _milestones(value: Any, all_: Leaves) -> list[int]:
    return steps.steps(value, all_, all_.get("param_scheduler.MultiStepLR.by_epoch", True))


_SCALED = sets(steps.set_batch_size, "of all GPUs together")

TRAINING: Mapping[str, Rule] = {
    # schedule
    "train_cfg.max_epochs runner.max_epochs total_epochs": _epochs("train.max_iters"),
    "train_cfg.max_iters runner.max_iters": take("train.max_iters"),
    "train_cfg.val_interval evaluation.interval": take("train.eval_every", steps.often, from_default=False),
    "default_hooks.checkpoint.interval checkpoint_config.interval": take(
        "train.checkpoint_every", steps.often, from_default=False
    ),
    "default_hooks.checkpoint.max_keep_ckpts": take("train.keep", from_default=False),
    "default_hooks.logger.interval log_config.interval": take("train.log_every", from_default=False),
    "param_scheduler.LinearLR.start_factor lr_config.warmup_ratio": take("train.warmup_factor"),
    "param_scheduler.LinearLR.end": take("train.warmup_iters", _warmup),
    "lr_config.warmup_iters": take("train.warmup_iters"),
    "lr_config.warmup": only("linear", None),
    "lr_config.policy": take(
        "train.schedule", lambda v, _: shared.choice(v, {"step": "multistep", "CosineAnnealing": "cosine"}, None)
    ),
    "lr_config.step": take("train.milestones", lambda v, all_: steps.steps(v, all_, steps.by_epoch(all_))),
    "param_scheduler.MultiStepLR.milestones": take("train.milestones", _milestones),
    "param_scheduler.MultiStepLR.gamma": only(0.1),
    "param_scheduler.CosineAnnealingLR.type": take("train.schedule", lambda *_: "cosine"),
    "param_scheduler.CosineAnnealingLR.eta_min param_scheduler.CosineAnnealingLR.begin lr_config.min_lr_ratio": only(0),
    "param_scheduler.*.type": only("LinearLR", "MultiStepLR"),
    "param_scheduler.*.begin param_scheduler.*.end param_scheduler.*.by_epoch param_scheduler.*.T_max": no_effect(),
    "param_scheduler.*.convert_to_iter_based": no_effect(),
    "optim_wrapper.type": take(
        "train.amp", lambda v, _: shared.choice(v, {"OptimWrapper": "off", "AmpOptimWrapper": "fp16"}, None)
    ),
    "fp16.*": take("train.amp", lambda *_: "fp16"),
    "optim_wrapper.optimizer.type optimizer.type": take("train.optimizer", _optimizer),
    "optim_wrapper.optimizer.lr optimizer.lr": take("train.lr"),
    "optim_wrapper.optimizer.momentum optimizer.momentum": take("train.momentum"),
    "optim_wrapper.optimizer.weight_decay optimizer.weight_decay": take("train.weight_decay"),
    "optim_wrapper.optimizer.nesterov optimizer.nesterov": only(False),
    "optim_wrapper.optimizer.betas optimizer.betas": only((0.9, 0.999)),
    "*paramwise_cfg.norm_decay_mult": sets(_norm_decay),
    "*paramwise_cfg.bypass_duplicate": no_effect(),
    "optim_wrapper.clip_grad.max_norm optimizer_config.grad_clip.max_norm": take("train.clip_grad_norm"),
    "optim_wrapper.clip_grad.norm_type optimizer_config.grad_clip.norm_type": only(2),
    "optim_wrapper.clip_grad optimizer_config.grad_clip": only(None),
    "optim_wrapper.accumulative_counts": only(
        1, instead="train.accumulate splits train.batch_size, which has all images"
    ),
    "optim_wrapper.loss_scale": no_effect(),
    "custom_hooks.EMAHook.momentum": take("train.ema_decay", lambda v, _: 1 - v),
    "custom_hooks.EMAHook.type custom_hooks.NumClassCheckHook.type": no_effect(),
    "train_dataloader.batch_size data.samples_per_gpu auto_scale_lr.base_batch_size": _SCALED,
    "auto_scale_lr.enable": only(False, instead="the rate is not scaled here: set train.lr"),
    # augmentation
    of(TRAIN, "pipeline.Resize.scale", "pipeline.Resize.img_scale", "pipeline.R*Resize.scale*"): sets(
        steps.training_scale
    ),
    of(TRAIN, "pipeline.R*.ratio_range"): only(None, instead="resizing by a random factor is not supported"),
    of(TRAIN, "pipeline.Resize.multiscale_mode"): no_effect("belongs to img_scale"),
    of(VAL, "pipeline.Resize.scale", "pipeline.MultiScaleFlipAug.img_scale"): sets(steps.test_scale),
    of(VAL, "pipeline.MultiScaleFlipAug.flip"): only(False, instead="there is one prediction per image"),
    of(TRAIN, "pipeline.RandomFlip.prob", "pipeline.RandomFlip.flip_ratio"): sets(steps.flip),
    "*Resize.keep_ratio *keep_ratio": only(True),
    of((*TRAIN, *VAL), "Resize.backend"): take(
        "model.input.resize", lambda v, _: {"pillow": "pillow", "cv2": "opencv"}[v]
    ),
    "*pipeline*LoadImageFromFile.* *pipeline*LoadAnnotations.* *pipeline*PackDetInputs.* *pipeline*Collect.*": no_effect(),
    "*pipeline*FormatBundle.* *pipeline*ImageToTensor.* *pipeline*Normalize.* *pipeline*Pad.*": no_effect(),
    "*pipeline*Resize.type *pipeline*RandomFlip.* *pipeline*MultiScaleFlipAug.type": no_effect(),
    of(TRAIN, "pipeline.*"): only(instead="not converted: data.train.augmentations takes albumentations transforms"),
    # data
    of(TRAIN, "ann_file", "data_prefix.img", "img_prefix", "data_root"): sets(steps.paths("train", TRAIN)),
    of(VAL[:2], "ann_file", "data_prefix.img", "img_prefix", "data_root"): sets(steps.paths("val", VAL[:2])),
    of(TRAIN, "filter_cfg.filter_empty_gt", "filter_empty_gt"): take("data.negatives", lambda v, _: 0.0 if v else None),
    of(TRAIN, "filter_cfg.min_size"): no_effect("images below 32 pixels, which are rare, stay"),
    of(TRAIN, "metainfo.classes", "dataset.classes") + " data.train.classes": sets(_classes),
    of(TRAIN, "oversample_thr"): take("data.repeat_threshold"),
    of(TRAIN, "times"): no_effect("counted in epochs"),
    "train_dataloader.num_workers data.workers_per_gpu": take("data.workers", from_default=False),
    of((*TRAIN, *VAL), "datasets.*"): only(instead="several datasets in one: merge them first"),
    of(TRAIN, "dataset.type") + " data.train.type": sets(_format),
    of(TRAIN, "backend_args", "test_mode", "seg_prefix") + " train_dataloader.collate_fn.type": no_effect(),
    "train_dataloader.persistent_workers train_dataloader.pin_memory train_dataloader.sampler.shuffle": no_effect(),
    "train_dataloader.drop_last": no_effect("batches are always full"),
    "val_dataloader.* test_dataloader.* data.val.* data.test.*": no_effect(),
    "val_evaluator.* test_evaluator.* evaluation.*": no_effect("COCO's measures"),
    # the rest
    "load_from": sets(lambda v, _: shared.weights(v, "model.weights") if v else {}),
    "work_dir": take("output", from_default=False),
    "randomness.seed": sets(lambda v, _: {} if v is None else {"seed": v}, from_default=False),
    "train_cfg.type val_cfg.* test_cfg.* runner.type default_hooks.* checkpoint_config.* log_config.*": no_effect(),
    "env_cfg.* log_processor.* log_level visualizer.* default_scope randomness.* resume resume_from launcher": no_effect(),
    "workflow workflow.* dist_params.* optimizer_config.* custom_imports.* custom_hooks total_epochs": no_effect(),
}
