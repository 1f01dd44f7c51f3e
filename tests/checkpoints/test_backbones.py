"""Backbones alone, in everybody's names and under any prefix."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from resdet.checkpoints.recognise import open_backbone, open_checkpoint, recognise
from resdet.config import parse_config
from resdet.errors import UserError
from resdet.models.backbones.resnet import ResNet
from resdet.models.build import build_backbone


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With batch norm statistics that matter."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def built(path: Path) -> tuple[ResNet, object]:
    found = open_backbone(path)
    backbone = build_backbone(found.model).eval()
    weights = {k.removeprefix("backbone."): v for k, v in found.weights.items()}
    backbone.load_state_dict({k: v for k, v in weights.items() if "num_batches" not in k}, strict=True)
    return backbone, found


PREFIXES = {
    "plain": lambda w: w,
    "DataParallel in a trainer": lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "epoch": 3},
    "MoCo": lambda w: {
        "state_dict": {f"module.encoder_{q}.{k}": v + (q == "k") for q in "qk" for k, v in w.items()}, "arch": "resnet18",
    },
    "averaged copy last": lambda w: {"model": w, "model_ema": {k: v + 1 for k, v in w.items()}, "optimizer": {"state": {}}},
    "a classifier's backbone": lambda w: {
        "state_dict": {f"backbone.{k}": v for k, v in w.items()} | {"head.fc.bias": w["bn1.bias"]}
    },
}  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_torchvisions_names_under_any_prefix(prefix: str, tmp_path) -> None:
    theirs = randomised(torchvision.models.resnet18(weights=None))
    torch.save(PREFIXES[prefix](theirs.state_dict()), tmp_path / "r.pth")
    backbone, found = built(tmp_path / "r.pth")
    assert torch.equal(backbone.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert (found.model.input.bgr, found.model.backbone.stride_in_1x1, found.left_over) == (False, False, [])
    assert found.values["backbone"]["norm_eps"] == 1e-5


@pytest.mark.parametrize(
    ("name", "container"),
    [("resnet18d", "safetensors"), pytest.param("resnet50d", "bin", marks=pytest.mark.slow), ("resnet26", "bin")],
)  # fmt: skip
def test_timms_names(name: str, container: str, tmp_path) -> None:
    timm = pytest.importorskip("timm")
    theirs = randomised(timm.create_model(name, pretrained=False, features_only=False))
    path = tmp_path / f"model.{container}"
    if container == "bin":
        torch.save(theirs.state_dict(), path)
    else:
        save_file(theirs.state_dict(), path)
    if name == "resnet26":
        with pytest.raises(UserError, match=r"model\.\w+: a backbone of Architecture\(.*known are resnet18, resnet34"):
            open_backbone(path)
        return
    backbone, found = built(path)
    d = name.endswith("d")
    assert (found.model.backbone.deep_stem, found.model.backbone.avg_down) == (d, d)
    x = torch.rand(1, 3, 75, 94)  # odd sizes: the averaging shortcut rounds up
    with torch.no_grad():
        ours, stem = backbone(x), theirs.maxpool(theirs.act1(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(stem))))
    assert (ours["c5"] - expected).abs().max() < 1e-5 * expected.abs().max()


def caffe2_names(weights: dict[str, Tensor], affine: bool) -> dict[str, np.ndarray]:
    """torchvision's names -> those of the MSRA files. affine: batch norms as scale and shift alone."""
    last = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    theirs = {}
    for name, value in weights.items():
        stem = re.match(r"(conv1|bn1)\.(\w+)$", name)
        block = re.match(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)$", name)
        if stem:
            theirs["conv1_w" if stem[1] == "conv1" else f"res_conv1_bn_{last.get(stem[2])}"] = value.numpy()
        elif block:
            conv = block[3] == "conv" or block[5] == "0"
            branch = "1" if block[5] else "2" + "abc"[int(block[4]) - 1]
            end = "w" if conv else f"bn_{last.get(block[6])}"
            theirs[f"res{int(block[1]) + 1}_{block[2]}_branch{branch}_{end}"] = value.numpy()
    return {k: v for k, v in theirs.items() if not k.endswith("None") and not (affine and k.endswith(("rm", "riv")))}


@pytest.mark.slow
def test_the_msra_files(tmp_path) -> None:
    theirs = randomised(torchvision.models.resnet50(weights=None))
    blobs = caffe2_names(theirs.state_dict(), affine=True)
    assert {"conv1_w", "res_conv1_bn_s", "res2_0_branch1_bn_b", "res5_2_branch2c_w"} <= blobs.keys()
    blobs |= {"pred_w": np.zeros((10, 2048), np.float32), "conv1_w_momentum": blobs["conv1_w"], "lr": np.float32(1)}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    backbone, found = built(tmp_path / "R-50.pkl")
    m = found.model
    assert (m.input.bgr, m.input.mean, m.input.std) == (True, (103.53, 116.28, 123.675), (1, 1, 1))
    assert m.backbone.stride_in_1x1
    assert found.left_over == []
    # Scale and shift come out as they went in: the missing variance and the epsilon make one.
    x = torch.rand(1, 64, 5, 7)
    bn = theirs.bn1
    assert torch.allclose(backbone.bn1(x), x * bn.weight[:, None, None] + bn.bias[:, None, None], atol=1e-6)


@pytest.mark.slow
def test_caffe2_statistics_are_used_where_they_are(tmp_path) -> None:
    theirs = randomised(torchvision.models.resnet50(weights=None))
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(caffe2_names(theirs.state_dict(), affine=False)))
    backbone, _ = built(tmp_path / "R-50.pkl")
    assert torch.equal(backbone.layer2[0].downsample[1].running_var, theirs.layer2[0].downsample[1].running_var)


@pytest.mark.slow
def test_a_grouped_caffe_backbone_divides_by_std_and_strides_in_the_3x3(tmp_path) -> None:
    theirs = torchvision.models.resnext50_32x4d(weights=None)
    (tmp_path / "X-50-32x4d.pkl").write_bytes(pickle.dumps(caffe2_names(theirs.state_dict(), affine=True), protocol=2))
    m = open_backbone(tmp_path / "X-50-32x4d.pkl").model
    assert (m.backbone.name, m.backbone.stride_in_1x1, m.input.std) == (
        "resnext50_32x4d",
        False,
        (57.375, 57.12, 58.395),
    )


@pytest.mark.slow
def test_a_backbone_is_taken_out_of_a_detector(tmp_path) -> None:
    from test_recognise import in_their_names, ours_small

    weights = ours_small("resnet50", mask=False)
    theirs = {k: v.numpy() for k, v in in_their_names(weights, "detectron2").items()}
    (tmp_path / "d2.pkl").write_bytes(pickle.dumps({"model": theirs}, protocol=2))
    backbone, found = built(tmp_path / "d2.pkl")
    assert torch.equal(backbone.conv1.weight, weights["backbone.conv1.weight"])
    assert (found.model.input.bgr, found.model.backbone.stride_in_1x1) == (True, True)
    assert not found.whole


def test_a_backbone_detects_nothing_and_other_files_are_told_so(tmp_path) -> None:
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    with pytest.raises(UserError, match=r"a backbone alone .*resnet18.*model\.backbone\.weights="):
        open_checkpoint(tmp_path / "r.pth")
    torch.save(torchvision.models.vgg11(weights=None).features.state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"neither an R-CNN, RetinaNet, .* first tensors: 0\.weight"):
        recognise(tmp_path / "vgg.pth")
    assert parse_config({}).model.backbone.deep_stem is False
