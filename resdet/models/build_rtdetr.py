"""Config -> RT-DETR: encoder, query selection, decoder, denoising and losses."""

from __future__ import annotations

from resdet.config import RTDETRConfig
from resdet.models.backbones.base import Backbone
from resdet.models.rtdetr.decoder import Decoder, QuerySelection
from resdet.models.rtdetr.denoising import Denoising
from resdet.models.rtdetr.detector import RTDETR
from resdet.models.rtdetr.encoder import LEVELS, HybridEncoder
from resdet.models.rtdetr.losses import SetLoss
from resdet.models.selection import Selection


def build_rtdetr(config: RTDETRConfig, backbone: Backbone) -> RTDETR:
    """The detector on top of `backbone`, with random weights."""
    assert config.num_classes is not None
    classes, e, d, n = config.num_classes, config.encoder, config.decoder, config.denoising
    return RTDETR(
        backbone,
        HybridEncoder(
            [backbone.channels[name] for name in LEVELS],
            e.width,
            layers=e.layers,
            heads=e.heads,
            ffn=e.ffn,
            expansion=e.expansion,
            norm=config.norm,
        ),
        QuerySelection(d.width, classes, config.queries),
        Decoder(
            e.width,
            d.width,
            classes,
            layers=d.layers,
            predict_layers=d.predict_layers,
            heads=d.heads,
            ffn=d.ffn,
            points=d.points,
            offset_scale=d.offset_scale,
            sampling=d.sampling,
            norm=config.norm,
        ),
        Denoising(d.width, classes, n.queries, n.label_noise, n.box_noise) if n else None,
        SetLoss(**config.matching.model_dump(), **config.loss.model_dump()),
        Selection(score_threshold=config.score_threshold, max_detections=config.max_detections),
        num_classes=classes,
        pixel_mean=config.input.mean,
        pixel_std=config.input.std,
        bgr=config.input.bgr,
    )
