"""The training loop: config -> checkpoints, metrics, pictures. Everything periodic is a visible `if` in `train`."""

from __future__ import annotations

import copy
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from resdet.checkpoints.recognise import open_checkpoint
from resdet.checkpoints.transfer import disagreements, fill
from resdet.config import Config, dump_config
from resdet.data.collate import LoadedBatch, split_batch, to_device
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import training_loader
from resdet.engine.checkpoint import Checkpoint, load_weights
from resdet.engine.device import autocast, choose_device
from resdet.engine.evaluate import Metrics, evaluation_of, predict_dataset
from resdet.engine.log import RunLog, console, duration
from resdet.engine.optim import WeightAverage, build_optimizer, learning_rate
from resdet.engine.saver import Saver, newest
from resdet.engine.setup import Inputs, prepare_inputs
from resdet.errors import UserError, listed
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.structures import Batch
from resdet.visualize import prediction_sheet


@dataclass
class Result:
    """How a run ended. finished: False if a signal stopped it; resume it then. metrics: of the last evaluation."""

    output: Path
    finished: bool
    iteration: int
    metrics: Metrics


def train(config: Config, *, resume: bool = False, model: Detector | None = None) -> Result:
    """Train as `config` says, into `config.output`.

    resume: go on from `checkpoints/last.pt`; on an output folder without a run, start afresh.
    model:  a detector of your own, for instance `build_model(config.model)` with another head; it is filled from
            `model.weights` or `model.backbone.weights` all the same.
    Raises `UserError` for anything wrong outside the code, before work starts where that is possible.
    """
    output, device = config.output, choose_device(config.device)
    last = output / "checkpoints" / "last.pt"
    if not resume and (last.exists() or (output / "config.yaml").exists()):
        raise UserError(f"{output} holds a run already: go on with --resume, or choose another folder with --output")
    found = newest(last.parent) if resume else None
    source, earlier = found or (last, None)
    given = config.model
    config, inputs = prepare_inputs(config, open_checkpoint(source) if earlier else None)
    torch.manual_seed(config.seed)
    if model is None:
        model = build_model(config.model)
    elif inputs.start and (against := disagreements(given, inputs.start)):
        raise listed(f"the model was built with other numerics than {inputs.start.path} needs; set them:", against)
    if inputs.start:
        console.print(inputs.start.report())
        console.print(fill(model, inputs.start, inputs.train.class_names, config.model))
        for line in disagreements(config.model, inputs.start):
            console.print(f"  take care: {line}")
    run = Run(config, inputs, model.to(device), device)
    if earlier:
        run.restore(earlier, source)
        console.print(f"resuming after iteration {run.iteration}")
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(dump_config(config))

    t = config.train
    with RunLog(output, run.iteration, t.max_iters, t.tensorboard) as log, stop_signals() as stop_requested:
        batches = training_loader(run.train_set, t.batch_size, config.data.workers, start=run.iteration)
        pace = Pace(t.batch_size)
        saver = Saver(last.parent, t.keep)
        done = run.iteration >= t.max_iters
        while not done and not stop_requested():
            run.iteration += 1
            batch = pace.waiting_for(lambda: next(batches)).batch
            losses = run.step(to_device(batch, device))
            if run.iteration % t.log_every == 0 or run.iteration == t.max_iters:
                log.train_line(run.iteration, run.finite(losses) | {"lr": run.rate} | pace.since_last())
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
                saver.save(run.checkpoint())
        if not done:
            saver.save(run.checkpoint())
        saver.wait()
        if saver.failure:
            raise saver.failure
        if not done:
            console.print(f"stopped at iteration {run.iteration}; go on with --resume")
        elapsed = time.perf_counter() - log.began
    if done:
        console.print(f"trained to iteration {run.iteration} in {duration(elapsed)}; results in {output}")
        if run.val_set:
            sheet = prediction_sheet(run.evaluated_model(), run.val_set, config, device)
            console.print(f"look at {sheet}")
    return Result(output, done, run.iteration, run.metrics)


class Run:
    """All that changes while training, and all that a checkpoint must hold."""

    def __init__(self, config: Config, inputs: Inputs, model: Detector, device: torch.device) -> None:
        t = config.train
        self.config, self.model, self.device, self.inputs = config, model.train(), device, inputs
        masks = config.model.mask is not None
        self.train_set = DetectionDataset(
            inputs.train, config.data, config.model.input, train=True, masks=masks, seed=config.seed
        )
        self.val_set = inputs.val and DetectionDataset(
            inputs.val, config.data, config.model.input, train=False, masks=masks, seed=config.seed
        )
        self.evaluation = inputs.val and evaluation_of(inputs.val)
        if t.channels_last:
            model.to(memory_format=torch.channels_last)
        self.forward: Callable[[Batch], dict[str, Tensor]] = model
        if t.compile:
            torch._dynamo.config.recompile_limit = 256  # one graph for each padded size and object count
            self.forward = torch.compile(model, fullgraph=True, dynamic=False)
        self.optimizer = build_optimizer(model, t, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=t.amp == "fp16")
        self.average = WeightAverage(model, t.ema_decay) if t.ema_decay else None
        self.iteration, self.best, self.evaluations_without_gain = 0, -1.0, 0
        self.rate = 0.0
        self.metrics: Metrics = {}
        self._previous: tuple[int, dict[str, Tensor]] | None = None

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the optimiser on a batch of whatever the loader made. -> the mean losses, still on the device."""
        t = self.config.train
        self.rate = learning_rate(self.iteration, t)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for part in split_batch(batch, t.accumulate):
            with autocast(self.device, t.amp):
                losses = {name: loss / t.accumulate for name, loss in self.forward(part).items()}
            self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()  # type: ignore[no-untyped-call]
            sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
        if self._previous:
            # Only now, when this step's work is queued: asking earlier would make the device wait for the host.
            self._require_finite(*self._previous)
        if t.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), t.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(self.model, self.iteration)
        self._previous = (self.iteration, sums)
        return sums

    def finite(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """The losses and their sum as numbers. Raises `UserError` if one is not finite."""
        return self._require_finite(self.iteration, losses)

    def _require_finite(self, iteration: int, losses: dict[str, Tensor]) -> dict[str, float]:
        names = list(losses)
        values = dict(zip(names, torch.stack([losses[n] for n in names]).tolist(), strict=True))
        total = sum(values.values())
        if not abs(total) < float("inf"):
            kept = self.config.output / "checkpoints" / "last.pt"
            raise UserError(
                f"the loss is not finite at iteration {iteration} ({', '.join(f'{k} {v:.3g}' for k, v in values.items())}):"
                f" lower train.lr (now {self.config.train.lr:g}), lengthen train.warmup_iters or set train.clip_grad_norm;"
                f" {f'the last good weights are {kept}' if kept.exists() else 'no checkpoint was written yet'}"
            )
        return {"loss": total, **values}

    def evaluated_model(self) -> Detector:
        """The model that evaluation sees: with averaged weights where these are on (a copy), else the trained one."""
        if not self.average:
            return self.model
        # Deep-copied rather than built anew: the model may have heads that no config knows.
        averaged = copy.deepcopy(self.model)
        averaged.load_state_dict(self.average.weights)
        return averaged

    def checkpoint(self, resumable: bool = True) -> Checkpoint:
        """A snapshot; `resumable` adds all that going on needs."""
        training: dict[str, Any] = {}
        if resumable:
            training = {
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "weights": self.model.state_dict() if self.average else {},
                "best": self.best,
                "evaluations_without_gain": self.evaluations_without_gain,
            }
        return Checkpoint(
            model=self.average.weights if self.average else self.model.state_dict(),
            class_names=self.inputs.train.class_names,
            category_ids=self.inputs.train.category_ids,
            config=dump_config(self.config),
            iteration=self.iteration,
            metrics=self.metrics,
            training=training,
        )

    def restore(self, checkpoint: Checkpoint, source: Path) -> None:
        """Go on where `checkpoint` was made. Raises `UserError` if it fits another model or other classes."""
        state = checkpoint.training
        if not state:
            raise UserError(f"{source}: holds weights only and cannot be resumed")
        if checkpoint.class_names != self.inputs.train.class_names:
            raise UserError(f"{source}: was trained on the classes {checkpoint.class_names}; the data now have others")
        load_weights(self.model, state["weights"] or checkpoint.model, source)
        if self.average:
            self.average.weights = {k: v.to(self.device) for k, v in checkpoint.model.items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best, self.evaluations_without_gain = state["best"], state["evaluations_without_gain"]
        self.iteration, self.metrics = checkpoint.iteration, checkpoint.metrics


def evaluate(run: Run, log: RunLog) -> bool:
    """Score the validation set, write `eval/`, print the tables. True if the AP is the best so far."""
    assert run.val_set
    assert run.evaluation
    config, folder = run.config, run.config.output / "eval"
    entries: list[dict[str, Any]] = []
    sums: dict[str, float] = {}
    images = 0
    for loaded, found, losses in predict_dataset(
        run.evaluated_model(), run.val_set, device=run.device, batch_size=min(4, config.train.batch_size),
        amp=config.train.amp, losses=config.train.val_loss, paste=config.model.mask.paste if config.model.mask else "resdet",
    ):  # fmt: skip
        entries += found
        images += len(loaded.indices)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value * len(loaded.indices)
    kinds = ("bbox", "segm") if config.model.mask and run.evaluation.has_masks else ("bbox",)
    run.metrics, tables = run.evaluation.score(entries, kinds)
    write_evaluation(folder, run.metrics, entries)
    val_losses = {f"val_{name}": round(value / images, 6) for name, value in sums.items()}
    if val_losses:
        val_losses = {"val_loss": round(sum(val_losses.values()), 6), **val_losses}
        tables += "validation losses: " + "  ".join(f"{k[4:]} {v:.3f}" for k, v in val_losses.items()) + "\n"
    log.write(run.iteration, **val_losses, **{f"{kind}_{k}": v for kind in kinds for k, v in run.metrics[kind].items()})
    console.print(f"\niteration {run.iteration}: {images} validation images, {len(entries)} detections\n{tables}")
    ap = run.metrics[kinds[-1]]["AP"]
    improved = ap is not None and ap > run.best
    run.best = max(run.best, ap or 0.0)
    run.evaluations_without_gain = 0 if improved else run.evaluations_without_gain + 1
    return improved


def write_evaluation(folder: Path, metrics: Metrics, entries: list[dict[str, Any]]) -> None:
    """metrics.json and detections.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    (folder / "detections.json").write_text(json.dumps(entries))


class Pace:
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


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """While open, SIGINT, SIGTERM and SIGUSR1 ask the loop to stop after its step; a second SIGINT stops at once."""
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    try:
        before = {number: signal.signal(number, on_signal) for number in numbers}
    except ValueError:  # not the main thread: the caller's signals stay the caller's
        before = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
