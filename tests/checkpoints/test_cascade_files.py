"""Cascade R-CNN's checkpoints of detectron2 and mmdetection: recognised, complete or refused, and started from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from resdet.checkpoints.names import from_ours
from resdet.checkpoints.rcnn import fit_hint
from resdet.checkpoints.recognise import recognise
from resdet.checkpoints.transfer import fill
from resdet.config import parse_config
from resdet.errors import UserError
from resdet.export.torchvision import save_torchvision
from resdet.models.build import build_model

FOUR_CONV = {"trunk": "4conv1fc", "norm": "gn"}
CONFIG = """model = dict(type='CascadeRCNN', roi_head=dict(num_stages=3, stage_loss_weights=[1, 0.6, 0.3], bbox_head=[
    dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2])), dict(bbox_coder=dict(target_stds=[0.05, 0.05, 0.1, 0.1])),
    dict(bbox_coder=dict(target_stds=[0.04, 0.04, 0.08, 0.08]))]), train_cfg=dict(rcnn=[
    dict(assigner=dict(pos_iou_thr=0.5)), dict(assigner=dict(pos_iou_thr=0.55)), dict(assigner=dict(pos_iou_thr=0.65))]))
"""


def written(path: Path, source: str, without: str = "", config: str = "", **model: object) -> dict[str, Tensor]:
    """A small cascade's weights, and in the file the same by the source's names, but for those that hold `without`."""
    torch.manual_seed(0)
    cascade = {"mask_heads": "each" if source == "mmdetection" else "one"}
    values = {
        "num_classes": 5, "backbone": {"name": "resnet18", "weights": "x"}, "fpn": {"channels": 32}, "cascade": cascade,
        "box": {"width": 16}, "mask": {"num_convs": 1, "width": 32}, **model,
    }  # fmt: skip
    weights = build_model(parse_config({"model": values}).model).state_dict()
    torch.nn.init.uniform_(weights["backbone.bn1.running_var"], 0.5, 1.5)
    theirs = {from_ours(name.replace(".trunk.fc.", ".trunk.fc1."), source): value for name, value in weights.items()}
    assert len(theirs) == len(weights)
    assert None not in theirs
    theirs = {name: value for name, value in theirs.items() if not without or without not in name}
    meta = {"meta": {"cfg": config}} if config else {}
    torch.save({"state_dict" if source == "mmdetection" else "model": theirs, **meta}, path)
    return weights


@pytest.mark.parametrize("model", [{}, {"mask": None}, {"box": {"width": 16, **FOUR_CONV}}])
@pytest.mark.parametrize("source", ["detectron2", "mmdetection"])
def test_a_cascade_is_recognised_with_its_sources_numerics(tmp_path, source: str, model: dict) -> None:
    weights = written(tmp_path / "c.pth", source, **model)
    found = recognise(tmp_path / "c.pth")
    assert found.source == source
    assert found.weights.keys() == weights.keys()
    assert all(torch.equal(found.weights[name], value) for name, value in weights.items())
    build_model(found.model).load_state_dict(found.weights)
    m, c = found.model, found.model.cascade
    assert c.ious == [0.5, 0.6, 0.7]
    assert ("Cascade R-CNN" if m.mask is None else "Cascade Mask R-CNN") in found.report()
    assert m.rpn.post_nms_train == 2000
    assert m.box.trunk == model.get("box", {}).get("trunk", "2fc")
    if source == "detectron2":
        assert m.input.std == (1, 1, 1)  # whatever a frozen stem's statistics are
        assert (c.resample, c.scale_gradients, c.average, c.mask_heads) == (False, True, "scores", "one")
        assert c.delta_weights[2] == (30, 30, 15, 15)
        assert c.loss_weights == [1, 1, 1]
    else:
        assert (c.resample, c.scale_gradients, c.average) == (True, False, "logits")
        assert c.mask_heads == ("each" if m.mask else "one")
        assert c.delta_weights[2] == pytest.approx((1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067))
        assert c.loss_weights == [1, 0.5, 0.25]
        assert (m.box.loss_beta, m.box.low_quality) == (1.0, False)
    assert fit_hint(found.weights, m) == ""
    plain = m.model_copy(update={"cascade": None})
    assert "model.cascade" in fit_hint(found.weights, plain)
    with pytest.raises(UserError, match=r"torchvision cannot build this model(.|\n)*model\.cascade is set"):
        save_torchvision(found, tmp_path / "out.pth")


def test_mmdetections_config_in_the_file_counts(tmp_path) -> None:
    written(tmp_path / "c.pth", "mmdetection", config=CONFIG)
    c = recognise(tmp_path / "c.pth").model.cascade
    assert (c.ious, c.loss_weights) == ([0.5, 0.55, 0.65], [1, 0.6, 0.3])
    assert c.delta_weights[2] == pytest.approx((25, 25, 12.5, 12.5))


@pytest.mark.parametrize(
    ("source", "without", "told"),
    [
        ("detectron2", "box_predictor.2.", r"stage 2 of 0 to 2: no classifier, no box regressor$"),
        ("detectron2", "_head.0.", r"stage 0 of 0 to 2: no box head$"),
        ("mmdetection", "bbox_head.1.", r"stage 1 of 0 to 2: no box head, no classifier, no box regressor$"),
        ("mmdetection", "mask_head.2.", r"stage 2 of 0 to 2: no mask head$"),
    ],
)
def test_missing_stages_are_one_error(tmp_path, source: str, without: str, told: str) -> None:
    path = tmp_path / "c.pth"
    written(path, source, without)
    with pytest.raises(UserError, match=told) as error:
        recognise(path)
    assert str(error.value).startswith(f"{path}: an incomplete Cascade R-CNN of {source}'s:")


def test_a_stage_too_many_is_told(tmp_path) -> None:
    lists = {"ious": [0.5] * 4, "loss_weights": [1.0] * 4, "delta_weights": [[10, 10, 5, 5]] * 4}
    written(tmp_path / "c.pth", "detectron2", cascade=lists)
    with pytest.raises(UserError, match=r"stage 3: there should be 3 stages, 0 to 2"):
        recognise(tmp_path / "c.pth")


def test_other_classes_keep_what_has_no_rows_for_classes(tmp_path) -> None:
    written(tmp_path / "c.pth", "mmdetection")
    found = recognise(tmp_path / "c.pth")
    found.class_names = ["a", "b", "c", "d", "e"]
    config = found.model.model_copy(update={"num_classes": 2})
    model = build_model(config)
    report = fill(model, found, ["d", "new"], config)
    for k, stage in enumerate(model.heads["box"].stages):
        assert torch.equal(stage.regressor.weight, found.weights[f"heads.box.stages.{k}.regressor.weight"])
        given = found.weights[f"heads.box.stages.{k}.classifier.weight"]
        assert torch.equal(stage.classifier.weight[[0, 2]], given[[3, 5]])
        logits = found.weights[f"heads.box.masks.{k}.logits.weight"]
        assert torch.equal(model.heads["box"].masks[k].logits.weight[0], logits[3])
    assert "heads.box.stages.0.classifier" in report
