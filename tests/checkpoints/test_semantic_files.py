"""Panoptic FPN and Semantic FPN in the names of detectron2 and mmdetection, and in checkpoints that others start from."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from resdet.checkpoints.names import from_ours
from resdet.checkpoints.recognise import open_checkpoint
from resdet.checkpoints.transfer import completed, fill
from resdet.config import parse_config
from resdet.errors import UserError
from resdet.models.build import build_model
from tiny import small


def saved(model: torch.nn.Module, path: Path) -> Path:
    """Named as detectron2 would name it, in its pickle."""
    theirs = {from_ours(name, "detectron2"): value.numpy() for name, value in model.state_dict().items()}
    assert None not in theirs
    assert len(theirs) == len(model.state_dict())
    path.write_bytes(pickle.dumps({"model": theirs, "__author__": "Detectron2 Model Zoo"}))
    return path


def test_beside_mask_rcnn(tmp_path) -> None:
    backbone = {"name": "resnet18", "weights": "x"}
    model = small(semantic={"num_classes": 54, "width": 32}, keypoint=None, backbone=backbone)
    path = saved(model, tmp_path / "panoptic.pkl")
    found = open_checkpoint(path)
    section = found.model.semantic
    assert (section.num_classes, section.width, section.norm) == (54, 32, "gn")
    assert (len(section.names), section.names[-1], section.category_ids[-1]) == (53, "rug-merged", 200)
    assert found.left_over == []
    assert "Panoptic FPN" in found.report()
    assert "54 classes of pixels" in found.report()
    build_model(found.model).load_state_dict(found.weights)


def test_alone_and_fine_tuned_on_other_classes(tmp_path) -> None:
    model = small(kind="semantic", num_classes=54, backbone={"name": "resnet18", "weights": "x"}, head={"width": 32})
    found = open_checkpoint(saved(model, tmp_path / "semantic.pkl"))
    assert (found.model.kind, found.model.num_classes, found.model.fpn.channels) == ("semantic", 54, 32)
    assert (found.class_names[0], found.class_names[-1], found.category_ids[:2]) == ("things", "rug-merged", [0, 92])
    assert (found.model.input.bgr, found.model.input.resize, found.left_over) == (True, "pillow", [])
    assert "Semantic FPN, resnet18, 54 classes" in found.report()
    build_model(found.model).load_state_dict(found.weights)

    own = parse_config({"model": {"kind": "semantic", "weights": str(found.path), "num_classes": 2}}).model
    ready = build_model(completed(own, found))
    report = fill(ready, found, ["road", "my own"], own)
    assert (
        "heads.semantic.logits: the label maps' classes differ from the file's; rows carried over for: road" in report
    )
    road = found.class_names.index("road")
    for name in ("weight", "bias"):
        logits = ready.state_dict()[f"heads.semantic.logits.{name}"]
        assert torch.equal(logits[0], found.weights[f"heads.semantic.logits.{name}"][road])
        assert logits.shape[0] == 2
    with pytest.raises(UserError, match=r"holds a detector of model.kind=semantic, but the config sets model.mask"):
        completed(parse_config({"model": {"mask": {}, "weights": str(found.path)}}).model, found)


class ConvUpsample(nn.Module):
    """mmdetection's, written after its source: a doubling after each of the first `doublings` convolutions."""

    def __init__(self, channels: int, width: int, layers: int, doublings: int) -> None:
        super().__init__()
        self.doublings = doublings
        self.conv = nn.ModuleList()
        for i in range(layers):
            conv = nn.Conv2d(channels if i == 0 else width, width, 3, padding=1, bias=False)
            self.conv.append(nn.ModuleDict({"conv": conv, "gn": nn.GroupNorm(32, width)}))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.conv):
            x = layer["gn"](layer["conv"](x)).relu()
            if i < self.doublings:
                x = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x


def test_mmdetections_beside_mask_rcnn(tmp_path) -> None:
    """Its head, whose last class is all things, gives the same logits; ours is the first."""
    torch.manual_seed(0)
    backbone = {"name": "resnet18", "weights": "x"}
    model = small(semantic={"num_classes": 54, "width": 32}, keypoint=None, backbone=backbone)
    theirs = {
        from_ours(name, "mmdetection"): value for name, value in model.state_dict().items() if "semantic" not in name
    }
    assert None not in theirs
    channels = model.heads["semantic"].towers[0].convs[0].conv.in_channels
    layers = nn.ModuleList(ConvUpsample(channels, 32, max(1, i), i) for i in range(4))
    head = nn.ModuleDict({"conv_upsample_layers": layers, "conv_logits": nn.Conv2d(32, 54, 1)})
    for weight in head.parameters():
        nn.init.normal_(weight, std=0.3)
    theirs |= {f"semantic_head.{name}": value for name, value in head.state_dict().items()}
    torch.save({"state_dict": theirs, "meta": {}}, tmp_path / "f.pth")
    found = open_checkpoint(tmp_path / "f.pth")
    assert (found.source, found.left_over, found.model.semantic.norm) == ("mmdetection", [], "gn")
    assert (found.class_names, found.model.semantic.names[0]) == ([], "banner")
    ours = build_model(found.model)
    ours.load_state_dict(found.weights)
    features = {f"p{k + 2}": torch.randn(2, channels, 32 >> k, 64 >> k) for k in range(4)}
    with torch.no_grad():
        total = sum(layer(x) for layer, x in zip(layers, features.values(), strict=True))
        wanted = head["conv_logits"](total)
        got = ours.heads["semantic"](features)
    torch.testing.assert_close(got, torch.cat([wanted[:, -1:], wanted[:, :-1]], dim=1))
