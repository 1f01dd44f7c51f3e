"""All of a run that changes while it trains: one step, and what a checkpoint holds of it."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resdet.checkpoints.checkpoint import Checkpoint, load_weights
from resdet.config import Config
from resdet.config_text import dump_config, load_yaml, parse_config
from resdet.data.collate import LoadedBatch, split_batch, to_device
from resdet.data.dataset import DetectionDataset
from resdet.errors import UserError
from resdet.evaluation.coco import Metrics, evaluation_of
from resdet.models.detector import Detector
from resdet.models.layers import BatchNorm2d
from resdet.runtime.console import console
from resdet.runtime.device import AsyncHostCopy, autocast, compiled
from resdet.runtime.distributed import Distributed, data_parallel
from resdet.structures import Batch
from resdet.training.faults import BAD_STEPS, Unreadable, dump_path, explain_oom, first_not_finite
from resdet.training.optim import WeightAverage, build_optimizer, learning_rate
from resdet.training.setup import Inputs
from resdet.writing import atomic_write


class Done(NamedTuple):
    """A step, until it is known whether its numbers were finite."""

    iteration: int
    loaded: LoadedBatch
    losses: dict[str, Tensor]
    finite: AsyncHostCopy


class Run:
    """Model, optimiser, averages and counters of one process."""

    def __init__(
        self, config: Config, inputs: Inputs, model: Detector, device: torch.device, processes: Distributed
    ) -> None:
        t = config.train
        self.config, self.model, self.device, self.inputs = config, model.train(), device, inputs
        self.processes = processes
        masks = config.model.mask is not None
        self.train_set = DetectionDataset(
            inputs.train, config.data, config.model.input, train=True, masks=masks, seed=config.seed
        )
        self.val_set, self.evaluation = None, None
        if inputs.val:
            self.val_set = DetectionDataset(
                inputs.val, config.data, config.model.input, train=False, masks=masks, seed=config.seed
            )
            self.evaluation = evaluation_of(inputs.val)
        share = config.data.max_unreadable / processes.world
        self.unreadable = Unreadable("train", len(inputs.train.images), share)
        self.unreadable_val = Unreadable("val", len(inputs.val.images) if inputs.val else 0, share)
        if t.channels_last:
            model.to(memory_format=torch.channels_last)
        if t.compile:
            torch._dynamo.config.recompile_limit = 256  # one graph for each padded size and object count
        self.forward = data_parallel(compiled(model, t.compile, fullgraph=True, dynamic=False), processes, device)
        # A CUDA graph overwrites the gradients that it made when it runs again: parts of a batch add to others, which stay.
        self.gradients_stay = t.compile == "reduce-overhead" and t.accumulate > 1
        if self.gradients_stay:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.optimizer = build_optimizer(model, t)
        self.scaler = torch.amp.GradScaler(device.type, enabled=t.amp == "fp16")
        self.average = WeightAverage(model, t.ema_decay) if t.ema_decay else None
        self.iteration, self.best, self.evaluations_without_gain = 0, -1.0, 0
        self.rate = 0.0
        self.metrics: Metrics = {}
        self.bad_steps = 0  # in a row
        self._dumped = "see the dumps of an earlier start"
        self._previous: Done | None = None

    # ---- a step ------------------------------------------------------------------------------------------------------

    def step(self, loaded: LoadedBatch) -> dict[str, Tensor]:
        """One step of the optimiser on a batch. -> the mean losses of this process, still on the device.

        If a loss or a gradient is not finite, the device leaves the weights alone; the next step reports it.
        """
        batch = to_device(loaded.batch, self.device)
        with explain_oom(batch, self.config, self.iteration):
            self.rate = learning_rate(self.iteration, self.config.train)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * group["lr_scale"]
            statistics = [(b, b.clone()) for b in self._statistics()]
            losses = self._backward(batch)
            if self._previous:
                # Only now, when this step's work is queued: asking earlier would make the device wait for the host.
                self._check(self._previous)
            finite = self._update(losses)
            for buffer, before in statistics:
                buffer.copy_(torch.where(finite, buffer, before))
            if self.average:
                self.average.update(self.model, self.iteration)
        self._previous = Done(self.iteration, loaded, losses, AsyncHostCopy(finite))
        return losses

    def settle(self) -> None:
        """Report on the last step, which no other follows."""
        if self._previous:
            self._check(self._previous)
            self._previous = None

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """The gradients of the mean losses, in equal parts of the batch if it is not to fit at once."""
        t = self.config.train
        self.optimizer.zero_grad(set_to_none=not self.gradients_stay)
        sums: dict[str, Tensor] = {}
        parts = split_batch(batch, t.accumulate)
        for k, part in enumerate(parts, 1):
            later = isinstance(self.forward, nn.parallel.DistributedDataParallel) and k < len(parts)
            with self.forward.no_sync() if later else nullcontext():  # type: ignore[operator]
                with autocast(self.device, t.amp):
                    losses = {name: loss / t.accumulate for name, loss in self.forward(part).items()}
                self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()  # type: ignore[no-untyped-call]
            sums = {name: sums.get(name, 0) + loss.detach() for name, loss in losses.items()}
        return sums

    def _update(self, losses: dict[str, Tensor]) -> Tensor:
        """Step, on the device's own word that all numbers are finite. -> () bool, on the device."""
        t = self.config.train
        total = torch.stack(list(losses.values())).sum()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if t.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), t.clip_grad_norm, norm)
        finite = torch.isfinite(total)
        if (
            self.scaler.is_enabled()
        ):  # which looks for infinite gradients itself, and expects some while it finds its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            finite = finite & torch.isfinite(norm)
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # what fused optimisers look at
            self.optimizer.step()
        return finite

    def _statistics(self) -> list[Tensor]:
        """Running means and variances that training changes, which one bad batch would spoil for good."""
        norms = [m for m in self.model.modules() if isinstance(m, BatchNorm2d) and m.training]
        return [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]

    def _check(self, done: Done) -> None:
        """Count a step whose numbers were not finite, keep what made it so; raises `UserError` after a few in a row."""
        if done.finite.read():
            self.bad_steps = 0
            return
        self.bad_steps += 1
        values = {name: float(value) for name, value in done.losses.items()}
        text = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        kept = self._dump(done, values)
        console.print(f"warning: iteration {done.iteration} was not finite ({text}) and was skipped; {kept}")
        if self.bad_steps > BAD_STEPS:
            last = self.config.output / "checkpoints" / "last.pt"
            raise UserError(
                f"the loss is not finite at iteration {done.iteration}, the {self.bad_steps}th in a row ({text}): lower"
                f" train.lr (now {self.config.train.lr:g}), lengthen train.warmup_iters or set train.clip_grad_norm; {kept};"
                f" {f'the last good weights are {last}' if last.exists() else 'no checkpoint was written yet'}"
            )

    def _dump(self, done: Done, losses: dict[str, float]) -> str:
        """Keep the batch, the state and the name of the first tensor that is not finite. -> what to say about it."""
        rank = self.processes.rank
        mine = any(not abs(value) < float("inf") for value in losses.values()) or self.processes.main
        path = dump_path(self.config.output, done.iteration, rank) if mine else None
        if path is None:
            return self._dumped if mine else "see the dump of another process"
        batch = to_device(done.loaded.batch, self.device)

        def losses_of(model: nn.Module) -> dict[str, Tensor]:
            with autocast(self.device, self.config.train.amp):
                found: dict[str, Tensor] = model(batch)
            return found

        name = first_not_finite(self.model, batch, losses_of, alone=self.processes.world == 1)
        files = [str(self.train_set.annotations.images[i].file) for i in done.loaded.indices]
        b = done.loaded.batch
        content = {
            **vars(self.checkpoint()), "tensor": name, "losses": losses, "pictures": files, "iteration": done.iteration,
            "batch": {**b._asdict(), "targets": b.targets and b.targets._asdict()},
        }  # fmt: skip
        try:
            with atomic_write(path) as temporary:
                torch.save(content, temporary)
        except UserError as error:
            return f"first: {name}; {error}"
        self._dumped = f"first: {name}; batch and state are in {path}"
        return self._dumped

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def evaluated_model(self, alone: bool = False) -> Detector:
        """The model that evaluation sees: with averaged weights where these are on (a copy), else the trained one.

        Under several processes all of them must ask, and get the main one's, unless each is `alone`.
        """
        if not alone:
            averaged_ones = list(self.average.weights.values()) if self.average else []
            self.processes.share_buffers([*self.model.buffers(), *averaged_ones])
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
                "random": torch.get_rng_state(),  # for heads that draw from torch's generators; resdet's own do not
                "random_cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
                "world": self.processes.world,
            }
        return Checkpoint(
            model=self.average.weights if self.average else self.model.state_dict(),
            class_names=self.inputs.train.class_names,
            category_ids=list(self.inputs.train.category_ids),
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
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        console.print(f"resuming after iteration {self.iteration} from {source}")
        for line in self._changes(checkpoint):
            console.print(f"  warning: {line}")

    def _changes(self, checkpoint: Checkpoint) -> list[str]:
        """What going on with other settings than before does."""
        try:
            before = parse_config(load_yaml(checkpoint.config)).train
        except UserError:  # written under other keys
            return []
        now, lines = self.config.train, []
        if before.batch_size != now.batch_size:
            lines.append(
                f"train.batch_size is {now.batch_size}, was {before.batch_size}: iterations are counted on, the learning "
                f"rate stays train.lr, and the order of pictures goes on where {self.iteration} batches of "
                f"{now.batch_size} would have ended, so that some are seen once more or once less in this epoch"
            )
        if (world := checkpoint.training["world"]) != self.processes.world:
            lines.append(
                f"{self.processes.world} process(es), were {world}: the same batches of {now.batch_size}, otherwise shared "
                "out; results differ by rounding"
            )
        if before.max_iters != now.max_iters or before.lr != now.lr or before.schedule != now.schedule:
            lines.append("the schedule is another one; it counts from iteration 1 as if it had always been")
        return lines
