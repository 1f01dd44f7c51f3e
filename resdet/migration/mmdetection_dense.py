"""mmdetection's keys of RetinaNet, FCOS, ATSS, GFL and YOLOF -> ours; those of the backbone and of the input are in
`mmdetection_model.MODEL`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from resdet.migration import shared
from resdet.migration.keys import Leaves, NotBuilt, NotTaken, Rule, builds, no_effect, only, sets, take
from resdet.migration.mmdetection_backbone import known_norm

HEAD, TRAIN, TEST = "model.bbox_head.", "model.train_cfg.", "model.test_cfg."
STRIDES = [8, 16, 32, 64, 128]


class Dense(NamedTuple):
    """Our kind, their head, and its defaults by key below `HEAD`."""

    kind: str
    head: str
    defaults: dict[str, Any]


_PYRAMID: dict[str, Any] = {"model.neck.start_level": 0, "model.neck.relu_before_extra_convs": False}
_GN = {f"{HEAD}norm_cfg.type": "GN"}
_ANCHORS = {f"{HEAD}anchor_generator.center_offset": 0.0}
DENSE: Mapping[str, Dense] = {
    "RetinaNet": Dense("retinanet", "RetinaHead", {**_PYRAMID, **_ANCHORS}),
    "FCOS": Dense("fcos", "FCOSHead", {
        **_PYRAMID, **_GN, f"{HEAD}norm_on_bbox": False, f"{HEAD}centerness_on_reg": False, f"{HEAD}conv_bias": "auto",
        f"{HEAD}center_sampling": False, f"{HEAD}loss_bbox.type": "IoULoss",
        f"{TEST}nms.iou_threshold": 0.5,
    }),
    "ATSS": Dense("atss", "ATSSHead", {**_PYRAMID, **_GN, **_ANCHORS}),
    "GFL": Dense("gfl", "GFLHead", {**_PYRAMID, **_GN, **_ANCHORS}),
    "YOLOF": Dense("yolof", "YOLOFHead", {**_ANCHORS}),
}  # fmt: skip


def dense(all_: Leaves) -> Dense | None:
    """Which of these a config is of; None for another detector."""
    kind = all_.get("model.type")
    return DENSE.get(kind) if isinstance(kind, str) else None


def without_norm(given: Leaves) -> dict[str, Any]:
    """What a norm that is switched off (norm_cfg=None) says of its type."""
    return {f"{HEAD}norm_cfg.type": None} if given.get(f"{HEAD}norm_cfg", "") is None else {}


def always(kind: Dense) -> dict[str, Any]:
    """Nested values that mmdetection has no keys for."""
    found: dict[str, Any] = {"fold_norm": False}
    return {**found, "head": {"clamp_shrink": True}} if kind.kind == "retinanet" else found


def _head(value: Any, all_: Leaves) -> dict[str, Any]:
    kind = dense(all_)
    assert kind
    return dict(shared.choice(value, {kind.head: {}}, 1))


def _of_yolof(all_: Leaves) -> bool:
    return all_.get("model.type") == "YOLOF"


def _maps(value: Sequence[int], all_: Leaves) -> dict[str, Any]:
    if list(value) not in ([[3]] if _of_yolof(all_) else [[0, 1, 2, 3], [1, 2, 3]]):
        raise NotBuilt("resdet's pyramid is built on c3, c4, c5, and YOLOF on c5", 2)
    return {}


def _neck(value: Any, all_: Leaves) -> dict[str, Any]:
    return dict(shared.choice(value, {"DilatedEncoder" if _of_yolof(all_) else "FPN": {}}, 1))


def _channels(value: Any, all_: Leaves) -> dict[str, Any]:
    return {"model.encoder.channels" if _of_yolof(all_) else "model.fpn.channels": value}


def _source(_: Any, all_: Leaves) -> dict[str, Any]:
    """From which map p6 is computed, in the spelling of version 2, too."""
    value, on_input = all_.get("model.neck.add_extra_convs"), all_.get("model.neck.extra_convs_on_inputs", True)
    value = {True: "on_input" if on_input else "on_output"}.get(value, value) if isinstance(value, bool) else value
    return {"model.fpn.p6_from": shared.choice(value, {"on_input": "c5", "on_output": "p5"}, 1)}


def _relu(value: Any, all_: Leaves) -> dict[str, Any]:
    return {} if _of_yolof(all_) else {"model.fpn.relu": value}


def _sizes(_: Any, all_: Leaves) -> dict[str, Any]:
    a = f"{HEAD}anchor_generator."
    strides = all_[f"{a}strides"]
    if list(strides) != ([32] if _of_yolof(all_) else STRIDES):
        raise NotBuilt("resdet's anchors are on p3..p7, strides 8, 16, 32, 64, 128; YOLOF's on c5, stride 32", 2)
    scales = all_.get(f"{a}scales")
    if scales is None:
        octaves = all_[f"{a}scales_per_octave"]
        scales = [all_[f"{a}octave_base_scale"] * 2 ** (i / octaves) for i in range(octaves)]
    return {"model.anchors.sizes": [float(scale * stride) for stride in strides for scale in scales]}


def _box_loss(_: Any, all_: Leaves) -> dict[str, Any]:
    kind, given = all_["model.type"], all_.get(f"{HEAD}loss_bbox.type")
    if kind == "RetinaNet":
        if given in ("GIoULoss", "L1Loss", "SmoothL1Loss"):
            beta = float(all_.get(f"{HEAD}loss_bbox.beta", 1.0)) if given == "SmoothL1Loss" else 0.0
            return {"model.head.box_loss": "giou" if given == "GIoULoss" else "l1", "model.head.loss_beta": beta}
        raise NotTaken("boxes learn by L1, smooth L1 or GIoU")
    if kind == "FCOS":
        return {"model.head.box_loss": shared.choice(given, {"GIoULoss": "giou", "IoULoss": "iou"}, None)}
    return dict(shared.choice(given, {"GIoULoss": {}}, None))


def _weight(value: Any, all_: Leaves) -> dict[str, Any]:
    expected = {"ATSS": 2.0, "GFL": 2.0}.get(all_["model.type"], 1.0)
    return shared.equal(value, expected, "the weight of the box loss")


def _class_loss(value: Any, all_: Leaves) -> dict[str, Any]:
    wanted = "QualityFocalLoss" if all_["model.type"] == "GFL" else "FocalLoss"
    return dict(shared.choice(value, {wanted: {}}, None))


def _stds(value: Sequence[float], all_: Leaves) -> dict[str, Any]:
    wanted = [0.1, 0.1, 0.2, 0.2] if all_["model.type"] in ("ATSS", "GFL") else [1.0] * 4
    if list(value) != wanted:
        raise NotBuilt(f"resdet's {all_['model.type']} has {wanted}")
    return {}


def _radius(_: Any, all_: Leaves) -> float | None:
    return all_.get(f"{HEAD}center_sample_radius", 1.5) if all_.get(f"{HEAD}center_sampling") else None


def _as_wide(value: Any, all_: Leaves) -> dict[str, Any]:
    if value != all_.get("model.neck.out_channels", value):
        raise NotBuilt("resdet's heads are as wide as the pyramid")
    return {}


def _assigner(value: Any, all_: Leaves) -> dict[str, Any]:
    known = {"RetinaNet": "MaxIoUAssigner", "YOLOF": "UniformAssigner"}
    return dict(shared.choice(value, {known.get(all_["model.type"], "ATSSAssigner"): {}}, None))


def _norm(value: Any, all_: Leaves) -> dict[str, Any]:
    return {"model.head.norm": known_norm(value)}


TABLE: Mapping[str, Rule] = {
    "model.type": take("model.kind", lambda v, _: DENSE[v].kind),
    "model.roi_head.type": builds(None),
    "model.backbone.out_indices": sets(_maps),
    "model.neck.type": sets(_neck),
    "model.neck.out_channels": sets(_channels),
    "model.neck.block_mid_channels": take("model.encoder.width"),
    "model.neck.block_dilations": take("model.encoder.dilations", lambda v, _: list(v)),
    "model.neck.num_residual_blocks": no_effect("as many as block_dilations"),
    "model.neck.start_level": sets(lambda v, all_: {} if _of_yolof(all_) else shared.choice(v, {1: {}}, 2)),
    "model.neck.num_outs": sets(lambda v, all_: {} if _of_yolof(all_) else shared.choice(v, {5: {}}, 2)),
    "model.neck.add_extra_convs model.neck.extra_convs_on_inputs": sets(_source),
    "model.neck.relu_before_extra_convs": sets(_relu),
    "model.neck.norm_cfg.type": builds(None),
    f"{HEAD}type": sets(_head),
    f"{HEAD}num_classes": take("model.num_classes"),
    f"{HEAD}stacked_convs": take("model.head.num_convs"),
    f"{HEAD}num_cls_convs": take("model.head.class_convs"),
    f"{HEAD}num_reg_convs": take("model.head.box_convs"),
    f"{HEAD}feat_channels": sets(_as_wide),
    f"{HEAD}norm_cfg.type": sets(_norm),
    f"{HEAD}strides": builds(STRIDES, level=2),
    f"{HEAD}reg_max": take("model.head.farthest"),
    f"{HEAD}pred_kernel_size": builds(3),
    f"{HEAD}dcn_on_last_conv": builds(False),
    f"{HEAD}conv_bias": take("model.head.bias", lambda v, _: v is True),
    f"{HEAD}norm_on_bbox": take("model.head.distances", lambda v, _: "relu" if v else "exp"),
    f"{HEAD}centerness_on_reg": take("model.head.centerness_on", lambda v, _: "box" if v else "class"),
    f"{HEAD}center_sampling {HEAD}center_sample_radius": take("model.head.radius", _radius),
    f"{HEAD}reg_decoded_bbox": no_effect("follows from the loss of the boxes"),
    f"{HEAD}anchor_generator.type": builds("AnchorGenerator"),
    f"{HEAD}anchor_generator.strides {HEAD}anchor_generator.scales* {HEAD}anchor_generator.octave_base_scale": sets(
        _sizes
    ),
    f"{HEAD}anchor_generator.ratios": take("model.anchors.ratios"),
    f"{HEAD}anchor_generator.center_offset": take("model.anchors.offset"),
    f"{HEAD}bbox_coder.target_stds": sets(_stds),
    f"{HEAD}bbox_coder.add_ctr_clamp": builds(True),
    f"{HEAD}bbox_coder.ctr_clamp": builds(32),
    f"{HEAD}loss_cls.type": sets(_class_loss),
    f"{HEAD}loss_*.use_sigmoid": only(True),
    f"{HEAD}loss_cls.gamma {HEAD}loss_cls.beta": only(2.0),
    f"{HEAD}loss_cls.alpha {HEAD}loss_dfl.loss_weight": only(0.25),
    f"{HEAD}loss_bbox.type {HEAD}loss_bbox.beta": sets(_box_loss),
    f"{HEAD}loss_bbox.loss_weight": sets(_weight),
    f"{HEAD}loss_centerness.type": only("CrossEntropyLoss"),
    f"{HEAD}loss_dfl.type": only("DistributionFocalLoss"),
    f"{HEAD}loss_*.loss_weight": only(1.0),
    f"{TRAIN}assigner.type": sets(_assigner),
    f"{TRAIN}assigner.pos_iou_thr": take("model.head.high"),
    f"{TRAIN}assigner.neg_iou_thr": take("model.head.low"),
    f"{TRAIN}assigner.min_pos_iou": only(0, instead="an object's best anchors are positive whatever their IoU"),
    f"{TRAIN}assigner.topk": take("model.head.nearest"),
    f"{TRAIN}assigner.pos_ignore_thr": take("model.head.low"),
    f"{TRAIN}assigner.neg_ignore_thr": take("model.head.high"),
    f"{TRAIN}assigner.match_times": take("model.head.matches"),
    f"{TRAIN}sampler.type": only("PseudoSampler"),
    f"{TRAIN}allowed_border": only(-1, instead="anchors that cross the image border are trained, too"),
    f"{TEST}nms_pre": take("model.head.candidates"),
    f"{TEST}min_bbox_size": only(0),
    f"{TEST}score_thr": take("model.head.score_threshold"),
    f"{TEST}nms.type": only("nms"),
    f"{TEST}nms.iou_threshold {TEST}nms.iou_thr": take("model.head.nms_threshold"),
    f"{TEST}max_per_img": take("model.head.max_detections"),
}
