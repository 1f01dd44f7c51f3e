"""Checkpoints of detectron2 and mmdetection with bodies other than an FPN on a plain ResNet, in the names of these tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from conftest import SHARED
from resdet.checkpoints.recognise import Recognised, open_checkpoint
from resdet.errors import UserError
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


def opened(weights: dict[str, Tensor], path: Path, content: dict | None = None) -> Recognised:
    """The checkpoint, recognised; the model that it describes takes all of it."""
    torch.save(content or {"model": weights}, path)
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


def four_conv(kind: str) -> dict[str, Tensor]:
    """`FastRCNNConvFCHead` with NUM_CONV 4, NUM_FC 1, and the mask head with the same norm."""
    found: dict[str, Tensor] = {}
    for k in range(1, 5):
        found |= normed(f"roi_heads.box_head.conv{k}", conv(256, 256, 3), kind)
        found |= normed(f"roi_heads.mask_head.mask_fcn{k}", conv(256, 256, 3), kind)
    return found | with_bias("roi_heads.box_head.fc1", zeros(1024, 256 * 49)) | predictor(1024) | deconv(256)


def plain_heads(boxes: int | None = None, masks: int = 80) -> dict[str, Tensor]:
    return (
        detectron2_rpn(256, 3) | two_fc(256 * 49) | predictor(1024, boxes=boxes) | mask_convs(256) | deconv(256, masks)
    )


def test_detectron2s_deformable_and_class_agnostic(tmp_path: Path) -> None:
    """Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5 and …_1x_cls_agnostic."""
    body = "backbone.bottom_up"
    m = opened(detectron2_resnet(body, R50, deformable=18) | fpn() | plain_heads(), tmp_path / "a.pth").model
    b = m.backbone
    assert (b.deformable, b.deformable_stages, b.deformable_groups) == ("v1", ["c3", "c4", "c5"], 1)
    assert (b.stride_in_1x1, m.input.std) == (True, (1, 1, 1))
    m = opened(detectron2_resnet(body, R50, deformable=54) | fpn() | plain_heads(1, 1), tmp_path / "b.pth").model
    assert (m.backbone.deformable, m.backbone.deformable_groups) == ("v2", 2)
    assert (m.box.class_agnostic, m.mask.class_agnostic, m.num_classes) == (True, True, 80)


def test_detectron2s_resnext_and_resnet_101(tmp_path: Path) -> None:
    body = "backbone.bottom_up"
    weights = detectron2_resnet(body, R101, groups=32, width=8) | fpn() | plain_heads()
    m = opened(weights, tmp_path / "x.pth").model
    assert (m.backbone.name, m.backbone.stride_in_1x1) == ("resnext101_32x8d", False)
    assert m.input.std == (57.375, 57.12, 58.395)
    assert (
        opened(detectron2_resnet(body, R101) | fpn() | plain_heads(), tmp_path / "r.pth").model.backbone.name
        == "resnet101"
    )


@pytest.fixture(scope="module")
def stem() -> tuple[Tensor, Tensor]:
    """A trained stem's filters, and the variance of their responses to photographs divided by their standard deviation."""
    path = SHARED.parent / "weights/resnet18_imagenet_layer4_random.safetensors"
    images = sorted(SHARED.glob("coco_open/val2017/*.jpg"))[:4]
    if not path.is_file() or not images:
        pytest.skip(f"needs {path} and images in {SHARED}")
    weight = load_file(path)["conv1.weight"]
    pixels = np.stack([np.array(Image.open(image).convert("RGB").resize((240, 160))) for image in images])
    scaled = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 115) / 57
    return weight, torch.conv2d(scaled, weight, stride=2, padding=3).var((0, 2, 3))


@pytest.mark.parametrize("divided", [False, True])
def test_detectron2s_syncbn_tells_its_scaling_by_the_stems_statistics(divided: bool, stem, tmp_path: Path) -> None:
    """mask_rcnn_R_50_FPN_3x_syncbn and the LSJ baselines: std 1, stride in the 1x1; scratch_…_9x_syncbn: std 57, in the 3x3."""
    weights = (
        detectron2_resnet("backbone.bottom_up", R50) | fpn("bn") | detectron2_rpn(256, 3, convs=2) | four_conv("bn")
    )
    weight, variance = stem
    weights["backbone.bottom_up.stem.conv1.weight"] = weight
    weights["backbone.bottom_up.stem.conv1.norm.running_var"] = variance if divided else variance * 57**2
    found = opened(weights, tmp_path / "model.pth")
    m = found.model
    assert (m.box.trunk, m.box.norm, m.mask.norm, m.fpn.norm, m.rpn.num_convs) == ("4conv1fc", "bn", "bn", "bn", 2)
    assert m.input.std == ((57.375, 57.12, 58.395) if divided else (1, 1, 1))
    assert m.backbone.stride_in_1x1 is not divided
    assert ("divided by their std" in found.report()) is divided


def test_detectron2s_group_norm(tmp_path: Path) -> None:
    weights = detectron2_resnet("backbone.bottom_up", R50, "gn") | fpn("gn") | detectron2_rpn(256, 3) | four_conv("gn")
    m = opened(weights, tmp_path / "model.pth").model
    assert (m.backbone.norm, m.fpn.norm, m.box.norm, m.mask.norm, m.backbone.stride_in_1x1) == ("gn",) * 4 + (False,)
    assert not m.backbone.weight_standardization


def mmdetection(kind: str = "bn", *, offsets: int = 0, groups: int = 1, width: int = 64, blocks: list[int] = R50,
                normed_heads: bool = False) -> dict[str, Tensor]:  # fmt: skip
    """A Mask R-CNN of mmdetection 3: ResNet's `gnK` or `bnK`, ConvModule's `.conv` and `.gn`, mmcv's `conv_offset`."""
    found = {"backbone.conv1.weight": conv(64, 3, 7), **under(f"backbone.{kind}1", norm(64, kind))}
    inputs = 64
    for k, count in enumerate(blocks, 1):
        out, middle = 128 * 2**k, groups * width * 2 ** (k - 1)
        for i in range(count):
            at = f"backbone.layer{k}.{i}"
            shapes = (conv(middle, inputs, 1), conv(middle, middle // groups, 3), conv(out, middle, 1))
            for j, weight in enumerate(shapes, 1):
                found |= {f"{at}.conv{j}.weight": weight, **under(f"{at}.{kind}{j}", norm(len(weight), kind))}
            if offsets and k > 1:
                found |= with_bias(f"{at}.conv2.conv_offset", conv(offsets, middle, 3))
            if i == 0:
                found |= {
                    f"{at}.downsample.0.weight": conv(out, inputs, 1),
                    **under(f"{at}.downsample.1", norm(out, kind)),
                }
            inputs = out

    def module(at: str, weight: Tensor) -> dict[str, Tensor]:
        return (
            {f"{at}.conv.weight": weight, **under(f"{at}.gn", norm(256, "gn"))}
            if normed_heads
            else with_bias(f"{at}.conv", weight)
        )

    for k, channels in enumerate((256, 512, 1024, 2048)):
        found |= module(f"neck.lateral_convs.{k}", conv(256, channels, 1)) | module(
            f"neck.fpn_convs.{k}", conv(256, 256, 3)
        )
        found |= module(f"roi_head.mask_head.convs.{k}", conv(256, 256, 3))
        found |= module(f"roi_head.bbox_head.shared_convs.{k}", conv(256, 256, 3)) if normed_heads else {}
    found |= with_bias("rpn_head.rpn_conv", conv(256, 256, 3)) | with_bias("rpn_head.rpn_cls", conv(3, 256, 1))
    found |= with_bias("rpn_head.rpn_reg", conv(12, 256, 1))
    found |= with_bias("roi_head.bbox_head.shared_fcs.0", zeros(1024, 256 * 49))
    found |= {} if normed_heads else with_bias("roi_head.bbox_head.shared_fcs.1", zeros(1024, 1024))
    found |= with_bias("roi_head.bbox_head.fc_cls", zeros(81, 1024)) | with_bias(
        "roi_head.bbox_head.fc_reg", zeros(320, 1024)
    )
    found |= with_bias("roi_head.mask_head.upsample", zeros(256, 256, 2, 2))
    return found | with_bias("roi_head.mask_head.conv_logits", conv(80, 256, 1))


WS = """
conv_cfg = dict(type='ConvWS')
model = dict(
    backbone=dict(type='ResNet', depth=50, style='pytorch', conv_cfg=dict(type='ConvWS')),
    neck=dict(type='FPN', conv_cfg=dict(type='ConvWS')),
    roi_head=dict(bbox_head=dict(type='Shared4Conv1FCBBoxHead', conv_cfg=dict(type='ConvWS')),
                  mask_head=dict(type='FCNMaskHead', conv_cfg=dict(type='ConvWS'))))
"""


@pytest.mark.parametrize("c4", [False, True])
def test_detectron2s_rpn_alone(c4: bool, tmp_path: Path) -> None:
    """rpn_R_50_FPN_1x.yaml and rpn_R_50_C4_1x.yaml: no RoI heads, and no res5 without the FPN."""
    body = detectron2_resnet("backbone" if c4 else "backbone.bottom_up", R50[:3] if c4 else R50)
    weights = body | (detectron2_rpn(1024, 15) if c4 else fpn() | detectron2_rpn(256, 3))
    found = opened(weights, tmp_path / "model.pth")
    m = found.model
    assert (m.box, m.neck, m.mask, found.class_names) == (None, "c4" if c4 else "fpn", None, ["object"])
    assert (m.rpn.pre_nms_predict, m.rpn.post_nms_predict) == (12000 if c4 else 1000, 2000)
    assert (m.rpn.fixed_divisor, m.backbone.stride_in_1x1, m.input.bgr) == (True, True, True)
    assert "detectron2, RPN alone, resnet50, " in found.report()
    torch.save({"model": weights | {"roi_heads.other_head.weight": zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"heads are of a kind that resdet does not have \(roi_heads\.other_head\.weight\)"
    ):
        open_checkpoint(tmp_path / "other.pth")


def test_mmdetections_rpn_alone(tmp_path: Path) -> None:
    weights = {name: value for name, value in mmdetection().items() if not name.startswith("roi_head.")}
    config = "model = dict(type='RPN', test_cfg=dict(rpn=dict(nms_pre=1500, max_per_img=800)))"
    for content, limits in ((None, (2000, 1000)), ({"state_dict": weights, "meta": {"cfg": config}}, (1500, 800))):
        m = opened(weights, tmp_path / "model.pth", content).model
        assert (m.box, m.rpn.rank, m.rpn.clamp_shrink, m.num_classes) == (None, "sigmoid", True, 1)
        assert (m.rpn.pre_nms_predict, m.rpn.post_nms_predict) == limits


@pytest.mark.parametrize("standardized", [False, True])
def test_mmdetections_group_norm_with_and_without_weight_standardization(standardized: bool, tmp_path: Path) -> None:
    """configs/gn and gn+ws: the tensors are the same, the config in the file tells."""
    weights = mmdetection("gn", normed_heads=True)
    meta = {"cfg": WS if standardized else WS.replace("ConvWS", "Conv2d")}
    m = opened(weights, tmp_path / "model.pth", {"meta": meta, "state_dict": weights}).model
    assert (m.backbone.norm, m.fpn.norm, m.box.trunk, m.box.norm, m.mask.norm) == ("gn", "gn", "4conv1fc", "gn", "gn")
    told = [section.weight_standardization for section in (m.backbone, m.fpn, m.box, m.mask)]
    assert told == [standardized] * 4


@pytest.mark.parametrize(("offsets", "version"), [(18, "v1"), (27, "v2")])
def test_mmdetections_deformable(offsets: int, version: str, tmp_path: Path) -> None:
    m = opened(mmdetection(offsets=offsets), tmp_path / "model.pth").model
    assert (m.backbone.deformable, m.backbone.deformable_stages) == (version, ["c3", "c4", "c5"])


@pytest.mark.parametrize("groups", [32, 64])
def test_mmdetections_resnext(groups: int, tmp_path: Path) -> None:
    m = opened(mmdetection(groups=groups, width=4, blocks=R101), tmp_path / "model.pth").model
    assert (m.backbone.name, m.backbone.stride_in_1x1, m.input.bgr) == (f"resnext101_{groups}x4d", False, False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("backbone.bottom_up.s1.b1.f.a.weight", "a RegNet backbone"),
        ("backbone.layer1.0.convs.0.weight", "a Res2Net backbone"),
        ("backbone.layer1.0.context_block2.conv_mask.weight", "a GCNet"),
        ("roi_head.mask_iou_head.convs.0.weight", "Mask Scoring R-CNN"),
    ],
)
def test_what_is_not_supported_is_called_by_its_name(name: str, kind: str, tmp_path: Path) -> None:
    torch.save(
        {"model": {name: torch.zeros(2), "neck.lateral_convs.0.conv.weight": torch.zeros(2)}}, tmp_path / "m.pth"
    )
    with pytest.raises(UserError, match=f"m.pth: holds {kind}"):
        open_checkpoint(tmp_path / "m.pth")
    torch.save({"model": {"rpn_head.rpn_conv.weight": torch.zeros(2)}}, tmp_path / "m.pth")
    with pytest.raises(UserError, match=r"an R-CNN of mmdetection without FPN \(C4, DC5\)"):
        open_checkpoint(tmp_path / "m.pth")
