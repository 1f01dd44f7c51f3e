"""Scoring a model whose classes are not exactly the dataset's."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.commands.eval import score_model
from resdet.config import dump_config, parse_config
from resdet.errors import UserError
from resdet.models.build import build_model


def checkpoint(folder, names: list[str]):
    torch.manual_seed(0)
    config = parse_config({"model": {**tiny.MODEL, "num_classes": len(names)}})
    model = build_model(config.model)
    model.heads["box"].selection.score_threshold = 0.0
    torch.nn.init.normal_(model.heads["box"].classifier.weight, std=0.5)
    ids = list(range(1, len(names) + 1))
    save_checkpoint(Checkpoint(model.state_dict(), names, ids, dump_config(config)), folder / "w.pt")
    return folder / "w.pt"


def test_classes_are_matched_by_name(shapes_root, tmp_path, capsys) -> None:
    """As with torchvision's 90 classes on COCO's 80 categories."""
    weights = checkpoint(tmp_path, ["Star", "moon", "disk", "N/A", "box"])
    config = tiny.config(shapes_root, tmp_path / "x")
    score_model(config, weights, tmp_path / "out")
    used = {entry["category_id"] for entry in json.loads((tmp_path / "out/detections.json").read_text())}
    ids = {"disk": 10, "box": 11, "star": 14}
    assert used == set(ids.values())
    said = capsys.readouterr().out
    assert "the checkpoint does not have 1 of the 4 classes of " in said
    assert "objects count as missed: triangle" in said
    assert "2 of the 5 classes of the checkpoint are not in " in said
    assert "detections of them are not scored: moon, N/A" in said
    assert "spelled differently: 'star' = 'Star'" in said


def test_the_input_size_is_the_checkpoints_where_the_config_has_none(shapes_root, tmp_path) -> None:
    """`auto` chose it in training; the config that people give again leaves it open."""
    trained = tiny.config(shapes_root, tmp_path)  # 64 to 96
    model = build_model(trained.model)
    torch.nn.init.normal_(model.heads["box"].classifier.weight, std=0.5)
    content = Checkpoint(
        model.state_dict(), ["disk", "box", "triangle", "star"], [10, 11, 13, 14], dump_config(trained)
    )
    save_checkpoint(content, tmp_path / "w.pt")
    found = {}
    for name, sizes in {"open": {}, "same": {"min_size": 64, "max_size": 96}, "other": {"min_size": 96}}.items():
        values = tiny.values(shapes_root)
        values["data"] = {"root": str(shapes_root), "workers": 0, **sizes}
        score_model(parse_config(values), tmp_path / "w.pt", tmp_path / name)
        found[name] = (tmp_path / name / "detections.json").read_text()
    assert found["open"] == found["same"] != found["other"]


def test_no_class_in_common_is_an_error(shapes_root, tmp_path) -> None:
    weights = checkpoint(tmp_path, ["cat", "dog"])
    with pytest.raises(UserError, match=r"no class in common: the checkpoint has cat, dog; the data have disk, box"):
        score_model(tiny.config(shapes_root, tmp_path / "x"), weights, tmp_path / "out")


@pytest.mark.slow
def test_a_file_without_names_needs_as_many_classes(shapes_root, tmp_path) -> None:
    model = torch.load(checkpoint(tmp_path, list("abcd")), weights_only=True)["model"]
    torch.save(model, tmp_path / "bare.pth")
    score_model(tiny.config(shapes_root, tmp_path / "x"), tmp_path / "bare.pth", tmp_path / "out")
    used = {entry["category_id"] for entry in json.loads((tmp_path / "out/detections.json").read_text())}
    assert used <= {10, 11, 13, 14}


def test_the_limit_of_detections_is_that_of_the_scores(shapes_root, tmp_path, capsys) -> None:
    weights = checkpoint(tmp_path, ["disk", "box", "triangle", "star"])
    said, metrics = {}, {}
    for limit in (1, 120):
        values = tiny.values(shapes_root)
        values["model"] = {**values["model"], "box": {**values["model"].get("box", {}), "max_detections": limit}}
        values["data"] = {**values["data"], "limit": 2}
        metrics[limit] = score_model(parse_config(values), weights, tmp_path / str(limit))["bbox"]
        said[limit] = " ".join(capsys.readouterr().out.split())
    assert (
        "than the 1 detections per image that model.box.max_detections keeps: set model.box.max_detections=" in said[1]
    )
    assert "warning" not in said[120]
    assert "COCO box AP, percent, 100 detections per image and class" in said[1]
    assert "box AP, percent, 120 detections per image and class (AP at COCO's limit of 100: " in said[120]
    assert set(metrics[120]) - set(metrics[1]) == {"AR120", "AP_max100"}
    assert metrics[120]["AR120"] >= metrics[120]["AR100"]
