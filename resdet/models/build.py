"""Config -> modules: with its neighbours `build_KIND.py` the only place that knows both."""

from __future__ import annotations

from typing import Literal

from torch import nn

from resdet.config import (
    CUSTOM,
    ClassifierConfig,
    DenseConfig,
    ModelConfig,
    RCNNConfig,
    RTDETRConfig,
    SemanticConfig,
    YOLOFConfig,
)
from resdet.errors import UserError
from resdet.models.backbones.adapted import Adapted, measure, require_levels
from resdet.models.backbones.base import Backbone
from resdet.models.backbones.libraries import library_backbone
from resdet.models.backbones.resnet import ResNet, architecture
from resdet.models.build_dense import build_dense
from resdet.models.build_rcnn import build_rcnn, use_of_c5
from resdet.models.build_rtdetr import build_rtdetr
from resdet.models.build_semantic import build_semantic
from resdet.models.classifier import Classifier
from resdet.models.detector import Detector
from resdet.models.layers import BatchNorm2d, FrozenBatchNorm2d


def build_model(config: ModelConfig, backbone: nn.Module | None = None) -> Detector:
    """The detector with random weights. Raises `UserError` if the number of classes or keypoints is not set.

    backbone: a module of your own, for model.backbone.name=custom: images (B, C, H, W) -> maps (B, D, H / s, W / s) in a list,
    a tuple or a dict, at strides s of 4, 8, 16 and 32; a single one becomes a pyramid (`SimplePyramid`). Its children,
    and in lists of modules each entry, are the stages that `frozen_stages` and `train.layer_decay` count.
    """
    if config.num_classes is None and "proposals" not in config.outputs:
        raise UserError("model.num_classes is not set, and there are no annotations here to count them from")
    if backbone is not None and config.backbone.name != CUSTOM:
        raise UserError(
            f"a backbone is given, but model.backbone.name={config.backbone.name}: set model.backbone.name={CUSTOM}"
        )
    body = custom_backbone(config, backbone) if config.backbone.name == CUSTOM else build_backbone(
        config, use_of_c5(config) if isinstance(config, RCNNConfig) else "map"
    )  # fmt: skip
    if not config.backbone.own:
        needed, name = levels_of(config)
        require_levels(body, needed, name, f"model.backbone.name={config.backbone.name}")
        if isinstance(body, Adapted):
            body.use(needed, config.input.channels)
    detector = on_backbone(config, body)
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm2d | BatchNorm2d):
            module.fold = config.fold_norm
    return detector


def on_backbone(config: ModelConfig, backbone: Backbone) -> Detector:
    if isinstance(config, RCNNConfig):
        return build_rcnn(config, backbone)
    if isinstance(config, DenseConfig):
        return build_dense(config, backbone)
    if isinstance(config, RTDETRConfig):
        return build_rtdetr(config, backbone)
    if isinstance(config, SemanticConfig):
        return build_semantic(config, backbone)
    if isinstance(config, ClassifierConfig):
        assert config.num_classes is not None
        return Classifier(
            backbone, config.num_classes, label_smoothing=config.label_smoothing,
            pixel_mean=config.input.mean, pixel_std=config.input.std, bgr=config.input.bgr,
        )  # fmt: skip
    raise AssertionError(config.kind)


def levels_of(config: ModelConfig) -> tuple[tuple[str, ...], str]:
    """The maps that a detector uses, and what it is called in errors."""
    if isinstance(config, RCNNConfig) and config.neck != "fpn":
        return (config.neck,), f"model.neck={config.neck}"
    if isinstance(config, YOLOFConfig | ClassifierConfig):
        return ("c5",), f"model.kind={config.kind}"
    if isinstance(config, DenseConfig | RTDETRConfig):
        return ("c3", "c4", "c5"), f"model.kind={config.kind}"
    return ("c2", "c3", "c4", "c5"), f"model.kind={config.kind} with a feature pyramid"


def custom_backbone(config: ModelConfig, module: nn.Module | None) -> Backbone:
    """A module of the user's as the config wants it. Raises `UserError` if it is none, or returns no maps."""
    if module is None:
        raise UserError(
            f"model.backbone.name={CUSTOM} is a module of your own: build_model(config.model, backbone=your_module), and give "
            "the model to train or Predictor as model="
        )
    c, name = config.backbone, type(module).__name__
    if isinstance(module, Backbone):
        if c.frozen_stages:
            module.freeze(_stages_to_freeze(module, c.frozen_stages, name))
        return module
    try:
        maps = measure(module, config.input.channels, who=name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name}: fails on a batch of two images (2, {config.input.channels}, 64, 96): {type(error).__name__}: {error}"
        ) from error
    found = Adapted(module, maps, frozen_norms=c.norm == "frozen_bn")
    found.freeze(_stages_to_freeze(found, c.frozen_stages, name))
    return found


def build_backbone(config: ModelConfig, c5: Literal["map", "rois", "none"] = "map") -> Backbone:
    """The backbone that the config names, with random weights. c5: see `ResNet`. Raises `UserError`."""
    c = config.backbone
    if c.own:
        return _resnet(config, c5)
    found = library_backbone(
        c.name,
        inputs=config.input.channels,
        frozen_norms=c.norm == "frozen_bn",
        drop_path=c.drop_path,
        checkpointing=c.checkpointing,
    )
    found.freeze(_stages_to_freeze(found, c.frozen_stages, c.name))
    return found


def _stages_to_freeze(backbone: Backbone, count: int, name: str) -> int:
    stages = len(backbone.stages())
    if count > stages:
        raise UserError(f"model.backbone.frozen_stages={count}, but {name} has {stages}: set it to {stages} at most")
    return count


def _resnet(config: ModelConfig, c5: Literal["map", "rois", "none"]) -> ResNet:
    c = config.backbone
    arch = architecture(c.name)
    if c.deformable != "none" and (arch.base_width * arch.groups) % c.deformable_groups:
        raise UserError(
            f"model.backbone.deformable_groups ({c.deformable_groups}) must divide the channels of the 3x3 convolutions, "
            f"{arch.base_width * arch.groups} in c2 and multiples of it above"
        )
    return ResNet(
        arch,
        inputs=config.input.channels,
        norm=c.norm,
        norm_eps=c.norm_eps,
        stride_in_1x1=c.stride_in_1x1,
        frozen_stages=c.frozen_stages,
        zero_init_last=c.zero_init_last,
        deep_stem=c.deep_stem,
        avg_down=c.avg_down,
        project_first=c.project_first,
        residual=c.residual,
        weight_standardization=c.weight_standardization,
        deformable=c.deformable,
        deformable_stages=c.deformable_stages,
        deformable_groups=c.deformable_groups,
        c5_dilation=c.c5_dilation,
        c5=c5,
    )
