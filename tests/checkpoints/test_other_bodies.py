"""Checkpoints of detectron2 and mmdetection with bodies other than an FPN on a plain ResNet, in the names of these tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from resdet.checkpoints.recognise import Recognised, open_checkpoint
from resdet.models.build import build_model


def conv(out: int, inputs: int, kernel: int) -> Tensor:
    return torch.zeros(1).expand(out, inputs, kernel, kernel)  # no memory behind it


def zeros(*shape: int) -> Tensor:
    return torch.zeros(1).expand(*shape)


def norm(channels: int, kind: str = "bn") -> dict[str, Tensor]:
    names = ("weight", "bias", "running_mean", "running_var") if kind == "bn" else ("weight", "bias")
    return {name: zeros(channels) for name in names}


def under(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def with_bias(prefix: str, weight: Tensor, channels: int | None = None) -> dict[str, Tensor]:
    return {f"{prefix}.weight": weight, f"{prefix}.bias": zeros(channels or len(weight))}


def normed(prefix: str, weight: Tensor, kind: str, name: str = "norm") -> dict[str, Tensor]:
    return {f"{prefix}.weight": weight, **under(f"{prefix}.{name}", norm(len(weight), kind))}


def detectron2_stage(prefix: str, stage: int, blocks: int, kind: str = "bn", *, groups: int = 1, width: int = 64,
                     deformable: int = 0) -> dict[str, Tensor]:  # fmt: skip
    """`BottleneckBlock`, `DeformBottleneckBlock` (detectron2/modeling/backbone/resnet.py); stage 2 to 5."""
    middle, out = groups * width * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
    found: dict[str, Tensor] = {}
    inputs = 64 if stage == 2 else out // 2
    for i in range(blocks):
        at = f"{prefix}.res{stage}.{i}"
        if i == 0:
            found |= normed(f"{at}.shortcut", conv(out, inputs, 1), kind)
        found |= normed(f"{at}.conv1", conv(middle, inputs, 1), kind)
        if deformable:
            found |= with_bias(f"{at}.conv2_offset", conv(deformable, middle, 3))
        found |= normed(f"{at}.conv2", conv(middle, middle // groups, 3), kind)
        found |= normed(f"{at}.conv3", conv(out, middle, 1), kind)
        inputs = out
    return found


def detectron2_resnet(prefix: str, blocks: list[int], kind: str = "bn", deformable: int = 0, groups: int = 1,
                      width: int = 64) -> dict[str, Tensor]:  # fmt: skip
    found = normed(f"{prefix}.stem.conv1", conv(64, 3, 7), kind)
    for stage, count in enumerate(blocks, 2):
        offsets = deformable if stage > 2 else 0
        found |= detectron2_stage(prefix, stage, count, kind, groups=groups, width=width, deformable=offsets)
    return found


def detectron2_rpn(channels: int, anchors: int, convs: int = 1) -> dict[str, Tensor]:
    head = "proposal_generator.rpn_head"
    found: dict[str, Tensor] = {}
    for k in range(convs):
        found |= with_bias(f"{head}.conv" + (f".conv{k}" if convs > 1 else ""), conv(channels, channels, 3))
    found |= with_bias(f"{head}.objectness_logits", conv(anchors, channels, 1))
    return found | with_bias(f"{head}.anchor_deltas", conv(anchors * 4, channels, 1))


def predictor(width: int, classes: int = 80, boxes: int | None = None) -> dict[str, Tensor]:
    found = with_bias("roi_heads.box_predictor.cls_score", zeros(classes + 1, width))
    return found | with_bias("roi_heads.box_predictor.bbox_pred", zeros((boxes or classes) * 4, width))


def two_fc(inputs: int) -> dict[str, Tensor]:
    found = with_bias("roi_heads.box_head.fc1", zeros(1024, inputs))
    return found | with_bias("roi_heads.box_head.fc2", zeros(1024, 1024)) | predictor(1024)


def deconv(inputs: int, classes: int = 80) -> dict[str, Tensor]:
    found = with_bias("roi_heads.mask_head.deconv", zeros(inputs, 256, 2, 2), 256)
    return found | with_bias("roi_heads.mask_head.predictor", conv(classes, 256, 1))


def mask_convs(inputs: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for k in range(1, 5):
        found |= with_bias(f"roi_heads.mask_head.mask_fcn{k}", conv(256, inputs if k == 1 else 256, 3))
    return found


def fpn(kind: str | None = None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for k, channels in enumerate((256, 512, 1024, 2048), 2):
        for name, weight in ((f"fpn_lateral{k}", conv(256, channels, 1)), (f"fpn_output{k}", conv(256, 256, 3))):
            found |= normed(f"backbone.{name}", weight, kind) if kind else with_bias(f"backbone.{name}", weight)
    return found


def opened(weights: dict[str, Tensor], path: Path) -> Recognised:
    """The checkpoint, recognised; the model that it describes takes all of it."""
    torch.save({"model": weights}, path)
    found = open_checkpoint(path)
    with torch.device("meta"):
        model = build_model(found.model)
    own = {k: v.shape for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert own == {k: v.shape for k, v in found.weights.items() if not k.endswith("num_batches_tracked")}
    assert found.left_over == []
    assert len(found.weights) == len(weights)
    return found


R50, R101 = [3, 4, 6, 3], [3, 4, 23, 3]


@pytest.mark.parametrize("mask", [False, True])
def test_detectron2s_c4(mask: bool, tmp_path: Path) -> None:
    """Base-RCNN-C4.yaml: RPN on res4 with five sizes, res5 in the heads."""
    weights = detectron2_resnet("backbone", R101[:3]) | detectron2_rpn(1024, 15)
    weights |= detectron2_stage("roi_heads", 5, 3) | predictor(2048)
    weights |= deconv(2048) if mask else {}
    m = opened(weights, tmp_path / "model.pth").model
    assert (m.neck, m.box.trunk, m.backbone.name, m.backbone.stride_in_1x1) == ("c4", "res5", "resnet101", True)
    assert (m.rpn.pre_nms_train, m.rpn.pre_nms_predict) == (12000, 6000)
    assert (m.rpn.post_nms_train, m.rpn.post_nms_predict) == (2000, 1000)
    assert m.anchors.sizes == (32, 64, 128, 256, 512)
    assert (m.pool.sampling_ratio, m.anchors.offset, m.input.bgr) == (0, 0, True)
    assert (m.mask.num_convs if m.mask else None) == (0 if mask else None)


def test_detectron2s_dc5(tmp_path: Path) -> None:
    """Base-RCNN-DilatedC5.yaml: RPN and heads on a res5 that is dilated by 2."""
    weights = detectron2_resnet("backbone", R50) | detectron2_rpn(2048, 15)
    weights |= two_fc(2048 * 49) | mask_convs(2048) | deconv(256)
    m = opened(weights, tmp_path / "model.pth").model
    assert (m.neck, m.backbone.c5_dilation, m.box.trunk) == ("c5", 2, "2fc")
    assert (m.rpn.pre_nms_train, m.rpn.post_nms_predict, m.mask.num_convs) == (12000, 1000, 4)
