"""Config -> modules: with its neighbours `build_KIND.py` the only place that knows both."""

from __future__ import annotations

from typing import Literal

from resdet.config import ClassifierConfig, DenseConfig, ModelConfig, RCNNConfig, RTDETRConfig, SemanticConfig
from resdet.errors import UserError
from resdet.models.backbones.resnet import ResNet, architecture
from resdet.models.build_dense import build_dense
from resdet.models.build_rcnn import build_rcnn, use_of_c5
from resdet.models.build_rtdetr import build_rtdetr
from resdet.models.build_semantic import build_semantic
from resdet.models.classifier import Classifier
from resdet.models.detector import Detector
from resdet.models.layers import BatchNorm2d, FrozenBatchNorm2d


def build_model(config: ModelConfig) -> Detector:
    """The detector with random weights. Raises `UserError` if the number of classes or keypoints is not set."""
    if config.num_classes is None and "proposals" not in config.outputs:
        raise UserError("model.num_classes is not set, and there are no annotations here to count them from")
    detector: Detector
    if isinstance(config, RCNNConfig):
        detector = build_rcnn(config, build_backbone(config, use_of_c5(config)))
    elif isinstance(config, DenseConfig):
        detector = build_dense(config, build_backbone(config))
    elif isinstance(config, RTDETRConfig):
        detector = build_rtdetr(config, build_backbone(config))
    elif isinstance(config, SemanticConfig):
        detector = build_semantic(config, build_backbone(config))
    elif isinstance(config, ClassifierConfig):
        assert config.num_classes is not None
        detector = Classifier(
            build_backbone(config), config.num_classes, label_smoothing=config.label_smoothing,
            pixel_mean=config.input.mean, pixel_std=config.input.std, bgr=config.input.bgr,
        )  # fmt: skip
    else:
        raise AssertionError(config.kind)
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm2d | BatchNorm2d):
            module.fold = config.fold_norm
    return detector


def build_backbone(config: ModelConfig, c5: Literal["map", "rois", "none"] = "map") -> ResNet:
    """The backbone with random weights. c5: see `ResNet`."""
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
