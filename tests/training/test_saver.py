"""Checkpoints in the background: a copy of the state, the newest few, and never a torn file that is trusted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import resdet
import tiny
from resdet.checkpoints.checkpoint import Checkpoint, checksum, read_checkpoint, save_checkpoint
from resdet.errors import UserError
from resdet.training import saver as module
from resdet.training.saver import Saver, newest, numbered


def checkpoint(iteration: int, value: float | None = None) -> Checkpoint:
    return Checkpoint({"w": torch.full((1000,), float(iteration if value is None else value))}, iteration=iteration)


def test_what_training_changes_meanwhile_is_not_saved(tmp_path, monkeypatch) -> None:
    state = checkpoint(1)
    saver = Saver(tmp_path, 2)
    original = module.save_checkpoint

    def slow(copied: Checkpoint, path: Path) -> None:
        state.model["w"].fill_(7)  # training goes on
        original(copied, path)

    monkeypatch.setattr(module, "save_checkpoint", slow)
    saver.save(state)
    saver.wait()
    assert read_checkpoint(tmp_path / "last.pt").model["w"].unique().tolist() == [1]


def test_a_run_that_fails_still_has_the_checkpoint_that_was_being_written(tmp_path, monkeypatch) -> None:
    write = module.save_checkpoint
    monkeypatch.setattr(module, "save_checkpoint", lambda *given: (time.sleep(0.5), write(*given)))
    saver = Saver(tmp_path, 2)

    def run() -> None:
        with saver:
            saver.save_best(checkpoint(1))
            saver.save(checkpoint(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert read_checkpoint(tmp_path / "best.pt").iteration == 1
    assert read_checkpoint(tmp_path / "last.pt").iteration == 2


def test_the_newest_few_stay_and_last_is_the_newest(tmp_path) -> None:
    saver = Saver(tmp_path, 2)
    for iteration in (5, 10, 15, 100):
        saver.save(checkpoint(iteration))
    saver.wait()
    assert [p.name for p in numbered(tmp_path)] == ["00000100.pt", "00000015.pt"]
    assert (tmp_path / "last.pt").samefile(tmp_path / "00000100.pt")  # no second copy on disk
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000015.pt", "00000100.pt", "last.pt"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_torn_checkpoint_is_named_and_passed_over(damage: str, tmp_path, capsys) -> None:
    saver = Saver(tmp_path, 3)
    for iteration in (1, 2):
        saver.save(checkpoint(iteration))
    saver.wait()
    data = bytearray((tmp_path / "last.pt").read_bytes())
    where = data.index(torch.full((4,), 2.0).numpy().tobytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[where + 5] ^= 1  # one bit of one weight
    else:
        data = bytearray()
    (tmp_path / "last.pt").write_bytes(bytes(data))  # the same file as 00000002.pt
    found = newest(tmp_path)
    assert found is not None
    assert found.name == "00000001.pt"
    said = capsys.readouterr().out
    assert said.count("skipped: ") == 2
    assert "last.pt" in said
    (tmp_path / "00000001.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no readable checkpoint"):
        newest(tmp_path)
    assert newest(tmp_path / "nowhere") is None


def test_a_newer_one_than_last_is_taken(tmp_path) -> None:
    """A run that was killed after writing a checkpoint and before calling it the last."""
    for name, iteration in (("last.pt", 5), ("00000005.pt", 5), ("00000010.pt", 10)):
        save_checkpoint(checkpoint(iteration), tmp_path / name)
    assert newest(tmp_path) == tmp_path / "00000010.pt"
    (tmp_path / "00000010.pt").unlink()
    assert newest(tmp_path) == tmp_path / "last.pt"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_write_that_fails_is_told_and_the_last_good_file_stays(error: OSError, tmp_path, monkeypatch, capsys) -> None:
    saver = Saver(tmp_path, 2)
    saver.save(checkpoint(1))
    saver.wait()

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", refuse)
    saver.save(checkpoint(2))
    saver.wait()
    assert str(error.strerror) in str(saver.failure)
    assert "training continues" in capsys.readouterr().out
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "last.pt").iteration == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001.pt", "last.pt"]
    saver.save(checkpoint(3))
    saver.wait()
    assert saver.failure is None


def test_a_folder_removed_underneath_is_made_again(tmp_path) -> None:
    saver = Saver(tmp_path / "checkpoints", 2)
    saver.save(checkpoint(1))
    saver.wait()
    shutil.rmtree(tmp_path / "checkpoints")
    saver.save(checkpoint(2))
    saver.wait()
    assert saver.failure is None
    assert read_checkpoint(tmp_path / "checkpoints/last.pt").iteration == 2


def test_checksums_see_every_value() -> None:
    base = {"a": torch.arange(4.0), "b": [1, {"c": torch.ones(2, dtype=torch.bfloat16)}], "d": "x"}
    others = [
        {**base, "a": torch.tensor([0.0, 1, 2, 3.0000002])},
        {**base, "a": torch.arange(4.0).view(2, 2)},
        {**base, "b": [1, {"c": torch.ones(2)}]},
        {**base, "b": [2, {"c": torch.ones(2, dtype=torch.bfloat16)}]},
        {**base, "d": "y"},
        {("e" if k == "d" else k): v for k, v in base.items()},
    ]
    sums = [checksum(base), *map(checksum, others)]
    assert len(set(sums)) == 7
    assert checksum({**base}) == sums[0]


@pytest.mark.slow
def test_resuming_goes_back_to_the_last_whole_one_and_ends_the_same(shapes_root, tmp_path) -> None:
    """A run whose newest checkpoint is torn ends with the weights of one that was never disturbed."""
    options = {"eval_every": 0, "checkpoint_every": 1, "keep": 5}
    resdet.train(tiny.config(shapes_root, tmp_path / "whole", max_iters=4, **options))
    resdet.train(tiny.config(shapes_root, tmp_path / "torn", max_iters=3, milestones=[3], **options))
    last = tmp_path / "torn/checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    resdet.train(tiny.config(shapes_root, tmp_path / "torn", max_iters=4, **options), resume=True)
    one, two = (read_checkpoint(tmp_path / name / "checkpoints/last.pt").model for name in ("whole", "torn"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    save_checkpoint(Checkpoint(one), tmp_path / "again.pt")
    assert read_checkpoint(tmp_path / "again.pt").model.keys() == one.keys()


@pytest.mark.slow
def test_a_killed_process_ends_as_if_it_had_not_been(tmp_path) -> None:
    """Real processes, SIGKILL at a random moment; benchmarks/soak.py does it a hundred times."""
    script = Path(__file__).parents[2] / "benchmarks" / "soak.py"
    done = subprocess.run(
        [sys.executable, str(script), "1", str(tmp_path / "soak")], capture_output=True, text=True, check=False,
        cwd=script.parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "weights, averages and optimiser identical, metrics.jsonl identical" in done.stdout
    assert "kill 1" in done.stdout
