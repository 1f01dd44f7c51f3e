"""transformers' RT-DETR as the oracle, with random weights, and ours with the same."""

from __future__ import annotations

import warnings

import pytest
from torch import nn

from resdet.checkpoints.rtdetr_names import TRANSFORMERS, to_ours
from resdet.models.detector import Detector
from tiny import RTDETR, K, shaken, small_rtdetr


def theirs(version: int = 1, *, deep: bool = False, layers: int = 2, **options: object) -> nn.Module:
    """Of the sizes of `tiny.RTDETR`, in evaluation mode. deep: on a ResNet-50 instead of 18."""
    transformers = pytest.importorskip("transformers")
    body = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    if deep:
        body = {"hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "layer_type": "bottleneck"}
    name = "RTDetr" if version == 1 else "RTDetrV2"
    config = getattr(transformers, f"{name}Config")(
        backbone_config=transformers.RTDetrResNetConfig(**body, out_indices=[2, 3, 4]),
        encoder_in_channels=body["hidden_sizes"][1:], encoder_hidden_dim=32, encoder_attention_heads=4, encoder_ffn_dim=48,
        hidden_expansion=0.5, decoder_in_channels=[32] * 3, d_model=40, decoder_layers=layers, decoder_attention_heads=4,
        decoder_ffn_dim=48, num_queries=RTDETR["queries"], num_denoising=12, num_labels=K, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 10 channels a head are no power of two
        model = getattr(transformers, f"{name}ForObjectDetection")(config)
    return shaken(model).eval()


def ours(model: nn.Module, **values: object) -> Detector:
    """The same by our names, nothing missing or left over. values: of `model` that are not in `tiny.RTDETR`."""
    deep = model.config.backbone_config.layer_type == "bottleneck"
    backbone = {"name": "resnet50" if deep else "resnet18", "weights": "none", "project_first": not deep}
    detector = small_rtdetr(**{"backbone": backbone, **values})
    weights, unknown = to_ours(model.state_dict(), TRANSFORMERS)
    assert not unknown
    own = detector.state_dict()
    assert {k for k in own if k not in weights and not k.endswith("num_batches_tracked")} == set()
    assert {k for k in weights if k not in own} == set()
    detector.load_state_dict(weights, strict=False)
    return detector.eval()
