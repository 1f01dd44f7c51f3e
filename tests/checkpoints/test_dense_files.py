"""Files of mmdetection's one-stage detectors: their names, and the numerics that their configs tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from resdet.checkpoints.recognise import open_checkpoint
from resdet.errors import UserError
from resdet.models.build import build_model

CLASSES = 4
# What mmdetection calls the layers that predict, and the anchors of a place.
PREDICTORS = {
    "RetinaNet": ({"retina_cls": 9 * CLASSES, "retina_reg": 36}, 9),
    "FCOS": ({"conv_cls": CLASSES, "conv_reg": 4, "conv_centerness": 1}, 1),
    "ATSS": ({"atss_cls": CLASSES, "atss_reg": 4, "atss_centerness": 1}, 1),
    "GFL": ({"gfl_cls": CLASSES, "gfl_reg": 68}, 1),
    "YOLOF": ({"cls_score": 5 * CLASSES, "bbox_pred": 20, "object_pred": 5}, 5),
}
OCTAVES = "anchor_generator=dict(type='AnchorGenerator', octave_base_scale={}, scales_per_octave={}, ratios={}, " \
    "strides=[8, 16, 32, 64, 128])"  # fmt: skip
GIOU = "loss_bbox=dict(type='GIoULoss', loss_weight=2.0)"
HEADS = {
    "RetinaNet": f"type='RetinaHead', {OCTAVES.format(4, 3, [0.5, 1.0, 2.0])}, loss_bbox=dict(type='L1Loss', loss_weight=1.0)",
    "FCOS": "type='FCOSHead', norm_on_bbox=True, centerness_on_reg=True, center_sampling=True, conv_bias=True, "
    "loss_bbox=dict(type='GIoULoss', loss_weight=1.0)",
    "ATSS": f"type='ATSSHead', {OCTAVES.format(8, 1, [1.0])}, {GIOU}",
    "GFL": f"type='GFLHead', {OCTAVES.format(8, 1, [1.0])}, {GIOU}, reg_max=16",
    "YOLOF": "type='YOLOFHead', anchor_generator=dict(type='AnchorGenerator', scales=[1, 2, 4, 8, 16], ratios=[1.0], "
    "strides=[32]), loss_bbox=dict(type='GIoULoss', loss_weight=1.0)",
}
NECKS = {
    "RetinaNet": "add_extra_convs='on_input'", "FCOS": "add_extra_convs='on_output', relu_before_extra_convs=True",
    "ATSS": "add_extra_convs='on_output'", "GFL": "add_extra_convs='on_output'",
}  # fmt: skip
NUMERICS = {
    "RetinaNet": {"fpn.p6_from": "c5", "fpn.relu": False, "head.clamp_shrink": True, "anchors.offset": 0.0},
    "FCOS": {"fpn.p6_from": "p5", "fpn.relu": True, "head.bias": True, "head.radius": 1.5, "head.distances": "relu"},
    "ATSS": {"fpn.p6_from": "p5", "fpn.relu": False, "anchors.sizes": (64, 128, 256, 512, 1024)},
    "GFL": {"head.farthest": 16, "head.norm": "gn", "anchors.offset": 0.0},
    "YOLOF": {"encoder.dilations": [2, 4, 6, 8], "encoder.width": 16, "head.norm": "bn", "anchors.ratios": [1.0]},
}


def text(kind: str) -> str:
    neck = f"type='FPN', in_channels=[64, 128, 256, 512], out_channels=32, start_level=1, num_outs=5, {NECKS.get(kind)}"
    if kind == "YOLOF":
        neck = "type='DilatedEncoder', in_channels=512, out_channels=32, block_mid_channels=16, num_residual_blocks=4"
    maps = "(3, )" if kind == "YOLOF" else "(0, 1, 2, 3)"
    return (
        f"model = dict(type='{kind}', backbone=dict(type='ResNet', depth=18, out_indices={maps}, style='pytorch'), "
        f"neck=dict({neck}), bbox_head=dict({HEADS[kind]}, num_classes={CLASSES}), "
        "data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True), "
        "test_cfg=dict(nms_pre=500, min_bbox_size=0, score_thr=0.03, nms=dict(type='nms', iou_threshold=0.65), max_per_img=70))"
    )


def tensors(kind: str) -> dict[str, Tensor]:
    """By mmdetection's names, of a small detector."""
    g = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = torch.rand(*shape, generator=g)
        if bias:
            found[f"{name}.bias"] = torch.rand(shape[0], generator=g)

    def norm(name: str, channels: int, batch: bool) -> None:
        layer(name, channels)
        if batch:
            found[f"{name}.running_mean"], found[f"{name}.running_var"] = torch.rand(2, channels, generator=g)

    layer("backbone.conv1", 64, 3, 7, 7, bias=False)
    norm("backbone.bn1", 64, True)
    before = 64
    for k, channels in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            for n, inputs in ((1, before), (2, channels)):
                layer(f"backbone.layer{k}.{block}.conv{n}", channels, inputs, 3, 3, bias=False)
                norm(f"backbone.layer{k}.{block}.bn{n}", channels, True)
            if before != channels:
                layer(f"backbone.layer{k}.{block}.downsample.0", channels, before, 1, 1, bias=False)
                norm(f"backbone.layer{k}.{block}.downsample.1", channels, True)
            before = channels
    yolof, predictors = kind == "YOLOF", PREDICTORS[kind][0]
    if yolof:
        layer("neck.lateral_conv", 32, 512, 1, 1)
        layer("neck.fpn_conv", 32, 32, 3, 3)
        norm("neck.lateral_norm", 32, True)
        norm("neck.fpn_norm", 32, True)
        for k in range(4):
            for n, shape in ((1, (16, 32, 1, 1)), (2, (16, 16, 3, 3)), (3, (32, 16, 1, 1))):
                layer(f"neck.dilated_encoder_blocks.{k}.conv{n}.conv", *shape, bias=False)
                norm(f"neck.dilated_encoder_blocks.{k}.conv{n}.bn", shape[0], True)
    else:
        for k, channels in enumerate((128, 256, 512)):
            layer(f"neck.lateral_convs.{k}.conv", 32, channels, 1, 1)
        for k in range(5):
            layer(f"neck.fpn_convs.{k}.conv", 32, 512 if (kind, k) == ("RetinaNet", 3) else 32, 3, 3)
    towers = {"cls_subnet": 2, "bbox_subnet": 4} if yolof else {"cls_convs": 4, "reg_convs": 4}
    for tower, count in towers.items():
        for k in range(count):
            layer(f"bbox_head.{tower}.{k}.conv", 32, 32, 3, 3, bias=kind in ("RetinaNet", "FCOS"))
            if kind != "RetinaNet":
                norm(f"bbox_head.{tower}.{k}.{'bn' if yolof else 'gn'}", 32, yolof)
    for name, rows in predictors.items():
        layer(f"bbox_head.{name}", rows, 32, 3, 3)
    if kind in ("FCOS", "ATSS", "GFL"):
        found |= {f"bbox_head.scales.{k}.scale": torch.tensor(1.0 + k) for k in range(5)}
    return found


def saved(kind: str, path: Path, config: str | None, weights: dict[str, Tensor] | None = None) -> Path:
    meta = {"CLASSES": tuple("abcd")} | ({"cfg": config} if config else {})
    torch.save({"meta": meta, "state_dict": weights or tensors(kind)}, path)
    return path


@pytest.mark.parametrize("kind", PREDICTORS)
def test_a_file_of_mmdetection_tells_its_detector(kind: str, tmp_path) -> None:
    found = open_checkpoint(saved(kind, tmp_path / "a.pth", text(kind)))
    model, weights = build_model(found.model), tensors(kind)
    model.load_state_dict(found.weights, strict=True)
    assert not found.left_over
    assert found.class_names == list("abcd")
    assert found.model.num_classes == CLASSES
    assert found.report().splitlines()[0].endswith(f"mmdetection, {kind}, resnet18, 4 classes, {len(weights)} tensors")
    for key, expected in NUMERICS[kind].items():
        value = found.model
        for part in key.split("."):
            value = getattr(value, part)
        assert value == expected, key
    h, i = found.model.head, found.model.input
    assert (h.candidates, h.score_threshold, h.nms_threshold, h.max_detections) == (500, 0.03, 0.65, 70)
    assert (i.mean, i.std, i.bgr, found.model.fold_norm) == ((1, 2, 3), (4, 5, 6), False, False)
    # Anchors are ordered by ratio there, by size here; for each all classes, as here.
    names, anchors = PREDICTORS[kind]
    theirs = weights[f"bbox_head.{next(iter(names))}.bias"].view(anchors, CLASSES)
    ours = found.weights["head.classifier.bias"].view(anchors, CLASSES)
    order = [3 * (k % 3) + k // 3 for k in range(9)] if anchors == 9 else range(anchors)
    assert torch.equal(ours, theirs[list(order)])


def test_without_a_config_the_published_one_is_assumed(tmp_path) -> None:
    fcos = open_checkpoint(saved("FCOS", tmp_path / "a.pth", None)).model
    assert (fcos.head.distances, fcos.head.radius, fcos.input.bgr) == ("relu", 1.5, True)
    plain = {k: v for k, v in tensors("FCOS").items() if not k.endswith("convs.0.conv.bias")}
    fcos = open_checkpoint(saved("FCOS", tmp_path / "b.pth", None, plain)).model
    assert (fcos.head.distances, fcos.head.radius, fcos.head.box_loss) == ("exp", None, "iou")
    retinanet = open_checkpoint(saved("RetinaNet", tmp_path / "c.pth", None)).model
    assert (retinanet.head.clamp_shrink, retinanet.fpn.relu, retinanet.input.bgr) == (True, False, False)


def test_what_resdet_does_not_have_is_told(tmp_path) -> None:
    other = text("ATSS").replace("type='ATSS'", "type='PAA'")
    with pytest.raises(UserError, match=r"named like those of mmdetection's ATSS, but its config describes a PAA"):
        open_checkpoint(saved("ATSS", tmp_path / "a.pth", other))
    deformable = text("FCOS").replace("center_sampling=True", "dcn_on_last_conv=True")
    with pytest.raises(UserError, match=r"bbox_head\.dcn_on_last_conv=True: resdet supports False"):
        open_checkpoint(saved("FCOS", tmp_path / "b.pth", deformable))
    fewer = {k: v for k, v in tensors("YOLOF").items() if not k.startswith("neck.dilated_encoder_blocks.3.")}
    with pytest.raises(
        UserError, match=r"encoder has 3 blocks instead of the usual ones with dilations \[2, 4, 6, 8\]"
    ):
        open_checkpoint(saved("YOLOF", tmp_path / "c.pth", None, fewer))
    cut = {k: v for k, v in tensors("GFL").items() if "gfl_reg" not in k}
    with pytest.raises(UserError, match=r"a GFL of mmdetection's, but incomplete"):
        open_checkpoint(saved("GFL", tmp_path / "d.pth", None, cut))
