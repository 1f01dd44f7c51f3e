from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from resdet.config import parse_config
from resdet.errors import UserError
from resdet.models.backbones.resnet import RESNETS, ResNet, architecture, architecture_name
from resdet.models.build import build_backbone
from resdet.models.layers import BatchNorm2d, DeformableConv2d, FrozenBatchNorm2d, StandardizedConv2d

ALL = [n if n in ("resnet18", "resnet50") else pytest.param(n, marks=pytest.mark.slow) for n in RESNETS]


def stir(model: nn.Module) -> None:
    """Statistics and affine parameters that a wrong order would not survive."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)


BOTH = [
    pytest.param(name, norm, marks=[] if name in ("resnet18", "resnet50") else [pytest.mark.slow])
    for name in RESNETS
    for norm in (("bn", "frozen_bn") if name in ("resnet18", "resnet50") else ("frozen_bn",))
]


@pytest.mark.parametrize(("name", "norm"), BOTH)
def test_equal_to_torchvision(name: str, norm: str) -> None:
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    stir(theirs)
    ours = ResNet(RESNETS[name], norm=norm).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not missing
    assert norm == "bn" or not any("num_batches" in k for k in ours.state_dict())
    assert not unexpected
    if norm == "bn":
        backbone_only = sum(p.numel() for k, p in theirs.named_parameters() if not k.startswith("fc."))
        assert sum(p.numel() for p in ours.parameters()) == backbone_only
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        features = ours(x)
        y = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for k in range(1, 5):
            y = getattr(theirs, f"layer{k}")(y)
            torch.testing.assert_close(features[f"c{k + 1}"], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_declares_its_channels_and_strides(name: str) -> None:
    model = ResNet(RESNETS[name], norm="bn").eval()
    with torch.inference_mode():
        features = model(torch.randn(1, 3, 64, 128))
    assert list(features) == ["c2", "c3", "c4", "c5"] == list(model.channels) == list(model.strides)
    for level, feature in features.items():
        stride = model.strides[level]
        assert feature.shape == (1, model.channels[level], 64 // stride, 128 // stride)


@pytest.mark.parametrize("in_1x1", [True, False])
def test_stride_placement(in_1x1: bool) -> None:
    block = ResNet(RESNETS["resnet50"], norm="bn", stride_in_1x1=in_1x1).layer2[0]
    assert (block.conv1.stride[0] == 2) is in_1x1
    assert (block.conv2.stride[0] == 2) is not in_1x1


def test_resnext_of_any_groups_and_width() -> None:
    theirs = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], groups=16, width_per_group=8
    ).state_dict()
    ours = ResNet(architecture("resnext50_16x8d"), norm="bn").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}
    for name in ("resnext101_64x4d", "resnext50_32x4d", "wide_resnet101_2", "resnet34"):
        assert architecture_name(architecture(name)) == name
    with pytest.raises(UserError, match=r"unknown backbone 'resnext101_32d'; known are resnet18"):
        parse_config({"model": {"backbone": {"name": "resnext101_32d"}}})


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_deformable_convolutions(version: str) -> None:
    """With offsets of zero a plain convolution (version 2: half of one); with a whole pixel's offset a shifted one."""
    model = ResNet(
        RESNETS["resnet18"], norm="bn", deformable=version, deformable_stages=["c4", "c5"], deformable_groups=2
    )
    assert isinstance(model.layer3[0].conv1, DeformableConv2d)
    assert isinstance(model.layer2[0].conv1, nn.Conv2d)
    conv = model.layer3[1].conv2
    x = torch.rand(2, 256, 9, 12)
    share = 0.5 if version == "v2" else 1.0
    torch.testing.assert_close(conv(x), share * F.conv2d(x, conv.weight, padding=1), rtol=1e-5, atol=1e-5)
    bias = torch.zeros(2, 9, 2)
    bias[..., 0] = 1.0  # one row down
    conv.offset.bias.data[: bias.numel()] = bias.flatten()
    shifted = F.conv2d(F.pad(x, (1, 1, 0, 2)), conv.weight)
    torch.testing.assert_close(conv(x), share * shifted, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(torch.rand(2, 3, 64, 64))["c5"].sum().backward()
    assert all(p.grad is not None for p in model.layer4.parameters())


def test_offset_groups_must_divide_the_channels() -> None:
    config = parse_config({"model": {"backbone": {"deformable": "v2", "deformable_groups": 5}}}).model
    with pytest.raises(UserError, match=r"deformable_groups \(5\) must divide .* 64 in c2"):
        build_backbone(config)


def test_standardised_weights() -> None:
    model = ResNet(RESNETS["resnet18"], norm="gn", weight_standardization=True)
    conv = model.layer1[0].conv1.double()
    assert isinstance(conv, StandardizedConv2d)
    with torch.no_grad():
        conv.weight.mul_(3).add_(1)
    x = torch.rand(1, 64, 8, 8, dtype=torch.float64)
    flat = conv.weight.flatten(1)
    standard = ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(conv.weight)
    torch.testing.assert_close(conv(x), F.conv2d(x, standard, padding=1))


def test_dilated_c5_keeps_its_stride() -> None:
    model = ResNet(RESNETS["resnet18"], norm="bn", c5_dilation=2).eval()
    assert model.strides["c5"] == 16
    x = torch.rand(1, 3, 64, 96)
    assert model(x)["c5"].shape == (1, 512, 4, 6)
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    ours = ResNet(RESNETS["resnet50"], norm="bn", c5_dilation=2)
    assert (ours.layer4[1].conv2.dilation, ours.layer4[2].conv2.padding) == ((2, 2), (2, 2))
    assert theirs.layer4[1].conv2.dilation == ours.layer4[1].conv2.dilation


@pytest.mark.parametrize("stages", range(6))
def test_frozen_stages(stages: int) -> None:
    model = ResNet(RESNETS["resnet18"], norm="bn", frozen_stages=stages).train()
    # 20 convolutions and 20 norms with two parameters each: 60, of which each stage takes its share.
    frozen = {0: 0, 1: 3, 2: 3 + 12, 3: 3 + 12 + 15, 4: 3 + 12 + 30, 5: 60}[stages]
    assert sum(p.requires_grad for p in model.parameters()) == 60 - frozen
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model(torch.randn(2, 3, 64, 64))
    moved = {k for k, v in model.state_dict().items() if "running" in k and not torch.equal(v, before[k])}
    assert ("bn1.running_mean" in moved) is (stages == 0)
    assert ("layer1.0.bn1.running_mean" in moved) is (stages <= 1)
    assert ("layer4.1.bn2.running_mean" in moved) is (stages < 5)


def test_plain_network_has_no_shortcut() -> None:
    plain = ResNet(RESNETS["resnet34"], norm="bn", residual=False)
    assert not any("downsample" in k for k in plain.state_dict())
    block = plain.layer1[0].eval()
    nn.init.zeros_(block.bn2.weight)
    assert block(torch.rand(1, 64, 8, 8)).sum() == 0  # nothing comes past the zeroed branch
    residual = ResNet(RESNETS["resnet34"], norm="bn").layer1[0].eval()
    nn.init.zeros_(residual.bn2.weight)
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(residual(x), x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_zero_initialised_last_norm_makes_blocks_identities(name: str) -> None:
    for flag in (True, False):
        model = ResNet(RESNETS[name], norm="bn", zero_init_last=flag).eval()
        x = torch.rand(1, model.channels["c2"], 8, 8)
        assert torch.equal(model.layer1[1](x), x) is flag


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"norm": "frozen_bn"}, "norm=frozen_bn with model.backbone.weights=none"),
        ({"frozen_stages": 1}, "frozen_stages=1 with model.backbone.weights=none"),
    ],
)
def test_what_is_frozen_without_weights_is_refused(backbone: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"model": {"backbone": {"weights": "none", **backbone}}})
    assert message in str(caught.value)
    assert parse_config({"model": {"backbone": {"weights": "none", **backbone}, "weights": "x.pth"}})


def test_without_weights_nothing_stays_random_for_ever() -> None:
    config = parse_config({"model": {"backbone": {"weights": "none"}}}).model
    assert (config.backbone.frozen_stages, config.backbone.norm) == (0, "bn")
    backbone = build_backbone(config)
    assert all(p.requires_grad for p in backbone.parameters())
    assert isinstance(backbone.bn1, BatchNorm2d)
    pretrained = parse_config({}).model
    assert (pretrained.backbone.frozen_stages, pretrained.backbone.norm) == (2, "frozen_bn")
    assert isinstance(build_backbone(pretrained).bn1, FrozenBatchNorm2d)
