"""Several processes on gloo: the same gradients however a batch is shared, nothing lost when one of them goes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml

import resdet
import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.commands.eval import score_model
from resdet.config import load_config, parse_config
from resdet.errors import UserError
from resdet.runtime.device import choose_device
from resdet.runtime.distributed import Distributed, _lost, _name_of_start, joined

SCRIPT = Path(__file__).parents[1] / "processes.py"


def started(world: int, *arguments: object, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={world}", f"--max-restarts={restarts}",
               "--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
               str(SCRIPT), *map(str, arguments)]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def torchrun(world: int, *arguments: object, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    with started(world, *arguments, restarts=restarts) as job:
        try:
            output, errors = job.communicate(timeout=240)
        finally:
            job.kill()
    return subprocess.CompletedProcess(job.args, job.returncode, output, errors)


@pytest.fixture(scope="module")
def config(shapes_root, tmp_path_factory) -> Path:
    return tiny.config_file(shapes_root, tmp_path_factory.mktemp("config"), max_iters=4, checkpoint_every=1)


@pytest.fixture(scope="module")
def together(config, tmp_path_factory) -> Path:
    """A run of two processes that nobody disturbs."""
    output = tmp_path_factory.mktemp("runs") / "two"
    done = torchrun(2, "train", config, output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "UserWarning" not in done.stderr
    return output


def test_each_process_has_a_gpu_of_its_own(monkeypatch) -> None:
    """As far as that shows without one."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device = choose_device("auto")
    assert device == torch.device("cuda", 1)

    class Current(Exception):
        pass

    def set_device(device: torch.device) -> None:
        raise Current(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    with pytest.raises(Current, match="cuda:1"), joined(device):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"cuda:1 requested, but 1 CUDA device"):
        choose_device("auto")


@pytest.mark.slow
def test_gradients_do_not_depend_on_how_a_batch_is_shared(shapes_root, tmp_path) -> None:
    """Batches of 4 in one process, 2 in each of two, 1 in each of four; group norm sees no neighbours."""
    config = tiny.config_file(tiny.posed(shapes_root, tmp_path / "data"), tmp_path)
    fixed = ["model.keypoint.num_keypoints=4", "model.keypoint.num_convs=1", "model.keypoint.width=16"]
    fixed += ["model.backbone.norm=gn", "data.min_size=64", "data.max_size=64", "data.pad_multiple=64"]
    done = torchrun(4, "gradients", config, tmp_path, *fixed)
    assert done.returncode == 0, done.stderr
    found = {
        world: [torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        for world in (1, 2, 4)
    }
    alone = found[1][0]
    for world in (2, 4):
        for other in found[world]:
            for name, value in alone["losses"].items():
                torch.testing.assert_close(other["losses"][name], value, rtol=1e-5, atol=0, msg=name)
            for name, gradient in alone["gradients"].items():
                if name == "heads.keypoint.logits.bias":  # a softmax over places does not see it: nothing but rounding
                    assert max(gradient.norm(), other["gradients"][name].norm()) < 1e-6
                    continue
                error = (other["gradients"][name] - gradient).norm()
                assert error <= 1e-5 * gradient.norm(), (world, name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rtdetr", *tiny.DENSE])
def test_other_kinds_train_the_same_in_two_processes(shapes_root, tmp_path, kind: str, thorough) -> None:
    """RT-DETR: squares of one size a batch, matching and denoising image by image. Dense ones: normalisers of all images."""
    if kind not in ("rtdetr", "fcos") and not thorough:
        pytest.skip("only with --thorough")
    section = tiny.RTDETR if kind == "rtdetr" else tiny.dense(kind)
    model = {**section, "backbone": {"name": "resnet18", "weights": "none", "norm": "gn"}}
    config = tiny.config_file(
        shapes_root, tmp_path, model=model, optimizer="sgd", eval_every=0, max_iters=2, batch_size=4
    )
    keys = ["data.min_size=[64, 96]", f"data.pad_multiple={32 if kind == 'rtdetr' else 128}"]
    for world in (1, 2):
        done = torchrun(world, "train", config, tmp_path / str(world), *keys)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (read_checkpoint(tmp_path / str(world) / "checkpoints/last.pt").model for world in (1, 2))
    for name, value in one.items():
        if not name.endswith("num_batches_tracked"):  # which means nothing
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_write_one_run(together) -> None:
    """One of them writes, and the evaluation's images are counted once."""
    records = [json.loads(line) for line in (together / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in records if "loss" in r] == [1, 2, 3, 4]
    assert [r["iteration"] for r in records if "bbox_AP" in r] == [2, 4]
    entries = json.loads((together / "eval/detections.json").read_text())
    assert len({e["image_id"] for e in entries}) <= 4
    state = read_checkpoint(together / "checkpoints/last.pt")
    assert (state.iteration, state.training["world"]) == (4, 2)
    assert sorted(p.name for p in together.iterdir()) == [
        "checkpoints", "config.yaml", "eval", "metrics.jsonl", "predictions.jpg", "resolved.yaml",
        "status.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_classifier_trains_and_is_scored_the_same_in_two_processes(shapes_root, tmp_path) -> None:
    values = tiny.values(tiny.crops(shapes_root, tmp_path / "crops"), max_iters=2, batch_size=8)
    values["data"] = {
        "root": str(tmp_path / "crops"), "workers": 0, "classification": {"crop": 32, "val_resize": 32, "val_crop": 32},
    }  # fmt: skip
    values["model"] = {"kind": "classifier", "backbone": {"name": "resnet18", "weights": "none", "norm": "gn"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    done = torchrun(2, "train", tmp_path / "c.yaml", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    resdet.train(parse_config({**values, "output": str(tmp_path / "one")}))
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for name in ("loss", "val_class", "classes_top1"):
        expected = [line[name] for line in one if name in line]
        assert [line[name] for line in two if name in line] == pytest.approx(expected, rel=1e-3)
    entries = [json.loads((tmp_path / name / "eval/predictions.json").read_text()) for name in ("one", "two")]
    assert [entry["file"] for entry in entries[0]] == [entry["file"] for entry in entries[1]]


@pytest.mark.slow
def test_two_processes_count_each_pixel_and_segment_once(shapes_root, tmp_path) -> None:
    """What two processes measure together is what one measures of the same weights."""
    values = tiny.values(tiny.panoptic(shapes_root, tmp_path / "set"), max_iters=2, eval_every=2)
    values["model"] = {**tiny.MODEL, "num_classes": None, "semantic": {"width": 32}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    done = torchrun(2, "train", tmp_path / "config.yaml", tmp_path / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    config = load_config(tmp_path / "config.yaml")
    alone = score_model(config, tmp_path / "run/checkpoints/last.pt", tmp_path / "eval")
    for kind in ("semantic", "panoptic"):
        for name, value in alone[kind].items():
            assert last[f"{kind}_{name}"] == pytest.approx(value, abs=1e-3), name


@pytest.mark.slow
def test_accumulation_averages_and_compiling_work_in_two_processes(config, tmp_path) -> None:
    """The compiled run (as one graph, but with a quick backend) is the eager one."""
    runs = {}
    for compiled in ("true", "false"):
        keys = ["train.accumulate=2", "train.batch_size=4", "train.ema_decay=0.9", "train.max_iters=2", "train.eval_every=0",
                "data.min_size=64", "data.pad_multiple=96", "model.backbone.norm=gn", "model.mask=null",
                f"train.compile={compiled}"]  # fmt: skip
        done = torchrun(2, "train", config, tmp_path / compiled, *keys)
        assert done.returncode == 0, done.stdout + done.stderr
        runs[compiled] = read_checkpoint(tmp_path / compiled / "checkpoints/last.pt")
    one, two = runs.values()
    assert one.iteration == two.iteration == 2
    for name, value in one.model.items():
        torch.testing.assert_close(two.model[name], value, rtol=1e-3, atol=1e-4)
    averaged, raw = one.model["heads.box.trunk.fc1.weight"], one.training["weights"]["heads.box.trunk.fc1.weight"]
    assert not torch.equal(averaged, raw)


@pytest.mark.slow
def test_a_killed_process_brings_the_job_back_from_the_last_checkpoint(together, config, tmp_path) -> None:
    done = torchrun(2, "kill", config, tmp_path / "killed", restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming after iteration" in done.stdout
    one, two = (read_checkpoint(folder / "checkpoints/last.pt") for folder in (together, tmp_path / "killed"))
    assert one.iteration == two.iteration == 4
    assert all(torch.equal(one.model[name], two.model[name]) for name in one.model)
    iterations = [
        json.loads(line)["iteration"] for line in (tmp_path / "killed/metrics.jsonl").read_text().splitlines()
    ]
    assert iterations == [1, 2, 2, 3, 4, 4]  # with two evaluations: neither gaps nor doubles


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[/src/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation to complete",
            r"^rank 1 lost another process \(Timed out waiting 20000ms for recv operation to complete\): it, its machine or "
            r"the network hangs; continue with --resume$",
        ),
        ("[/src/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:54", "see the message of that process"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_another_process_that_has_gone_is_told_from_a_fault(text: str, told: str | None) -> None:
    error = _lost(RuntimeError(text), 1)
    assert (error is None) == (told is None)
    assert told is None or re.search(told, str(error))


@pytest.mark.slow
def test_a_process_that_raises_takes_the_others_with_it_and_says_why(config, tmp_path) -> None:
    began = time.monotonic()
    done = torchrun(2, "fail", config, tmp_path / "run")
    assert done.returncode != 0
    assert time.monotonic() - began < 60
    assert "the third step of rank 1 is cursed" in done.stderr
    assert "rank 0 lost another process" in done.stderr or "rank 0 ends because another process failed" in done.stdout
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration == 2


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_the_same_step(config, tmp_path) -> None:
    done = torchrun(2, "stop", config, tmp_path / "run")
    assert "stopped at iteration" in done.stdout, done.stderr
    assert "exitcode  : 75" in done.stderr  # resumable
    assert 2 <= read_checkpoint(tmp_path / "run/checkpoints/last.pt").iteration < 4


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_saves_while_its_loaders_work_on(shapes_root, tmp_path) -> None:
    """torchrun sends the signal to each process's whole group, workers and all."""
    out = tmp_path / "run"
    config = tiny.config_file(shapes_root, tmp_path, max_iters=5000, eval_every=0, checkpoint_every=5000)
    with started(2, "train", config, out, "data.workers=1") as job:
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert job.poll() is None
            time.sleep(0.05)
        job.terminate()
        output, errors = job.communicate(timeout=60)
    assert "stopped at iteration" in output
    assert "loader" not in errors.lower()
    assert 0 < read_checkpoint(out / "checkpoints/last.pt").iteration < 5000


@pytest.mark.slow
def test_a_barrier_says_who_is_missing(config, tmp_path) -> None:
    done = torchrun(2, "late", config, tmp_path, "train.timeout=3")
    assert "rank 0 timed out waiting for the other processes at the start" in done.stderr
    assert "Ranks 1 failed" in done.stderr or "rank 1" in done.stderr.lower()


def test_a_second_start_on_the_same_store_shares_nothing_with_the_first() -> None:
    """`torchrun` keeps its store over restarts, with what the dead have written there."""
    store = dist.HashStore()

    def start(world: int) -> list[str]:
        names = [""] * world

        def one(rank: int) -> None:
            names[rank] = _name_of_start(store, rank, world, 10.0)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
        for thread in reversed(threads):
            thread.start()
            time.sleep(0.05)
        for thread in threads:
            thread.join()
        return names

    starts = [start(3), start(3), start(2)]
    assert [len(set(names)) for names in starts] == [1, 1, 1]
    assert len({names[0] for names in starts}) == 3


def test_who_never_starts_is_named() -> None:
    with pytest.raises(UserError, match=r"timed out after 0\.2 s waiting for ranks \[1, 2\] to start"):
        _name_of_start(dist.HashStore(), 0, 3, 0.2)


def test_alone_nothing_waits() -> None:
    alone = Distributed()
    alone.barrier("nothing")
    assert alone.broadcast(3) == 3
    assert alone.gather(3) == [3]
    assert [alone.agree(wish) for wish in (False, True)] == [False, True]


def test_batches_that_cannot_be_shared_equally_are_refused(shapes_root, tmp_path) -> None:
    from resdet.training.loop import require_equal_shares

    three = Distributed()
    three.world = 3
    with pytest.raises(UserError, match=r"train\.batch_size \(4\) .*\(3 x 1\): set train\.batch_size=6"):
        require_equal_shares(tiny.config(shapes_root, tmp_path, batch_size=4), three)
