"""mmdetection's keys of an R-CNN -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resdet.migration import shared
from resdet.migration.keys import Leaves, NotBuilt, NotTaken, Rule, builds, find, no_effect, only, sets, take
from resdet.migration.mmdetection_backbone import BACKBONE, norm, standardized
from resdet.migration.mmdetection_data import TRAIN, of

HEAD, MASK, RPN = "model.roi_head.bbox_head.", "model.roi_head.mask_head.", "model.rpn_head."
RCNN_TRAIN, RPN_TRAIN = "*train_cfg.rcnn.", "*train_cfg.rpn."


# ---- what the values mean --------------------------------------------------------------------------------------------


def has_heads(all_: Leaves) -> bool:
    return all_.get("model.type") != "RPN"


def _cascade(all_: Leaves) -> bool:
    return all_.get("model.type") == "CascadeRCNN"


def _detector(value: Any, all_: Leaves) -> dict[str, Any]:
    """The sections that a detector has, and those that it has not."""
    masks = {
        "FasterRCNN": False,
        "MaskRCNN": True,
        "CascadeRCNN": f"{MASK}type" in all_,
        "RPN": False,
        "PanopticFPN": True,
    }
    known = {**masks, **dict.fromkeys(("RetinaNet", "FCOS", "ATSS", "GFL", "YOLOF"))}  # with keys of their own
    found: dict[str, Any] = {"model.mask": {} if shared.choice(value, known, 0) else None}
    if value == "PanopticFPN":
        found |= {"model.semantic": {}}
    if _cascade(all_):
        found |= {
            "model.cascade.resample": True,
            "model.cascade.scale_gradients": False,
            "model.cascade.average": "logits",
        }
        found |= {"model.cascade.mask_heads": "each"} if found["model.mask"] is not None else {}
    return found if has_heads(all_) else {**found, "model.box": None}


def _roi_head(value: Any, all_: Leaves) -> dict[str, Any]:
    wanted = "CascadeRoIHead" if _cascade(all_) else "StandardRoIHead" if has_heads(all_) else None
    return dict(shared.choice(value, {wanted: {}}, 1))


def _class_agnostic(value: Any, all_: Leaves) -> dict[str, Any]:
    if not _cascade(all_):
        return {"model.box.class_agnostic": value}
    if not value:
        raise NotBuilt("resdet's cascades have one box for all classes")
    return {}


def _nms_threshold(value: Any, all_: Leaves) -> dict[str, Any]:
    """Of prediction, as in training; the RPN alone proposes in prediction only."""
    if not has_heads(all_):
        return {"model.rpn.nms_threshold": value}
    return shared.equal(value, find(all_, "*train_cfg.rpn_proposal.nms*thr*"), "as in training")


def _sizes(_: Any, all_: Leaves) -> list[float]:
    scales, strides = all_[f"{RPN}anchor_generator.scales"], all_[f"{RPN}anchor_generator.strides"]
    scale = shared.single(scales, "one anchor size per level", 2)
    if list(strides) != [4, 8, 16, 32, 64]:
        raise NotBuilt("resdet's anchors have strides 4, 8, 16, 32, 64", 2)
    return [scale * stride for stride in strides]


def _beta(prefix: str) -> Any:
    """Smooth L1's beta, 1 where it is not given; L1 has none."""

    def convert(_: Any, all_: Leaves) -> float:
        kind = all_.get(f"{prefix}loss_bbox.type")
        if kind not in ("L1Loss", "SmoothL1Loss"):
            raise NotTaken("box regression uses L1 or smooth L1")
        return float(all_.get(f"{prefix}loss_bbox.beta", 1.0)) if kind == "SmoothL1Loss" else 0.0

    return convert


def _trunk(value: Any, _: Leaves) -> str:
    known = {"Shared2FCBBoxHead": "2fc", "Shared4Conv1FCBBoxHead": "4conv1fc"}
    if value not in known:
        raise NotBuilt(f"resdet supports {' or '.join(known)}")
    return known[value]


def _suppression(value: Any, all_: Leaves) -> dict[str, Any]:
    nms = {k.rpartition(".")[2]: v for k, v in all_.items() if "test_cfg.rcnn.nms." in k}
    if value == "soft_nms":
        if nms.get("method") != "gaussian":
            raise NotTaken("Soft-NMS is Gaussian: model.box.soft_sigma")
        return {"model.box.soft_sigma": nms.get("sigma", 0.5)}
    if value != "nms":
        raise NotTaken("boxes are suppressed by NMS or Gaussian Soft-NMS")
    return {}


MODEL: Mapping[str, Rule] = {
    # architecture
    "model.type": sets(_detector),
    **BACKBONE,
    "*norm_cfg.requires_grad": only(True),
    "*norm_cfg.num_groups": builds(32),
    "model.neck.conv_cfg.type": standardized("model.fpn"),
    f"{HEAD}conv_cfg.type": standardized("model.box"),
    f"{MASK}conv_cfg.type": standardized("model.mask"),
    "*init_cfg.* *with_cp *.debug *pretrained": no_effect(),
    "model.neck.type": sets(lambda v, _: shared.choice(v, {"FPN": {}}, 1)),
    "model.neck.out_channels": take("model.fpn.channels"),
    "model.neck.num_outs": builds(5, level=2),
    "model.neck.norm_cfg.type": norm("model.fpn.norm"),
    "model.neck.start_level": builds(0, level=2),
    "model.neck.end_level": builds(-1, level=2),
    "model.neck.add_extra_convs": builds(False, level=2),
    "model.neck.upsample_cfg.mode": builds("nearest", level=2),
    "*conv_cfg.type *conv_cfg *act_cfg.type": builds(None),
    "*in_channels *feat_channels *roi_feat_size *featmap_strides *roi_extractor.out_channels *norm_cfg": no_effect(
        "follows from the rest"
    ),
    # input
    "*data_preprocessor.type": no_effect(),
    f"*data_preprocessor.mean {of(TRAIN, 'pipeline.Normalize.mean')}": take("model.input.mean"),
    f"*data_preprocessor.std {of(TRAIN, 'pipeline.Normalize.std')}": take("model.input.std"),
    f"*data_preprocessor.bgr_to_rgb {of(TRAIN, 'pipeline.Normalize.to_rgb')}": take(
        "model.input.bgr", lambda v, _: not v
    ),
    "*data_preprocessor.rgb_to_bgr": only(False),
    "*data_preprocessor.pad_size_divisor *Pad.size_divisor": only(
        1, 32, instead="data.pad_multiple is a multiple of 32"
    ),
    "*data_preprocessor.pad_mask": no_effect(),
    # anchors and proposals
    f"{RPN}type": builds("RPNHead"),
    f"{RPN}num_convs": take("model.rpn.num_convs"),
    f"{RPN}anchor_generator.type": builds("AnchorGenerator"),
    f"{RPN}anchor_generator.scales {RPN}anchor_generator.strides": take("model.anchors.sizes", _sizes),
    f"{RPN}anchor_generator.ratios": take("model.anchors.ratios"),
    f"{RPN}anchor_generator.center_offset": take("model.anchors.offset"),
    "*bbox_coder.type": builds("DeltaXYWHBBoxCoder"),
    "*bbox_coder.target_means": only([0.0, 0.0, 0.0, 0.0]),
    "*bbox_coder.clip_border": only(True),
    f"{RPN}bbox_coder.target_stds": only([1.0, 1.0, 1.0, 1.0]),
    f"{RPN}loss_bbox.type {RPN}loss_bbox.beta": take("model.rpn.loss_beta", _beta(RPN)),
    "*loss_cls.type *loss_mask.type": only("CrossEntropyLoss"),
    f"{RPN}loss_cls.use_sigmoid *loss_mask.use_mask": only(True),
    "*loss_cls.loss_weight *loss_bbox.loss_weight *loss_mask.loss_weight": only(1.0),
    f"{RPN_TRAIN}assigner.pos_iou_thr": take("model.rpn.high"),
    f"{RPN_TRAIN}assigner.neg_iou_thr": take("model.rpn.low"),
    f"{RPN_TRAIN}assigner.min_pos_iou": only(
        0, instead="an object's best anchors are positive whatever their IoU, in mmdetection from this IoU on"
    ),
    f"{RPN_TRAIN}assigner.match_low_quality": only(True),
    f"{RPN_TRAIN}sampler.num": take("model.rpn.samples"),
    f"{RPN_TRAIN}sampler.pos_fraction": take("model.rpn.positive_fraction"),
    f"{RPN_TRAIN}sampler.add_gt_as_proposals": only(False),
    f"{RPN_TRAIN}allowed_border": only(-1, instead="anchors that cross the image border are trained, too"),
    "*train_cfg.rpn_proposal.nms_pre": take("model.rpn.pre_nms_train"),
    "*train_cfg.rpn_proposal.max_per_img *train_cfg.rpn_proposal.max_num": take("model.rpn.post_nms_train"),
    "*train_cfg.rpn_proposal.nms.iou_threshold *train_cfg.rpn_proposal.nms_thr": take("model.rpn.nms_threshold"),
    "*test_cfg.rpn.nms_pre": take("model.rpn.pre_nms_predict"),
    "*test_cfg.rpn.max_per_img *test_cfg.rpn.max_num": take("model.rpn.post_nms_predict"),
    "*test_cfg.rpn.nms.iou_threshold *test_cfg.rpn.nms_thr": sets(_nms_threshold),
    "*rpn*.nms.type": only("nms"),
    "*rpn*.min_bbox_size": take("model.rpn.min_size"),
    "*rpn*.nms_post *rpn*.nms_across_levels": no_effect("suppression is by level"),
    # boxes
    "model.roi_head.type": sets(_roi_head),
    "*roi_extractor.type": builds("SingleRoIExtractor"),
    "*roi_layer.type": builds("RoIAlign"),
    "model.roi_head.bbox_roi_extractor.roi_layer.output_size": builds(7, level=2),
    "model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": take("model.pool.sampling_ratio"),
    "model.roi_head.bbox_roi_extractor.roi_layer.aligned": take("model.pool.aligned"),
    "*roi_extractor.finest_scale": builds(56),
    f"{HEAD}type": take("model.box.trunk", _trunk),
    f"{HEAD}num_classes": take("model.num_classes"),
    f"{HEAD}fc_out_channels": take("model.box.width"),
    f"{HEAD}conv_out_channels": builds(256),
    f"{HEAD}norm_cfg.type": norm("model.box.norm"),
    f"{HEAD}bbox_coder.target_stds": take("model.box.delta_weights", lambda v, _: [round(1 / s, 6) for s in v]),
    f"{HEAD}reg_class_agnostic": sets(_class_agnostic),
    f"{HEAD}?.bbox_coder.target_stds": take(
        "model.cascade.delta_weights", lambda v, _: [[1 / s for s in one] for one in v]
    ),
    f"{RCNN_TRAIN}?.assigner.pos_iou_thr": take("model.cascade.ious"),
    "model.roi_head.stage_loss_weights": take("model.cascade.loss_weights"),
    "model.roi_head.num_stages": no_effect("as many as there are heads"),
    f"{HEAD}reg_decoded_bbox {HEAD}loss_cls.use_sigmoid": only(False),
    f"{HEAD}loss_cls.class_weight": take("model.box.class_weights"),
    f"{HEAD}loss_bbox.type {HEAD}loss_bbox.beta": take("model.box.loss_beta", _beta(HEAD)),
    f"{RCNN_TRAIN}assigner.pos_iou_thr": take("model.box.iou_threshold"),
    f"{RCNN_TRAIN}assigner.neg_iou_thr {RCNN_TRAIN}assigner.min_pos_iou": sets(
        lambda v, all_: shared.equal(v, find(all_, f"{RCNN_TRAIN}assigner.pos_iou_thr"), "model.box.iou_threshold")
    ),
    f"{RCNN_TRAIN}assigner.match_low_quality": take("model.box.low_quality"),
    f"{RCNN_TRAIN}sampler.num": take("model.box.samples"),
    f"{RCNN_TRAIN}sampler.pos_fraction": take("model.box.positive_fraction"),
    f"{RCNN_TRAIN}sampler.add_gt_as_proposals": only(True),
    "*batch_sampler.type": only("AspectRatioBatchSampler"),
    "*sampler.type": only("RandomSampler", "DefaultSampler", "InfiniteSampler"),
    "*assigner.type": only("MaxIoUAssigner"),
    "*assigner.ignore_iof_thr *sampler.neg_pos_ub *pos_weight": only(-1),
    "*test_cfg.rcnn.score_thr": take("model.box.score_threshold"),
    "*test_cfg.rcnn.nms.type": sets(_suppression),
    "*test_cfg.rcnn.nms.sigma *test_cfg.rcnn.nms.method *test_cfg.rcnn.nms.min_score": no_effect(
        "stands under nms.type"
    ),
    "*test_cfg.rcnn.nms.iou_threshold *test_cfg.rcnn.nms.iou_thr": take("model.box.nms_threshold"),
    "*test_cfg.rcnn.max_per_img": take("model.box.max_detections"),
    # masks
    f"{MASK}type": builds("FCNMaskHead"),
    f"{MASK}num_convs": take("model.mask.num_convs"),
    f"{MASK}conv_out_channels": take("model.mask.width"),
    f"{MASK}norm_cfg.type": norm("model.mask.norm"),
    f"{MASK}num_classes": sets(
        lambda v, all_: shared.equal(v, all_.get(f"{HEAD}num_classes"), "as many as the boxes'")
    ),
    f"{MASK}class_agnostic": take("model.mask.class_agnostic"),
    "model.roi_head.mask_roi_extractor.roi_layer.output_size": take("model.mask.pool_size"),
    "model.roi_head.mask_roi_extractor.roi_layer.sampling_ratio": sets(
        lambda v, all_: shared.equal(
            v, all_.get("model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio"), "model.pool"
        )
    ),
    f"{RCNN_TRAIN}mask_size": only(28),
    "*test_cfg.rcnn.mask_thr_binary": only(0.5),
}
