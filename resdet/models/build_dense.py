"""Config -> one-stage detectors: neck and head."""

from __future__ import annotations

from resdet.config import (
    ATSSConfig,
    DenseConfig,
    FCOSConfig,
    GFLConfig,
    OnPyramidConfig,
    PredictConfig,
    RetinaNetConfig,
    YOLOFConfig,
)
from resdet.models.anchors import Anchors
from resdet.models.backbones.base import Backbone
from resdet.models.dense.atss import ATSSHead
from resdet.models.dense.detector import DenseHead, OneStage
from resdet.models.dense.fcos import FCOSHead
from resdet.models.dense.gfl import GFLHead
from resdet.models.dense.retinanet import RetinaNetHead
from resdet.models.dense.yolof import DilatedEncoder, YOLOFHead
from resdet.models.fpn import FPN, ConvTop, Neck
from resdet.models.selection import Selection


def build_dense(config: DenseConfig, backbone: Backbone) -> OneStage:
    """The detector on top of `backbone`, with random weights."""
    neck = build_neck(config, backbone)
    assert config.num_classes is not None
    return OneStage(
        backbone,
        neck,
        _head(config, neck, config.num_classes),
        num_classes=config.num_classes,
        pixel_mean=config.input.mean,
        pixel_std=config.input.std,
        bgr=config.input.bgr,
    )


def build_neck(config: DenseConfig, backbone: Backbone) -> Neck:
    """A pyramid p3..p7, or YOLOF's encoder."""
    if isinstance(config, YOLOFConfig):
        e = config.encoder
        return DilatedEncoder(
            backbone.channels["c5"], backbone.strides["c5"], e.channels, width=e.width, dilations=e.dilations, norm=e.norm
        )  # fmt: skip
    assert isinstance(config, OnPyramidConfig)
    f = config.fpn
    channels = [backbone.channels[name] for name in ("c3", "c4", "c5")]
    top = ConvTop(f.channels, channels[-1] if f.p6_from == "c5" else None, relu=f.relu)
    return FPN(channels, f.channels, norm=f.norm, standardized=f.weight_standardization, top=top)


def _head(config: DenseConfig, neck: Neck, classes: int) -> DenseHead:
    selection = _selection(config.head)
    strides = tuple(neck.strides.values())
    if isinstance(config, FCOSConfig):
        f, p = config.head, config.points
        points = Anchors([[s] for s in strides], [1.0], strides=strides, offset=p.offset, grid_stride=p.grid_stride)
        return FCOSHead(
            neck.channels, classes, points, selection,
            num_convs=f.num_convs, norm=f.norm, bias=f.bias, scales=f.scales, distances=f.distances,
            centerness_on=f.centerness_on, radius=f.radius, box_loss=f.box_loss, weighted=f.weighted, score=f.score,
            candidates=f.candidates,
        )  # fmt: skip
    assert isinstance(config, RetinaNetConfig | ATSSConfig | GFLConfig | YOLOFConfig)
    a = config.anchors
    each = len(a.sizes) // len(strides)
    sizes = [a.sizes[k * each : (k + 1) * each] for k in range(len(strides))]
    anchors = Anchors(
        sizes, a.ratios, strides=strides, offset=a.offset, rounded=a.rounded, grid_stride=a.grid_stride
    )  # fmt: skip
    if isinstance(config, RetinaNetConfig):
        r = config.head
        selection.clip = r.clip
        return RetinaNetHead(
            neck.channels, classes, anchors, selection,
            num_convs=r.num_convs, norm=r.norm, high=r.high, low=r.low, box_loss=r.box_loss, loss_beta=r.loss_beta,
            divisor=r.divisor, clamp_shrink=r.clamp_shrink, candidates=r.candidates,
        )  # fmt: skip
    if isinstance(config, YOLOFConfig):
        y = config.head
        return YOLOFHead(
            neck.channels, classes, anchors, selection,
            class_convs=y.class_convs, box_convs=y.box_convs, norm=y.norm, matches=y.matches, low=y.low, high=y.high,
            candidates=y.candidates,
        )  # fmt: skip
    h = config.head
    if isinstance(config, GFLConfig):
        return GFLHead(
            neck.channels, classes, anchors, selection, num_convs=h.num_convs, norm=h.norm,
            farthest=config.head.farthest, nearest=h.nearest, candidates=h.candidates,
        )  # fmt: skip
    return ATSSHead(
        neck.channels, classes, anchors, selection, num_convs=h.num_convs, norm=h.norm, nearest=h.nearest,
        candidates=h.candidates,
    )  # fmt: skip


def _selection(h: PredictConfig) -> Selection:
    return Selection(
        score_threshold=h.score_threshold,
        nms_threshold=h.nms_threshold,
        max_detections=h.max_detections,
        empty=h.empty,
    )
