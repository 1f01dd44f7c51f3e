"""mmdetection's keys of the backbone -> ours, and what the norms and convolutions of all parts have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resdet.migration import shared
from resdet.migration.keys import Leaves, NotBuilt, NotTaken, Rule, builds, sets, take

NORMS = {"BN": "bn", "SyncBN": "sync_bn", "naiveSyncBN": "sync_bn", "MMSyncBN": "sync_bn", "GN": "gn", None: "none"}


def _backbone(_: Any, all_: Leaves) -> dict[str, Any]:
    kind, depth = all_.get("model.backbone.type"), all_.get("model.backbone.depth", 50)
    grouped = kind == "ResNeXt"
    groups = all_.get("model.backbone.groups", 1) if grouped else 1
    width = all_.get("model.backbone.base_width", 4 if grouped else 64) if groups > 1 else 64
    name = shared.backbone_name(depth, groups, width)
    return {"model.backbone.name": name} | (
        {"model.backbone.deep_stem": True, "model.backbone.avg_down": True} if kind == "ResNetV1d" else {}
    )


def _kind_of_backbone(value: Any, all_: Leaves) -> dict[str, Any]:
    if value not in ("ResNet", "ResNetV1d", "ResNeXt"):
        raise NotBuilt("resdet supports 'ResNet', 'ResNetV1d', 'ResNeXt'")
    return _backbone(value, all_)


def backbone_norm(_: Any, all_: Leaves) -> str:
    kind = all_["model.backbone.norm_cfg.type"]
    fixed = kind in ("BN", "SyncBN") and all_["model.backbone.norm_eval"]
    return "frozen_bn" if fixed else shared.known_norm(NORMS.get(kind), kind)


def _affine(value: Any, all_: Leaves) -> dict[str, Any]:
    if value and backbone_norm(None, all_) == "frozen_bn":
        raise NotTaken("frozen batch norm has a frozen scale and shift in resdet; in mmdetection they train")
    return {}


def _dilated(_: Any, all_: Leaves) -> int:
    known = {((1, 2, 2, 2), (1, 1, 1, 1)): 1, ((1, 2, 2, 1), (1, 1, 1, 2)): 2}
    pair = tuple(all_["model.backbone.strides"]), tuple(all_["model.backbone.dilations"])
    if pair not in known:
        raise NotBuilt("resdet supports strides (1, 2, 2, 2), and (1, 2, 2, 1) with dilations (1, 1, 1, 2)", 2)
    return known[pair]


def _deformable(_: Any, all_: Leaves) -> dict[str, Any]:
    kind = all_.get("model.backbone.dcn.type")
    if kind not in ("DCN", "DCNv2", None):
        raise NotBuilt("resdet supports 'DCN' and 'DCNv2'")
    stages = all_.get("model.backbone.stage_with_dcn", (False,) * 4) if kind else (False,) * 4
    groups = all_.get("model.backbone.dcn.deform_groups", all_.get("model.backbone.dcn.deformable_groups", 1))
    return shared.deformable("v2" if kind == "DCNv2" else "v1", stages, groups)


def _weights(value: Any, all_: Leaves) -> dict[str, Any]:
    if value:
        return shared.weights(value, "model.backbone.weights")
    frozen = all_["model.backbone.frozen_stages"] >= 0 or backbone_norm(None, all_) == "frozen_bn"
    return {} if all_.get("load_from") else shared.no_weights(frozen)


def known_norm(value: Any) -> str:
    return shared.known_norm(NORMS.get(value), value)


def norm(ours: str) -> Rule:
    return take(ours, lambda v, _: known_norm(v))


def standardized(section: str) -> Rule:
    return take(f"{section}.weight_standardization", lambda v, _: shared.choice(v, {"ConvWS": True, None: False}, 1))


BACKBONE: Mapping[str, Rule] = {
    "model.backbone.type": sets(_kind_of_backbone),
    "model.backbone.depth model.backbone.groups model.backbone.base_width": sets(_backbone),
    "model.backbone.num_stages": builds(4, level=2),
    "model.backbone.in_channels": builds(3),
    "model.backbone.stem_channels model.backbone.base_channels": builds(64, None),
    "model.backbone.out_indices": builds((0, 1, 2, 3), level=2),
    "model.backbone.strides model.backbone.dilations": take("model.backbone.c5_dilation", _dilated),
    "model.backbone.frozen_stages": take("model.backbone.frozen_stages", lambda v, _: v + 1),
    "model.backbone.norm_cfg.type model.backbone.norm_eval": take("model.backbone.norm", backbone_norm),
    "model.backbone.norm_cfg.requires_grad": sets(_affine),
    "model.backbone.style": take("model.backbone.stride_in_1x1", lambda v, _: {"caffe": True, "pytorch": False}[v]),
    "model.backbone.conv_cfg.type": standardized("model.backbone"),
    "model.backbone.dcn.fallback_on_stride": builds(False),
    "model.backbone.dcn.* model.backbone.stage_with_dcn": sets(_deformable),
    "model.backbone.deep_stem": take("model.backbone.deep_stem"),
    "model.backbone.avg_down": take("model.backbone.avg_down"),
    "model.backbone.zero_init_residual": take("model.backbone.zero_init_last"),
    "model.backbone.init_cfg.checkpoint model.pretrained model.backbone.init_cfg": sets(_weights),
    "model.backbone.plugins model.backbone.dcn model.backbone.conv_cfg model.shared_head *plugins": builds(None),
}
