"""Backbones of timm, torchvision and the user's own: maps, strides, stages, and what a config does to them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resdet.config import parse_config
from resdet.errors import UserError
from resdet.export.program import Prediction, export_prediction
from resdet.models.backbones.adapted import Adapted, SimplePyramid
from resdet.models.backbones.libraries import library_backbone
from resdet.models.backbones.resnet import RESNETS, ResNet
from resdet.models.build import build_model
from resdet.training.optim import build_optimizer, rate_scales
from tiny import DENSE, RTDETR, SEMANTIC_HEAD, dense, make_batch, small

timm = pytest.importorskip("timm")
NAMES = ("c2", "c3", "c4", "c5")


def named(name: str, **more: object) -> dict:
    return {"name": name, "weights": "none", **more}


def count(stage: list[nn.Module]) -> int:
    return sum(p.numel() for module in stage for p in module.parameters())


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_librarys_resnet_is_ours(library: str) -> None:
    """The same weights give the same maps, and the stages are the same."""
    torch.manual_seed(0)
    ours, theirs = ResNet(RESNETS["resnet18"], norm="bn").eval(), library_backbone(f"{library}:resnet18").eval()
    theirs.net.load_state_dict(ours.state_dict())
    assert (dict(theirs.channels), dict(theirs.strides)) == (dict(ours.channels), dict(ours.strides))
    assert [count(stage) for stage in theirs.stages()] == [count(stage) for stage in ours.stages()]
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-4)


FAMILIES = [  # one of each kind of network in every run
    "timm:test_convnext", "timm:test_vit", "timm:regnetx_002", "timm:mobilenetv3_small_050", "timm:hrnet_w18_small",
    "timm:vit_small_patch14_dinov2", "torchvision:swin_t", "torchvision:mobilenet_v3_small",
]  # fmt: skip
MORE_FAMILIES = [  # with --thorough
    "timm:convnext_atto", "timm:res2net50_26w_4s", "timm:resnest14d", "timm:efficientnet_b0", "timm:densenet121",
    "timm:swin_tiny_patch4_window7_224", "timm:vit_tiny_patch16_224", "timm:maxvit_nano_rw_256",
    "torchvision:regnet_y_400mf",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if "test_" in n else pytest.mark.slow) for n in FAMILIES + MORE_FAMILIES]
)
def test_every_family_gives_the_maps_that_it_declares(name: str, thorough) -> None:
    if name in MORE_FAMILIES and not thorough:
        pytest.skip("only with --thorough")
    torch.manual_seed(0)
    backbone = library_backbone(name)
    assert tuple(backbone.channels) == NAMES
    assert list(backbone.strides.values()) == [4, 8, 16, 32]
    for height, width in ((160, 64), (64, 96)):
        with torch.set_grad_enabled(height == 64):
            maps = backbone(torch.rand(2, 3, height, width))
        for k, level in enumerate(NAMES, 2):
            assert maps[level].shape == (2, backbone.channels[level], height >> k, width >> k)
            assert maps[level].isfinite().all()
            assert maps[level].std() > 0
    sum(y.square().mean() for y in maps.values()).backward()
    trained = [n for n, p in backbone.named_parameters() if p.grad is not None and p.grad.isfinite().all()]
    assert len(trained) > 0.9 * len(list(backbone.parameters()))
    stages = backbone.stages()
    in_stages = list(itertools.chain.from_iterable(m.parameters() for stage in stages for m in stage))
    assert len({id(p) for p in in_stages}) == len(in_stages) == len(list(backbone.net.parameters()))
    assert len(stages) >= 4
    assert all(count(stage) for stage in stages)
    if name.startswith("timm:"):
        declared = timm.create_model(name.removeprefix("timm:"), features_only=True).feature_info
        by_stride = dict(zip(declared.reduction(), declared.channels(), strict=True))
        if len(by_stride) > 1:  # not a ViT
            assert [by_stride[2**k] for k in range(2, 6)] == list(backbone.channels.values())


def test_stages_are_frozen_in_the_order_of_forward() -> None:
    """Changing the image changes no gradient below a frozen stage, and the first stage is what every map depends on."""
    backbone = library_backbone("timm:test_convnext", frozen_stages=2)
    frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    stages = backbone.stages()
    assert sum(p.numel() for p in backbone.parameters() if not p.requires_grad) == count(stages[0]) + count(stages[1])
    assert all(name.startswith(("net.stem", "net.stages_0")) for name in frozen)
    backbone.train()
    assert not any(m.training for stage in stages[:2] for module in stage for m in module.modules())
    assert any(m.training for module in stages[2] for m in module.modules())


def test_a_vit_has_a_stage_for_each_block_and_a_pyramid_in_none() -> None:
    backbone = library_backbone("timm:test_vit", frozen_stages=3)
    blocks = len(backbone.net.model.blocks)
    assert len(backbone.stages()) == blocks + 1
    assert not backbone.net.model.pos_embed.requires_grad
    assert [block.norm1.weight.requires_grad for block in backbone.net.model.blocks] == [k > 1 for k in range(blocks)]
    assert all(p.requires_grad for p in backbone.pyramid.parameters())
    model = small(**dense("fcos"), backbone=named("timm:test_vit"))
    config = parse_config({"train": {"layer_decay": 0.5, "backbone_lr": 0.1, "head_lr": 3.0}}).train
    scales, net = rate_scales(model, config), model.backbone.net.model
    assert scales[id(net.blocks[-1].norm1.weight)] == 0.1 * 0.5
    assert scales[id(net.pos_embed)] == 0.1 * 0.5 ** (blocks + 1)
    assert scales[id(model.backbone.pyramid.levels["c4"][0].weight)] == 1.0
    decayed = {id(p) for g in build_optimizer(model, config).param_groups for p in g["params"] if g["weight_decay"]}
    assert id(net.blocks[0].attn.qkv.weight) in decayed
    assert not {id(net.pos_embed), id(net.cls_token), id(net.blocks[0].attn.qkv.bias)} & decayed


def test_vit_positions_follow_the_size_and_patches_of_14_become_a_stride_of_16() -> None:
    torch.manual_seed(0)
    backbone = library_backbone("timm:vit_tiny_patch16_224").eval()
    whole = timm.create_model("vit_tiny_patch16_224").eval()  # with its own grid of 14 x 14
    whole.load_state_dict({k.removeprefix("model."): v for k, v in backbone.net.state_dict().items()}, strict=False)
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        (expected,) = whole.forward_intermediates(x, indices=1, intermediates_only=True)
        torch.testing.assert_close(backbone.net(x)[-1], expected, rtol=1e-4, atol=1e-4)
        pyramid = backbone(torch.rand(1, 3, 96, 160))
    assert [tuple(y.shape[2:]) for y in pyramid.values()] == [(24, 40), (12, 20), (6, 10), (3, 5)]


def test_the_simple_pyramid_is_vitdets() -> None:
    """Scales of 4, 2, 1 and 1/2 by transposed convolutions that halve the channels, and by max pooling."""
    pyramid = SimplePyramid(32, 16)
    assert pyramid.channels == {"c2": 8, "c3": 16, "c4": 32, "c5": 32}
    kinds = {k: [type(m).__name__ for m in level] for k, level in pyramid.levels.items()}
    assert kinds["c2"] == ["ConvTranspose2d", "LayerNorm2d", "GELU", "ConvTranspose2d", "LayerNorm2d"]
    assert (kinds["c4"], kinds["c5"]) == (["LayerNorm2d"], ["MaxPool2d", "LayerNorm2d"])
    y = pyramid(torch.rand(1, 32, 4, 6))
    assert {k: tuple(v.shape[1:]) for k, v in y.items()} == {
        "c2": (8, 16, 24), "c3": (16, 8, 12), "c4": (32, 4, 6), "c5": (32, 2, 3)
    }  # fmt: skip
    torch.testing.assert_close(y["c4"].mean(1), torch.zeros(1, 4, 6), atol=1e-5, rtol=0)


def test_windows_that_do_not_divide_the_image_are_padded_and_cropped() -> None:
    class Windows(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            assert x.shape[2] % 96 == x.shape[3] % 96 == 0
            return [x[:, :, ::s, ::s] for s in (4, 8, 16, 32)]

    from resdet.models.backbones.adapted import Fit, measure

    net, fit = Windows(), Fit(multiple=96)
    backbone = Adapted(net, measure(net, 3, fit), fit=fit)
    x = torch.rand(1, 3, 128, 160)
    found = backbone(x)
    torch.testing.assert_close(found["c5"], x[:, :, ::32, ::32])
    torch.testing.assert_close(found["c2"], x[:, :, ::4, ::4])


def test_frozen_norms_keep_their_statistics_and_trained_ones_do_not() -> None:
    for frozen in (True, False):
        backbone = library_backbone("timm:test_resnet", frozen_norms=frozen).train()
        norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [m.running_mean.clone() for m in norms]
        backbone(torch.rand(2, 3, 64, 64))
        assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True)) == frozen
        assert any(m.weight.requires_grad for m in norms) != frozen


def test_checkpointing_changes_no_gradient_and_drop_path_drops() -> None:
    for name in ("timm:test_convnext", "timm:test_vit"):
        gradients = []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            backbone = library_backbone(name, checkpointing=checkpointing).train()
            calls: list[int] = []
            last = [m for m in backbone.net.modules() if isinstance(m, nn.Linear)][-1]
            last.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            total = sum(y.square().sum() for y in backbone(torch.rand(2, 3, 64, 64)).values())
            gradients.append(torch.autograd.grad(total, list(backbone.net.parameters()), allow_unused=True))
        for a, b in zip(*gradients, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    backbone = library_backbone("timm:test_convnext", drop_path=0.9).train()
    x = torch.rand(1, 3, 64, 64)
    assert not torch.equal(backbone(x)["c5"], backbone(x)["c5"])


KINDS = {"rcnn": {"keypoint": None}, **{k: dense(k) for k in DENSE}, "rtdetr": RTDETR,
         "semantic": {"kind": "semantic", "head": SEMANTIC_HEAD}}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("timm:test_vit", kind) for kind in KINDS), ("timm:test_convnext", "rcnn"), ("timm:test_convnext", "fcos")],
)
def test_every_detector_trains_every_parameter_that_it_says_it_trains(name: str, kind: str) -> None:
    """None without a gradient: DistributedDataParallel would wait for it."""
    model = small(**KINDS[kind], backbone=named(name))
    losses = model(make_batch([3, 5]))
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(loss.isfinite() for loss in losses.values())


def test_a_single_level_detector_does_not_train_what_lies_above() -> None:
    model = small(neck="c4", keypoint=None, backbone=named("timm:test_convnext"), pool={"sampling_ratio": 0})
    sum(model(make_batch([3, 5])).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for m in model.backbone.stages()[-1] for p in m.parameters())


@pytest.mark.parametrize(("name", "one_size"), [("timm:test_convnext", False), ("timm:test_vit", True)])
def test_backbones_compile_to_one_graph_and_export(name: str, one_size: bool) -> None:
    """Convolutional ones for any size, ViTs for one."""
    torch._dynamo.reset()
    backbone = library_backbone(name).eval()
    x, other = torch.rand(1, 3, 64, 96), torch.rand(1, 3, 64 if one_size else 96, 96)
    sides = (
        None if one_size else {2: 32 * torch.export.Dim("h", min=2, max=9), 3: 32 * torch.export.Dim("w", min=2, max=9)}
    )
    with torch.no_grad():
        program = torch.export.export(backbone, (x,), dynamic_shapes=(sides,)).module()
        compiled = torch.compile(backbone, fullgraph=True, backend="eager")
        torch.testing.assert_close(program(other), backbone(other), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(compiled(x), backbone(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "one_size"), [("timm:test_convnext", None), ("timm:test_vit", (160, 224))])
def test_losses_compile_to_one_graph_and_predictions_export(
    name: str, one_size: tuple[int, int] | None, thorough
) -> None:
    if not thorough:
        pytest.skip("only with --thorough")
    torch._dynamo.reset()
    model = small(**dense("fcos"), backbone=named(name))
    if one_size:
        batch = make_batch([3, 5])
        expected = model(batch)
        found = torch.compile(model, fullgraph=True, backend="eager")(batch)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    program = export_prediction(model, size=one_size).module()
    other = make_batch([1], size=one_size or (192, 288))
    with torch.no_grad():
        expected, found = (f(other.images, other.image_sizes) for f in (Prediction(model), program))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


class Mine(nn.Module):
    """Four maps, whatever they come in."""

    def __init__(self, form: type = list, strides: tuple[int, ...] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.top = nn.Conv2d(8, 8, 1)
        self.form, self.pools = form, [nn.AvgPool2d(s) for s in strides]

    def forward(self, x: Tensor) -> object:
        x = self.top(self.norm(self.stem(x)))
        maps = [pool(x) for pool in self.pools]
        return {f"m{k}": y for k, y in enumerate(maps)} if self.form is dict else self.form(maps)


def custom(module: nn.Module | None, model: dict | None = None, **backbone: object):
    body = {"num_classes": 3, "backbone": {"name": "custom", **backbone}, **(model or dense("fcos"))}
    return build_model(parse_config({"model": body}).model, backbone=module)


@pytest.mark.parametrize("form", [list, tuple, dict])
def test_a_module_of_ones_own_in_any_form(form: type) -> None:
    model = custom(Mine(form), dense("fcos"), frozen_stages=1)
    batch = make_batch([2, 1])
    batch = batch._replace(targets=batch.targets._replace(labels=batch.targets.labels.clamp(max=2)))
    sum(model(batch).values()).backward()
    assert [n for n, p in model.backbone.named_parameters() if not p.requires_grad] == [
        "net.stem.weight", "net.stem.bias"
    ]  # fmt: skip
    assert len(model.backbone.stages()) == 3
    features = model.backbone(torch.rand(1, 3, 64, 96))
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "c3": (1, 8, 8, 12), "c4": (1, 8, 4, 6), "c5": (1, 8, 2, 3)
    }  # fmt: skip


def test_one_map_of_ones_own_becomes_a_pyramid() -> None:
    one = nn.Module()
    one.body = nn.Sequential(nn.Conv2d(3, 32, 16, 16), nn.Conv2d(32, 32, 1))
    one.forward = lambda x: one.body(x)  # gives a tensor
    model = custom(one, {})
    assert [count(stage) for stage in model.backbone.stages()] == [
        32 * 769,
        32 * 33,
    ]  # the entries of a list of modules
    assert dict(model.backbone.strides) == {"c2": 4, "c3": 8, "c4": 16, "c5": 32}


class Constant(nn.Module):
    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.new_zeros(len(x), *shape) for shape in self.shapes]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"custom is a module of your own: build_model\(config.model, backbone=your_module\)"),
        (torchvision.models.resnet18(), r"ResNet: output 1 .* is a tensor of shape \(2, 1000\), not a map .*before pooling"),
        (Constant((8, 16, 24), (8, 8, 12), (8, 4, 6)), r"has maps at strides 4, 8, 16, but .* needs 8, 16, 32; missing: 32"),
        (Constant((8, 7, 7)), r"output 1 .* is a tensor of shape \(2, 8, 7, 7\), not a map"),
        (Constant((8, 20, 30), (8, 10, 15), (8, 5, 8)), r"output 3 .*not a map \(2, C, 64 / s, 96 / s\)"),
        (Constant((8, 12, 18)), r"has maps at strides that are none of 4, 8, 16, 32"),
        (nn.Conv2d(4, 8, 1), r"Conv2d: fails on a batch of two images \(2, 3, 64, 96\): RuntimeError"),
    ],
)  # fmt: skip
def test_a_module_that_is_no_backbone(module: nn.Module | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        custom(module)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (named("timm:convnext_tyni"), r"timm has no model 'convnext_tyni'; did you mean convnext_tiny"),
        (named("timm:resnet18.a9_in1k"), r"timm has no such weights; did you mean resnet18\.a\d_in1k"),
        (named("torchvision:resnet81"), r"torchvision has no classifier 'resnet81'; did you mean resnet18"),
        (named("timm:levit_128s"), r"timm:levit_128s: does not work as a backbone for images of any size"),
        (named("timm:densenet121", drop_path=0.1), r"drop_path: timm:densenet121 does not support it: set it to 0"),
        (named("torchvision:resnet18", drop_path=0.1), r"drop_path: torchvision:resnet18 does not support it"),
        (
            named("torchvision:resnet18", checkpointing=True),
            r"torchvision:resnet18 does not support it, timm's models do",
        ),
        (named("timm:hrnet_w18_small", checkpointing=True), r"timm:hrnet_w18_small does not support it"),
        (
            {"name": "timm:test_resnet", "weights": "x", "frozen_stages": 9},
            r"frozen_stages=9, but timm:test_resnet has 5",
        ),
    ],
)
def test_names_and_options_that_do_not_work(backbone: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**dense("fcos"), backbone=backbone)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"name": "timm:test_resnet", "deep_stem": True}, "deep_stem=True is not for timm:test_resnet: leave it out"),
        ({"name": "timm:test_resnet", "norm": "gn"}, "norm=gn: the norms of timm:test_resnet are its own"),
        ({"name": "resnet18", "drop_path": 0.1}, r"drop_path=0\.1 is not for resnet18"),
        ({"name": "resnet18", "frozen_stages": 6}, "frozen_stages=6: resnet18 has 5"),
        ({"name": "custom", "weights": "w.pt"}, "weights=w.pt: load them into your module"),
        ({"name": "timm:"}, "unknown backbone 'timm:'"),
    ],
)
def test_keys_that_mean_nothing_for_a_backbone(backbone: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({"model": {"backbone": backbone}})


def test_layer4_on_rois_is_of_our_resnets_alone() -> None:
    with pytest.raises(UserError, match="res5 is layer4 of resdet's own ResNets, not of timm:test_resnet"):
        parse_config({"model": {"neck": "c4", "box": {"trunk": "res5"}, "backbone": {"name": "timm:test_resnet"}}})


def test_grey_images() -> None:
    for name in ("timm:test_convnext", "torchvision:resnet18"):
        model = small(**dense("fcos"), backbone=named(name), input={"channels": 1})
        assert model.backbone(torch.rand(1, 1, 64, 64))["c5"].shape[2:] == (2, 2)
