"""What is said when a loader worker cannot start or dies."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from types import SimpleNamespace

import pytest

import tiny
from resdet.errors import UserError
from resdet.runtime import workers


def test_a_worker_that_imports_the_script_ends_with_a_code_of_its_own(monkeypatch) -> None:
    workers.refuse_unguarded_script()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit) as caught:
        workers.refuse_unguarded_script()
    assert caught.value.code == workers.UNGUARDED


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (workers.UNGUARDED, RuntimeError("worker exited unexpectedly"), 'if __name__ == "__main__":.*data.workers=0'),
        (workers.UNGUARDED, BrokenPipeError("payload larger than the pipe"), 'if __name__ == "__main__":'),
        (
            1,
            RuntimeError("worker exited unexpectedly"),
            r"exit code 1\) while loading a.jpg: .*lower data.workers \(now 2",
        ),
        (-9, RuntimeError("worker exited unexpectedly"), r"\(SIGKILL\)"),
    ],
)
def test_the_reason_of_a_death_is_told(monkeypatch, code: int, error: Exception, message: str) -> None:
    class Loader:
        num_workers = 2
        multiprocessing_context = multiprocessing.get_context("spawn")

        def __iter__(self):
            children.append(SimpleNamespace(pid=1, exitcode=code))
            raise error

    children: list[SimpleNamespace] = []
    monkeypatch.setattr(workers, "active_children", lambda: list(children))
    monkeypatch.setattr(workers.time, "sleep", lambda _: None)
    with pytest.raises(UserError, match=message):
        next(workers.load(Loader(), lambda pids: ["a.jpg"] * len(pids)))


def test_other_errors_pass() -> None:
    class Loader:
        def __iter__(self):
            raise RuntimeError("a mistake in the dataset")

    with pytest.raises(RuntimeError, match="a mistake"):
        next(workers.load(Loader(), lambda _: []))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("again", "tracebacks"),
    [("force=True", 1), ("", 2)],  # a second call fails before it comes to training
)
def test_a_script_without_a_main_guard_is_told_the_fix(shapes_root, tmp_path, again: str, tracebacks: int) -> None:
    config = tiny.config_file(shapes_root, tmp_path, max_iters=1, eval_every=0)
    script = tmp_path / "script.py"
    script.write_text(
        "import torch.multiprocessing as mp\n"
        f"mp.set_start_method('spawn', {again})\n"
        "import resdet\n"
        f"resdet.train(resdet.load_config({str(config)!r}, ['data.workers=1', 'output={tmp_path / 'run'}']))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert 'under `if __name__ == "__main__":`, or set data.workers=0' in last
    assert done.stderr.count("Traceback") == tracebacks  # the first is that of the script itself
