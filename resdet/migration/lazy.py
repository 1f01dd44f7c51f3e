"""detectron2's LazyConfigs, as far as their literal values go: their keys by the names that its YAML has for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from resdet.migration.detectron2 import migrate
from resdet.migration.detectron2_defaults import DEFAULTS
from resdet.migration.expressions import Unknown
from resdet.migration.keys import Kind, Leaves, Row, leaves
from resdet.migration.python_config import PythonConfig
from resdet.migration.report import Migration

Convert = Callable[[Any, Leaves], Any]
BODY, RPN, ROI = "model.backbone.bottom_up.", "model.proposal_generator.", "model.roi_heads."
SEMANTIC = "model.sem_seg_head."
TRAIN, TEST = "dataloader.train.", "dataloader.test."
RESIZE = "mapper.augmentations.ResizeShortestEdge."


def _length(value: Any, _: Leaves) -> int:
    return len(value)


def _part(index: int) -> Convert:
    return lambda value, _: value[index]


def _norm(value: Any, _: Leaves) -> Any:
    """The new baselines have a function there, which makes detectron2's own synchronised batch norm."""
    return "SyncBN" if isinstance(value, Unknown) and "NaiveSyncBatchNorm" in value.text else value


def _fpn(value: Any, all_: Leaves) -> Any:
    body = all_.get(f"{BODY}_target_")
    return "build_resnet_fpn_backbone" if (value, body) == ("FPN", "ResNet") else f"{value} of {body}"


def _warmup(value: float, all_: Leaves) -> int:
    return round(value * float(all_["train.max_iter"]))


def _milestones(value: Any, all_: Leaves) -> list[int]:
    """In iterations of a schedule whose length is its last milestone, or num_updates."""
    length = all_.get("lr_multiplier.scheduler.num_updates")
    steps, end = (list(value), length) if isinstance(length, int) else (list(value[:-1]), value[-1])
    return [round(step * all_["train.max_iter"] / end) for step in steps]


# Keys of a LazyConfig -> those of the YAML, with what becomes of their values.
NAMES: Mapping[str, tuple[tuple[str, Convert | None], ...]] = {
    "model._target_": (("MODEL.META_ARCHITECTURE", None),),
    "model.backbone._target_": (("MODEL.BACKBONE.NAME", _fpn),),
    f"{BODY}freeze_at": (("MODEL.BACKBONE.FREEZE_AT", None),),
    f"{BODY}out_features": (("MODEL.RESNETS.OUT_FEATURES", None),),
    f"{BODY}stages.depth": (("MODEL.RESNETS.DEPTH", None),),
    f"{BODY}stages.stride_in_1x1": (("MODEL.RESNETS.STRIDE_IN_1X1", None),),
    f"{BODY}stages.norm": (("MODEL.RESNETS.NORM", None),),
    f"{BODY}stages.num_groups": (("MODEL.RESNETS.NUM_GROUPS", None),),
    "model.backbone.out_channels": (("MODEL.FPN.OUT_CHANNELS", None),),
    "model.backbone.norm": (("MODEL.FPN.NORM", None),),
    f"{RPN}_target_": (("MODEL.PROPOSAL_GENERATOR.NAME", None),),
    f"{RPN}in_features": (("MODEL.RPN.IN_FEATURES", None),),
    f"{RPN}head._target_": (("MODEL.RPN.HEAD_NAME", None),),
    f"{RPN}head.conv_dims": (("MODEL.RPN.CONV_DIMS", None),),
    f"{RPN}anchor_generator._target_": (("MODEL.ANCHOR_GENERATOR.NAME", None),),
    f"{RPN}anchor_generator.sizes": (("MODEL.ANCHOR_GENERATOR.SIZES", None),),
    f"{RPN}anchor_generator.aspect_ratios": (("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", lambda v, _: [v]),),
    f"{RPN}anchor_generator.offset": (("MODEL.ANCHOR_GENERATOR.OFFSET", None),),
    f"{RPN}anchor_matcher.thresholds": (("MODEL.RPN.IOU_THRESHOLDS", None),),
    f"{RPN}anchor_matcher.labels": (("MODEL.RPN.IOU_LABELS", None),),
    f"{RPN}box2box_transform.weights": (("MODEL.RPN.BBOX_REG_WEIGHTS", None),),
    f"{RPN}batch_size_per_image": (("MODEL.RPN.BATCH_SIZE_PER_IMAGE", None),),
    f"{RPN}positive_fraction": (("MODEL.RPN.POSITIVE_FRACTION", None),),
    f"{RPN}pre_nms_topk": (("MODEL.RPN.PRE_NMS_TOPK_TRAIN", _part(0)), ("MODEL.RPN.PRE_NMS_TOPK_TEST", _part(1))),
    f"{RPN}post_nms_topk": (("MODEL.RPN.POST_NMS_TOPK_TRAIN", _part(0)), ("MODEL.RPN.POST_NMS_TOPK_TEST", _part(1))),
    f"{RPN}nms_thresh": (("MODEL.RPN.NMS_THRESH", None),),
    f"{ROI}_target_": (("MODEL.ROI_HEADS.NAME", None),),
    f"{ROI}num_classes": (("MODEL.ROI_HEADS.NUM_CLASSES", None),),
    f"{ROI}batch_size_per_image": (("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", None),),
    f"{ROI}positive_fraction": (("MODEL.ROI_HEADS.POSITIVE_FRACTION", None),),
    f"{ROI}proposal_matcher.thresholds": (("MODEL.ROI_HEADS.IOU_THRESHOLDS", None),),
    f"{ROI}proposal_matcher.labels": (("MODEL.ROI_HEADS.IOU_LABELS", None),),
    f"{ROI}box_in_features": (("MODEL.ROI_HEADS.IN_FEATURES", None),),
    f"{ROI}box_pooler.output_size": (("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", None),),
    f"{ROI}box_pooler.sampling_ratio": (("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", None),),
    f"{ROI}box_pooler.pooler_type": (("MODEL.ROI_BOX_HEAD.POOLER_TYPE", None),),
    f"{ROI}box_head._target_": (("MODEL.ROI_BOX_HEAD.NAME", None),),
    f"{ROI}box_head.conv_dims": (("MODEL.ROI_BOX_HEAD.NUM_CONV", _length),),
    f"{ROI}box_head.fc_dims": (("MODEL.ROI_BOX_HEAD.NUM_FC", _length), ("MODEL.ROI_BOX_HEAD.FC_DIM", _part(0))),
    f"{ROI}box_head.conv_norm": (("MODEL.ROI_BOX_HEAD.NORM", _norm),),
    f"{ROI}box_predictor.test_score_thresh": (("MODEL.ROI_HEADS.SCORE_THRESH_TEST", None),),
    f"{ROI}box_predictor.test_nms_thresh": (("MODEL.ROI_HEADS.NMS_THRESH_TEST", None),),
    f"{ROI}box_predictor.test_topk_per_image": (("TEST.DETECTIONS_PER_IMAGE", None),),
    f"{ROI}box_predictor.box2box_transform.weights": (("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", None),),
    f"{ROI}box_predictor.cls_agnostic_bbox_reg": (("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", None),),
    f"{ROI}box_predictor.smooth_l1_beta": (("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", None),),
    f"{ROI}mask_pooler.output_size": (("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", None),),
    f"{ROI}mask_pooler.sampling_ratio": (("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", None),),
    f"{ROI}mask_pooler.pooler_type": (("MODEL.ROI_MASK_HEAD.POOLER_TYPE", None),),
    f"{ROI}mask_head._target_": (("MODEL.ROI_MASK_HEAD.NAME", None), ("MODEL.MASK_ON", lambda *_: True)),
    f"{ROI}mask_head.conv_dims": (  # the last one is the deconvolution
        ("MODEL.ROI_MASK_HEAD.NUM_CONV", lambda v, _: len(v) - 1), ("MODEL.ROI_MASK_HEAD.CONV_DIM", _part(0)),
    ),
    f"{ROI}mask_head.conv_norm": (("MODEL.ROI_MASK_HEAD.NORM", _norm),),
    f"{ROI}keypoint_head._target_": (("MODEL.ROI_KEYPOINT_HEAD.NAME", None), ("MODEL.KEYPOINT_ON", lambda *_: True)),
    f"{ROI}keypoint_head.num_keypoints": (("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", None),),
    f"{ROI}keypoint_head.conv_dims": (("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", None),),
    f"{ROI}keypoint_head.loss_normalizer": (
        ("MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS", lambda v, _: v == "visible"),
    ),
    f"{ROI}keypoint_pooler.output_size": (("MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION", None),),
    f"{ROI}keypoint_pooler.sampling_ratio": (("MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO", None),),
    f"{ROI}keypoint_pooler.pooler_type": (("MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", None),),
    f"{SEMANTIC}_target_": (("MODEL.SEM_SEG_HEAD.NAME", None),),
    f"{SEMANTIC}num_classes": (("MODEL.SEM_SEG_HEAD.NUM_CLASSES", None),),
    f"{SEMANTIC}conv_dims": (("MODEL.SEM_SEG_HEAD.CONVS_DIM", None),),
    f"{SEMANTIC}common_stride": (("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", None),),
    f"{SEMANTIC}norm": (("MODEL.SEM_SEG_HEAD.NORM", _norm),),
    f"{SEMANTIC}loss_weight": (("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", None),),
    f"{SEMANTIC}ignore_value": (("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", None),),
    "model.instance_loss_weight": (("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", None),),
    "model.combine_overlap_thresh": (("MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH", None),),
    "model.combine_stuff_area_thresh": (("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", None),),
    "model.combine_instances_score_thresh": (("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", None),),
    "model.pixel_mean": (("MODEL.PIXEL_MEAN", None),),
    "model.pixel_std": (("MODEL.PIXEL_STD", None),),
    "model.input_format": (("INPUT.FORMAT", None),),
    f"{TRAIN}{RESIZE}short_edge_length": (("INPUT.MIN_SIZE_TRAIN", None),),
    f"{TRAIN}{RESIZE}sample_style": (("INPUT.MIN_SIZE_TRAIN_SAMPLING", None),),
    f"{TRAIN}{RESIZE}max_size": (("INPUT.MAX_SIZE_TRAIN", None),),
    f"{TRAIN}mapper.augmentations.RandomFlip.horizontal": (
        ("INPUT.RANDOM_FLIP", lambda v, _: "horizontal" if v else "vertical"),
    ),
    f"{TRAIN}total_batch_size": (("SOLVER.IMS_PER_BATCH", None),),
    f"{TRAIN}num_workers": (("DATALOADER.NUM_WORKERS", None),),
    f"{TRAIN}dataset.filter_empty": (("DATALOADER.FILTER_EMPTY_ANNOTATIONS", None),),
    f"{TRAIN}dataset.names": (("DATASETS.TRAIN", None),),
    f"{TEST}dataset.names": (("DATASETS.TEST", None),),
    f"{TEST}{RESIZE}short_edge_length": (("INPUT.MIN_SIZE_TEST", None),),
    f"{TEST}{RESIZE}max_size": (("INPUT.MAX_SIZE_TEST", None),),
    "optimizer.lr": (("SOLVER.BASE_LR", None),),
    "optimizer.momentum": (("SOLVER.MOMENTUM", None),),
    "optimizer.weight_decay": (("SOLVER.WEIGHT_DECAY", None),),
    "optimizer.params.weight_decay_norm": (("SOLVER.WEIGHT_DECAY_NORM", None),),
    "lr_multiplier.scheduler.milestones": (("SOLVER.STEPS", _milestones),),
    "lr_multiplier.warmup_length": (("SOLVER.WARMUP_ITERS", _warmup),),
    "lr_multiplier.warmup_factor": (("SOLVER.WARMUP_FACTOR", None),),
    "lr_multiplier.warmup_method": (("SOLVER.WARMUP_METHOD", None),),
    "train.init_checkpoint": (("MODEL.WEIGHTS", None),),
    "train.max_iter": (("SOLVER.MAX_ITER", None),),
    "train.amp.enabled": (("SOLVER.AMP.ENABLED", None),),
    "train.eval_period": (("TEST.EVAL_PERIOD", None),),
    "train.checkpointer.period": (("SOLVER.CHECKPOINT_PERIOD", None),),
    "train.output_dir": (("OUTPUT_DIR", None),),
    "train.device": (("MODEL.DEVICE", None),),
}  # fmt: skip
NO_EFFECT = (
    "*._target_", "*input_shape*", "*.in_channels", "*.num_anchors", "*.strides", "*.scales", f"{BODY}stem.*",
    "*num_classes", "*mask_in_features", "*keypoint_in_features",
    "*in_features", "*allow_low_quality_matches", "dataloader.evaluator*",
    "train.ddp*", "train.log_period", "train.checkpointer*", "train.cudnn_benchmark", "*use_instance_mask", "*is_train",
    f"{TEST}*", "*image_format", "lr_multiplier.scheduler.values", "lr_multiplier.scheduler.num_updates",
    "constants.*", "*aspect_ratio_grouping", "*sample_style",
)  # fmt: skip
# What a LazyConfig means where it is silent; the rest is as in the YAML.
SILENT = {
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "INPUT.RANDOM_FLIP": "none",
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
}


def is_lazy(config: PythonConfig) -> bool:
    model = config.values.get("model")
    return isinstance(model, dict) and "_target_" in model


def migrate_lazy(config: PythonConfig, origin: str) -> Migration:
    """Raises `UserError`."""
    values = {
        k: v for k, v in config.values.items() if k in ("model", "dataloader", "train", "optimizer", "lr_multiplier")
    }
    if schedule := _schedule(values.get("lr_multiplier")):
        values["lr_multiplier"] = schedule
    all_ = leaves(values, origin)
    given: dict[str, Any] = {}
    names: dict[str, str] = {}
    rows: list[Row] = []
    for key, value in all_.items():
        if key not in NAMES:
            without = any(fnmatchcase(key, pattern) for pattern in NO_EFFECT)
            rows.append(Row(_kind(key, without), key, value, {}, "" if without else "has no counterpart"))
            continue
        for name, convert in NAMES[key]:
            try:
                given[name] = value if convert is None else convert(value, all_)
            except (TypeError, ValueError, LookupError, ArithmeticError):
                given[name] = Unknown(repr(value))
            names[name] = key
    found = migrate(given, {**DEFAULTS, **SILENT}, origin, names)
    rows = [row._replace(value=all_.get(row.key, row.value)) for row in found.rows] + rows
    rows += [Row(Kind.WARNING, text, "", {}, "a statement that is not run") for text in config.skipped]
    return found._replace(rows=rows)


def _kind(key: str, without: bool) -> Kind:
    changes = key.startswith(("model.", f"{TRAIN}mapper.augmentations", "optimizer"))
    return Kind.SAME if without else Kind.WARNING if changes else Kind.UNKNOWN


def _schedule(value: Any) -> dict[str, Any]:
    """detectron2's own schedules by their names: N times 90 000 iterations, steps 60 000 and 20 000 before the end."""
    times = re.fullmatch(r"default_X_scheduler\((\d+)\)", value.text) if isinstance(value, Unknown) else None
    if not times:
        return {}
    total = int(times[1]) * 90_000
    milestones = [60_000, 80_000, 90_000] if int(times[1]) <= 2 else [total - 60_000, total - 20_000, total]
    return {
        "scheduler": {"milestones": milestones},
        "warmup_length": 1000 / total, "warmup_factor": 0.001, "warmup_method": "linear",
    }  # fmt: skip
