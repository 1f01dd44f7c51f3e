"""The comparison of backbones: one process a training, resumable, failures reported."""

from __future__ import annotations

import json

import pytest
import yaml

import tiny
from resdet.cli import main
from resdet.errors import UserError
from resdet.training.comparison import Candidate, Trial, candidate, planned
from resdet.training.comparison_report import metric_of, table

A, B = Candidate("resnet18", "resnet18", "imagenet"), Candidate("timm:x@none", "timm:x", "none")


def values(ap: float, **more: float) -> dict:
    numbers = {"iterations": 10, "images_per_s": 3.0, "backbone_parameters": 11.2e6, "memory_gb": 1.0, **more}
    return {"metrics": {"bbox": {"AP": ap}, "segm": {"AP": ap / 2}}, **numbers}


def test_every_backbone_is_trained_with_every_seed_and_random_ones_are_not_probed(tmp_path) -> None:
    trials = planned([A, B], ["probe", "finetune"], 2, tmp_path)
    assert [(t.candidate.name, t.mode, t.seed) for t in trials[:3]] == [
        ("resnet18", "probe", 0), ("resnet18", "finetune", 0), ("timm:x", "finetune", 0)
    ]  # fmt: skip
    assert len({t.folder for t in trials}) == len(trials) == 6
    with pytest.raises(UserError, match="named twice"):
        planned([A, A], ["probe"], 1, tmp_path)


def test_the_table_has_mean_spread_and_failures(tmp_path) -> None:
    trials = [
        Trial(A, "probe", 0, tmp_path, values(0.2)),
        Trial(A, "finetune", 0, tmp_path, values(0.4, images_per_s=2.0)),
        Trial(A, "finetune", 1, tmp_path, values(0.6, images_per_s=4.0)),
        Trial(B, "finetune", 0, tmp_path, {}, "out of memory"),
    ]
    assert metric_of(trials) == "segm_AP"
    text = table([A, B], trials, "bbox_AP")
    assert "| `resnet18` | 20.0 | 50.0 ± 14.1 (2) | 10 | 3.0 | 11.2 | 1.00 |" in text
    assert "| `timm:x@none` | - | - | - | - | - | - |" in text
    assert "- `timm:x@none`, fine-tuned, seed 0: out of memory" in text


def test_names_weights_and_files(tmp_path) -> None:
    assert candidate("timm:convnext_tiny") == ("timm:convnext_tiny", "timm:convnext_tiny", "imagenet")
    assert candidate("resnet18@none") == ("resnet18@none", "resnet18", "none")


@pytest.mark.slow
def test_a_failure_does_not_end_the_others_and_what_is_done_is_not_done_again(shapes_root, tmp_path, capfd) -> None:
    file = tmp_path / "tiny.yaml"
    content = tiny.values(shapes_root, {**tiny.MODEL, "mask": None, "backbone": {"norm": "bn"}}, max_iters=3)
    file.write_text(yaml.safe_dump(content))
    words = ["compare-backbones", str(file), "timm:no_such@none", "resnet18@none", "--iterations", "2", "--modes", "finetune",
             "--output", str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 0
    text = capfd.readouterr().out
    assert (
        "[1/2] timm:no_such@none, fine-tuned, seed 0: failed: model.backbone.name=timm:no_such: timm has no model"
        in text
    )
    assert "[2/2] resnet18@none, fine-tuned, seed 0: bbox_AP" in text
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [t["problem"] == "" for t in results["trials"]] == [False, True]
    done = results["trials"][1]
    assert done["iterations"] == 2
    assert done["backbone_parameters"] > 11.1e6
    assert done["memory_gb"] > 0.1
    assert (tmp_path / "out/results.png").stat().st_size > 10000
    run = tmp_path / "out/resnet18_none/finetune/seed0/result.json"
    before = run.stat().st_mtime_ns
    assert main(words) == 0
    assert run.stat().st_mtime_ns == before
    assert main([*words, "train.lr=0.5"]) == 2
    assert "holds a training with other settings" in capfd.readouterr().err
