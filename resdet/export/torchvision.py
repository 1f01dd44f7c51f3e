"""A recognised checkpoint -> a file in resdet's own format, or a state dict for torchvision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from resdet.checkpoints.dense_names import to_torchvision_layout
from resdet.checkpoints.names import from_ours
from resdet.checkpoints.recognise import Recognised
from resdet.config import FCOSConfig, ModelConfig, RCNNConfig, RetinaNetConfig
from resdet.errors import UserError, listed
from resdet.export import torchvision_dense
from resdet.export.torchvision_dense import Limits
from resdet.writing import atomic_write

EPS = 1e-5  # of batch norm in torchvision's builders


def save_own(found: Recognised, path: Path) -> None:
    """Write resdet's own format: safetensors with config and classes as metadata. Raises `UserError`."""
    data = {"min_size": [found.min_size], "max_size": found.max_size}
    if found.pixel_range:
        data["pixel_range"] = list(found.pixel_range)
    config = {"model": found.values, "data": data}
    metadata = {
        "format": "resdet detector" if found.whole else "resdet backbone",
        "source": found.source,
        "config": yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False),
        "class_names": json.dumps(found.class_names),
        "category_ids": json.dumps(found.category_ids),
    }
    weights = {name: value.contiguous().clone() for name, value in found.weights.items()}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata=metadata)


def save_torchvision(found: Recognised, path: Path) -> str:
    """Write a state dict for torchvision's builder. -> the code that loads it, and what torchvision computes differently.

    Epsilon and channel order are folded into the weights. Raises `UserError` for models that torchvision cannot build.
    """
    builder = _builder(found)
    weights = to_torchvision(found.weights, found.model, found.path)
    with atomic_write(path) as temporary:
        torch.save(weights, temporary)
    i = found.model.input
    mean, std = (list(v[::-1] if i.bgr else v) for v in (i.mean, i.std))
    numbers = [f"[{', '.join(f'{v / 255:.6g}' for v in values)}]" for values in (mean, std)]
    lines = [
        "to load it in torchvision:",
        "  import torch, torchvision",
        f"  model = {builder}",
        f'  model.load_state_dict(torch.load("{path}"))',
    ]
    lines[2] = lines[2][:-1] + (
        f",\n      image_mean={numbers[0]}, image_std={numbers[1]}, min_size={found.min_size}, max_size={found.max_size})"
    )
    different = _differences(found)
    if different:
        lines += [
            "torchvision computes some things differently, so boxes will differ slightly:",
            *(f"  {line}" for line in different),
        ]
    return "\n".join(lines)


def to_torchvision(weights: dict[str, Tensor], model: ModelConfig, source: str | Path) -> dict[str, Tensor]:
    """A detector's weights by torchvision's names (those in memory), background first, batch norm's epsilon 1e-5, RGB.

    source: what an error names. Raises `UserError`.
    """
    converted = {}
    kind = model.kind if isinstance(model, RetinaNetConfig | FCOSConfig) else None
    for name, value in (to_torchvision_layout(weights, kind) if kind else weights).items():
        if name.startswith("backbone.") and name.endswith("running_var"):
            value = value + (model.backbone.norm_eps - EPS)
        if name == "backbone.conv1.weight" and model.input.bgr:
            value = value.flip(1)
        if name.startswith("heads.box.classifier."):
            value = torch.cat([value[-1:], value[:-1]])
        elif name.startswith("heads.box.regressor."):
            if isinstance(model, RCNNConfig) and model.box and model.box.class_agnostic:
                value = torch.cat([value] * (model.num_classes or 1))
            value = torch.cat([torch.zeros_like(value[:4]), value])
        elif name.startswith("heads.mask.logits."):
            value = torch.cat([torch.zeros_like(value[:1]), value])
        theirs = from_ours(name, "torchvision", kind)
        if theirs is None:
            raise UserError(f"{source}: torchvision has no name for {name}")
        converted[theirs] = value.clone()
    return converted


def _builder(found: Recognised) -> str:
    """The call that builds the model in torchvision. Raises one `UserError` that lists everything it cannot build."""
    if not found.whole:
        raise UserError(f"{found.path}: a backbone alone already has torchvision's names")
    m = found.model
    if isinstance(m, RetinaNetConfig | FCOSConfig):
        _require(found, _of_body(m) | torchvision_dense.limits(m))
        return torchvision_dense.builder(m)
    if not isinstance(m, RCNNConfig):
        raise UserError(f"{found.path}: torchvision has no detector of this kind (model.kind={m.kind})")
    if m.box is None:
        raise UserError(f"{found.path}: torchvision cannot build the RPN alone (model.box=null)")
    v2 = m.fpn.norm == "bn"
    mask, keypoint = m.mask, m.keypoint
    fixed: Limits = {
        "cascade": (m.cascade and "set", (None,)),
        "semantic": (m.semantic and "set", (None,)),
        **_of_body(m),
        "neck": (m.neck, ("fpn",)),
        "fpn.channels": (m.fpn.channels, (256,)),
        "fpn.norm": (m.fpn.norm, ("none", "bn")),
        "anchors.sizes": (tuple(m.anchors.sizes), ((32, 64, 128, 256, 512),)),
        "anchors.ratios": (tuple(m.anchors.ratios), ((0.5, 1.0, 2.0),)),
        "rpn.num_convs": (m.rpn.num_convs, (2 if v2 else 1,)),
        "box.trunk": (m.box.trunk, ("4conv1fc" if v2 else "2fc",)),
        "box.width": (m.box.width, (1024,)),
        "box.weight_standardization": (m.box.weight_standardization, (False,)),
        "box.norm": (m.box.norm, ("bn" if v2 else "none",)),
        "box.delta_weights": (tuple(m.box.delta_weights), ((10, 10, 5, 5),)),
    }
    if mask:
        fixed |= {
            "mask.num_convs": (mask.num_convs, (4,)),
            "mask.width": (mask.width, (256,)),
            "mask.weight_standardization": (mask.weight_standardization, (False,)),
            "mask.class_agnostic": (mask.class_agnostic, (False,)),
            "mask.norm": (mask.norm, ("bn" if v2 else "none",)),
            "mask.pool_size": (mask.pool_size, (14,)),
            "mask.point_rend": (mask.point_rend, (None,)),
        }
    if keypoint:
        fixed |= {
            "keypoint.num_convs": (keypoint.num_convs, (8,)),
            "keypoint.width": (keypoint.width, (512,)),
            "keypoint.norm": (keypoint.norm, ("none",)),
            "keypoint.pool_size": (keypoint.pool_size, (14,)),
            "mask": (mask, (None,)),
            "fpn.norm": (m.fpn.norm, ("none",)),
        }
    if v2 and m.backbone.name != "resnet50":
        fixed["backbone.name"] = (m.backbone.name, ("resnet50",))
    _require(found, fixed)
    assert m.num_classes is not None
    name = "KeypointRCNN" if keypoint else "MaskRCNN" if mask else "FasterRCNN"
    count = f"num_classes={m.num_classes + 1}" + (f", num_keypoints={keypoint.num_keypoints}" if keypoint else "")
    if m.backbone.name == "resnet50":
        function = f"{name.lower()}_resnet50_fpn{'_v2' if v2 else ''}"
        return f"torchvision.models.detection.{function}(weights=None, weights_backbone=None, {count})"
    body = f'backbone_utils.resnet_fpn_backbone(backbone_name="{m.backbone.name}", weights=None)'
    return f"torchvision.models.detection.{name}(torchvision.models.detection.{body}, {count})"


def _of_body(m: RCNNConfig | RetinaNetConfig | FCOSConfig) -> Limits:
    return {
        "input.channels": (m.input.channels, (3,)),
        "backbone.name": (m.backbone.name, (m.backbone.name if m.backbone.own else "a ResNet",)),
        "backbone.norm": (m.backbone.norm, ("frozen_bn", "bn", "sync_bn")),
        "backbone.stride_in_1x1": (m.backbone.stride_in_1x1, (False,)),
        "backbone.deep_stem": (m.backbone.deep_stem, (False,)),
        "backbone.avg_down": (m.backbone.avg_down, (False,)),
        "backbone.residual": (m.backbone.residual, (True,)),
        "backbone.weight_standardization": (m.backbone.weight_standardization, (False,)),
        "backbone.deformable": (m.backbone.deformable, ("none",)),
        "backbone.c5_dilation": (m.backbone.c5_dilation, (1,)),
        "fpn.weight_standardization": (m.fpn.weight_standardization, (False,)),
    }


def _require(found: Recognised, fixed: Limits) -> None:
    """Raises one `UserError` that lists all settings that torchvision cannot build."""
    problems = [f"model.{k} is {v}, torchvision's builder has {ok[0]}" for k, (v, ok) in fixed.items() if v not in ok]
    if problems:
        raise listed(f"{found.path}: torchvision cannot build this model:", problems)


def _differences(found: Recognised) -> list[str]:
    m = found.model
    same: dict[str, tuple[Any, Any]] = {
        "input.resize": (m.input.resize, "torch"),
        "input.rounding": (m.input.rounding, "floor"),
    }
    same |= _of_rcnn(m) if isinstance(m, RCNNConfig) else {}
    same |= torchvision_dense.same(m) if isinstance(m, RetinaNetConfig | FCOSConfig) else {}
    return [
        f"model.{key} is {value}, {theirs} in torchvision" for key, (value, theirs) in same.items() if value != theirs
    ]


def _of_rcnn(m: RCNNConfig) -> dict[str, tuple[Any, Any]]:
    assert m.box
    same: dict[str, tuple[Any, Any]] = {
        "anchors.offset": (m.anchors.offset, 0),
        "anchors.rounded": (m.anchors.rounded, True),
        "anchors.grid_stride": (m.anchors.grid_stride, True),
        "pool.aligned": (m.pool.aligned, False),
        "pool.sampling_ratio": (m.pool.sampling_ratio, 2),
        "rpn.clamp_shrink": (m.rpn.clamp_shrink, False),
        "box.objectness": (m.box.objectness, False),
        "box.soft_sigma": (m.box.soft_sigma, 0.0),
    }
    if m.mask:
        same["mask.paste"] = (m.mask.paste, "torchvision")
    if m.keypoint:
        same["keypoint.decode"] = (m.keypoint.decode, "torchvision")
    return same
