"""The script for a GPU, tried out on a CPU: its steps run, and its table is there however they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gpu
import tiny
from gpu_steps import Steps

SCRIPT = Path(gpu.__file__)


@pytest.mark.slow
def test_the_steps_run(shapes_root, tmp_path) -> None:
    config = tiny.config_file(shapes_root, tmp_path, amp="bf16")
    steps = Steps(tmp_path / "results.jsonl", "cpu", str(config), (64, 96))
    names = ("machine", "train", "kernels", "predict", "profile", "loader", "evaluation", "shapes")
    for name in names:
        getattr(steps, name)()
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    found = {row["what"]: row for row in rows}
    assert found["training step, bf16, batch 1"]["ms"] > 0
    assert found["training step, bf16, batch 1"]["images_s"] > 0
    assert found["losses beside a CPU's, float32"]["more"] == "largest relative difference 0"
    assert found["suppression keeps what a CPU keeps"]["more"] == "True"
    assert found["RoIAlign 7, by_level, beside a CPU's"]
    assert found["graphs that 40 batches of real sizes need"]["more"].endswith("padded sizes")
    text = gpu.table([*rows, {"step": "train", "seconds": 1.0}, {"step": "tests", "failed": "1: a | b"}])
    assert all(f"| {what} |" in text for what in found)
    assert "| train | 1.0 | done |" in text
    assert "| tests |  | 1: a / b |" in text


def test_a_machine_without_a_gpu_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        Steps(tmp_path / "results.jsonl", "cuda", "none", (64, 96))


@pytest.mark.slow
def test_whatever_ends_a_step_is_in_the_table(tmp_path) -> None:
    command = [
        sys.executable,
        SCRIPT,
        "--device",
        "cpu",
        "--steps",
        "predict,evaluation",
        "--config",
        "maskrcn_r50.yaml",
    ]
    subprocess.run([*command, "--output", tmp_path / "out"], check=True, capture_output=True)
    text = (tmp_path / "out/gpu.md").read_text()
    (failed,) = (line for line in text.splitlines() if line.startswith("| predict |"))
    assert "1: " in failed
    assert "maskrcnn_r50.yaml" in failed  # of the configs that exist
    assert "| evaluation |" in text
    assert text.count("| done |") == 1
    assert json.loads((tmp_path / "out/gpu.json").read_text())
