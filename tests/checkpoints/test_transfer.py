"""Starting from others' weights: what the file brings, what goes where, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import resdet
import tiny
from resdet.checkpoints.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from resdet.checkpoints.recognise import Recognised, recognise
from resdet.checkpoints.transfer import completed, disagreements, fill, rows_of, starting_point
from resdet.config import dump_config, load_yaml, parse_config
from resdet.errors import UserError
from resdet.models.build import build_model

OLD = ["disk", "box", "triangle", "star"]


def model_config(**changed: dict | int | None):
    values = {**tiny.MODEL, **changed}
    return parse_config({"model": values}).model


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A checkpoint of four classes whose every weight differs from a new model's."""
    torch.manual_seed(1)
    numerics = {"input": {"bgr": True}, "anchors": {**tiny.MODEL["anchors"], "offset": 0}, "fold_norm": False}
    config = parse_config({"model": {**tiny.MODEL, **numerics}})
    model = build_model(config.model)
    path = tmp_path_factory.mktemp("old") / "old.pt"
    save_checkpoint(Checkpoint(model.state_dict(), OLD, [1, 2, 3, 4], dump_config(config)), path)
    return path


def filled(old: Path, names: list[str], **changed: dict | int | None):
    found = recognise(old)
    config = completed(model_config(num_classes=len(names), weights=str(old), **changed), found)
    torch.manual_seed(2)
    model = build_model(config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    return model, before, found, fill(model, found, names, config)


def test_the_same_classes_take_everything(old) -> None:
    model, _, found, report = filled(old, OLD)
    for name, value in model.state_dict().items():
        assert torch.equal(value, found.weights[name]), name
    assert "re-initialised" not in report
    assert f"loaded: {len(found.weights)} tensors" in report


def test_other_classes_keep_the_rows_that_both_name_and_the_background(old) -> None:
    model, before, found, report = filled(old, ["moon", "Star", "disk"])
    head, w, m = model.heads["box"], found.weights, model.heads["mask"].logits
    for new, label in ((1, 3), (2, 0), (3, 4)):  # the background comes last
        assert torch.equal(head.classifier.weight[new], w["heads.box.classifier.weight"][label])
        assert torch.equal(head.classifier.bias[new], w["heads.box.classifier.bias"][label])
    for new, label in ((1, 3), (2, 0)):
        rows = slice(4 * new, 4 * new + 4)
        assert torch.equal(head.regressor.weight[rows], w["heads.box.regressor.weight"][4 * label : 4 * label + 4])
        assert torch.equal(m.weight[new], w["heads.mask.logits.weight"][label])
    assert torch.equal(head.classifier.weight[0], before["heads.box.classifier.weight"][0])  # moon: as initialised
    assert torch.equal(m.weight[0], before["heads.mask.logits.weight"][0])
    assert torch.equal(head.trunk.fc1.weight, w["heads.box.trunk.fc1.weight"])
    assert "the dataset has 3 classes, the file 4; rows carried over for: Star, disk" in report


def test_every_anchor_of_a_one_stage_detector_keeps_the_rows_that_both_name(tmp_path) -> None:
    values = {**tiny.dense("retinanet"), "backbone": {"name": "resnet18", "weights": "none"}}
    torch.manual_seed(1)
    config = parse_config({"model": {**values, "num_classes": 4}})
    path = tmp_path / "old.pt"
    save_checkpoint(Checkpoint(build_model(config.model).state_dict(), OLD, [1, 2, 3, 4], dump_config(config)), path)
    found = recognise(path)
    new = parse_config({"model": {**values, "num_classes": 3, "weights": str(path)}}).model
    model = build_model(completed(new, found))
    before = model.head.classifier.weight.detach().clone().view(9, 3, -1)
    report = fill(model, found, ["moon", "Star", "disk"], new)
    after, old = model.head.classifier.weight.view(9, 3, -1), found.weights["head.classifier.weight"].view(9, 4, -1)
    assert torch.equal(after, torch.stack([before[:, 0], old[:, 3], old[:, 0]], 1))
    assert torch.equal(model.head.regressor.weight, found.weights["head.regressor.weight"])
    assert (
        "re-initialised: head.classifier: the dataset has 3 classes, the file 4; rows carried over for: Star, disk"
        in report
    )
    fewer = parse_config(
        {"model": {**values, "num_classes": 3, "anchors": {**values.get("anchors", {}), "ratios": [1.0]}}}
    ).model
    with pytest.raises(UserError, match=r"head\.classifier\.weight: the file has \(36, .*the config builds \(9, "):
        fill(build_model(fewer), found, ["moon", "Star", "disk"], fewer)


def test_as_many_other_classes_are_still_others(old) -> None:
    """Four new classes must not inherit the predictors of four unrelated ones by their position."""
    model, before, _, report = filled(old, ["a", "b", "c", "d"])
    assert torch.equal(model.heads["box"].classifier.weight, before["heads.box.classifier.weight"])
    assert "rows carried over for: none, no class has a name in both" in report


def test_a_file_without_names_is_taken_by_position_only_if_it_has_as_many(old) -> None:
    found = recognise(old)
    nameless = Recognised(found.path, found.source, found.values, found.weights)
    assert rows_of(nameless, ["a", "b", "c", "d"]) == [0, 1, 2, 3]
    assert rows_of(nameless, ["disk", "b"]) == [None, None]


def test_numerics_come_with_the_file_and_what_is_set_goes_first(old) -> None:
    found = recognise(old)
    config = completed(model_config(weights=str(old)), found)
    assert (config.input.bgr, config.anchors.offset) == (True, 0)
    assert disagreements(config, found) == []
    mine = completed(
        model_config(weights=str(old), input={"bgr": False}, box={"width": 16, "max_detections": 7}), found
    )
    assert (mine.input.bgr, mine.box.max_detections, mine.box.samples) == (False, 7, 16)
    assert disagreements(mine, found) == ["model.input.bgr=False in the config, but the weights need True"]


def test_parts_that_the_file_lacks_and_parts_that_nobody_wants_are_reported(old, tmp_path) -> None:
    _, _, _, report = filled(old, OLD, mask=None)
    assert "left over: heads.mask (6 tensors)" in report
    saved = read_checkpoint(old)
    saved.model = {k: v for k, v in saved.model.items() if not k.startswith("heads.mask")}
    save_checkpoint(saved, tmp_path / "faster.pt")
    _, _, _, report = filled(tmp_path / "faster.pt", OLD)
    assert "not in the file, so random: heads.mask (6 tensors)" in report


def test_a_torn_backbone_and_another_architecture_are_errors(old, tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        filled(old, OLD, box={"width": 32, "samples": 16})
    text = str(caught.value)
    assert "heads.box.trunk.fc1.weight: the file has (16, 784), the config builds (32, 784)" in text
    assert "the file's model needs model.box.width=16" in text
    saved = read_checkpoint(old)
    del saved.model["backbone.layer3.1.conv2.weight"]
    save_checkpoint(saved, tmp_path / "torn.pt")
    with pytest.raises(UserError, match=r"missing: backbone\.layer3\.1\.conv2\.weight"):
        filled(tmp_path / "torn.pt", OLD)
    with pytest.raises(
        UserError, match=r"holds a resnet18, but the config has resnet50: set model\.backbone\.name=resnet18"
    ):
        starting_point(parse_config({"model": {"backbone": {"weights": str(old)}}}).model)


def test_a_backbone_as_model_weights_leaves_the_rest_random(old, tmp_path) -> None:
    weights = {
        k.removeprefix("backbone."): v for k, v in read_checkpoint(old).model.items() if k.startswith("backbone.")
    }
    torch.save(weights, tmp_path / "backbone.pth")
    model, before, found, report = filled(tmp_path / "backbone.pth", OLD)
    assert torch.equal(model.backbone.conv1.weight, found.weights["backbone.conv1.weight"])
    assert torch.equal(model.heads["box"].classifier.weight, before["heads.box.classifier.weight"])
    assert "not in the file, so random: fpn (16 tensors), rpn (6 tensors), heads.box" in report


@pytest.mark.slow
def test_fine_tuning_and_resuming_without_the_first_file(old, shapes_root, tmp_path, capsys) -> None:
    given = tmp_path / "given.pt"
    given.write_bytes(old.read_bytes())
    annotations = json.loads((shapes_root / "annotations/instances_train2017.json").read_text())
    assert [c["name"] for c in annotations["categories"]] == OLD
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=2, eval_every=0)
    config.model.weights = str(given)
    resdet.train(config)
    said = capsys.readouterr().out
    assert "resdet, Mask R-CNN, resnet18, 4 classes" in said
    assert "loaded: " in said
    written = load_yaml((tmp_path / "run/resolved.yaml").read_text())
    assert written["model"]["input"]["bgr"] is True
    assert written["model"].get("fold_norm", True) is True  # exact rounding is for the weights as they came
    given.unlink()
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=3, eval_every=0)
    config.model.weights = str(given)
    assert resdet.train(config, resume=True).iteration == 3
    # A plain config that does not repeat the numerics predicts with the checkpoint's.
    plain = tiny.config(shapes_root, tmp_path / "other")
    predictor = resdet.Predictor(plain, tmp_path / "run/checkpoints/last.pt", device="cpu")
    assert predictor.model.bgr is True
    config.output = tmp_path / "third"
    with pytest.raises(UserError, match=r"given\.pt: no such weights file"):
        resdet.train(config)


def test_a_model_of_ones_own_must_be_built_with_the_weights_numerics(old, shapes_root, tmp_path) -> None:
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=1, eval_every=0)
    config.model.weights = str(old)
    with pytest.raises(UserError, match=r"model\.input\.bgr=False in the config, but the weights need True"):
        resdet.train(config, model=build_model(config.model))
