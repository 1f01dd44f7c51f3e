"""detectron2's keys, one by one -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resdet.migration import detectron2_values as values
from resdet.migration import shared
from resdet.migration.keys import Leaves, Rule, builds, no_effect, only, sets, take, where

NORMS = {"FrozenBN": "frozen_bn", "BN": "bn", "SyncBN": "sync_bn", "naiveSyncBN": "sync_bn", "GN": "gn", "": "none"}
LEVELS = ["p2", "p3", "p4", "p5"]
STAGES = ["res2", "res3", "res4", "res5"]


def _maps(rule: Rule) -> Rule:
    """`rule` with an FPN; without one, the map that the RPN looks at."""

    def convert(value: Any, all_: Leaves) -> tuple[dict[str, Any], str]:
        return (
            rule.convert(value, all_)
            if values.fpn(all_)
            else builds(all_["MODEL.RPN.IN_FEATURES"]).convert(value, all_)
        )

    return Rule(convert)


_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "GeneralizedRCNN": {},
    "ProposalNetwork": {"model.box": None},
    "PanopticFPN": {"model.semantic": {}},
    **{name: {} for name in ("RetinaNet", "SemanticSegmentor")},  # with tables of their own
}
_OTHERS = "belongs to another architecture"
_NO_MASK = "without masks"


def _heads(rule: Rule) -> Rule:
    return where(values.has_heads, rule, "without heads")


def _mask(rule: Rule) -> Rule:
    return where(values.mask_on, rule, _NO_MASK)


def _keypoint(rule: Rule) -> Rule:
    return where(lambda all_: all_["MODEL.KEYPOINT_ON"] is True and values.has_heads(all_), rule, "without keypoints")


def _of_fpn(rule: Rule) -> Rule:
    return where(values.fpn, rule, "without an FPN")


def _one_head(rule: Rule) -> Rule:
    return where(lambda all_: not values.cascade(all_), rule, "each stage of the cascade has its own")


def _own_trunk(rule: Rule) -> Rule:
    return where(lambda all_: not values.res5(all_), rule, "res5 is the head")


def _of_cascade(rule: Rule) -> Rule:
    return where(values.cascade, rule, _OTHERS)


def _convolutional(rule: Rule) -> Rule:
    return _mask(where(lambda all_: not values.point_rend(all_), rule, "of another mask head"))


def _points(rule: Rule) -> Rule:
    return _mask(where(values.point_rend, rule, "without PointRend"))


_POOLED = sets(
    lambda v, all_: shared.as_the_boxes(v, [all_[f"MODEL.ROI_BOX_HEAD.POOLER_{k}"] for k in ("SAMPLING_RATIO", "TYPE")])
)


def known_norm(value: Any) -> str:
    return shared.known_norm(NORMS.get(value), value)


def _norm(ours: str) -> Rule:
    return take(ours, lambda v, _: known_norm(v))


_RULES: dict[str, Rule] = {
    # architecture
    "MODEL.META_ARCHITECTURE": sets(lambda v, _: dict(shared.choice(v, _ARCHITECTURES, 0))),
    "MODEL.BACKBONE.NAME": take("model.neck", values.neck),
    "MODEL.PROPOSAL_GENERATOR.NAME": builds("RPN"),
    "MODEL.ROI_HEADS.NAME": sets(values.roi_heads),
    "MODEL.RPN.HEAD_NAME": builds("StandardRPNHead"),
    "MODEL.ANCHOR_GENERATOR.NAME": builds("DefaultAnchorGenerator"),
    "MODEL.ROI_BOX_HEAD.NAME": _own_trunk(builds("FastRCNNConvFCHead", level=2)),
    "MODEL.LOAD_PROPOSALS": builds(False),
    "MODEL.KEYPOINT_ON": take("model.keypoint", lambda v, all_: {} if v and values.has_heads(all_) else None),
    "MODEL.MASK_ON": take("model.mask", lambda _, all_: {} if values.mask_on(all_) else None),
    "MODEL.DEVICE": take("device", lambda v, _: "auto" if v == "cuda" else v),
    "MODEL.WEIGHTS": sets(values.weights),
    # input
    "MODEL.PIXEL_MEAN": take("model.input.mean"),
    "MODEL.PIXEL_STD": take("model.input.std"),
    "INPUT.FORMAT": take("model.input.bgr", lambda v, _: {"BGR": True, "RGB": False}[v]),
    "INPUT.MIN_SIZE_TRAIN INPUT.MIN_SIZE_TRAIN_SAMPLING": take(
        "data.min_size", lambda _, all_: shared.sizes(values.train_sizes(all_), all_["INPUT.MIN_SIZE_TEST"])
    ),
    "INPUT.MIN_SIZE_TEST": sets(lambda v, all_: shared.test_size(values.train_sizes(all_), v)),
    "INPUT.MAX_SIZE_TRAIN": take("data.max_size"),
    "INPUT.MAX_SIZE_TEST": sets(lambda v, all_: shared.longest_test_side(v, all_["INPUT.MAX_SIZE_TRAIN"])),
    "INPUT.RANDOM_FLIP": sets(values.flip),
    "INPUT.CROP.ENABLED": only(False, instead="a crop can be one of data.train.augmentations (RandomCrop)"),
    "INPUT.CROP.*": no_effect("belongs to INPUT.CROP.ENABLED"),
    "INPUT.MASK_FORMAT": no_effect("polygons and RLE are both read"),
    # backbone
    "MODEL.BACKBONE.FREEZE_AT": take("model.backbone.frozen_stages"),
    "MODEL.RESNETS.DEPTH MODEL.RESNETS.NUM_GROUPS MODEL.RESNETS.WIDTH_PER_GROUP": take(
        "model.backbone.name", values.backbone
    ),
    "MODEL.RESNETS.OUT_FEATURES": _maps(builds(STAGES, level=2)),
    "MODEL.FPN.IN_FEATURES": _of_fpn(builds(STAGES, level=2)),
    "MODEL.RESNETS.NORM": _norm("model.backbone.norm"),
    "MODEL.RESNETS.STRIDE_IN_1X1": take("model.backbone.stride_in_1x1"),
    "MODEL.RESNETS.RES5_DILATION": take("model.backbone.c5_dilation"),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": where(
        lambda all_: all_["MODEL.RESNETS.DEPTH"] not in (18, 34), builds(256), "64 for basic blocks"
    ),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": builds(64),
    "MODEL.RESNETS.DEFORM_*": sets(values.deformable),
    "MODEL.FPN.OUT_CHANNELS": _of_fpn(take("model.fpn.channels")),
    "MODEL.FPN.NORM": _of_fpn(_norm("model.fpn.norm")),
    "MODEL.FPN.FUSE_TYPE": builds("sum"),
    # anchors and proposals
    "MODEL.ANCHOR_GENERATOR.SIZES": take("model.anchors.sizes", values.anchor_sizes),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": take("model.anchors.ratios", values.ratios),
    "MODEL.ANCHOR_GENERATOR.OFFSET": take("model.anchors.offset"),
    "MODEL.ANCHOR_GENERATOR.ANGLES": no_effect("boxes are upright"),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": take("model.rpn.min_size"),
    "MODEL.RPN.IN_FEATURES": _maps(builds([*LEVELS, "p6"], level=2)),
    "MODEL.RPN.CONV_DIMS": take("model.rpn.num_convs", lambda v, _: shared.same_width(v, (-1, 256))),
    "MODEL.RPN.BOUNDARY_THRESH": only(-1),
    "MODEL.RPN.IOU_THRESHOLDS": sets(lambda v, _: {"model.rpn.low": v[0], "model.rpn.high": v[1]}),
    "MODEL.RPN.IOU_LABELS": only([0, -1, 1]),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": take("model.rpn.samples"),
    "MODEL.RPN.POSITIVE_FRACTION": take("model.rpn.positive_fraction"),
    "MODEL.R??*.BBOX_REG_LOSS_TYPE": only("smooth_l1"),
    "MODEL.R??*.BBOX_REG_LOSS_WEIGHT MODEL.RPN.LOSS_WEIGHT": only(1.0),
    "MODEL.RPN.BBOX_REG_WEIGHTS": only((1.0, 1.0, 1.0, 1.0)),
    "MODEL.RPN.SMOOTH_L1_BETA": take("model.rpn.loss_beta"),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _heads(take("model.rpn.pre_nms_train")),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": take("model.rpn.pre_nms_predict"),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _heads(take("model.rpn.post_nms_train")),
    "MODEL.RPN.POST_NMS_TOPK_TEST": take("model.rpn.post_nms_predict"),
    "MODEL.RPN.NMS_THRESH": take("model.rpn.nms_threshold"),
    # boxes
    "MODEL.ROI_HEADS.NUM_CLASSES": take("model.num_classes"),
    "MODEL.ROI_HEADS.IN_FEATURES": _maps(builds(LEVELS, level=2)),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _one_head(
        take("model.box.iou_threshold", lambda v, _: shared.single(v, "one IoU threshold of the box head"))
    ),
    "MODEL.ROI_HEADS.IOU_LABELS": only([0, 1]),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": take("model.box.samples"),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": take("model.box.positive_fraction"),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": take("model.box.score_threshold"),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": take("model.box.nms_threshold"),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": only(True),
    "MODEL.ROI_BOX_HEAD.NUM_CONV MODEL.ROI_BOX_HEAD.NUM_FC": _own_trunk(take("model.box.trunk", values.trunk)),
    "MODEL.ROI_BOX_HEAD.FC_DIM": _own_trunk(take("model.box.width")),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _own_trunk(builds(256)),
    "MODEL.ROI_BOX_HEAD.NORM": _own_trunk(_norm("model.box.norm")),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _one_head(take("model.box.delta_weights")),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": take("model.box.loss_beta"),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": Rule(
        lambda v, all_: builds(14 if values.res5(all_) else 7, level=2).convert(v, all_)
    ),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": take("model.pool.sampling_ratio"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": take(
        "model.pool.aligned", lambda v, _: {"ROIAlignV2": True, "ROIAlign": False}[v]
    ),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": _one_head(take("model.box.class_agnostic")),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES MODEL.ROI_BOX_HEAD.USE_FED_LOSS MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": only(
        False
    ),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_*": no_effect("belongs to USE_FED_LOSS"),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": _of_cascade(take("model.cascade.ious")),
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": _of_cascade(take("model.cascade.delta_weights")),
    "TEST.DETECTIONS_PER_IMAGE": take("model.box.max_detections"),
    # masks
    "MODEL.ROI_MASK_HEAD.NAME": _mask(
        Rule(
            lambda v, all_: (
                ({"model.mask.point_rend": {}}, "")
                if values.point_rend(all_)
                else builds("MaskRCNNConvUpsampleHead").convert(v, all_)
            )
        )
    ),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": _convolutional(take("model.mask.num_convs")),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _convolutional(take("model.mask.width")),
    "MODEL.ROI_MASK_HEAD.NORM": _convolutional(_norm("model.mask.norm")),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": _convolutional(take("model.mask.pool_size")),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO MODEL.ROI_MASK_HEAD.POOLER_TYPE": _mask(_POOLED),
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": _convolutional(take("model.mask.class_agnostic")),
    "MODEL.ROI_MASK_HEAD.FC_DIM": _points(take("model.mask.point_rend.width")),
    "MODEL.ROI_MASK_HEAD.NUM_FC": _points(take("model.mask.point_rend.num_fc")),
    "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION": _points(take("model.mask.point_rend.side")),
    "MODEL.ROI_MASK_HEAD.IN_FEATURES MODEL.POINT_HEAD.IN_FEATURES": _points(builds(["p2"])),
    "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER": _points(builds(True)),
    "MODEL.POINT_HEAD.NAME": _points(builds("StandardPointHead")),
    "MODEL.POINT_HEAD.NUM_CLASSES": _points(
        sets(lambda v, all_: shared.equal(v, all_["MODEL.ROI_HEADS.NUM_CLASSES"], "as many as the boxes'"))
    ),
    "MODEL.POINT_HEAD.FC_DIM": _points(take("model.mask.point_rend.point_width")),
    "MODEL.POINT_HEAD.NUM_FC": _points(take("model.mask.point_rend.point_num_fc")),
    "MODEL.POINT_HEAD.TRAIN_NUM_POINTS": _points(take("model.mask.point_rend.points")),
    "MODEL.POINT_HEAD.SUBDIVISION_STEPS": _points(take("model.mask.point_rend.steps")),
    "MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS": _points(take("model.mask.point_rend.subdivision_points")),
    "MODEL.POINT_HEAD.OVERSAMPLE_RATIO": _points(only(3)),
    "MODEL.POINT_HEAD.IMPORTANCE_SAMPLE_RATIO": _points(only(0.75)),
    "MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK": _points(builds(False)),
    "MODEL.POINT_HEAD.COARSE_SEM_SEG_HEAD_NAME": no_effect("of semantic segmentation"),
    "INPUT.COLOR_AUG_SSD": only(False, instead="color changes can be among data.train.augmentations"),
    # keypoints
    "MODEL.ROI_KEYPOINT_HEAD.NAME": _keypoint(builds("KRCNNConvDeconvUpsampleHead")),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": _keypoint(take("model.keypoint.num_keypoints")),
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": _keypoint(
        sets(lambda v, _: {"model.keypoint.num_convs": len(v), "model.keypoint.width": shared.one_width(v)})
    ),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": _keypoint(take("model.keypoint.pool_size")),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": _keypoint(_POOLED),
    "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": _keypoint(only(True)),
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": _keypoint(only(1.0)),
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": no_effect("images without objects are left out"),
    "TEST.KEYPOINT_OKS_SIGMAS": sets(lambda v, _: {"data.keypoint_sigmas": list(v)} if v else {}),
    "MODEL.RETINANET.*": no_effect(_OTHERS),
    # data
    "DATASETS.TRAIN DATASETS.TEST": sets(values.datasets),
    "DATASETS.P*": no_effect("proposals are computed"),
    "DATALOADER.NUM_WORKERS": take("data.workers", from_default=False),
    "DATALOADER.ASPECT_RATIO_GROUPING": only(True),
    "DATALOADER.SAMPLER_TRAIN": sets(values.repeats),
    "DATALOADER.REPEAT_THRESHOLD": no_effect("belongs to SAMPLER_TRAIN"),
    "DATALOADER.REPEAT_SQRT": only(True),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": take("data.negatives", lambda v, _: 0.0 if v else None),
    # schedule
    "SOLVER.LR_SCHEDULER_NAME": take(
        "train.schedule", lambda v, _: {"WarmupMultiStepLR": "multistep", "WarmupCosineLR": "cosine"}[v]
    ),
    "SOLVER.MAX_ITER": take("train.max_iters"),
    "SOLVER.STEPS": where(
        lambda all_: all_["SOLVER.LR_SCHEDULER_NAME"] == "WarmupMultiStepLR",
        take("train.milestones", lambda v, _: list(v)),
        "of another schedule",
    ),
    "SOLVER.BASE_LR": take("train.lr"),
    "SOLVER.IMS_PER_BATCH": take("train.batch_size"),
    "SOLVER.MOMENTUM": take("train.momentum"),
    "SOLVER.WEIGHT_DECAY": take("train.weight_decay"),
    "SOLVER.WARMUP_FACTOR": take("train.warmup_factor"),
    "SOLVER.WARMUP_ITERS": take("train.warmup_iters"),
    "SOLVER.WARMUP_METHOD": only("linear"),
    "SOLVER.GAMMA": only(0.1),
    "SOLVER.BASE_LR_END SOLVER.WEIGHT_DECAY_NORM": only(0.0),
    "SOLVER.NESTEROV SOLVER.RESCALE_INTERVAL": only(False),
    "SOLVER.NUM_DECAYS": no_effect("of another schedule"),
    "SOLVER.REFERENCE_WORLD_SIZE": only(
        0, instead="batch size and learning rate are not scaled: set train.batch_size, train.lr"
    ),
    "SOLVER.BIAS_LR_FACTOR": only(1.0),
    "SOLVER.WEIGHT_DECAY_BIAS": sets(lambda v, all_: shared.same_decay(v, all_["SOLVER.WEIGHT_DECAY"])),
    "SOLVER.CLIP_GRADIENTS.ENABLED": sets(values.clipping),
    "SOLVER.CLIP_GRADIENTS.*": no_effect("belongs to SOLVER.CLIP_GRADIENTS.ENABLED"),
    "SOLVER.AMP.ENABLED": take("train.amp", lambda v, _: "fp16" if v else "off"),
    "SOLVER.CHECKPOINT_PERIOD": take("train.checkpoint_every", from_default=False),
    "TEST.EVAL_PERIOD": take("train.eval_every", from_default=False),
    "TEST.AUG.ENABLED": only(False, instead="there is one prediction per image"),
    "TEST.PRECISE_BN.ENABLED": only(False, instead="the running averages of training are used"),
    "TEST.EXPECTED_RESULTS TEST.AUG.* TEST.PRECISE_BN.*": no_effect(),
    "OUTPUT_DIR": take("output", from_default=False),
    "SEED": sets(lambda v, _: {"seed": v} if v >= 0 else {}, from_default=False),
    "VERSION": only(2, instead="keys of older versions have other names; let detectron2 upgrade it first"),
    "CUDNN_BENCHMARK FLOAT32_PRECISION VIS_PERIOD GLOBAL.*": no_effect(),
}
TABLE: Mapping[str, Rule] = {
    keys: _heads(rule) if keys.startswith("MODEL.ROI_") else rule for keys, rule in _RULES.items()
}
