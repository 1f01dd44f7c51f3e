"""Detectors of every kind train and are evaluated, and a resumed run is bit for bit the undisturbed one."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.config import Config, parse_config
from resdet.inference.predictor import Predictor
from resdet.training.loop import train

POINT_REND = {"width": 16, "point_width": 8, "points": 12, "steps": 2, "subdivision_points": 49}
R_CNNS = {
    "cascade": {"cascade": {"resample": True}},
    "point-rend": {"mask": {"point_rend": POINT_REND}},
    "rpn": {"box": None, "mask": None},
}


def dense(kind: str) -> dict:
    model = {**tiny.dense(kind), "backbone": {"name": "resnet18", "weights": "none"}}
    section = "encoder" if kind == "yolof" else "fpn"
    return model | {section: model[section] | {"norm": "bn"}}  # whose statistics a run has to bring back, too


MODELS = {kind: dense(kind) for kind in tiny.DENSE} | {name: {**tiny.MODEL, **keys} for name, keys in R_CNNS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_run_and_a_resumed_one_are_the_same(name: str, shapes_root, tmp_path) -> None:
    def config(run: str, **options: object) -> Config:
        values = tiny.values(shapes_root, checkpoint_every=2, eval_every=4, ema_decay=0.9, **options)
        return parse_config({**values, "model": MODELS[name], "output": str(tmp_path / run)})

    train(config("a"))
    train(config("b", max_iters=2))
    train(config("b"), resume=True)
    one, two = (read_checkpoint(tmp_path / run / "checkpoints/last.pt").model for run in "ab")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((tmp_path / "a/eval/metrics.json").read_text())
    predictor = Predictor.from_checkpoint(tmp_path / "a/checkpoints/last.pt", score_threshold=0.0, device="cpu")
    (found,) = predictor([next((shapes_root / "val2017").iterdir())])
    assert len(found) >= 4
    assert predictor.class_names == (["object"] if name == "rpn" else ["disk", "box", "triangle", "star"])
