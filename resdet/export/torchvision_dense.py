"""RetinaNet and FCOS in torchvision: the call that builds them, and what torchvision computes differently."""

from __future__ import annotations

from typing import Any

from resdet.checkpoints.dense import TORCHVISION_SIZES
from resdet.config import FCOSConfig, RetinaNetConfig

# our key below `model` -> its value, and the values that torchvision can build
Limits = dict[str, tuple[Any, tuple[Any, ...]]]
# torchvision's defaults: score_thresh, nms_thresh, detections_per_img, topk_candidates.
DEFAULTS = {"retinanet": (0.05, 0.5, 300, 1000), "fcos": (0.2, 0.6, 100, 1000)}
DETECTION = "torchvision.models.detection."


def limits(m: RetinaNetConfig | FCOSConfig) -> Limits:
    """The settings that its builders fix, without those of the backbone."""
    fixed: Limits = {
        "fpn.channels": (m.fpn.channels, (256,)),
        "fpn.norm": (m.fpn.norm, ("none",)),
        "fpn.relu": (m.fpn.relu, (True,)),
        "head.num_convs": (m.head.num_convs, (4,)),
        "head.norm": (m.head.norm, ("gn",) if isinstance(m, FCOSConfig) else ("none", "gn")),
    }
    if isinstance(m, FCOSConfig):
        return fixed | {
            "head.bias": (m.head.bias, (True,)),
            "head.scales": (m.head.scales, (False,)),
            "head.distances": (m.head.distances, ("relu",)),
            "head.centerness_on": (m.head.centerness_on, ("box",)),
        }
    return fixed | {"anchors.ratios": (tuple(m.anchors.ratios), ((0.5, 1.0, 2.0),))}


def builder(m: RetinaNetConfig | FCOSConfig) -> str:
    """The call that builds the model."""
    assert m.num_classes is not None
    h, classes = m.head, m.num_classes + 1
    given = h.score_threshold, h.nms_threshold, h.max_detections, h.candidates
    names = ("score_thresh", "nms_thresh", "detections_per_img", "topk_candidates")
    options = [
        f"{name}={value}"
        for name, value, default in zip(names, given, DEFAULTS[m.kind], strict=True)
        if value != default
    ]
    usual = m.backbone.name == "resnet50" and m.fpn.p6_from == (
        "c5" if h.norm == "gn" and m.kind == "retinanet" else "p5"
    )
    if isinstance(m, RetinaNetConfig):
        usual = usual and list(m.anchors.sizes) == TORCHVISION_SIZES
    if usual:
        v2 = "_v2" if m.kind == "retinanet" and h.norm == "gn" else ""
        first = f"{DETECTION}{m.kind}_resnet50_fpn{v2}(weights=None, weights_backbone=None, num_classes={classes}"
        return f"{', '.join([first, *options])})"
    wide = 512 if m.backbone.name in ("resnet18", "resnet34") else 2048
    top = f"torchvision.ops.feature_pyramid_network.LastLevelP6P7({wide if m.fpn.p6_from == 'c5' else 256}, 256)"
    body = (
        f'{DETECTION}backbone_utils.resnet_fpn_backbone(backbone_name="{m.backbone.name}", weights=None, '
        f"returned_layers=[2, 3, 4], extra_blocks={top})"
    )
    if isinstance(m, FCOSConfig):
        return f"{', '.join([f'{DETECTION}FCOS({body}', str(classes), *options])})"
    each = len(m.anchors.sizes) // 5
    sizes = tuple(tuple(m.anchors.sizes[k * each : (k + 1) * each]) for k in range(5))
    parts = [f"{DETECTION}RetinaNet({body}", str(classes)]
    parts.append(f"anchor_generator={DETECTION}anchor_utils.AnchorGenerator({sizes}, ((0.5, 1.0, 2.0),) * 5)")
    if h.norm == "gn":
        norm = "norm_layer=lambda channels: torch.nn.GroupNorm(32, channels)"
        parts.append(f"head={DETECTION}retinanet.RetinaNetHead(256, {3 * each}, {classes}, {norm})")
    return f"{', '.join([*parts, *options])})"


def same(m: RetinaNetConfig | FCOSConfig) -> dict[str, tuple[Any, Any]]:
    """Our key -> our value and torchvision's."""
    found: dict[str, tuple[Any, Any]] = {"head.empty": (m.head.empty, "keep")}
    if isinstance(m, FCOSConfig):
        return found | {
            "points.offset": (m.points.offset, 0),
            "points.grid_stride": (m.points.grid_stride, True),
            "head.score": (m.head.score, "mean"),
        }
    return found | {
        "anchors.offset": (m.anchors.offset, 0),
        "anchors.rounded": (m.anchors.rounded, True),
        "anchors.grid_stride": (m.anchors.grid_stride, True),
        "head.clip": (m.head.clip, "first"),
        "head.clamp_shrink": (m.head.clamp_shrink, False),
    }
