from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import resdet
import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.config import load_config, parse_config
from resdet.errors import UserError
from resdet.evaluation.coco import METRICS
from resdet.evaluation.keypoints import METRICS as KEYPOINT_METRICS
from resdet.runtime.signals import stop_signals
from resdet.structures import Batch
from resdet.training.loop import train


def lines(output) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def same_weights(a, b) -> bool:
    one, two = read_checkpoint(a).model, read_checkpoint(b).model
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_run_leaves_everything_the_contract_names(shapes_root, tmp_path) -> None:
    out = tmp_path / "run"
    result = resdet.train(tiny.config(shapes_root, out, ema_decay=0.9, clip_grad_norm=1.0))
    assert (result.finished, result.iteration, result.output) == (True, 4, out)
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/last.pt", "eval/metrics.json", "eval/detections.json",
                 "predictions.jpg"):  # fmt: skip
        assert (out / name).stat().st_size > 0, name
    assert load_config(out / "config.yaml") == tiny.config(shapes_root, out, ema_decay=0.9, clip_grad_norm=1.0)
    metrics = json.loads((out / "eval" / "metrics.json").read_text())
    assert list(metrics) == ["bbox", "segm"]
    assert tuple(metrics["segm"]) == METRICS
    content = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    assert content["class_names"] == ["disk", "box", "triangle", "star"]
    assert content["category_ids"] == [10, 11, 13, 14]
    averaged, raw = content["model"], content["training"]["weights"]
    assert not torch.equal(averaged["fpn.lateral.0.conv.weight"], raw["fpn.lateral.0.conv.weight"])
    records = lines(out)
    trained = [r for r in records if "loss" in r]
    assert [r["iteration"] for r in trained] == [1, 2, 3, 4]
    assert {"rpn_objectness", "rpn_box", "box_class", "box_reg", "mask", "lr", "images_per_s", "data_wait"} < set(
        trained[0]
    )
    evaluated = [r for r in records if "bbox_AP" in r]
    assert [r["iteration"] for r in evaluated] == [2, 4]
    assert evaluated[0]["val_loss"] > 0


@pytest.mark.slow
def test_a_seed_makes_a_run_and_a_resumed_one_equals_it(shapes_root, tmp_path) -> None:
    kept = {"checkpoint_every": 2, "eval_every": 0, "ema_decay": 0.9}
    train(tiny.config(shapes_root, tmp_path / "a", **kept))
    train(tiny.config(shapes_root, tmp_path / "b", **kept))
    assert same_weights(tmp_path / "a/checkpoints/last.pt", tmp_path / "b/checkpoints/last.pt")
    train(tiny.config(shapes_root, tmp_path / "c", **kept | {"max_iters": 2}))
    # The killed run had gone further than its checkpoint: its later lines must not stay.
    with (tmp_path / "c/metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "loss": 1}\n{"iterat')
    train(tiny.config(shapes_root, tmp_path / "c", **kept), resume=True)
    assert same_weights(tmp_path / "a/checkpoints/last.pt", tmp_path / "c/checkpoints/last.pt")
    assert [r["iteration"] for r in lines(tmp_path / "c")] == [1, 2, 3, 4]
    without_time = [
        {k: v for k, v in r.items() if k not in ("images_per_s", "data_wait")} for r in lines(tmp_path / "c")
    ]
    assert without_time == [
        {k: v for k, v in r.items() if k not in ("images_per_s", "data_wait")} for r in lines(tmp_path / "a")
    ]
    other = tiny.config(shapes_root, tmp_path / "d", **kept)
    other.seed = 1
    train(other)
    assert not same_weights(tmp_path / "a/checkpoints/last.pt", tmp_path / "d/checkpoints/last.pt")


@pytest.mark.slow
def test_keypoints_train_are_scored_and_resumed(shapes_root, tmp_path) -> None:
    root = tiny.posed(shapes_root, tmp_path / "data")

    def config(name: str, **train: object) -> resdet.Config:
        values = tiny.values(root, checkpoint_every=2, eval_every=4, **train)
        model = {**tiny.MODEL, "mask": None, "keypoint": tiny.KEYPOINT}
        return parse_config({**values, "model": model, "output": str(tmp_path / name)})

    train(config("a"))
    train(config("b", max_iters=2))
    result = train(config("b"), resume=True)
    assert same_weights(tmp_path / "a/checkpoints/last.pt", tmp_path / "b/checkpoints/last.pt")
    assert tuple(result.metrics["keypoints"]) == KEYPOINT_METRICS
    records = lines(tmp_path / "b")
    assert all(r["keypoint"] > 1 for r in records if "loss" in r)
    assert records[-1]["val_keypoint"] > 1
    predictor = resdet.Predictor.from_checkpoint(tmp_path / "a/checkpoints/last.pt", device="cpu", score_threshold=0.0)
    assert predictor.edges == [(0, 2), (1, 3)]
    assert predictor.model_config.keypoint.names == ["left", "top", "right", "bottom"]
    (found,) = predictor([next((root / "val2017").iterdir())])
    assert found.keypoints.shape == (len(found), 4, 3)
    assert len(found)
    low, high = found.boxes[:, None, :2], found.boxes[:, None, 2:]
    assert ((found.keypoints[..., :2] >= low) & (found.keypoints[..., :2] <= high.clip(low + 1))).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"keypoint": {}}, "root": "plain"}, "do not list one set of keypoints.*set model.keypoint=null"),
        ({"model": {"keypoint": {"num_keypoints": 3}}}, "num_keypoints is 3, but .* lists 4 keypoints"),
        ({"model": {"keypoint": {}}, "keypoints": []}, "no object has a labelled keypoint"),
        ({"model": {"keypoint": {}}, "keypoints": [1, 2, 2]}, "keypoints of another count than the category lists"),
        ({"model": {"keypoint": {}}, "data": {"keypoint_flip_pairs": [["left", "x"]]}}, "not a pair of different keypoints"),
        ({"model": {"keypoint": {}}, "data": {"keypoint_sigmas": [0.1]}}, "keypoint_sigmas has 1 numbers"),
    ],
)  # fmt: skip
def test_keypoints_that_cannot_train_are_named(shapes_root, tmp_path, change: dict, message: str) -> None:
    root = shapes_root if change.get("root") == "plain" else tiny.posed(shapes_root, tmp_path / "data")
    if "keypoints" in change:
        file = root / "annotations/instances_train2017.json"
        content = json.loads(file.read_text())
        content["annotations"] = [{**entry, "keypoints": change["keypoints"]} for entry in content["annotations"]]
        file.write_text(json.dumps(content))
    values = tiny.values(root)
    values["model"] = {**tiny.MODEL, "mask": None, **change["model"]}
    values["data"] |= change.get("data", {})
    with pytest.raises(UserError, match=message):
        train(parse_config({**values, "output": str(tmp_path / "run")}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best.pt", "00000100.pt"])
def test_checkpoints_of_before_are_not_lost(shapes_root, tmp_path, capsys, name: str) -> None:
    """Their run's other files are gone: a full disk was tidied up, say."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / name).write_bytes(b"weights")
    config = tiny.config(shapes_root, tmp_path, max_iters=2)
    with pytest.raises(UserError, match="already holds a run"):
        train(config)
    if name == "best.pt":
        train(config, resume=True)
        assert "best weights of the previous one are in" in capsys.readouterr().out
        (checkpoints / "last.pt").unlink()  # and again, before it is saved for the first time
        (checkpoints / "00000002.pt").unlink()
        train(config, resume=True)
        assert (checkpoints / "best_before.pt").read_bytes() == b"weights"
    assert (checkpoints / name).exists()


def test_an_output_folder_is_not_overwritten_and_resume_may_start_afresh(shapes_root, tmp_path) -> None:
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=1, eval_every=0)
    assert train(config, resume=True).iteration == 1
    with pytest.raises(UserError, match="already holds a run: continue it with --resume"):
        train(config)


def test_accumulation_gives_the_gradient_of_the_whole_batch(shapes_root, tmp_path) -> None:
    """With norms that do not see the batch, and where each half samples as many anchors and RoIs (masks would be as many as
    there are positives), two halves are one whole."""
    results = []
    for accumulate in (1, 2):
        config = tiny.config(shapes_root, tmp_path / str(accumulate), max_iters=1, eval_every=0, accumulate=accumulate)
        config.model.backbone.norm = "gn"
        config.model.mask = None
        train(config)
        results.append(read_checkpoint(tmp_path / str(accumulate) / "checkpoints/last.pt").model)
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains(shapes_root, tmp_path, amp: str) -> None:
    if amp == "fp16" and not torch.amp.autocast_mode.is_autocast_available("cpu"):
        pytest.skip("no autocast here")
    result = train(tiny.config(shapes_root, tmp_path / "run", max_iters=2, eval_every=2, amp=amp))
    assert result.finished
    assert all(r["loss"] < 20 for r in lines(tmp_path / "run") if "loss" in r)


@pytest.mark.slow
def test_the_memory_layout_changes_no_losses(shapes_root, tmp_path) -> None:
    found = []
    for layout in (True, False):
        out = tmp_path / str(layout)
        train(tiny.config(shapes_root, out, max_iters=2, eval_every=0, channels_last=layout))
        weights = read_checkpoint(out / "checkpoints/last.pt").model["backbone.layer2.0.conv1.weight"]
        assert weights.is_contiguous(memory_format=torch.channels_last) is layout
        found.append([r["loss"] for r in lines(out) if "loss" in r])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_frozen_stages_stay_and_the_rest_moves(shapes_root, tmp_path) -> None:
    from resdet.models.build import build_model

    config = tiny.config(shapes_root, tmp_path / "run", max_iters=2, eval_every=0)
    weights = build_model(config.model).backbone.state_dict()
    torch.save(weights, tmp_path / "backbone.pth")
    config.model.backbone.weights, config.model.backbone.frozen_stages = str(tmp_path / "backbone.pth"), 2
    train(config)
    trained = read_checkpoint(tmp_path / "run/checkpoints/last.pt").model
    for name, value in weights.items():
        if "num_batches" not in name and not name.startswith(("layer2", "layer3", "layer4")):
            assert torch.equal(trained[f"backbone.{name}"], value), name
    assert not torch.equal(trained["backbone.layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])


@pytest.mark.slow
def test_early_stopping(shapes_root, tmp_path) -> None:
    result = train(tiny.config(shapes_root, tmp_path / "run", max_iters=50, eval_every=1, patience=2, lr=1e-9))
    assert result.finished
    assert result.iteration < 10
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration == result.iteration


def test_a_loss_that_is_not_finite_stops_with_advice(shapes_root, tmp_path) -> None:
    with pytest.raises(UserError, match=r"not finite at iteration \d+, .*lower train\.lr \(now 1e\+20\)"):
        train(tiny.config(shapes_root, tmp_path / "run", max_iters=20, eval_every=0, lr=1e20))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_finish_the_step_and_save(shapes_root, tmp_path, number: int) -> None:
    out = tmp_path / "run"

    def interrupt() -> None:
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    config = tiny.config(shapes_root, out, max_iters=500, eval_every=0, checkpoint_every=500)
    result = train(config)
    assert not result.finished
    assert read_checkpoint(out / "checkpoints/last.pt").iteration == result.iteration < 500
    config.train.max_iters = result.iteration + 1
    assert train(config, resume=True).iteration == result.iteration + 1


def started(config: Path, *arguments: str, **options: bool) -> subprocess.Popen[str]:
    code = "import sys; from resdet.commands.train import main; sys.exit(main())"
    command = [sys.executable, "-c", code, str(config), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def until_first_step(job: subprocess.Popen[str], out: Path) -> None:
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert job.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_output_any_more(shapes_root, tmp_path) -> None:
    out = tmp_path / "run"
    run = started(tiny.config_file(shapes_root, tmp_path, max_iters=3, eval_every=0), "--output", str(out))
    assert run.stdout.readline()
    run.stdout.close()
    errors = run.stderr.read()
    assert (run.wait(60), errors) == (0, "")
    assert [record["iteration"] for record in lines(out)] == [1, 2, 3]
    assert (out / "checkpoints/last.pt").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_run_goes_on_when_its_output_finds_the_disk_full(shapes_root, tmp_path) -> None:
    config = tiny.config_file(shapes_root, tmp_path, max_iters=2, eval_every=0)
    command = [
        sys.executable,
        str(Path(__file__).parents[2] / "tools/train.py"),
        str(config),
        "--output",
        str(tmp_path / "run"),
    ]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "warning: no more output can be written (No space left on device)\n")
    assert (tmp_path / "run/checkpoints/last.pt").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no such call on this system")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_whole_job_that_is_told_to_stop_finishes_the_step_and_saves(shapes_root, tmp_path, number: int) -> None:
    out = tmp_path / "run"
    config = tiny.config_file(shapes_root, tmp_path, max_iters=5000, eval_every=0, checkpoint_every=5000)
    job = started(config, "data.workers=2", "--output", str(out), start_new_session=True)
    until_first_step(job, out)
    os.killpg(job.pid, number)
    _, errors = job.communicate(timeout=60)
    assert (job.returncode, errors) == (75, "")
    assert 0 < read_checkpoint(out / "checkpoints/last.pt").iteration < 5000


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how a terminal is taken differs")
def test_a_run_whose_terminal_is_closed_saves(shapes_root, tmp_path) -> None:
    out = tmp_path / "run"
    config = tiny.config_file(shapes_root, tmp_path, max_iters=5000, eval_every=0, checkpoint_every=5000, log_every=1)
    keyboard, terminal = os.openpty()
    code = "import os, sys; [os.dup2(os.open(sys.argv[1], os.O_RDWR), k) for k in range(3)]; del sys.argv[1]\n"
    code += "from resdet.commands.train import main; sys.exit(main())"
    command = [sys.executable, "-c", code, os.ttyname(terminal), str(config), "--output", str(out)]
    job = subprocess.Popen(command, start_new_session=True)  # the first terminal that it opens is its own
    until_first_step(job, out)
    os.close(terminal)
    os.close(keyboard)
    assert job.wait(60) == 75
    assert 0 < read_checkpoint(out / "checkpoints/last.pt").iteration < 5000


def test_a_second_interrupt_stops_at_once() -> None:
    with stop_signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal on this system")
def test_what_is_ignored_stays_so() -> None:
    """Under `nohup` a closed terminal means nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked()
            signal.raise_signal(signal.SIGTERM)
            assert asked()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_resuming_with_other_workers_changes_nothing(shapes_root, tmp_path) -> None:
    for name, steps in (("whole", (4,)), ("resumed", (2, 4))):
        for workers, last in enumerate(steps):
            config = tiny.config(
                shapes_root, tmp_path / name, max_iters=last, eval_every=0, warmup_iters=0, milestones=[9]
            )
            config.data.workers = 2 * workers
            train(config, resume=workers > 0)
    assert same_weights(tmp_path / "whole/checkpoints/last.pt", tmp_path / "resumed/checkpoints/last.pt")


@pytest.mark.slow
def test_a_compiled_run_follows_the_eager_one(shapes_root, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes minutes
    losses = []
    for compile in (False, True):
        torch._dynamo.reset()
        out = tmp_path / str(compile)
        config = tiny.config(shapes_root, out, max_iters=3, eval_every=0, compile=compile)
        config.data.min_size, config.data.max_size, config.data.pad_multiple = [64], 96, 96  # one padded size
        train(config)
        losses.append([record["loss"] for record in lines(out)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(("how", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_compiling_in_a_mode(shapes_root, tmp_path, monkeypatch, how: bool | str, mode: str | None) -> None:
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: (asked.append(options), model)[1])
    train(tiny.config(shapes_root, tmp_path, max_iters=1, eval_every=0, compile=how))
    assert asked == [{"mode": mode, "fullgraph": True, "dynamic": False}]
    with pytest.raises(UserError, match=r"train\.compile"):
        tiny.config(shapes_root, tmp_path, compile="fast")


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_of_a_cuda_graph_are_not_kept(shapes_root, tmp_path, monkeypatch, accumulate: int) -> None:
    """A graph's next run overwrites the gradients of the one before: here they are spoiled when it begins."""

    def replayed(model: torch.nn.Module, **_: object) -> Callable[[Batch], dict[str, Tensor]]:
        memory: list[torch.UntypedStorage] = []

        def own(gradient: Tensor) -> Tensor:
            memory.append(gradient.clone().untyped_storage())
            return torch.empty(0).set_(memory[-1], 0, gradient.shape, gradient.stride())

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(own)

        def forward(batch: Batch) -> dict[str, Tensor]:
            for spoiled in memory:
                torch.empty(0).set_(spoiled).fill_(torch.nan)
            memory.clear()
            return model(batch)

        return forward

    def trained(compile: bool | str) -> dict[str, Tensor]:
        out = tmp_path / str(compile)
        train(tiny.config(shapes_root, out, max_iters=3, eval_every=0, accumulate=accumulate, compile=compile))
        return read_checkpoint(out / "checkpoints/last.pt").model

    expected = trained(False)
    monkeypatch.setattr(torch, "compile", replayed)
    found = trained("reduce-overhead")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_tensorboard_gets_the_numbers_and_is_asked_for_by_name_when_missing(shapes_root, tmp_path, monkeypatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny.config(shapes_root, tmp_path / "run", max_iters=2, eval_every=2, tensorboard=True))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"loss", "lr", "segm_AP"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [1, 2]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'resdet\[tensorboard\]'"):
        train(tiny.config(shapes_root, tmp_path / "other", max_iters=2, eval_every=0, tensorboard=True))


@pytest.mark.slow
def test_ones_own_detector_trains(shapes_root, tmp_path) -> None:
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=1, eval_every=1)
    model = resdet.build_model(config.model)
    del model.heads["mask"]
    config.model.mask = None
    result = train(config, model=model)
    assert list(result.metrics) == ["bbox"]


def test_inputs_that_do_not_fit_are_named(shapes_root, tmp_path) -> None:
    config = tiny.config(shapes_root, tmp_path / "run")
    config.model.num_classes = 80
    with pytest.raises(UserError, match=r"model\.num_classes is 80, but .* has 4 categories \(disk, box"):
        train(config)
    config = tiny.config(tmp_path / "nowhere", tmp_path / "run")
    config.model.backbone.weights = "missing.pth"
    with pytest.raises(UserError) as caught:
        train(config)
    text = str(caught.value)
    assert text.count("missing:") == 4
    assert "quickstart.yaml" in text
    assert "missing.pth: no such weights file" in text  # both problems at once
    assert not (tmp_path / "run").exists()
    config = tiny.config(shapes_root, tmp_path / "run")
    config.model.num_classes = None
    config.train.max_iters, config.train.eval_every = 1, 0
    assert train(config).finished  # counted from the annotations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": []}, r"none of its 12 images has an object"),
        ({"segmentation": None}, r"no object has a segmentation.*set model\.mask=null"),
        ({"categories": [{"id": k, "name": name} for k, name in zip((10, 11, 13, 14), "abcd", strict=True)]},
         "train and val have no category name in common"),
    ],
)  # fmt: skip
def test_data_that_cannot_train_this_model_are_named(shapes_root, tmp_path, change: dict, message: str) -> None:
    content = json.loads((shapes_root / "annotations/instances_train2017.json").read_text())
    if "segmentation" in change:
        content["annotations"] = [{**entry, **change} for entry in content["annotations"]]
    else:
        content |= change
    (tmp_path / "changed.json").write_text(json.dumps(content))
    config = tiny.config(shapes_root, tmp_path / "run")
    config.data.train.annotations = tmp_path / "changed.json"
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()
