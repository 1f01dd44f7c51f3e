"""Config -> Semantic FPN, and its head for Panoptic FPN."""

from __future__ import annotations

from resdet.config import SemanticConfig
from resdet.config.semantic import SemanticHeadConfig
from resdet.errors import UserError
from resdet.models.backbones.base import Backbone
from resdet.models.fpn import FPN
from resdet.models.heads.semantic import SemanticHead
from resdet.models.semantic import SemanticFPN


def build_semantic(config: SemanticConfig, backbone: Backbone) -> SemanticFPN:
    """The model on top of `backbone`, with random weights."""
    assert config.num_classes is not None
    c = config.fpn
    channels = [backbone.channels[name] for name in ("c2", "c3", "c4", "c5")]
    fpn = FPN(channels, c.channels, norm=c.norm, standardized=c.weight_standardization)
    return SemanticFPN(
        backbone,
        fpn,
        semantic_head(config.head, fpn.channels, config.num_classes, "model.head"),
        pixel_mean=config.input.mean,
        pixel_std=config.input.std,
        bgr=config.input.bgr,
    )


def semantic_head(config: SemanticHeadConfig, channels: int, num_classes: int, key: str) -> SemanticHead:
    """The head with random weights. key: of its section, for errors. Raises `UserError`."""
    weights = config.class_weights
    if weights is not None and len(weights) != num_classes:
        raise UserError(f"{key}.class_weights has {len(weights)} numbers, but there are {num_classes} classes")
    return SemanticHead(
        channels,
        num_classes,
        width=config.width,
        norm=config.norm,
        class_weights=weights,
        loss_weight=config.loss_weight,
    )
