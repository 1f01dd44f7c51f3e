"""Weights for backbones of timm, torchvision and of self-supervised training, and detectors that are built on them."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from test_backbones import randomised

import resdet
import tiny
from resdet.checkpoints.recognise import open_backbone, recognise
from resdet.checkpoints.transfer import completed, fill, starting_point
from resdet.config import parse_config
from resdet.errors import UserError
from resdet.inference.predictor import Predictor
from resdet.models.build import build_model

timm = pytest.importorskip("timm")


def start(path: object, name: str, **values: object):
    body = {"num_classes": 3, "backbone": {"name": name, "weights": str(path)}, **values}
    config = parse_config({"model": {**tiny.dense("fcos"), **body}}).model
    found = starting_point(config)
    config = completed(config, found)
    model = build_model(config)
    return model, fill(model, found, ["a", "b", "c"], config), config


SELF_SUPERVISED = {
    "MoCo": lambda w: {"state_dict": {f"module.encoder_{q}.{k}": v + (q == "k") for q in "qk" for k, v in w.items()}},
    "MoCo v3": lambda w: {"state_dict": {f"module.base_encoder.{k}": v for k, v in w.items()}},
    "DINO": lambda w: {
        who: {f"module.backbone.{k}": v + (who == "student") for k, v in w.items()} for who in ("student", "teacher")
    },
    "SwAV": lambda w: {f"module.{k}": v for k, v in w.items()} | {"module.prototypes.weight": torch.zeros(3, 8)},
    "BYOL": lambda w: {"online": {f"net.{k}": v for k, v in w.items()}},
    "VICReg": lambda w: {"model": {f"module.backbone.{k}": v for k, v in w.items()}},
    "lightly": lambda w: {"state_dict": {f"backbone.{k}": v for k, v in in_sequence(w).items()}},
    "SparK": lambda w: {"module": {f"sparse_encoder.sp_cnn.{k}": v for k, v in w.items()}, "dec": {"a": torch.zeros(3)}},
}  # fmt: skip


def in_sequence(weights: dict) -> dict:
    """`nn.Sequential(*list(resnet.children())[:-1])`."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    parts = [(k.partition("."), v) for k, v in weights.items()]
    return {f"{numbers[top]}.{rest}": v for (top, _, rest), v in parts if top in numbers}


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    return randomised(torchvision.models.resnet18(weights=None)).state_dict()


@pytest.mark.parametrize("tool", SELF_SUPERVISED)
def test_self_supervised_checkpoints_are_our_resnets(tool: str, resnet18, tmp_path) -> None:
    torch.save(SELF_SUPERVISED[tool](resnet18), tmp_path / "r.pth")
    found = open_backbone(tmp_path / "r.pth")
    assert found.model.backbone.name == "resnet18"
    wanted = {f"backbone.{k}": v for k, v in resnet18.items() if not k.startswith("fc.")}
    assert found.weights.keys() >= {k for k in wanted if "num_batches" not in k}
    assert all(torch.equal(v, wanted[k]) for k, v in found.weights.items())


def test_self_supervised_checkpoints_are_timms_resnets(resnet18, tmp_path) -> None:
    torch.save(SELF_SUPERVISED["DINO"](resnet18), tmp_path / "r.pth")
    model, report, config = start(tmp_path / "r.pth", "timm:resnet18")
    assert "including the whole backbone" in report
    assert torch.equal(model.backbone.net.layer4[1].conv2.weight, resnet18["layer4.1.conv2.weight"])
    assert config.input.mean == pytest.approx((123.675, 116.28, 103.53))


@pytest.mark.parametrize("container", ["safetensors", "mae", "teacher"])
def test_a_vit_in_timms_names_and_as_mae_and_dino_save_it(container: str, tmp_path) -> None:
    torch.manual_seed(3)
    theirs = timm.create_model("test_vit")
    weights = theirs.state_dict()
    path = tmp_path / "model.safetensors"
    if container == "safetensors":
        save_file(weights, path)
    else:
        extra = {f"decoder_{k}": v for k, v in weights.items()} | {"mask_token": torch.zeros(1, 1, 64)}
        teacher = {"teacher": {f"module.backbone.{k}": v for k, v in weights.items()}}
        torch.save({"model": weights | extra} if container == "mae" else teacher, path := tmp_path / "vit.pth")
    model, report, config = start(path, "timm:test_vit")
    assert torch.equal(model.backbone.net.model.pos_embed, theirs.pos_embed)
    assert "not in the file, so random: backbone" in report  # the pyramid
    pretrained = timm.get_pretrained_cfg("test_vit")
    assert config.input.mean == pytest.approx([255 * v for v in pretrained.mean])
    assert config.input.std == pytest.approx([255 * v for v in pretrained.std])


def test_names_that_only_timms_own_filter_knows(tmp_path) -> None:
    """ConvNeXt as its authors published it."""
    torch.manual_seed(0)
    theirs = timm.create_model("convnext_atto", num_classes=10)
    old = {}
    for name, value in theirs.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".")
        name = (
            name.replace("conv_dw", "dwconv")
            .replace("mlp.fc", "pwconv")
            .replace("head.fc.", "head.")
            .replace("head.norm.", "norm.")
        )
        for k in (1, 2, 3):
            name = name.replace(f"stages.{k}.downsample.", f"downsample_layers.{k}.")
        old[name] = value.flatten(1) if name.endswith("pwconv1.weight") or name.endswith("pwconv2.weight") else value
    torch.save({"model": old}, tmp_path / "convnext.pth")
    model, _, _ = start(tmp_path / "convnext.pth", "timm:convnext_atto")
    assert torch.equal(model.backbone.net.stages_2.blocks[1].conv_dw.weight, theirs.stages[2].blocks[1].conv_dw.weight)


def test_torchvisions_weights_and_its_pixels(tmp_path) -> None:
    theirs = randomised(torchvision.models.mobilenet_v3_small(weights=None))
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    model, _, config = start(tmp_path / "m.pth", "torchvision:mobilenet_v3_small")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone.eval()(x)["c5"], theirs.features(x))
    assert config.input.mean == pytest.approx((123.675, 116.28, 103.53))


def test_grey_images_from_rgb_weights(tmp_path) -> None:
    theirs = timm.create_model("test_convnext")
    save_file(theirs.state_dict(), tmp_path / "c.safetensors")
    model, _, _ = start(tmp_path / "c.safetensors", "timm:test_convnext", input={"channels": 1})
    torch.testing.assert_close(model.backbone.net.stem_0.weight[:, 0], theirs.stem[0].weight.sum(1))


def test_files_of_another_network_are_refused(tmp_path) -> None:
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "c.safetensors")
    with pytest.raises(
        UserError, match=r"does not hold the weights of timm:test_resnet \(its first tensors: .*\n  - missing: conv1"
    ):
        start(tmp_path / "c.safetensors", "timm:test_resnet")
    wider = timm.create_model("test_vit", embed_dim=96).state_dict()
    save_file(wider, tmp_path / "v.safetensors")
    with pytest.raises(
        UserError, match=r"does not fit timm:test_vit; .*\n.*the file has \(96,\), timm:test_vit has \(64,\)"
    ):
        start(tmp_path / "v.safetensors", "timm:test_vit")


@pytest.mark.slow
def test_a_detector_on_timms_backbone_comes_back_from_its_checkpoint_without_network(
    shapes_root, tmp_path, monkeypatch
) -> None:
    theirs = timm.create_model("test_vit")
    save_file(theirs.state_dict(), tmp_path / "v.safetensors")
    values = tiny.values(shapes_root, {**tiny.MODEL, "mask": None, "backbone": {
        "name": "timm:test_vit", "weights": str(tmp_path / "v.safetensors")}}, max_iters=2)  # fmt: skip
    values["train"] |= {"optimizer": "adamw", "layer_decay": 0.8}
    config = parse_config({**values, "output": str(tmp_path / "run")})
    resdet.train(config)
    last = tmp_path / "run/checkpoints/last.pt"

    def no_network(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    (tmp_path / "v.safetensors").unlink()
    predictor = Predictor.from_checkpoint(last, score_threshold=0.0, device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    (found,) = predictor([image])
    assert len(found.boxes) > 0
    saved = torch.load(last, weights_only=True)["model"]
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    report = recognise(last).report()
    assert "timm:test_vit" in report
    # Its backbone starts another detector, also after conversion to safetensors.
    found = recognise(last)
    from resdet.export.torchvision import save_own, save_torchvision

    save_own(found, tmp_path / "own.safetensors")
    for path in (last, tmp_path / "own.safetensors"):
        model, text, other = start(path, "timm:test_vit")
        assert torch.equal(model.backbone.net.model.pos_embed, saved["backbone.net.model.pos_embed"])
        assert other.input == recognise(path).model.input
        assert "including the whole backbone" in text
    with pytest.raises(UserError, match=r"model\.backbone\.name is timm:test_vit, torchvision's builder has a ResNet"):
        save_torchvision(found, tmp_path / "tv.pth")
    with pytest.raises(UserError, match="holds a timm:test_vit, but the config has resnet18"):
        start(last, "resnet18")


def test_unknown_names_are_found_before_anything_is_read(tmp_path) -> None:
    config = parse_config(
        {"model": {"backbone": {"name": "timm:convnext_tyni"}}, "data": {"root": str(tmp_path / "no")}}
    )
    config.output = tmp_path / "run"
    with pytest.raises(UserError, match="did you mean convnext_tiny"):
        resdet.train(config)
