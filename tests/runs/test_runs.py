"""Run folders as they are found: whole, killed, torn, or no run at all; and runs beside each other."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from pathlib import Path

import pytest
import yaml

from resdet.commands import compare, runs
from resdet.errors import UserError
from resdet.runs.compare import class_rows, differing, find_runs, names_of
from resdet.runs.folder import RunStatus, read_run


def write_run(
    folder: Path, state: str | None = "done", lr: float = 0.02, scale: float = 1.0, lines: int = 4, **status: object
) -> Path:
    """A run of 40 iterations with the losses 4/k and box AP 10, 20 … percent, times `scale`."""
    (folder / "eval").mkdir(parents=True)
    records = []
    for k in range(1, lines + 1):
        speed = {"lr": lr, "images_per_s": 5.0 * k, "data_wait": 0.01}
        records += [
            {"iteration": 10 * k, "loss": 4 / k * scale, **speed},
            {"iteration": 10 * k, "bbox_AP": k / 10 * scale},
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    settings = {"train": {"lr": lr, "max_iters": 40}, "output": str(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "resolved.yaml").write_text(yaml.safe_dump({**settings, "seed": 0}))
    if state:
        content = {"state": state, "iteration": 40, "total": 40, "best_metric": "bbox_AP", "seconds": 75, "reason": ""}
        (folder / "status.json").write_text(json.dumps(content | status))
    return folder


def test_what_is_whole_of_a_torn_log_is_read(tmp_path) -> None:
    folder = write_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"iteration": 50, "bbox_AP": 0.9')
    run = read_run(folder)
    assert (run.iteration, run.best) == (40, (0.4, 40))
    assert run.problems == ["metrics.jsonl: 2 incomplete lines left out"]
    assert run.series("loss") == ([10, 20, 30, 40], [4.0, 2.0, 4 / 3, 1.0])


def test_the_state_of_a_run_is_told_from_its_status_its_process_or_its_lines(tmp_path) -> None:
    here = {"host": socket.gethostname(), "began": time.time() - 60}
    dead = {**here, "pid": 2**22 + 1}  # above the largest process id of Linux
    assert read_run(write_run(tmp_path / "done")).state == "done"
    assert read_run(write_run(tmp_path / "stopped", "stopped", lines=2)).state == "stopped"
    running = read_run(write_run(tmp_path / "running", "running", lines=2, pid=os.getpid(), **here))
    assert (running.state, round((running.seconds or 0) / 60)) == ("running", 1)
    killed = read_run(write_run(tmp_path / "killed", "running", lines=2, **dead))
    assert (killed.state, killed.reason) == ("failed", "its process is gone: killed, or out of memory")
    for lines, state in ((4, "done"), (2, "stopped")):
        old = read_run(write_run(tmp_path / f"old{lines}", None, lines=lines))
        assert (old.state, old.best_metric, old.seconds) == (state, "bbox_AP", None)
        assert old.problems == ["status.json is missing: the state is a guess"]


def test_a_resumed_run_counts_the_time_of_the_one_that_was_killed(tmp_path) -> None:
    folder = write_run(tmp_path / "a", "running", began=time.time() - 100, seconds=0, pid=2**22 + 1, host="here")
    os.utime(folder / "metrics.jsonl", (time.time() - 60, time.time() - 60))  # it was killed 40 seconds after it began
    RunStatus(folder, 40).write(40, "done")
    assert read_run(folder).seconds == pytest.approx(40, abs=2)


def test_a_folder_that_lacks_files_shows_what_it_has(tmp_path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.yaml").write_text("train: {max_iters: 40}")
    (folder / "resolved.yaml").write_text("{")
    run = read_run(folder)
    assert (run.iteration, run.total, run.best) == (0, 40, None)
    assert run.problems[:2] == ["metrics.jsonl is missing", "resolved.yaml cannot be read"]
    with pytest.raises(UserError, match="is not a run folder"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no run in it or below"):
        find_runs(write_run(tmp_path / "b") / "eval")


def test_runs_are_listed_with_what_differs(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, lr in (("a", 0.02), ("b", 0.01)):
        write_run(tmp_path / name / "run", lr=lr)
    assert runs.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "b/run" in line]
    assert re.split(r"\s{2,}", line.strip()) == ["b/run", "done", "bbox_AP 40.0", "40/40", "1:15", "train.lr=0.01"]
    assert runs.main([str(tmp_path / "nothing")]) == 2


def test_a_run_without_settings_hides_no_difference(tmp_path, capsys) -> None:
    """Runs whose settings are unknown differ in none; many differences are counted."""
    a, b, unknown = (write_run(tmp_path / name, lr=lr) for name, lr in (("a", 0.02), ("b", 0.01), ("c", 0.01)))
    for name in ("config.yaml", "resolved.yaml"):
        (unknown / name).unlink()
    assert differing([read_run(path) for path in (unknown, a, b)]) == {"train.lr": ["(unknown)", 0.02, 0.01]}
    assert differing([read_run(path) for path in (unknown, a)]) == {}
    for name in ("config.yaml", "resolved.yaml"):
        (b / name).write_text("data: {" + ", ".join(f"k{n}: {n}" for n in range(20)) + "}")
    assert runs.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("data.k") == 7
    assert "more: resdet compare" in said
    assert "(unknown)" not in said


def test_runs_are_compared_in_the_terminal_and_on_a_page_of_its_own(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b<i>", lr=0.01, scale=0.5)]
    (folders[0] / "eval" / "classes.json").write_text('{"bbox": {"cat": 0.5, "dog": 0.25}}')
    (folders[1] / "eval" / "classes.json").write_text('{"bbox": {"cat": 0.5, "dog": 0.75, "cow": null}}')
    found = [read_run(folder) for folder in folders]
    assert names_of(found) == ["a", "b<i>"]
    assert differing(found) == {"train.lr": [0.02, 0.01]}
    assert [(row.name, row.difference) for row in class_rows(found)] == [("dog", 0.5), ("cat", 0.0), ("cow", 0.0)]
    page = tmp_path / "page.html"
    assert compare.main([*map(str, folders), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.replace(str(page), "").splitlines())) <= 80
    for words in (
        ["best bbox_AP", "40.0", "20.0"],
        ["bbox dog", "25.0", "75.0", "+50.0"],
        ["train.lr", "0.02", "0.01"],
    ):
        assert re.search(r"\s+".join(map(re.escape, words)), said), words
    text = page.read_text()
    assert "b&lt;i&gt;: 20 at 40" in text
    assert "b<i>" not in text
    assert not re.search(r"(src|href)=\"(?!data:)|https?:", text)
    for one in ([str(folders[0])] * 2, [str(folders[0]), str(tmp_path)]):
        assert compare.main(one) == 2


def test_curves_are_drawn_of_what_there_is(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    from resdet.runs.curves import draw_curves, panels_of

    run = read_run(write_run(tmp_path / "a", lines=2))
    assert panels_of(run) == {"AP, percent": ["bbox_AP"], "training losses": ["loss"], "learning rate": ["lr"]}
    draw_curves(run)
    assert Image.open(tmp_path / "a" / "curves.png").width == 1200
