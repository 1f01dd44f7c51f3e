"""Checkpoints in the names and layouts of others become the model that they belong to."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from oracle import CLASSES, from_torchvision, torchvision_model, torchvision_numerics
from pictures import textured
from resdet.checkpoints.names import from_ours, to_ours
from resdet.checkpoints.recognise import open_checkpoint
from resdet.config import parse_config
from resdet.inference.predictor import Predictor
from resdet.models.build import build_model

V1, V2 = "maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"


def on_disk_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of torchvision's published V1 files, from before its modules were renamed."""
    old = [
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2."),
    ]
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in old:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", name)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("old", [True, False])
def test_torchvisions_v1_in_its_old_and_its_new_names(old: bool, tmp_path) -> None:
    """The model that the parity tests hold against torchvision's detections, with the epsilon of its published weights."""
    weights = {k: v for k, v in torchvision_model(V1).state_dict().items() if "num_batches" not in k}
    given = on_disk_names(weights) if old else weights
    assert ("rpn.head.conv.weight" in given) is old
    torch.save(given, tmp_path / "v1.pth")
    found = open_checkpoint(tmp_path / "v1.pth")
    expected = torchvision_numerics(V1)
    expected.backbone = found.model.backbone
    assert found.model == expected
    assert (found.model.backbone.norm, found.model.backbone.norm_eps) == ("frozen_bn", 0.0)
    assert (found.source, found.model.num_classes, found.left_over) == ("torchvision", CLASSES, [])
    for name, value in from_torchvision(weights).items():
        assert torch.equal(found.weights[name], value), name
    build_model(found.model).load_state_dict(found.weights, strict=True)


def test_torchvisions_v2_is_told_by_its_norms(tmp_path) -> None:
    torch.save({"model": torchvision_model(V2).state_dict()}, tmp_path / "v2.pth")
    found = open_checkpoint(tmp_path / "v2.pth")
    m = found.model
    assert (m.backbone.norm, m.backbone.norm_eps, m.fpn.norm, m.rpn.num_convs) == ("bn", 1e-5, "bn", 2)
    assert (m.box.trunk, m.box.norm, m.mask) == ("4conv1fc", "bn", None)
    build_model(m).load_state_dict(found.weights, strict=True)
    assert "V2" in found.report()


def ours_small(name: str, mask: bool = True) -> dict[str, Tensor]:
    config = {"num_classes": 80, "backbone": {"name": name, "weights": "x"}, "mask": {} if mask else None}
    return build_model(parse_config({"model": config}).model).state_dict()


def in_their_names(weights: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """A detector's weights as the source would name them; every parameter has a name of its own there."""
    theirs = {from_ours(name, source): value for name, value in weights.items()}
    assert None not in theirs
    assert len(theirs) == len(weights)
    return theirs


@pytest.mark.parametrize("source", ["torchvision", "detectron2", "mmdetection"])
def test_names_are_theirs_and_come_back(source: str) -> None:
    """Spot checks against the names in the three projects, and a round trip of a whole detector."""
    names = {
        "backbone.layer3.22.bn2.weight": {
            "torchvision": "backbone.body.layer3.22.bn2.weight",
            "detectron2": "backbone.bottom_up.res4.22.conv2.norm.weight",
            "mmdetection": "backbone.layer3.22.bn2.weight",
        },
        "fpn.lateral.2.norm.bias": {
            "torchvision": "backbone.fpn.inner_blocks.2.1.bias",
            "detectron2": "backbone.fpn_lateral4.norm.bias",
            "mmdetection": "neck.lateral_convs.2.bn.bias",
        },
        "heads.mask.convs.0.conv.bias": {
            "torchvision": "roi_heads.mask_head.0.0.bias",
            "detectron2": "roi_heads.mask_head.mask_fcn1.bias",
            "mmdetection": "roi_head.mask_head.convs.0.conv.bias",
        },
    }
    assert {name: from_ours(name, source) for name in names} == {name: theirs[source] for name, theirs in names.items()}
    for name in ours_small("resnet50"):
        back, unknown = to_ours({from_ours(name, source): torch.zeros(9, 1)}, source)
        assert (list(back), unknown) == ([name], [])


@pytest.mark.parametrize(
    ("backbone", "grouped"),
    [
        pytest.param("resnet50", False, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", True, marks=pytest.mark.slow),
    ],
)
def test_detectron2_numerics(backbone: str, grouped: bool, tmp_path) -> None:
    weights = ours_small(backbone)
    theirs = {k: v.numpy() for k, v in in_their_names(weights, "detectron2").items()}
    assert "backbone.bottom_up.res2.0.shortcut.norm.weight" in theirs
    assert "roi_heads.mask_head.mask_fcn1.weight" in theirs
    with (tmp_path / "model.pkl").open("wb") as file:
        pickle.dump({"model": theirs, "__author__": "x", "matching_heuristics": True}, file, protocol=2)
    found = open_checkpoint(tmp_path / "model.pkl")
    m = found.model
    assert found.source == "detectron2"
    assert m.backbone.name == backbone
    assert m.backbone.stride_in_1x1 is not grouped
    assert m.input.bgr
    assert m.input.std == ((57.375, 57.12, 58.395) if grouped else (1, 1, 1))
    assert (m.input.resize, m.input.rounding, m.anchors.offset) == ("pillow", "nearest", 0)
    assert (m.pool.aligned, m.pool.sampling_ratio, m.box.empty) == (True, 0, "drop_last")
    assert (m.rpn.fixed_divisor, m.rpn.rank, m.rpn.post_nms_train) == (True, "logit", 1000)
    assert m.fold_norm is False
    assert (m.num_classes, found.category_ids[:3], found.category_ids[-1]) == (80, [1, 2, 3], 90)
    assert (found.class_names[0], found.class_names[-1]) == ("person", "toothbrush")
    for name, value in weights.items():
        assert torch.equal(found.weights[name], value), name


@pytest.mark.slow
def test_detectron2s_new_baselines_in_a_training_checkpoint(tmp_path) -> None:
    """4conv1fc, two convolutions in the RPN, batch norm in pyramid and heads; model, optimizer, scheduler, iteration."""
    section = {
        "num_classes": 5, "backbone": {"name": "resnet50", "weights": "x", "norm": "bn"}, "fpn": {"norm": "bn"},
        "rpn": {"num_convs": 2}, "box": {"trunk": "4conv1fc", "norm": "bn"}, "mask": {"norm": "bn"},
    }  # fmt: skip
    weights = build_model(parse_config({"model": section}).model).state_dict()
    theirs = in_their_names({k.replace("trunk.fc.", "trunk.fc1."): v for k, v in weights.items()}, "detectron2")
    assert {
        "proposal_generator.rpn_head.conv.conv1.weight",
        "roi_heads.box_head.conv4.norm.running_var",
    } <= theirs.keys()
    content = {"model": theirs, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}, "iteration": 9}
    torch.save(content, tmp_path / "model_final.pth")
    found = open_checkpoint(tmp_path / "model_final.pth")
    m = found.model
    assert (m.fpn.norm, m.rpn.num_convs, m.box.trunk, m.box.norm, m.mask.norm) == ("bn", 2, "4conv1fc", "bn", "bn")
    assert (m.backbone.stride_in_1x1, m.input.bgr, found.class_names, found.left_over) == (True, True, [], [])
    assert found.weights.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(found.weights[name], value), name


@pytest.mark.slow
def test_old_detectron2_files_bring_their_own_pixel_scaling(tmp_path) -> None:
    theirs = in_their_names(ours_small("resnet50", mask=False), "detectron2")
    mean, std = torch.tensor([123.0, 117, 104]), torch.tensor([58.0, 57, 56])
    theirs |= {"pixel_mean": mean.view(3, 1, 1), "pixel_std": std.view(3, 1, 1)}
    torch.save({"model": theirs}, tmp_path / "m.pth")
    m = open_checkpoint(tmp_path / "m.pth").model
    assert (m.input.mean, m.input.std, m.input.bgr) == ((123, 117, 104), (58, 57, 56), False)


@pytest.mark.slow
def test_mmdetection_2_tells_its_scaling_and_classes_in_its_own_way(tmp_path) -> None:
    text = "img_norm_cfg = dict(mean=[1.5, 2.5, 3.5], std=[1.0, 1.0, 1.0], to_rgb=False)\n"
    text += "model = dict(backbone=dict(style='caffe'))"
    config = parse_config({"model": {"num_classes": 3, "backbone": {"weights": "x"}}})
    weights = in_their_names(build_model(config.model).state_dict(), "mmdetection")
    torch.save({"meta": {"config": text, "CLASSES": ("a", "b", "c")}, "state_dict": weights}, tmp_path / "m.pth")
    found = open_checkpoint(tmp_path / "m.pth")
    m = found.model
    assert (m.input.mean, m.input.bgr, m.backbone.stride_in_1x1) == ((1.5, 2.5, 3.5), True, True)
    assert (found.class_names, found.category_ids) == (["a", "b", "c"], [1, 2, 3])


CFG = """
model = dict(type='MaskRCNN', backbone=dict(style='{style}', depth=50),
    data_preprocessor=dict(mean=[{mean}, 116.28, 103.53], std=[{std}, 57.12, 57.375], bgr_to_rgb={rgb}))
import os
os.system('touch executed')
"""


class HistoryBuffer:
    """Like mmengine's, whose pickles hold more than weights."""

    def __init__(self) -> None:
        self.log = np.arange(4)


@pytest.mark.parametrize("caffe", [True, False])
def test_mmdetection_numerics_come_from_the_config_in_the_file(caffe: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = ours_small("resnet50", mask=False)
    theirs = in_their_names(weights, "mmdetection")
    assert "neck.lateral_convs.0.conv.weight" in theirs
    text = CFG.format(style="caffe" if caffe else "pytorch", mean=103.53 if caffe else 123.675, std=1.0, rgb=not caffe)
    names = tuple(f"thing {k}" for k in range(80))
    monkeypatch.setattr(HistoryBuffer, "__module__", "mmengine.logging.history_buffer")
    import sys
    import types

    for part in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules["mmengine.logging.history_buffer"].HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    content = {
        "meta": {"cfg": text, "dataset_meta": {"classes": names}},
        "state_dict": theirs | {"ema_" + k.replace(".", "_"): v + 1 for k, v in theirs.items()},
        "message_hub": {"loss": HistoryBuffer()},
    }
    torch.save(content, tmp_path / "epoch_12.pth")
    found = open_checkpoint(tmp_path / "epoch_12.pth")
    m = found.model
    assert found.source == "mmdetection"
    assert m.mask is None
    assert m.backbone.stride_in_1x1 is caffe
    assert m.input.bgr is caffe
    assert m.input.mean[0] == (103.53 if caffe else 123.675)
    assert m.input.std[0] == 1.0
    assert (m.input.resize, m.pool.sampling_ratio, m.box.empty, m.box.clamp_shrink) == ("opencv", 0, "keep", True)
    assert m.fold_norm is False
    assert found.class_names[3] == "thing 3"
    assert torch.equal(found.weights["heads.box.trunk.fc1.weight"], weights["heads.box.trunk.fc1.weight"])
    assert not (tmp_path / "executed").exists()  # the config was read, never run


@pytest.mark.slow
def test_our_own_checkpoints_open_without_a_config(shapes_root, tmp_path) -> None:
    import resdet
    import tiny

    resdet.train(tiny.config(shapes_root, tmp_path / "run", max_iters=1, eval_every=0))
    predictor = Predictor.from_checkpoint(tmp_path / "run/checkpoints/last.pt", device="cpu", score_threshold=0.0)
    assert predictor.class_names == ["disk", "box", "triangle", "star"]
    assert predictor.min_size == 64
    assert predictor([textured(70, 90)])[0].masks is not None
