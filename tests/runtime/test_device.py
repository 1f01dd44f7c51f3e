"""What the library leaves alone in its host process, and what a command may set."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import cv2
import pytest

import tiny
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.config import dump_config, parse_config
from resdet.inference.predictor import Predictor
from resdet.models.build import build_model
from resdet.runtime import device


@pytest.fixture
def mallopt_calls(monkeypatch) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(parameter: int, value: int) -> None:
            calls.append((parameter, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Library)
    for name in [name for name in device.os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    device.keep_memory.cache_clear()
    yield calls
    device.keep_memory.cache_clear()


def test_a_predictor_leaves_the_malloc_of_its_host_alone(tmp_path, mallopt_calls) -> None:
    config = parse_config({"device": "cpu", "model": tiny.MODEL})
    content = Checkpoint(build_model(config.model).state_dict(), list("abcd"), [1, 2, 3, 4], dump_config(config))
    save_checkpoint(content, tmp_path / "model.pt")
    Predictor(config, tmp_path / "model.pt")
    assert mallopt_calls == []


@pytest.mark.parametrize(("name", "calls"), [("cpu", 2), ("cuda", 0)])
def test_a_command_tunes_its_process(mallopt_calls, name: str, calls: int) -> None:
    before = cv2.getNumThreads()
    try:
        device.tune_process(name)
        assert cv2.getNumThreads() == 1  # as OpenCV counts no threads of its own
        assert len(mallopt_calls) == calls
    finally:
        cv2.setNumThreads(before)


@pytest.mark.slow
def test_importing_leaves_the_threads_of_opencv_alone() -> None:
    code = (
        "import cv2; cv2.setNumThreads(3); before = cv2.getNumThreads(); import resdet; resdet.Predictor, resdet.train; "
        "assert cv2.getNumThreads() == before > 1, cv2.getNumThreads()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
