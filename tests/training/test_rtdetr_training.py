"""RT-DETR from the shapes to a prediction: trained, stopped and resumed, evaluated, drawn, fine-tuned on other classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.cli import main
from resdet.config import parse_config
from resdet.inference.predictor import Predictor
from resdet.training.loop import train

RECIPE = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "backbone_lr": 0.1,
    "clip_grad_norm": 0.1,
    "ema_decay": 0.9,
    "checkpoint_every": 2,
}
MODEL = {**tiny.RTDETR, "backbone": {"name": "resnet18", "weights": "none"}}


def config_of(root: Path, output: Path, **train: object):
    values = tiny.values(root, model=MODEL, **{**RECIPE, **train})
    values["data"] |= {"min_size": [64, 96]}
    return parse_config({**values, "output": str(output)})


@pytest.mark.slow
def test_trained_resumed_evaluated_and_drawn(shapes_root, tmp_path, capsys) -> None:
    run, halves = tmp_path / "run", tmp_path / "halves"
    result = train(config_of(shapes_root, run))
    assert set(result.metrics) == {"bbox"}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"class", "box", "giou", "aux_class", "denoising_giou", "loss"} <= set(records[0])
    train(config_of(shapes_root, halves, max_iters=2))
    train(config_of(shapes_root, halves), resume=True)
    one, two = (read_checkpoint(folder / "checkpoints/last.pt").model for folder in (run, halves))
    assert all(torch.equal(value, two[name]) for name, value in one.items())

    weights = run / "checkpoints/last.pt"
    predictor = Predictor.from_checkpoint(weights, device="cpu")
    assert (predictor.min_size, predictor.model.num_classes, predictor.class_names[0]) == (96, 4, "disk")
    image = next((shapes_root / "val2017").iterdir())
    (found,) = predictor([image])
    assert len(found) == 20 * 4
    config = str(run / "config.yaml")
    shorter = ["model.decoder.predict_layers=1", "--weights", str(weights), "--output", str(tmp_path / "eval")]
    assert main(["eval", config, *shorter]) == 0
    assert main(["visualize", "predict", config, str(image), "--weights", str(weights), "--output", str(tmp_path / "drawn"),
                 "--score", "0"]) == 0  # fmt: skip
    assert list((tmp_path / "drawn").iterdir())


@pytest.mark.slow
def test_fine_tuned_on_other_classes(shapes_root, tmp_path, capsys) -> None:
    """From a run of its own, with a config that says nothing of the kind."""
    run = tmp_path / "run"
    train(config_of(shapes_root, run, max_iters=1, eval_every=0))
    renamed = tmp_path / "data"
    (renamed / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (renamed / split).symlink_to(shapes_root / split)
        content = json.loads((shapes_root / f"annotations/instances_{split}.json").read_text())
        content["categories"][0]["name"] = "coin"
        (renamed / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    values = tiny.values(renamed, model={"weights": str(run / "checkpoints/last.pt")}, max_iters=1, eval_every=0, **{
        k: v for k, v in RECIPE.items() if k != "checkpoint_every"})  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert main(["train", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "tuned")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "rows carried over for: box, triangle, star" in printed
    assert "random" not in printed
    assert read_checkpoint(tmp_path / "tuned/checkpoints/last.pt").class_names == ["coin", "box", "triangle", "star"]
