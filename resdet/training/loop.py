"""The training loop: config -> checkpoints, metrics, drawings. Everything periodic is a visible `if` in `run_to_end`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.checkpoints.recognise import open_checkpoint
from resdet.checkpoints.transfer import disagreements, fill
from resdet.config import Config, dump_config, dump_settings
from resdet.data.collate import LoadedBatch
from resdet.data.loader import training_loader
from resdet.data.sources import Split
from resdet.data.torch_dataset import TorchDataset
from resdet.errors import UserError, listed
from resdet.evaluation.classes import accuracy_by_class, evaluate_classes
from resdet.evaluation.coco import Metrics
from resdet.evaluation.dataset import evaluate_dataset
from resdet.evaluation.results import write_evaluation
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.runs.text import duration
from resdet.runtime.console import console
from resdet.runtime.device import choose_device
from resdet.runtime.distributed import Distributed, joined, restarted
from resdet.runtime.signals import stop_signals
from resdet.runtime.workers import refuse_unguarded_script
from resdet.training.classes import class_sheet
from resdet.training.loggers import RunLog
from resdet.training.pictures import RunPictures, prediction_sheet
from resdet.training.report import report_run
from resdet.training.resume import refuse_unresumable
from resdet.training.saver import Saver, newest
from resdet.training.setup import prepare_inputs
from resdet.training.state import Run
from resdet.training.step import TrainingStep
from resdet.writing import write_json, write_text


@dataclass
class Result:
    """How a run ended. finished: False if a signal stopped it, so that it can be resumed. metrics: of the last evaluation."""

    output: Path
    finished: bool
    iteration: int
    metrics: Metrics


def train(
    config: Config,
    *,
    resume: bool = False,
    model: Detector | None = None,
    dataset: TorchDataset | None = None,
    val_dataset: TorchDataset | None = None,
) -> Result:
    """Train a detector as configured, into `config.output`; under `torchrun`, distributed over its processes.

    resume: continue from the newest readable checkpoint; if the output folder has no run, start one. A process that
            `torchrun --max-restarts` has restarted always resumes.
    model:  a custom detector, for example `build_model(config.model)` with another head; weights are loaded into it from
            `model.weights` or `model.backbone.weights` as usual.
    dataset, val_dataset: PyTorch datasets to use instead of the files that `data.train` and `data.val` name; every item is
            read once before training starts.
    Raises `UserError` for mistakes in the config, the data or the files, before training starts where possible.
    """
    refuse_unguarded_script()
    device = choose_device(config.device)
    with joined(device, config.train.timeout) as distributed:
        given: dict[Split, TorchDataset | None] = {"train": dataset, "val": val_dataset}
        datasets = {split: data for split, data in given.items() if data is not None}
        return run_to_end(start_run(config, resume or restarted(), model, datasets, device, distributed))


def start_run(
    config: Config,
    resume: bool,
    model: Detector | None,
    datasets: Mapping[Split, TorchDataset],
    device: torch.device,
    distributed: Distributed,
) -> Run:
    """Read and check everything, build the model, load its weights or the state of the resumed run, write the configs."""
    output, checkpoints = config.output, config.output / "checkpoints"
    if not resume and (any(checkpoints.glob("*.pt")) or (output / "config.yaml").exists()):
        raise UserError(
            f"{output} already holds a run: continue it with --resume, or choose another folder with --output"
        )
    require_equal_shares(config, distributed)
    source = distributed.broadcast(newest(checkpoints) if resume and distributed.main else None)
    earlier = read_checkpoint(source) if source else None
    given, settings = config.model, dump_settings(config)
    with distributed.main_first("the data"):
        config, inputs = prepare_inputs(
            config, open_checkpoint(source) if source else None, check=distributed.main, datasets=datasets
        )
    if earlier and source:
        refuse_unresumable(earlier, config, source)
    torch.manual_seed(config.seed)
    if model is None:
        model = build_model(config.model)
    elif inputs.start and (conflicts := disagreements(given, inputs.start)):
        raise listed(f"the model was built with other numerics than {inputs.start.path} needs; set them:", conflicts)
    if inputs.start:
        console.print(inputs.start.report())
        console.print(fill(model, inputs.start, inputs.train.class_names, config.model))
        for line in disagreements(config.model, inputs.start):
            console.print(f"  warning: {line}")
    run = Run(config, inputs, model.to(device), device, distributed)
    if earlier and source:
        run.restore(earlier, source)
    if distributed.main:
        best, backup = checkpoints / "best.pt", checkpoints / "best_before.pt"
        if not source and best.exists() and not backup.exists():  # of a run that cannot be resumed
            best.replace(backup)
            console.print(f"starting a new run; the best weights of the previous one are in {backup}")
        write_text(output / "config.yaml", settings)
        write_text(output / "resolved.yaml", dump_config(config))
    return run


def run_to_end(run: Run) -> Result:
    """Train until `train.max_iters`, early stopping or a stop signal."""
    config, distributed = run.config, run.distributed
    t = config.train
    with (
        RunLog(
            config.output, run.iteration, t.max_iters, device=run.device, best_metric=run.best_metric,
            trackers=[*t.loggers, "tensorboard"] if t.tensorboard else t.loggers, settings=config.model_dump(mode="json"),
            main=distributed.main,
        ) as log,
        RunPictures(run, log) as pictures,
        stop_signals() as stop_requested,
        Saver(config.output / "checkpoints", t.keep if distributed.main else None) as saver,
    ):  # fmt: skip
        batches = training_loader(
            run.train_set, t.batch_size, config.data.workers, start=run.iteration,
            rank=distributed.rank, world=distributed.world,
        )  # fmt: skip
        meter = ThroughputMeter(t.batch_size)
        step = TrainingStep(run)
        done = run.iteration >= t.max_iters
        while not done and not distributed.agree(stop_requested()):
            run.iteration += 1
            loaded = meter.waiting_for(lambda: next(batches))
            run.unreadable.note(loaded.problems, "replaced by another image")
            losses = step(loaded)
            if run.iteration % t.log_every == 0 or run.iteration == t.max_iters:
                log.train_line(
                    run.iteration, numbers(distributed.mean(losses)) | {"lr": step.rate} | meter.since_last()
                )
            done = run.iteration == t.max_iters
            if t.eval_every and (done or run.iteration % t.eval_every == 0):
                saver.wait()
                pictures.wait()
                improved = evaluate(run, log, pictures)
                if improved:
                    saver.save_best(run.checkpoint(resumable=False))
                meter.reset()  # evaluation is not training time
                if t.patience and run.evaluations_without_gain >= t.patience:
                    console.print(f"{run.best_metric} did not improve in {t.patience} evaluations: stopping early")
                    done = True
            if done or run.iteration % t.checkpoint_every == 0:
                step.settle()
                if done or not step.bad_steps:  # do not keep weights that cause non-finite steps
                    saver.save(run.checkpoint())
        if not done:
            step.settle()
            saver.save(run.checkpoint())
        saver.wait()
        if saver.failure:
            raise saver.failure
        if not done:
            console.result(f"stopped at iteration {run.iteration}; continue with --resume")
        log.ended(done=done)
        elapsed = time.perf_counter() - log.panel.began
    if done:
        console.result(f"trained to iteration {run.iteration} in {duration(elapsed)}; results in {config.output}")
        if run.val_set and distributed.main:
            draw = prediction_sheet if run.evaluation else class_sheet
            sheet = draw(run.evaluated_model(alone=True), run.val_set, config)
            console.print(f"predictions drawn in {sheet}")
            if t.report and run.evaluation:
                report_run(run)
    return Result(config.output, done, run.iteration, run.metrics)


def require_equal_shares(config: Config, distributed: Distributed) -> None:
    """Raises `UserError` if the global batch cannot be split equally."""
    batch, parts = config.train.batch_size, distributed.world * config.train.accumulate
    if batch % parts:
        raise UserError(
            f"train.batch_size ({batch}) is the total over all processes and must be a multiple of their number times "
            f"train.accumulate ({distributed.world} x {config.train.accumulate}): set train.batch_size="
            f"{-(-batch // parts) * parts}"
        )


def numbers(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    """The losses on the host, their sum first."""
    values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
    return {"loss": sum(values.values()), **values}


def evaluate(run: Run, log: RunLog, pictures: RunPictures) -> bool:
    """Evaluate on the validation set, write `eval/`, print the tables. -> whether `train.best_metric` is the best so far.

    Every process predicts its share of the images; the main one scores all and broadcasts the metrics.
    """
    assert run.val_set
    config, distributed, images = run.config, run.distributed, 0
    distributed.barrier("an evaluation")

    def seen(loaded: LoadedBatch) -> None:
        nonlocal images
        images += len(loaded.indices)
        log.evaluating(images, len(run.inputs.val.images) if run.inputs.val else 0)
        run.unreadable_val.note(
            loaded.problems, "it counts as having no detections" if run.evaluation else "it counts as wrong"
        )

    model = run.evaluated_model()
    options: dict[str, Any] = {
        "device": run.device, "amp": config.train.amp, "losses": config.train.val_loss, "distributed": distributed,
    }  # fmt: skip
    if run.evaluation:
        size = min(4, config.train.batch_size)
        scores = evaluate_dataset(model, run.val_set, run.evaluation, seen, batch_size=size, **options)
        by_class: Metrics = run.evaluation.class_ap if scores else {}
    else:
        size = config.train.batch_size // distributed.world
        scores = evaluate_classes(model, run.val_set, seen, batch_size=size, **options)
        by_class = {"classes": accuracy_by_class(scores.entries)} if scores else {}
    if scores:
        try:
            write_evaluation(config.output / "eval", scores.metrics, scores.entries)
            write_json(config.output / "eval" / "classes.json", by_class)
        except UserError as error:
            console.print(f"warning: {error}; training continues")
        log.evaluated(run.iteration, scores)
        pictures.evaluated(model)
    run.metrics = distributed.broadcast(scores.metrics if scores else {})
    return run.note_evaluation()


class ThroughputMeter:
    """Images per second and the fraction of time spent waiting for data, since the last call of `since_last`."""

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
