"""What a run tells of itself: the panel, plain lines, `status.json`, trackers, pictures."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

import tiny
from resdet.commands.train import main
from resdet.errors import UserError
from resdet.runs.folder import read_run
from resdet.runs.text import sparkline
from resdet.runtime.console import console
from resdet.training import trackers
from resdet.training.loggers import RunLog
from resdet.training.loop import train
from resdet.training.panel import Panel

SPEED = {"lr": 0.02, "images_per_s": 12.3, "data_wait": 0.04}


def test_a_sparkline_spans_the_lowest_to_the_highest_mean() -> None:
    assert sparkline([0, 7, 14, 21], 4, "01234567") == "0257"  # 7/21 and 14/21 of 7 steps are 2.3 and 4.7
    assert sparkline([0, 2, 10, 12], 2, "01234567") == "07"
    assert sparkline([3.0, float("nan"), 3.0], 8, "01234567") == "00"
    assert sparkline([], 8) == ""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_panel_fits_80_columns_and_says_how_it_goes(encoding: str) -> None:
    earlier = [{"iteration": 10, "loss": 9.0}, {"iteration": 10, "bbox_AP": 0.25}]
    panel = Panel("outputs/run", 10, 90, "bbox_AP", earlier)
    for iteration in (20, 30):
        losses = {"loss": 4.5 / iteration, **{f"decoder_layer_{k}_class": 1.0 for k in range(40)}}
        panel.train(iteration, losses | SPEED, "1.5 GB of memory")
    panel.evaluated(30, {"bbox": {"AP": 0.125, "AP50": 0.5, "APs": None}})
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, force_terminal=True, width=80, height=30, color_system=None).print(panel)
    file.seek(0)
    text = file.read()
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 30
    shown = ("30/90", "eta", "12.3 img/s", "data wait 4%", "lr 0.02", "1.5 GB", "0.1500", "more", "AP 12.5", "APs -")
    assert [word for word in (*shown, "best bbox_AP 25.0 at iteration 10") if word not in text] == []
    assert ("█" if encoding == "utf-8" else "#") in text


def test_without_a_terminal_lines_are_plain_and_quiet_leaves_warnings_and_the_result(
    shapes_root, tmp_path, capsys
) -> None:
    config = tiny.config_file(shapes_root, tmp_path, max_iters=2, eval_every=0)
    try:
        assert main([str(config), "--output", str(tmp_path / "verbose"), "--verbose"]) == 0
        said = capsys.readouterr().out
        assert main([str(config), "--output", str(tmp_path / "quiet"), "--quiet"]) == 0
        quiet = capsys.readouterr().out.splitlines()
    finally:
        console.terse = console.verbose = False
    assert "\x1b" not in said
    assert "\r" not in said
    assert "2/2  eta 0:00  loss " in said
    assert "GB of memory" in said
    assert all(line.startswith(("warning", "trained to iteration 2")) for line in quiet)
    assert quiet[-1].startswith("trained")


def test_status_says_how_a_run_ended(tmp_path, capsys) -> None:
    (tmp_path / "done").mkdir()
    with RunLog(tmp_path / "done", 0, 2) as log:
        log.write(2, loss=1.0)
        assert read_run(tmp_path / "done").state == "running"
        log.ended(done=True)
    assert read_run(tmp_path / "done").state == "done"
    (tmp_path / "failed").mkdir()
    with pytest.raises(UserError), RunLog(tmp_path / "failed", 0, 2):
        raise UserError("no memory\nmore")
    run = read_run(tmp_path / "failed")
    assert (run.state, run.reason) == ("failed", "no memory")


class Broken:
    id = ""

    def numbers(self, iteration: int, values: object) -> None:
        raise ConnectionError("no server\nlong story")

    def close(self, failed: bool) -> None:
        raise AssertionError("it had been left out")


def test_a_tracker_that_fails_is_left_out_and_one_that_is_missing_is_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(trackers.BACKENDS, "wandb", ("wandb", lambda *_: Broken()))
    with RunLog(tmp_path, 0, 2, trackers=["wandb"]) as log:
        log.write(1, loss=1.0)
        log.write(2, loss=1.0)
    assert capsys.readouterr().out.count("warning: wandb failed (no server); training continues without it") == 1
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install 'resdet\[mlflow\]'"):
        RunLog(tmp_path, 0, 2, trackers=["mlflow"])
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    closed = []
    started = SimpleNamespace(id="", close=closed.append)
    monkeypatch.setitem(trackers.BACKENDS, "wandb", ("wandb", lambda *_: started))
    with pytest.raises(UserError, match="mlflow could not start"):
        RunLog(tmp_path, 0, 2, trackers=["wandb", "mlflow"])
    assert closed == [True]  # what had started is not left open


class Experiment:
    """Stands in for an experiment of comet_ml 3.58 and a task of clearml 2.1, with the parameters of these."""

    id = "key"

    def __init__(self, **settings: object) -> None:
        self.settings, self.calls = settings, []

    def get_key(self) -> str:
        return self.id

    def get_logger(self) -> Experiment:
        return self

    def log_parameters(self, parameters, prefix=None, step=None, nested_support=True) -> None:
        self.calls.append(parameters)

    def connect(self, mutable, name=None, ignore_remote_overrides=False) -> None:
        self.calls.append(mutable)

    def log_metrics(self, dic, prefix=None, step=None, epoch=None, include_context=True) -> None:
        self.calls.append((step, dic))

    def report_scalar(self, title: str, series: str, value: float, iteration: int) -> None:
        self.calls.append((iteration, {title: value}))

    def log_image(self, image_data, name=None, overwrite=False, *, step=None) -> None:
        self.calls.append((step, name, image_data))

    def report_image(self, title, series, iteration=None, local_path=None) -> None:
        self.calls.append((iteration, title, local_path))

    def end(self) -> None:
        self.calls.append("end")

    close = end


@pytest.mark.parametrize("name", ["comet", "clearml"])
def test_comet_and_clearml_get_numbers_config_and_pictures(tmp_path, monkeypatch, name: str) -> None:
    started: list[Experiment] = []

    def start(*, project_name, experiment_key=None, experiment_config=None) -> Experiment:
        started.append(Experiment(key=experiment_key, **experiment_config))
        return started[-1]

    def init(project_name=None, task_name=None, reuse_last_task_id=True, continue_last_task=False, **_) -> Experiment:
        started.append(Experiment(key=continue_last_task or None))
        return started[-1]

    monkeypatch.setitem(sys.modules, "comet_ml", SimpleNamespace(start=start, ExperimentConfig=dict))
    monkeypatch.setitem(sys.modules, "clearml", SimpleNamespace(Task=SimpleNamespace(init=init)))
    for iteration in (0, 5):
        used = trackers.Trackers([name], tmp_path, {"train": 1}, iteration)
        used.numbers(iteration + 1, {"loss": 2.0})
        used.picture(iteration + 1, "predictions", tmp_path / "p.jpg")
        used.close(failed=False)
    assert [one.settings["key"] for one in started] == [None, "key"]
    picture = str(tmp_path / "p.jpg")
    assert started[1].calls == [{"train": 1}, (6, {"loss": 2.0}), (6, "predictions", picture), "end"]


@pytest.mark.slow
def test_trackers_get_numbers_config_and_pictures_and_find_a_resumed_run_again(
    shapes_root, tmp_path, monkeypatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(sys, "argv", ["resdet"])
    mlflow.set_tracking_uri(f"file:{tmp_path}/mlruns")
    out = tmp_path / "run"
    kept = {"loggers": ["wandb", "mlflow"], "pictures": True, "eval_every": 2}
    train(tiny.config(shapes_root, out, max_iters=2, **kept))
    train(tiny.config(shapes_root, out, max_iters=4, **kept), resume=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    ids = json.loads((out / "trackers.json").read_text())
    (run,) = mlflow.MlflowClient().search_runs([mlflow.get_experiment_by_name("resdet").experiment_id])
    assert run.info.run_id == ids["mlflow"]
    history = mlflow.MlflowClient().get_metric_history(ids["mlflow"], "loss")
    assert [(m.step, m.value) for m in history] == [(r["iteration"], r["loss"]) for r in records if "loss" in r]
    assert run.data.params["train.batch_size"] == "2"
    stored = {path.name for path in Path(tmp_path / "mlruns").rglob("predictions/*")}
    assert stored == {"00000002.jpg", "00000004.jpg"}
    offline = [path.name.rpartition("-")[2] for path in (out / "wandb").glob("offline-run-*")]
    assert set(offline) == {ids["wandb"]}
    assert len(list((out / "wandb").rglob("predictions_*.jpg"))) == 2
    # three columns: annotations and two evaluations
    sizes = {Image.open(out / name).size for name in ("film/annotated.jpg", "film/00000004.jpg")}
    assert {(3 * width, height) for width, height in sizes} == {Image.open(out / "film.jpg").size}
    assert Image.open(out / "curves.png").width == 1200
