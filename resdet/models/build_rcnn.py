"""Config -> R-CNN: neck, RPN and heads."""

from __future__ import annotations

from typing import Literal, cast

from torch import nn

from resdet.config import BoxConfig, MaskConfig, RCNNConfig
from resdet.errors import UserError
from resdet.models.anchors import Anchors
from resdet.models.backbones.base import Backbone
from resdet.models.build_semantic import semantic_head
from resdet.models.fpn import FPN, SingleLevel
from resdet.models.heads.box import BoxHead, FourConvOneFC, TwoFC
from resdet.models.heads.cascade import CascadeHead
from resdet.models.heads.keypoint import KeypointHead
from resdet.models.heads.mask import MaskHead
from resdet.models.heads.point_rend import PointRendHead
from resdet.models.heads.res5 import Res5, RoIStage
from resdet.models.heads.rpn import RPN, Limits
from resdet.models.rcnn import RCNN, RoIHead
from resdet.models.roi_align import RoIAlign
from resdet.models.selection import Selection


def use_of_c5(config: RCNNConfig) -> Literal["map", "rois", "none"]:
    """How the detector uses the backbone's last stage (see `ResNet`)."""
    if config.neck != "c4":
        return "map"
    return "rois" if config.box and config.box.trunk == "res5" else "none"


def build_rcnn(config: RCNNConfig, backbone: Backbone) -> RCNN:
    """The detector on top of `backbone`, with random weights."""
    fpn = build_neck(config, backbone)
    a, r, b = config.anchors, config.rpn, config.box
    sizes = [[size] for size in a.sizes] if isinstance(fpn, FPN) else [a.sizes]
    anchors = Anchors(
        sizes, a.ratios, strides=tuple(fpn.strides.values()),
        offset=a.offset, rounded=a.rounded, grid_stride=a.grid_stride,
    )  # fmt: skip
    rpn = RPN(
        fpn.channels,
        anchors,
        num_convs=r.num_convs,
        train_limits=Limits(r.pre_nms_train, r.post_nms_train),
        predict_limits=Limits(r.pre_nms_predict, r.post_nms_predict),
        nms_threshold=r.nms_threshold,
        min_size=r.min_size,
        samples=r.samples,
        positive_fraction=r.positive_fraction,
        high=r.high,
        low=r.low,
        loss_beta=r.loss_beta,
        clamp_shrink=r.clamp_shrink,
        rank=r.rank,
        fixed_divisor=r.fixed_divisor,
    )
    sampling = b or BoxConfig()  # unused without heads
    return RCNN(
        backbone,
        fpn,
        rpn,
        _heads(config, b, backbone, fpn) if b else {},
        num_classes=config.num_classes or 1,
        pixel_mean=config.input.mean,
        pixel_std=config.input.std,
        bgr=config.input.bgr,
        samples=sampling.samples,
        positive_fraction=sampling.positive_fraction,
        iou_threshold=config.cascade.ious[0] if config.cascade else sampling.iou_threshold,
        low_quality=sampling.low_quality,
    )


def _heads(config: RCNNConfig, b: BoxConfig, backbone: Backbone, fpn: FPN | SingleLevel) -> dict[str, RoIHead]:
    stage = RoIStage(cast(nn.Sequential, backbone.layer4), 2 * fpn.channels) if b.trunk == "res5" else None
    box_head = _cascade_head(config, b, fpn) if config.cascade else _box_head(config, b, fpn, stage)
    heads: dict[str, RoIHead] = {"box": box_head}
    if config.mask and not (config.cascade and config.cascade.mask_heads == "each"):
        heads["mask"] = _mask_head(config, config.mask, b, fpn, stage)
    if config.semantic:
        if config.semantic.num_classes is None:
            raise UserError(
                "model.semantic.num_classes is not set, and there are no annotations here to count the stuff from"
            )
        heads["semantic"] = semantic_head(config.semantic, fpn.channels, config.semantic.num_classes, "model.semantic")
    if config.keypoint:
        k = config.keypoint
        if k.num_keypoints is None:
            raise UserError(
                "model.keypoint.num_keypoints is not set, and there are no annotations here to count them from"
            )
        heads["keypoint"] = KeypointHead(
            _pool(config, fpn, k.pool_size),
            fpn.channels,
            k.num_keypoints,
            num_convs=k.num_convs,
            width=k.width,
            norm=k.norm,
            max_rois=int(b.samples * b.positive_fraction),
            decode=k.decode,
        )
    return heads


def build_neck(config: RCNNConfig, backbone: Backbone) -> FPN | SingleLevel:
    """The feature pyramid, or the one backbone level that a C4 or DC5 detector uses."""
    if config.neck == "fpn":
        c = config.fpn
        channels = [backbone.channels[name] for name in ("c2", "c3", "c4", "c5")]
        return FPN(channels, c.channels, norm=c.norm, standardized=c.weight_standardization)
    return SingleLevel(config.neck, backbone.channels[config.neck], backbone.strides[config.neck])


def _box_head(config: RCNNConfig, b: BoxConfig, fpn: FPN | SingleLevel, stage: RoIStage | None) -> BoxHead:
    assert config.num_classes is not None
    if b.class_weights is not None and len(b.class_weights) != config.num_classes + 1:
        raise UserError(
            f"model.box.class_weights has {len(b.class_weights)} numbers, but there are {config.num_classes} classes "
            "and the background, whose weight comes last"
        )
    trunk: TwoFC | FourConvOneFC | Res5
    if stage:
        trunk = Res5(stage)
    elif b.trunk == "2fc":
        trunk = TwoFC(fpn.channels, 7, b.width)
    else:
        trunk = FourConvOneFC(fpn.channels, 7, b.width, norm=b.norm, standardized=b.weight_standardization)
    return BoxHead(
        _pool(config, fpn, 14 if stage else 7),
        trunk,
        config.num_classes,
        class_agnostic=b.class_agnostic,
        focal_gamma=b.focal_gamma,
        class_weights=b.class_weights,
        delta_weights=b.delta_weights,
        loss_beta=b.loss_beta,
        clamp_shrink=b.clamp_shrink,
        objectness=b.objectness,
        selection=_selection(b),
    )


def _cascade_head(config: RCNNConfig, b: BoxConfig, fpn: FPN | SingleLevel) -> CascadeHead:
    c = config.cascade
    assert c is not None
    stages = []
    for weights in c.delta_weights:
        box = b.model_copy(update={"delta_weights": weights, "class_agnostic": True})
        stages.append(_box_head(config, box, fpn, None))
    each = config.mask if c.mask_heads == "each" else None
    masks = [_mask_head(config, each, b, fpn, None) for _ in stages] if each else []
    return CascadeHead(
        stages,
        masks,
        ious=c.ious,
        loss_weights=c.loss_weights,
        resample=b.positive_fraction if c.resample else None,
        scale_gradients=c.scale_gradients,
        average=c.average,
        selection=_selection(b),
    )


def _selection(b: BoxConfig) -> Selection:
    return Selection(
        score_threshold=b.score_threshold,
        nms_threshold=b.nms_threshold,
        soft_sigma=b.soft_sigma,
        max_detections=b.max_detections,
        min_size=b.min_size,
        empty=b.empty,
    )


def _mask_head(
    config: RCNNConfig, c: MaskConfig, b: BoxConfig, fpn: FPN | SingleLevel, stage: RoIStage | None
) -> MaskHead | PointRendHead:
    assert config.num_classes is not None
    max_rois = int(b.samples * b.positive_fraction)
    if (p := c.point_rend) is not None:
        return PointRendHead(
            fpn.channels,
            config.num_classes,
            side=p.side,
            width=p.width,
            num_fc=p.num_fc,
            point_width=p.point_width,
            point_num_fc=p.point_num_fc,
            points=p.points,
            steps=p.steps,
            subdivision_points=p.subdivision_points,
            max_rois=max_rois,
            paste=c.paste,
        )
    return MaskHead(
        _pool(config, fpn, c.pool_size),
        fpn.channels,
        config.num_classes,
        num_convs=c.num_convs,
        width=c.width,
        norm=c.norm,
        standardized=c.weight_standardization,
        class_agnostic=c.class_agnostic,
        max_rois=max_rois,
        stage=stage,
        paste=c.paste,
    )


def _pool(config: RCNNConfig, fpn: FPN | SingleLevel, size: int) -> RoIAlign:
    """RoIAlign on p2..p5, or on the single level."""
    strides = list(fpn.strides.values())[:4]
    return RoIAlign(size, strides=strides, sampling_ratio=config.pool.sampling_ratio, aligned=config.pool.aligned)
