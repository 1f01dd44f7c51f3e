"""The training loop: config -> checkpoints, metrics, pictures. Everything periodic is a visible `if` in `train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.checkpoints.recognise import open_checkpoint
from resdet.checkpoints.transfer import disagreements, fill
from resdet.config import Config, dump_config
from resdet.data.collate import LoadedBatch
from resdet.data.loader import training_loader
from resdet.errors import UserError, listed
from resdet.evaluation.coco import Metrics
from resdet.inference.dataset import predict_dataset
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.runtime.console import console
from resdet.runtime.device import choose_device
from resdet.runtime.distributed import Distributed, joined, restarted
from resdet.runtime.signals import stop_signals
from resdet.runtime.workers import refuse_unguarded_script
from resdet.training.loggers import RunLog, duration
from resdet.training.resume import refuse_unresumable
from resdet.training.saver import Saver, newest
from resdet.training.setup import prepare_inputs
from resdet.training.state import Run
from resdet.training.step import TrainingStep
from resdet.visualize import prediction_sheet
from resdet.writing import write_json, write_text


@dataclass
class Result:
    """How a run ended. finished: False if a signal stopped it; resume it then. metrics: of the last evaluation."""

    output: Path
    finished: bool
    iteration: int
    metrics: Metrics


def train(config: Config, *, resume: bool = False, model: Detector | None = None) -> Result:
    """Train as `config` says, into `config.output`; under `torchrun`, together with its other processes.

    resume: go on from the newest whole checkpoint; on an output folder without a run, start afresh. A process that
            `torchrun --max-restarts` started anew resumes in any case.
    model:  a detector of your own, for instance `build_model(config.model)` with another head; it is filled from
            `model.weights` or `model.backbone.weights` all the same.
    Raises `UserError` for anything wrong outside the code, before work starts where that is possible.
    """
    refuse_unguarded_script()
    device = choose_device(config.device)
    with joined(device, config.train.timeout) as distributed:
        return _train(config, resume or restarted(), model, device, distributed)


def _train(
    config: Config, resume: bool, model: Detector | None, device: torch.device, distributed: Distributed
) -> Result:
    output, checkpoints = config.output, config.output / "checkpoints"
    if not resume and (any(checkpoints.glob("*.pt")) or (output / "config.yaml").exists()):
        raise UserError(f"{output} holds a run already: go on with --resume, or choose another folder with --output")
    require_equal_shares(config, distributed)
    source = distributed.broadcast(newest(checkpoints) if resume and distributed.main else None)
    earlier = read_checkpoint(source) if source else None
    given = config.model
    with distributed.main_first("the data"):
        config, inputs = prepare_inputs(config, open_checkpoint(source) if source else None, check=distributed.main)
    if earlier and source:
        refuse_unresumable(earlier, config, source)
    torch.manual_seed(config.seed)
    if model is None:
        model = build_model(config.model)
    elif inputs.start and (against := disagreements(given, inputs.start)):
        raise listed(f"the model was built with other numerics than {inputs.start.path} needs; set them:", against)
    if inputs.start:
        console.print(inputs.start.report())
        console.print(fill(model, inputs.start, inputs.train.class_names, config.model))
        for line in disagreements(config.model, inputs.start):
            console.print(f"  warning: {line}")
    run = Run(config, inputs, model.to(device), device, distributed)
    if earlier and source:
        run.restore(earlier, source)
    if distributed.main:
        best, kept = checkpoints / "best.pt", checkpoints / "best_before.pt"
        if not source and best.exists() and not kept.exists():  # of a run that cannot be resumed
            best.replace(kept)
            console.print(f"starting afresh; the best weights of before are in {kept}")
        write_text(output / "config.yaml", dump_config(config))

    t = config.train
    with (
        RunLog(output, run.iteration, t.max_iters, t.tensorboard, distributed.main) as log,
        stop_signals() as asked,
        Saver(checkpoints, t.keep if distributed.main else None) as saver,
    ):
        batches = training_loader(
            run.train_set, t.batch_size, config.data.workers, start=run.iteration,
            rank=distributed.rank, world=distributed.world,
        )  # fmt: skip
        pace = ThroughputMeter(t.batch_size)
        step = TrainingStep(run)
        done = run.iteration >= t.max_iters
        while not done and not distributed.agree(asked()):
            run.iteration += 1
            loaded = pace.waiting_for(lambda: next(batches))
            run.unreadable.note(loaded.problems, "another took its place")
            losses = step(loaded)
            if run.iteration % t.log_every == 0 or run.iteration == t.max_iters:
                log.train_line(run.iteration, numbers(distributed.mean(losses)) | {"lr": step.rate} | pace.since_last())
            done = run.iteration == t.max_iters
            if t.eval_every and (done or run.iteration % t.eval_every == 0):
                saver.wait()
                improved = evaluate(run, log)
                if improved:
                    saver.save_best(run.checkpoint(resumable=False))
                pace.since_last()  # evaluation is not training time
                if t.patience and run.evaluations_without_gain >= t.patience:
                    console.print(f"no better AP in {t.patience} evaluations: stopping early")
                    done = True
            if done or run.iteration % t.checkpoint_every == 0:
                step.settle()
                if done or not step.bad_steps:  # weights that make bad steps are not worth going back to
                    saver.save(run.checkpoint())
        if not done:
            step.settle()
            saver.save(run.checkpoint())
        saver.wait()
        if saver.failure:
            raise saver.failure
        if not done:
            console.print(f"stopped at iteration {run.iteration}; go on with --resume")
        elapsed = time.perf_counter() - log.began
    if done:
        console.print(f"trained to iteration {run.iteration} in {duration(elapsed)}; results in {output}")
        if run.val_set and distributed.main:
            sheet = prediction_sheet(run.evaluated_model(alone=True), run.val_set, config, device)
            console.print(f"look at {sheet}")
    return Result(output, done, run.iteration, run.metrics)


def require_equal_shares(config: Config, distributed: Distributed) -> None:
    """Raises `UserError` where the global batch cannot be shared out equally."""
    batch, parts = config.train.batch_size, distributed.world * config.train.accumulate
    if batch % parts:
        raise UserError(
            f"train.batch_size ({batch}) is that of all processes together and must be a multiple of their number times "
            f"train.accumulate ({distributed.world} x {config.train.accumulate}): set train.batch_size="
            f"{-(-batch // parts) * parts}"
        )


def numbers(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    """The losses, their sum first, on the host."""
    values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    return {"loss": sum(values.values()), **values}


def evaluate(run: Run, log: RunLog) -> bool:
    """Score the validation set, write `eval/`, print the tables. True if the AP is the best so far.

    Every process predicts its share of the images; the main one scores them all, and all learn the outcome.
    """
    assert run.val_set
    assert run.evaluation
    config, distributed = run.config, run.distributed
    distributed.barrier("an evaluation")
    entries: list[dict[str, Any]] = []
    sums: dict[str, float] = {}
    images = 0
    for loaded, found, losses in predict_dataset(
        run.evaluated_model(), run.val_set, device=run.device, batch_size=min(4, config.train.batch_size),
        amp=config.train.amp, losses=config.train.val_loss, paste=config.model.mask.paste if config.model.mask else "resdet",
        rank=distributed.rank, world=distributed.world,
    ):  # fmt: skip
        run.unreadable_val.note(loaded.problems, "it counts as without detections")
        entries += found
        images += len(loaded.indices)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value * len(loaded.indices)
    shares = distributed.gather((entries, sums, images))
    outcome: tuple[Metrics, bool] = {}, False
    if distributed.main:
        outcome = _score(run, log, shares)
    run.metrics, improved = distributed.broadcast(outcome)
    kind = list(run.metrics)[-1]
    run.best = max(run.best, run.metrics[kind]["AP"] or 0.0)
    run.evaluations_without_gain = 0 if improved else run.evaluations_without_gain + 1
    return improved


def _score(
    run: Run, log: RunLog, shares: Sequence[tuple[list[dict[str, Any]], dict[str, float], int]]
) -> tuple[Metrics, bool]:
    """What all processes predicted -> the metrics, and whether they are the best so far."""
    assert run.evaluation
    entries = [entry for share, _, _ in shares for entry in share]
    images = sum(count for _, _, count in shares)
    kinds = ("bbox", "segm") if run.config.model.mask and run.evaluation.has_masks else ("bbox",)
    metrics, tables = run.evaluation.score(entries, kinds)
    try:
        write_evaluation(run.config.output / "eval", metrics, entries)
    except UserError as error:
        console.print(f"warning: {error}; training goes on")
    names = shares[0][1]
    val_losses = {f"val_{n}": round(sum(sums.get(n, 0.0) for _, sums, _ in shares) / images, 6) for n in names}
    if val_losses:
        val_losses = {"val_loss": round(sum(val_losses.values()), 6), **val_losses}
        tables += "validation losses: " + "  ".join(f"{k[4:]} {v:.3f}" for k, v in val_losses.items()) + "\n"
    log.write(run.iteration, **val_losses, **{f"{kind}_{k}": v for kind in kinds for k, v in metrics[kind].items()})
    console.print(f"\niteration {run.iteration}: {images} validation images, {len(entries)} detections\n{tables}")
    ap = metrics[kinds[-1]]["AP"]
    return metrics, ap is not None and ap > run.best


def write_evaluation(folder: Path, metrics: Metrics, entries: list[dict[str, Any]]) -> None:
    """metrics.json and detections.json. Raises `UserError`."""
    write_json(folder / "metrics.json", metrics, indent=2)
    write_json(folder / "detections.json", entries)


class ThroughputMeter:
    """Images a second and the share of time spent waiting for data, since last asked."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.reset()

    def reset(self) -> None:
        self.began, self.waited, self.batches = time.perf_counter(), 0.0, 0

    def waiting_for(self, load: Callable[[], LoadedBatch]) -> LoadedBatch:
        began = time.perf_counter()
        loaded = load()
        self.waited += time.perf_counter() - began
        self.batches += 1
        return loaded

    def since_last(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.began, 1e-9)
        values = {"images_per_s": self.batches * self.batch_size / elapsed, "data_wait": self.waited / elapsed}
        self.reset()
        return values
