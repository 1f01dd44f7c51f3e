"""One-stage detectors train, are scored, and a resumed run is bit for bit the undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.config import Config, parse_config
from resdet.inference.predictor import Predictor
from resdet.training.loop import train


def config(root: Path, output: Path, kind: str, **options: object) -> Config:
    values = tiny.values(root, checkpoint_every=2, eval_every=4, ema_decay=0.9, **options)
    model = {**tiny.dense(kind), "backbone": {"name": "resnet18", "weights": "none"}}
    section = "encoder" if kind == "yolof" else "fpn"
    model[section] |= {"norm": "bn"}  # whose statistics a run has to bring back, too
    return parse_config({**values, "model": model, "output": str(output)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny.DENSE)
def test_a_run_and_a_resumed_one_are_the_same(kind: str, shapes_root, tmp_path) -> None:
    train(config(shapes_root, tmp_path / "a", kind))
    train(config(shapes_root, tmp_path / "b", kind, max_iters=2))
    train(config(shapes_root, tmp_path / "b", kind), resume=True)
    one, two = (read_checkpoint(tmp_path / run / "checkpoints/last.pt").model for run in "ab")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "bbox" in json.loads((tmp_path / "a/eval/metrics.json").read_text())
    predictor = Predictor.from_checkpoint(tmp_path / "a/checkpoints/last.pt", score_threshold=0.0, device="cpu")
    (found,) = predictor([next((shapes_root / "val2017").iterdir())])
    assert len(found) >= 4
    assert predictor.class_names == ["disk", "box", "triangle", "star"]
