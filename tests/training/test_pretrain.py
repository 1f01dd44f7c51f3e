"""A backbone is trained as a classifier by the detectors' loop, and detectors start from its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.commands.eval import main as eval_main
from resdet.commands.pretrain import main as pretrain_main
from resdet.config import parse_config
from resdet.errors import UserError
from resdet.inference.predictor import Predictor
from resdet.training.loop import train

MIXED = {
    "crop": 32,
    "scale": [0.5, 1],
    "augment": "randaugment",
    "mixup": 0.2,
    "cutmix": 1,
    "val_resize": 32,
    "val_crop": 32,
}


@pytest.fixture(scope="module")
def crops(shapes_root, tmp_path_factory) -> Path:
    """The objects of the generated shapes, cut out, in folders of their classes; none of the last class in val."""
    return tiny.crops(shapes_root, tmp_path_factory.mktemp("crops"))


def config_of(root: Path, output: Path, model: dict | None = None, **train: object):
    values = tiny.values(root, **{"batch_size": 8, "eval_every": 0, "ema_decay": 0.9, **train})
    values["data"] = {"root": str(root), "workers": 0, "classification": MIXED}
    values["model"] = {"kind": "classifier", "backbone": {"name": "resnet18", "weights": "none"}, **(model or {})}
    return parse_config({**values, "output": str(output)})


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_stopped(crops, tmp_path) -> None:
    train(config_of(crops, tmp_path / "a", checkpoint_every=2))
    train(config_of(crops, tmp_path / "b", checkpoint_every=2, max_iters=2))
    train(config_of(crops, tmp_path / "b", checkpoint_every=2, val_loss=False), resume=True)
    one, two = (read_checkpoint(tmp_path / name / "checkpoints/last.pt").model for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["classifier.weight"].shape == (4, 512)
    other = config_of(crops, tmp_path / "b", {"backbone": {"name": "resnet34", "weights": "none"}})
    with pytest.raises(UserError, match=r"model\.backbone\.name is resnet34, was resnet18"):
        train(other, resume=True)


@pytest.mark.slow
def test_from_crops_to_detections(crops, shapes_root, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    result = train(config_of(crops, run, {"label_smoothing": 0.1}, max_iters=2, eval_every=2))
    said = capsys.readouterr().out
    assert "no picture of 1 of 4 classes, whose accuracy cannot be measured: star" in " ".join(said.split())
    assert set(result.metrics["classes"]) == {"top1", "top5"}
    assert result.metrics["classes"]["top5"] == 1  # of four classes
    predictions = json.loads((run / "eval/predictions.json").read_text())
    pictures = sum(1 for _ in (crops / "val").rglob("*.png"))
    assert len(predictions) == pictures
    right = [entry["predicted"][0] == entry["class"] for entry in predictions]
    assert result.metrics["classes"]["top1"] == pytest.approx(sum(right) / pictures)
    assert (run / "predictions.jpg").stat().st_size > 1000

    file = run / "checkpoints/best.pt"
    settings = str(run / "config.yaml")
    assert eval_main([settings, "--weights", str(file), "--output", str(tmp_path / "eval")]) == 0
    again = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert again["classes"]["top1"] == pytest.approx(result.metrics["classes"]["top1"])
    with pytest.raises(UserError, match="holds a classifier, not a detector"):
        Predictor.from_checkpoint(file, device="cpu")

    detector = tiny.values(shapes_root, max_iters=1, eval_every=0, lr=1e-9)
    detector["model"] = {**tiny.MODEL, "backbone": {"name": "resnet18", "weights": str(file)}}
    train(parse_config({**detector, "output": str(tmp_path / "detector")}))
    said = capsys.readouterr().out
    assert "including the whole backbone" in said
    assert "left over" not in said
    learnt, used = read_checkpoint(file).model, read_checkpoint(tmp_path / "detector/checkpoints/last.pt").model
    names = [name for name in learnt if name.startswith("backbone.") and "num_batches" not in name]
    assert len(names) == 100
    assert all(torch.allclose(learnt[name], used[name], atol=1e-7) for name in names)


@pytest.mark.slow
def test_fine_tuning_on_other_classes_keeps_the_rows_of_those_in_both(crops, tmp_path, capsys) -> None:
    train(config_of(crops, tmp_path / "a", max_iters=1))
    first = tmp_path / "a/checkpoints/last.pt"
    other = tmp_path / "other"
    for old, new in (("disk", "disk"), ("box", "brick"), ("star", "star")):
        (other / "train").mkdir(parents=True, exist_ok=True)
        (other / "train" / new).symlink_to(crops / "train" / old)
    train(config_of(other, tmp_path / "b", {"weights": str(first)}, max_iters=1, lr=1e-9))
    assert "rows carried over for: disk, star" in " ".join(capsys.readouterr().out.split())
    before, after = (read_checkpoint(tmp_path / f"{name}/checkpoints/last.pt").model for name in "ab")
    assert torch.allclose(after["classifier.weight"][[1, 2]], before["classifier.weight"][[1, 2]], atol=1e-6)


@pytest.mark.slow
def test_unreadable_pictures_are_replaced_counted_as_wrong_and_too_many_stop_the_run(crops, tmp_path, capsys) -> None:
    root = tmp_path / "data"
    for split in ("train", "val"):
        for folder in sorted((crops / split).iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for file in folder.iterdir():
                (root / split / folder.name / file.name).symlink_to(file)
        (root / split / "disk" / "broken.png").write_text("no picture")
    config = config_of(root, tmp_path / "run", max_iters=3, batch_size=16, eval_every=3)
    config.data.max_unreadable = 0.2
    result = train(config)
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: train:" in said
    assert "broken.png: not an image" in said
    assert "(it counts as wrong)" in said
    assert result.metrics["classes"]["top5"] < 1
    config = config_of(root, tmp_path / "strict", max_iters=3, batch_size=16)
    config.data.max_unreadable = 0.0
    with pytest.raises(UserError, match="images could not be read, more than"):
        train(config)


def test_mistakes_are_told_before_work_starts(crops, tmp_path, capsys) -> None:
    def told(
        *overrides: str, model: str = "model: {kind: classifier, backbone: {name: resnet18, weights: none}}"
    ) -> str:
        path = tmp_path / "c.yaml"
        path.write_text(model)
        assert (
            pretrain_main([str(path), f"data.root={crops}", "device=cpu", f"--output={tmp_path / 'o'}", *overrides])
            == 2
        )
        return " ".join(capsys.readouterr().err.split())

    assert "model.kind=rcnn is a detector: train it with resdet train" in told(model="seed: 1")
    assert "model.num_classes is 3, but" in told("model.num_classes=3")
    assert "train.best_metric=bbox_AP is a detector's" in told("train.best_metric=bbox_AP")
    assert "must have a folder of their own" in told("data.val_fraction=0.2")
    assert "use data.classification.augment" in told("data.train.augmentations=[{name: HorizontalFlip}]")
    assert "is the folder of the training pictures, too" in told(f"data.val.images={crops / 'train'}")
    assert "8-bit pictures of 3 channels, or 1" in told("model.input.channels=5")
    assert "auto=true chooses the settings of detectors" in told("auto=true")


@pytest.mark.slow
def test_a_backbone_of_timms_is_pretrained_and_used_as_it_is(crops, shapes_root, tmp_path, capsys) -> None:
    pytest.importorskip("timm")
    body = {"name": "timm:mobilenetv3_small_050"}
    train(config_of(crops, tmp_path / "run", {"backbone": {**body, "weights": "none"}}, max_iters=1))
    file = tmp_path / "run/checkpoints/last.pt"
    detector = tiny.values(shapes_root, max_iters=1, eval_every=0, lr=1e-9)
    detector["model"] = {**tiny.MODEL, "backbone": {**body, "weights": str(file)}}
    train(parse_config({**detector, "output": str(tmp_path / "detector")}))
    assert "including the whole backbone" in capsys.readouterr().out
    learnt, used = read_checkpoint(file).model, read_checkpoint(tmp_path / "detector/checkpoints/last.pt").model
    names = [name for name in learnt if name.startswith("backbone.") and name.endswith("weight")]
    assert len(names) > 50
    assert all(torch.allclose(learnt[name], used[name], atol=1e-7) for name in names)
