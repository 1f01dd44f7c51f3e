"""A recognised checkpoint -> a summary of a few lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from resdet.checkpoints.dense_names import NAMES
from resdet.config import (
    ATSSConfig,
    BackboneConfig,
    DenseConfig,
    FCOSConfig,
    GFLConfig,
    InputConfig,
    OnPyramidConfig,
    RCNNConfig,
    RetinaNetConfig,
    RTDETRConfig,
    YOLOFConfig,
)

if TYPE_CHECKING:
    from resdet.checkpoints.recognise import Recognised

OTHERS = {"semantic": "Semantic FPN", "classifier": "a classifier"}  # by kind


def describe(found: Recognised) -> str:
    """Source, kind of detector, numerics, notes and tensors that were not recognised."""
    m = found.model
    name, details = OTHERS.get(m.kind, m.kind), list[str]()
    if isinstance(m, RCNNConfig):
        name, details = _rcnn(m)
    elif isinstance(m, DenseConfig):
        name, details = _dense(m)
    elif isinstance(m, RTDETRConfig):
        name, details = _rtdetr(m)
    classes = f", {m.num_classes} classes" if found.whole and "proposals" not in m.outputs else ""
    resized = m.input.rounding if m.input.keep_ratio else "to a square"
    depth = m.backbone.name + ("-d" if m.backbone.deep_stem and m.backbone.avg_down else "")
    lines = [
        f"{found.path}: {found.source}, {name if found.whole else 'a backbone'}, {depth}{classes}, "
        f"{len(found.weights)} tensors",
        f"  input: {_order(m.input)}, mean {_numbers(m.input.mean)}, std {_numbers(m.input.std)}, "
        f"resize {m.input.resize}, {resized}{_body(m.backbone)}",
    ]
    lines += [f"  {line}" for line in (details if found.whole else []) + found.notes]
    if found.left_over:
        rest = ", …" if len(found.left_over) > 4 else ""
        lines.append(f"  left over: {len(found.left_over)} ({', '.join(found.left_over[:4])}{rest})")
    return "\n".join(lines)


def _body(b: BackboneConfig) -> str:
    if not b.own:
        return ""
    return f"; stride in the {'1x1' if b.stride_in_1x1 else '3x3'}; norm {b.norm}, eps {b.norm_eps:g}"


def _rcnn(m: RCNNConfig) -> tuple[str, list[str]]:
    """The name of the architecture, and a line on its numerics."""
    kind = "Keypoint R-CNN" if m.keypoint else "Mask R-CNN" if m.mask else "Faster R-CNN"
    kind = f"Cascade {kind.removeprefix('Faster ')}" if m.cascade else kind
    kind = kind.replace("Mask R-CNN", "Panoptic FPN") if m.semantic else kind
    kind += " with PointRend" if m.mask and m.mask.point_rend else ""
    line = f"anchors: offset {m.anchors.offset:g}{', rounded' if m.anchors.rounded else ''}"
    if m.box:
        samples = m.pool.sampling_ratio or "adaptive"
        line += f"; RoIAlign: {'' if m.pool.aligned else 'not '}aligned, {samples} samples per bin side"
    line += f"; masks pasted as {m.mask.paste}" if m.mask else ""
    line += f"; {m.keypoint.num_keypoints} keypoints decoded as {m.keypoint.decode}" if m.keypoint else ""
    line += f"; {m.semantic.num_classes} classes of pixels" if m.semantic else ""
    return kind if m.box else "RPN alone", [line]


def _dense(m: DenseConfig) -> tuple[str, list[str]]:
    """The same for a one-stage detector."""
    h = m.head
    lines = [
        f"score above {h.score_threshold:g}, NMS at IoU {h.nms_threshold:g}, at most {h.max_detections} detections"
    ]
    if isinstance(m, FCOSConfig):
        unit = "strides" if m.head.distances == "relu" else "pixels"
        lines.append(
            f"points: offset {m.points.offset:g}; distances in {unit}; centerness from the {m.head.centerness_on} tower"
        )
    elif isinstance(m, RetinaNetConfig | ATSSConfig | GFLConfig | YOLOFConfig):
        lines.append(f"anchors: offset {m.anchors.offset:g}{', rounded' if m.anchors.rounded else ''}")
    if isinstance(m, OnPyramidConfig):
        lines[-1] += f"; p6 from {m.fpn.p6_from}, {'with' if m.fpn.relu else 'without'} ReLU before p7"
    return NAMES[m.kind], lines


def _rtdetr(m: RTDETRConfig) -> tuple[str, list[str]]:
    d = m.decoder
    points = d.points[0] if len(set(d.points)) == 1 else ", ".join(map(str, d.points))
    line = (
        f"{m.queries} queries; decoder: {d.layers} layers, {d.heads} heads, {points} points per level ({d.sampling}); "
        f"encoder: {m.encoder.width} channels"
    )
    return "RT-DETR", [line]


def _numbers(values: Iterable[float]) -> str:
    return "[" + ", ".join(f"{v:g}" for v in values) + "]"


def _order(pixels: InputConfig) -> str:
    if pixels.channels != 3:
        return f"{pixels.channels} channel(s)"
    return "BGR" if pixels.bgr else "RGB"
