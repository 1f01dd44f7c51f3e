"""Checkpoints written out: resdet's own format, and torchvision's names that torchvision itself loads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, nn

import tiny
from oracle import torchvision_model
from pictures import textured
from resdet import cli
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.checkpoints.recognise import Recognised, open_checkpoint, recognise
from resdet.config import dump_config, parse_config
from resdet.export.program import Prediction
from resdet.export.torchvision import save_own, save_torchvision, to_torchvision
from resdet.inference.predictor import Predictor
from resdet.models.build import build_model

V1, V2 = "maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"
DENSE = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn")


def run_snippet(said: str) -> nn.Module:
    """What a reader of the printed lines would do."""
    code = re.search(r"  import torch.*?load_state_dict\([^\n]*", said, re.DOTALL)
    assert code
    names: dict[str, object] = {}
    exec("\n".join(line.removeprefix("  ") for line in code[0].splitlines()), names)
    model = names["model"]
    assert isinstance(model, nn.Module)
    return model.eval()


def detections(model: nn.Module, image: np.ndarray) -> dict[str, Tensor]:
    with torch.no_grad():
        return model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [V1, V2, "keypointrcnn_resnet50_fpn", *DENSE])
def test_back_to_torchvision_gives_the_same_detections(name: str, tmp_path) -> None:
    theirs = torchvision_model(name, min_size=256, max_size=400)
    torch.save(theirs.state_dict(), tmp_path / "in.pth")
    found = open_checkpoint(tmp_path / "in.pth")
    found.min_size, found.max_size = 256, 400
    said = save_torchvision(found, tmp_path / "out.pth")
    assert "differently" not in said
    again = run_snippet(said)
    image = textured(240, 320)
    before, after = detections(theirs, image), detections(again, image)
    assert len(before["boxes"]) >= 50
    for key in before:
        assert torch.allclose(before[key], after[key], atol=1e-4), key
    if name in DENSE:  # R-CNNs have this test in test_parity.py
        config = parse_config({"data": {"min_size": 256, "max_size": 400}})
        (ours,) = Predictor(config, found, device="cpu")([image])
        np.testing.assert_allclose(ours.scores, before["scores"], atol=1e-4)
        gap = np.abs(ours.boxes[:, None] - before["boxes"].numpy()).max(-1)
        place = np.where(ours.labels[:, None] + 1 == before["labels"].numpy(), gap, np.inf).argmin(1)
        assert sorted(place) == list(range(len(ours)))  # two that score the same may have changed places
        assert gap[np.arange(len(ours)), place].max() < 1e-2


def test_epsilon_and_channel_order_are_worked_into_the_weights() -> None:
    """BGR pixels and an epsilon of 0.01 here; RGB and torchvision's 1e-5 there: the same features."""
    values = {
        "num_classes": 3,
        "input": {
            "bgr": True,
            "mean": [103.53, 116.28, 123.675],
            "std": [1, 2, 3],
            "resize": "torch",
            "rounding": "floor",
        },
        "backbone": {"name": "resnet18", "weights": "x", "norm": "bn", "norm_eps": 0.01},
        "anchors": {"offset": 0, "rounded": True, "grid_stride": True},
        "pool": {"aligned": False},
    }
    torch.manual_seed(0)
    model = build_model(parse_config({"model": values}).model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.02, 0.1)
    found = Recognised(Path("x.pt"), "resdet", values, model.state_dict(), min_size=64, max_size=96)
    weights = to_torchvision(found.weights, found.model, found.path)
    backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    reference = torchvision.models.detection.FasterRCNN(backbone, num_classes=4)
    reference.load_state_dict(weights, strict=True)
    image = torch.rand(1, 3, 64, 64) * 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([103.53, 116.28, 123.675], [1.0, 2.0, 3.0]))
    with torch.no_grad():
        ours = model.fpn(model.backbone((image.flip(1) - mean) / std))
        theirs = reference.eval().backbone((image / 255 - mean.flip(0) / 255) / (std.flip(0) / 255))
    for level, key in zip(ours.values(), theirs, strict=True):
        assert (level - theirs[key]).abs().max() < 1e-4 * level.abs().max()


def small(tmp_path: Path, body: dict | None = None, **box: object) -> Path:
    torch.manual_seed(0)
    model_values = {**tiny.MODEL, "box": {**tiny.MODEL["box"], **box}, **(body or {})}
    config = parse_config(
        {"model": model_values, "data": {"min_size": 64, "max_size": 96, "root": "/home/somebody/secret"}}
    )
    model = build_model(config.model)
    nn.init.normal_(model.heads["box"].classifier.weight, std=0.01 if body else 0.5)
    path = tmp_path / "last.pt"
    saved = Checkpoint(model.state_dict(), list("abcd"), [2, 4, 6, 8], dump_config(config), training={"optimizer": {}})
    save_checkpoint(saved, path)
    return path


def test_our_own_format_predicts_the_same_and_carries_no_paths(tmp_path, capsys) -> None:
    path = small(tmp_path)
    assert cli.main(["convert", str(path), str(tmp_path / "model.safetensors")]) == 0
    assert "resdet, Mask R-CNN, resnet18, 4 classes" in capsys.readouterr().out
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_names"]) == list("abcd")
    assert "secret" not in "".join(metadata.values())
    before = Predictor.from_checkpoint(path, device="cpu", score_threshold=0.0)
    after = Predictor.from_checkpoint(tmp_path / "model.safetensors", device="cpu", score_threshold=0.0)
    assert after.class_names == before.class_names
    assert after.category_ids == [2, 4, 6, 8]
    assert (after.min_size, after.max_size) == (64, 96)
    (one,), (two,) = before([textured(70, 90)]), after([textured(70, 90)])
    assert len(one) > 5
    assert np.array_equal(one.boxes, two.boxes)
    assert np.array_equal(one.masks, two.masks)


@pytest.mark.slow
def test_a_checkpoint_as_a_program_gives_the_same_detections_for_other_batches_and_sizes(tmp_path) -> None:
    path = small(tmp_path, {}, soft_sigma=0.5, objectness=True)
    assert cli.main(["convert", str(path), str(tmp_path / "model.pt2"), "--to", "program"]) == 0
    program = torch.export.load(tmp_path / "model.pt2").module()
    ours = Prediction(Predictor.from_checkpoint(path, device="cpu").model)
    for count, height, width in ((1, 96, 96), (3, 128, 224), (2, 192, 96)):
        pictures = [torch.from_numpy(textured(height, width, seed)) for seed in range(count)]
        images = torch.stack(pictures).permute(0, 3, 1, 2).contiguous()
        sizes = torch.tensor([[height - 5 * k, width] for k in range(count)])
        with torch.no_grad():
            expected, found = ours(images, sizes), program(images, sizes)
        assert len(expected) == len(found) == 5
        assert expected[3].sum() > 5 * count
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
    with pytest.raises(SystemExit):
        cli.main(["convert", str(path), str(tmp_path / "model.pth"), "--to", "program"])


def test_a_converted_backbone_keeps_its_numerics(tmp_path) -> None:
    weights = {
        f"backbone.{k}": v for k, v in torchvision.models.resnet18(weights=None).state_dict().items() if k[:2] != "fc"
    }
    values = {"input": {"bgr": True, "std": [1.0, 1.0, 1.0]}, "backbone": {"name": "resnet18", "stride_in_1x1": True}}
    save_own(Recognised(tmp_path / "r.pkl", "Caffe2's names", values, weights, whole=False), tmp_path / "r.safetensors")
    back = recognise(tmp_path / "r.safetensors")
    assert not back.whole
    assert back.values == values
    assert back.weights.keys() == weights.keys()


def test_what_torchvision_cannot_build_is_listed_at_once(tmp_path, capsys) -> None:
    path = small(tmp_path)
    assert cli.main(["convert", str(path), str(tmp_path / "out.pth"), "--to", "torchvision"]) == 2
    said = capsys.readouterr().err
    assert "torchvision cannot build this model" in said
    assert "model.fpn.channels is 16, torchvision's builder has 256" in said
    assert "model.box.width is 16" in said
    assert not (tmp_path / "out.pth").exists()
    assert not list(tmp_path.glob(".*tmp"))


def test_other_numerics_are_told(tmp_path) -> None:
    values = {
        "num_classes": 2,
        "backbone": {"name": "resnet18", "weights": "x", "norm": "bn"},
        "box": {"soft_sigma": 0.5, "objectness": True},
    }
    model = build_model(parse_config({"model": values}).model)
    said = save_torchvision(Recognised(Path("x"), "resdet", values, model.state_dict()), tmp_path / "o.pth")
    assert "model.pool.aligned is True, False in torchvision" in said
    assert "model.box.soft_sigma is 0.5, 0.0 in torchvision" in said
    assert "model.box.objectness is True, False in torchvision" in said
    run_snippet(said)
