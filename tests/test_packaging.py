"""The wheel, away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_built_wheel_trains_outside_the_checkout(tmp_path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels = tmp_path / "wheels"
    subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(wheels)], check=True)
    (wheel,) = wheels.glob("resdet-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    work = tmp_path / "elsewhere"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=work, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(sys.executable, "-c", "import resdet; print(resdet.__file__)")
    assert str(tmp_path / "site") in where
    command = str(tmp_path / "site" / "bin" / "resdet")
    assert "maskrcnn_r50" in run(
        sys.executable, "-c", "import resdet.config as c; print(c.find_config('configs/maskrcnn_r50.yaml'))"
    )
    overrides = [
        "data.root=shapes",
        "data.synthetic.num_train=4",
        "data.synthetic.num_val=2",
        "train.max_iters=1",
        "train.batch_size=2",
        "data.workers=0",
        "data.limit=2",
    ]
    assert "COCO mask AP" in run(command, "train", "configs/quickstart.yaml", *overrides, "--output", "run")
    assert (work / "run" / "checkpoints" / "best.pt").exists()
    assert "</html>" in (work / "run" / "report" / "index.html").read_text()
    assert not list((tmp_path / "site").rglob("tests"))
