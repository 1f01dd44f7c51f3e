"""The `model` section of RT-DETR (`models/rtdetr/`); the defaults are those of the published ResNet-50 model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from resdet.config.model import BackboneConfig, InputConfig, ModelConfig
from resdet.config.types import Count, Positive, Section, Share

Factor = Annotated[float, Field(ge=0)]


class RTDETRInput(InputConfig):
    """Pixels in 0..1 without mean and std, and images resized to a square."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (255.0, 255.0, 255.0)
    resize: Literal["opencv", "pillow", "torch"] = "pillow"
    keep_ratio: bool = False


class RTDETRBackbone(BackboneConfig):
    """ResNet-D."""

    frozen_stages: Count = 1
    deep_stem: bool = True
    avg_down: bool = True


class EncoderConfig(Section):
    width: Positive = 256
    layers: Count = 1  # of attention within c5 (AIFI)
    heads: Positive = 8
    ffn: Positive = 1024
    expansion: Annotated[float, Field(gt=0)] = 1.0  # width of the fusion blocks' convolutions, as a share of `width`


class DecoderConfig(Section):
    width: Positive = 256
    layers: Positive = 6
    predict_layers: Positive | None = None  # of these, predict with the first so many: faster; None: all
    heads: Positive = 8
    ffn: Positive = 1024
    points: tuple[Positive, Positive, Positive] = (4, 4, 4)  # sampled on p3, p4, p5 by each head
    offset_scale: Annotated[float, Field(gt=0)] = 0.5  # how far from a box's centre, in its sides, points lie
    sampling: Literal["bilinear", "discrete"] = "bilinear"  # discrete: the nearest pixel (RT-DETRv2), its offsets fixed


class DenoisingConfig(Section):
    queries: Positive = 100  # of each sign an image: objects are repeated until so many are full
    label_noise: Share = 0.5  # half this share of the labels is drawn anew
    box_noise: Factor = 1.0


class MatchingConfig(Section):
    """Costs by which predictions and objects are matched; the class's is focal."""

    class_cost: Factor = 2.0
    box_cost: Factor = 5.0
    giou_cost: Factor = 2.0
    focal_alpha: Share = 0.25
    focal_gamma: Factor = 2.0


class LossConfig(Section):
    """Weights of the losses, and the varifocal loss's alpha and gamma."""

    class_weight: Factor = 1.0
    box_weight: Factor = 5.0
    giou_weight: Factor = 2.0
    alpha: Share = 0.75
    gamma: Factor = 2.0


class RTDETRConfig(ModelConfig):
    kind: Literal["rtdetr"] = "rtdetr"
    input: RTDETRInput = RTDETRInput()
    backbone: RTDETRBackbone = RTDETRBackbone()
    norm: Literal["bn", "sync_bn"] = "sync_bn"  # of the convolutions between backbone and decoder
    queries: Positive = 300
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    denoising: DenoisingConfig | None = DenoisingConfig()  # null: train without
    matching: MatchingConfig = MatchingConfig()
    loss: LossConfig = LossConfig()
    score_threshold: Share = 0.0
    max_detections: Positive = 300

    @property
    def limit(self) -> tuple[str, int]:
        if self.queries < self.max_detections:
            return "model.queries", self.queries
        return "model.max_detections", self.max_detections

    @model_validator(mode="after")
    def _sizes_fit(self) -> RTDETRConfig:
        problems = []
        for name, section in (("encoder", self.encoder), ("decoder", self.decoder)):
            if section.width % section.heads:
                problems.append(f"{name}.width ({section.width}) must be a multiple of {name}.heads ({section.heads})")
        if self.encoder.width % 4:
            problems.append(
                f"encoder.width ({self.encoder.width}) must be a multiple of 4: its positions are sines of 4 kinds"
            )
        d = self.decoder
        if d.predict_layers and d.predict_layers > d.layers:
            problems.append(f"decoder.predict_layers ({d.predict_layers}) is above decoder.layers ({d.layers})")
        if self.backbone.c5_dilation != 1:
            problems.append("backbone.c5_dilation=2 keeps c5 at stride 16; the encoder needs 32: set it to 1")
        if problems:
            raise ValueError("; ".join(problems))
        return self
