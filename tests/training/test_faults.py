"""What goes wrong in a step costs that step, is told, and stops the run only when it goes on."""

from __future__ import annotations

import json

import pytest
import torch

import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.errors import UserError
from resdet.models.heads.box import BoxHead
from resdet.structures import Loss
from resdet.training.loggers import RunLog
from resdet.training.loop import train
from resdet.training.step import TrainingStep


def spoil(monkeypatch, when: set[int], how: str = "loss") -> dict[str, object]:
    """In these iterations the box head's loss, or only its gradient, is not finite; keeps what the steps left behind."""
    original, step = BoxHead.loss, TrainingStep.__call__
    seen: dict[str, object] = {}
    now = {"iteration": 0}

    def loss(head, features, samples):
        losses = original(head, features, samples)
        if now["iteration"] in when:
            value = losses["box_reg"]
            spoiled = value.sum * float("nan") if how == "loss" else torch.sqrt(value.sum * 0)  # slope 0 * infinity
            losses["box_reg"] = Loss(spoiled, value.count)
        return losses

    def watched(this, loaded):
        run = this.run
        now["iteration"] = run.iteration
        before = {k: v.clone() for k, v in run.model.state_dict().items()}
        losses = step(this, loaded)
        after = run.model.state_dict()
        seen[run.iteration] = all(torch.equal(before[k], after[k]) for k in after if "num_batches" not in k)
        return losses

    monkeypatch.setattr(BoxHead, "loss", loss)
    monkeypatch.setattr(TrainingStep, "__call__", watched)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_kept(
    shapes_root, tmp_path, monkeypatch, capsys, how: str, optimizer: str
) -> None:
    unchanged = spoil(monkeypatch, {2}, how)
    out = tmp_path / "run"
    assert train(tiny.config(shapes_root, out, eval_every=0, optimizer=optimizer)).finished
    assert unchanged == {1: False, 2: True, 3: False, 4: False}
    said = capsys.readouterr().out
    assert "iteration 2 was not finite" in said
    assert "was skipped" in said
    (dump,) = (out / "nonfinite").iterdir()
    content = torch.load(dump, weights_only=True)
    assert dump.name == "00000002.pt"
    assert content["batch"]["images"].shape[0] == len(content["images"]) == 2
    assert "rpn.convs.0.weight" in content["model"]
    weights = read_checkpoint(out / "checkpoints/last.pt").model
    assert all(torch.isfinite(v).all() for v in weights.values())


def test_the_first_tensor_that_is_not_finite_is_named(shapes_root, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    step = TrainingStep.__call__

    def poisoned(this, loaded):
        with torch.no_grad():
            this.run.model.fpn.lateral[1].conv.weight[0, 0] = float("inf")
        return step(this, loaded)

    monkeypatch.setattr(TrainingStep, "__call__", poisoned)
    with pytest.raises(
        UserError,
        match=r"not finite at iteration 4, the 4th in a row .*first non-finite tensor: weight fpn\.lateral\.1\.conv",
    ):
        train(tiny.config(shapes_root, out, max_iters=9, eval_every=0, checkpoint_every=1))
    assert len(list((out / "nonfinite").iterdir())) == 3  # no disk full of them


@pytest.mark.slow
def test_an_output_is_named_before_its_loss(shapes_root, tmp_path, monkeypatch, capsys) -> None:
    from resdet.models.fpn import FPN

    forward = FPN.forward
    monkeypatch.setattr(FPN, "forward", lambda fpn, x: {k: v / 0 for k, v in forward(fpn, x).items()})
    with pytest.raises(UserError, match="first non-finite tensor: output of fpn"):
        train(tiny.config(shapes_root, tmp_path / "run", max_iters=9, eval_every=0))


@pytest.mark.parametrize("message", ["[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", None])
def test_running_out_of_memory_names_the_batch_and_the_settings(shapes_root, tmp_path, monkeypatch, message) -> None:
    def greedy(run, batch):
        raise torch.OutOfMemoryError("CUDA out of memory") if message is None else RuntimeError(message)

    monkeypatch.setattr(TrainingStep, "_backward", greedy)
    with pytest.raises(UserError, match=r"iteration 1, with 2 images of \d+ x \d+ .*train\.batch_size \(now 2\)"):
        train(tiny.config(shapes_root, tmp_path / "run"))


def broken_split(shapes_root, tmp_path, names: list[str]):
    """A copy of the shapes, some of whose pictures break after the checks before training."""
    import shutil

    root = tmp_path / "shapes"
    shutil.copytree(shapes_root, root)
    return root, [root / name for name in names]


def break_when_training_starts(monkeypatch, files) -> None:
    import resdet.training.loop as module

    original = module.training_loader

    def start(*arguments, **options):
        for file in files:
            file.write_bytes(b"junk")
        return original(*arguments, **options)

    monkeypatch.setattr(module, "training_loader", start)


@pytest.mark.slow
def test_unreadable_pictures_cost_no_run_up_to_a_share(shapes_root, tmp_path, monkeypatch, capsys) -> None:
    train_file = sorted(p.name for p in (shapes_root / "train2017").iterdir())[0]
    val_file = sorted(p.name for p in (shapes_root / "val2017").iterdir())[0]
    root, files = broken_split(shapes_root, tmp_path, [f"train2017/{train_file}", f"val2017/{val_file}"])
    break_when_training_starts(monkeypatch, files)
    config = tiny.config(root, tmp_path / "run", max_iters=12, eval_every=12)  # two epochs
    config.data.max_unreadable = 0.3
    assert train(config).finished
    said = capsys.readouterr().out
    assert said.count(f"{train_file}: not an image") == 1  # named once, in two epochs
    assert "replaced by another image" in said
    assert said.count(f"{val_file}: not an image") == 1
    identity = {
        e["file_name"]: e["id"] for e in json.loads((root / "annotations/instances_val2017.json").read_text())["images"]
    }
    found = json.loads((tmp_path / "run/eval/detections.json").read_text())
    assert identity[val_file] not in {e["image_id"] for e in found}


def test_past_the_share_the_run_stops_with_the_list(shapes_root, tmp_path, monkeypatch) -> None:
    name = sorted(p.name for p in (shapes_root / "train2017").iterdir())[0]
    root, files = broken_split(shapes_root, tmp_path, [f"train2017/{name}"])
    break_when_training_starts(monkeypatch, files)
    with pytest.raises(UserError, match=r"1 of 12 images could not be read, more than data\.max_unreadable \(0\.01\)"):
        train(tiny.config(root, tmp_path / "run", max_iters=12, eval_every=0))


def test_a_full_disk_costs_log_lines_and_not_the_run(tmp_path, capsys) -> None:
    with RunLog(tmp_path, 0, 10) as log:
        log.file.close()
        log.file = open("/dev/full", "w")  # noqa: SIM115
        log.write(1, loss=1.0)
        log.write(2, loss=1.0)
    said = capsys.readouterr().out
    assert said.count("(No space left on device); training continues without it") == 1
    assert "2 lines could not be written" in said


@pytest.mark.slow
def test_going_on_with_another_batch_size_says_what_that_does(shapes_root, tmp_path, capsys) -> None:
    train(tiny.config(shapes_root, tmp_path / "run", max_iters=2, eval_every=0))
    train(tiny.config(shapes_root, tmp_path / "run", max_iters=3, eval_every=0, batch_size=4), resume=True)
    said = capsys.readouterr().out
    assert "train.batch_size is 4, was 2: the iteration count continues" in said
    assert "train.max_iters is 3, was 2: the new schedule applies from iteration 1" in said
