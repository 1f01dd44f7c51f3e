"""torchvision's detection models as the oracle: seeded weights, and the way of its names and layouts into ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection

from resdet.checkpoints.names import to_ours
from resdet.config import ModelConfig, parse_config

CLASSES = 20  # torchvision counts the background: 21


def from_torchvision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names and class layout -> ours, nothing left over."""
    converted, unknown = to_ours(weights, "torchvision")
    assert not unknown
    return converted


def torchvision_model(name: str, **options: Any) -> nn.Module:
    """`fasterrcnn_resnet50_fpn` and so on with seeded random weights that find many well spread objects."""
    torch.manual_seed(0)
    model = getattr(detection, name)(
        weights=None, weights_backbone=None, num_classes=CLASSES + 1, trainable_backbone_layers=5, **options
    )
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            last = key.endswith("bn3")
            nn.init.uniform_(module.weight, 0.1 if last else 0.8, 0.3 if last else 1.2)
            nn.init.normal_(module.bias, std=0.1)
    if not hasattr(model, "roi_heads"):
        randomise_dense(model.head)
        return model.eval()
    heads = model.roi_heads
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.02)
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.005)
    for layer, std in ((heads.box_predictor.cls_score, 0.6), (heads.box_predictor.bbox_pred, 0.2)):
        nn.init.normal_(layer.weight, std=std)
        # The rectified features' common part would give every RoI the same class.
        layer.weight.data -= layer.weight.data.mean(1, keepdim=True)
    if heads.mask_predictor is not None:
        nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight, std=0.1)
    if heads.keypoint_predictor is not None:
        nn.init.normal_(heads.keypoint_predictor.kps_score_lowres.weight, std=0.1)
    return model.eval()


@torch.no_grad()
def randomise_dense(head: nn.Module, classes: int = CLASSES) -> None:
    """RetinaNet's or FCOS's head finds well spread objects, none of them of the class that stands for the background."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(1 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, std=0.1)
    last = head.classification_head.cls_logits
    nn.init.normal_(last.bias, -1.0, 0.3)
    last.bias.view(-1, classes + 1)[:, 0] = -100
    last.weight.view(-1, classes + 1, *last.weight.shape[1:])[:, 0] = 0


def torchvision_numerics(name: str) -> ModelConfig:
    """The model section under which our detector computes what torchvision's model of that name does."""
    v2 = name.endswith("_v2")
    norm = "bn" if v2 else "none"
    model: dict[str, Any] = {
        "num_classes": CLASSES,
        "input": {"resize": "torch", "rounding": "floor"},
        "backbone": {"name": "resnet50", "weights": "none", "norm": "bn"},
        "fpn": {"norm": norm},
        "anchors": {"offset": 0, "rounded": True, "grid_stride": True},
        "rpn": {"num_convs": 2 if v2 else 1, "post_nms_train": 2000, "min_size": 1e-3, "loss_beta": 1 / 9},
        "pool": {"aligned": False, "sampling_ratio": 2},
        "box": {"trunk": "4conv1fc" if v2 else "2fc", "norm": norm, "min_size": 1e-2, "loss_beta": 1 / 9},
    }
    if name.startswith("mask"):
        model["mask"] = {"norm": norm, "paste": "torchvision"}
    if name.startswith("keypoint"):
        model["keypoint"] = {"num_keypoints": 17, "decode": "torchvision"}
    return parse_config({"model": model}).model
