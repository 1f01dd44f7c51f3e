"""Thresholds of each class, as a report finds them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import tiny
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.commands.visualize import main as visualize
from resdet.config import dump_config
from resdet.errors import UserError
from resdet.inference.predictor import Predictor
from resdet.inference.thresholds import by_label
from resdet.models.build import build_model

NAMES = ["disk", "box", "triangle", "star"]


@pytest.fixture
def weights(shapes_root, tmp_path):
    config = tiny.config(shapes_root, tmp_path)
    model = build_model(config.model)
    torch.nn.init.normal_(model.heads["box"].classifier.weight, std=0.5)
    save_checkpoint(Checkpoint(model.state_dict(), NAMES, [10, 11, 13, 14], dump_config(config)), tmp_path / "w.pt")
    return tmp_path / "w.pt"


@pytest.mark.slow
def test_each_class_has_its_threshold(weights, shapes_root, tmp_path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    (plain,) = Predictor.from_checkpoint(weights, score_threshold=0.1, device="cpu")([picture])
    given = {"disk": 0.1, "box": 0.3, "triangle": 0.2, "star": 0.9}
    (found,) = Predictor.from_checkpoint(weights, score_threshold=given, device="cpu")([picture])
    kept = plain.scores >= np.array([0.1, 0.3, 0.2, 0.9])[plain.labels]
    assert 0 < kept.sum() < len(plain)
    np.testing.assert_array_equal(found.boxes, plain.boxes[kept])
    file = tmp_path / "thresholds.json"
    file.write_text(json.dumps({"default": 0.2, "classes": {"disk": 0.1, "box": 0.3, "star": 0.9, "horse": 0.5}}))
    (of_file,) = Predictor.from_checkpoint(weights, score_threshold=file, device="cpu")([picture])
    np.testing.assert_array_equal(of_file.boxes, found.boxes)
    config = tiny.config_file(shapes_root, tmp_path)
    arguments = ["predict", str(config), str(shapes_root / "val2017"), "--weights", str(weights), "--score", str(file)]
    assert visualize([*arguments, "--output", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "sheet.jpg").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"disk": 0.5, "bx": 0.5}, "must name each class of the model: unknown: bx; missing: box, star, triangle"),
        ({**dict.fromkeys(NAMES, 0.5), "box": 1.5}, "score_threshold: box is 1.5, not a score from 0 to 1"),
        (-0.1, "the score threshold is -0.1, not a score"),
    ],
)
def test_mistakes(given, message) -> None:
    with pytest.raises(UserError, match=message):
        by_label(given, NAMES)


def test_mistakes_in_files(tmp_path) -> None:
    file = tmp_path / "t.json"
    for content, message in (
        ({"disk": 0.5}, "not a thresholds.json of a report"),
        ({"default": 0.5, "classes": {"dog": 0.5}}, "no class in common: it names dog; the model has disk, box"),
        ({"default": 0.5, "classes": {"disk": "x"}}, "disk is 'x', not a score"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            by_label(file, NAMES)
