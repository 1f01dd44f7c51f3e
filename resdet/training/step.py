"""One training step: a loaded batch -> losses and updated weights; steps with non-finite values are skipped."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resdet.data.collate import LoadedBatch, split_batch, to_device
from resdet.errors import UserError
from resdet.models.layers import BatchNorm2d
from resdet.runtime.console import console
from resdet.runtime.device import AsyncHostCopy, autocast
from resdet.structures import Batch, Loss
from resdet.training.faults import BAD_STEPS, dump_path, explain_oom, first_not_finite
from resdet.training.optim import learning_rate
from resdet.training.state import Run
from resdet.writing import atomic_write


class PendingStep(NamedTuple):
    """A step whose check for non-finite values is still on its way to the host."""

    iteration: int
    loaded: LoadedBatch
    losses: dict[str, Tensor]
    finite: AsyncHostCopy[Tensor]


class TrainingStep:
    """The training step of a run. rate: the last learning rate; bad_steps: non-finite steps in a row."""

    def __init__(self, run: Run) -> None:
        self.run, self.rate, self.bad_steps = run, 0.0, 0
        self._dumped = "see the earlier dumps of this run"
        self._previous: PendingStep | None = None

    def __call__(self, loaded: LoadedBatch) -> dict[str, Tensor]:
        """One optimiser step on a batch. -> the mean losses of this process, on the device.

        If a loss or a gradient is not finite, the weights stay unchanged, decided on the device without synchronising; the
        next step reports it.
        """
        batch = to_device(loaded.batch, self.run.device)
        with explain_oom(batch, self.run.config, self.run.iteration):
            self.rate = learning_rate(self.run.iteration, self.run.config.train)
            for group in self.run.optimizer.param_groups:
                group["lr"] = self.rate * group["lr_scale"]
            statistics = [(b, b.clone()) for b in self._statistics()]
            losses = self._backward(batch)
            if self._previous:
                self._check(self._previous)  # after this step's work is queued, so that the device does not idle
            finite = self._update(losses)
            for buffer, before in statistics:
                buffer.copy_(torch.where(finite, buffer, before))
            if self.run.average:
                self.run.average.update(self.run.model, self.run.iteration)
        self._previous = PendingStep(self.run.iteration, loaded, losses, AsyncHostCopy(finite))
        return losses

    def settle(self) -> None:
        """Check the latest step now; otherwise the next step does."""
        if self._previous:
            self._check(self._previous)
            self._previous = None

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Accumulate gradients over the `train.accumulate` micro-batches. -> this process's losses.

        The losses of a micro-batch are divided by its counts in all processes together, so that the split over processes
        does not matter; the micro-batches are averaged with equal weights.
        """
        t, run = self.run.config.train, self.run
        run.optimizer.zero_grad(set_to_none=not run.gradients_stay)
        means: dict[str, Tensor] = {}
        parts = split_batch(batch, t.accumulate)
        for k, part in enumerate(parts, 1):
            sync_later = isinstance(run.forward, nn.parallel.DistributedDataParallel) and k < len(parts)
            with run.forward.no_sync() if sync_later else nullcontext():  # type: ignore[operator]
                with autocast(run.device, t.amp):
                    sums: dict[str, Loss] = run.forward(part)
                divisors = run.distributed.divisors({name: loss.count for name, loss in sums.items()})
                losses = {name: loss.sum / divisors[name] / len(parts) for name, loss in sums.items()}
                run.scaler.scale(torch.stack(list(losses.values())).sum()).backward()  # type: ignore[no-untyped-call]
            means = {name: means.get(name, 0) + loss.detach() for name, loss in losses.items()}
        return means

    def _update(self, losses: dict[str, Tensor]) -> Tensor:
        """Clip the gradients and step, unless a value is not finite. -> whether all are: () bool, on the device."""
        t = self.run.config.train
        total = torch.stack(list(losses.values())).sum()
        self.run.scaler.unscale_(self.run.optimizer)
        gradients = [p.grad for p in self.run.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if t.clip_grad_norm:
            nn.utils.clip_grads_with_norm_(self.run.model.parameters(), t.clip_grad_norm, norm)
        finite = torch.isfinite(total)
        if (
            self.run.scaler.is_enabled()
        ):  # it skips infinite gradients itself, which are normal while it adapts its scale
            self.run.scaler.step(self.run.optimizer)
            self.run.scaler.update()
        else:
            finite = finite & torch.isfinite(norm)
            self.run.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # read by fused optimisers
            self.run.optimizer.step()
        return finite

    def _statistics(self) -> list[Tensor]:
        """The running statistics of norms in training mode; forward updates them even if the step is skipped."""
        norms = [m for m in self.run.model.modules() if isinstance(m, BatchNorm2d) and m.training]
        return [b for m in norms for b in (m.running_mean, m.running_var, m.num_batches_tracked) if b is not None]

    def _check(self, done: PendingStep) -> None:
        """Count and dump a non-finite step. Raises `UserError` if there are more than `BAD_STEPS` in a row."""
        if done.finite.value():
            self.bad_steps = 0
            return
        self.bad_steps += 1
        values = {name: float(value) for name, value in done.losses.items()}
        text = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        kept = self._dump(done, values)
        console.print(f"warning: iteration {done.iteration} was not finite ({text}) and was skipped; {kept}")
        if self.bad_steps > BAD_STEPS:
            last = self.run.config.output / "checkpoints" / "last.pt"
            raise UserError(
                f"the loss is not finite at iteration {done.iteration}, the {self.bad_steps}th in a row ({text}): "
                f"lower train.lr (now {self.run.config.train.lr:g}), lengthen train.warmup_iters or set train.clip_grad_norm; "
                f"{kept}; {f'the last good weights are {last}' if last.exists() else 'no checkpoint was written yet'}"
            )

    def _dump(self, done: PendingStep, losses: dict[str, float]) -> str:
        """Save the batch, the state and the name of the first non-finite tensor. -> where, for the message."""
        rank = self.run.distributed.rank
        mine = any(not abs(value) < float("inf") for value in losses.values()) or self.run.distributed.main
        path = dump_path(self.run.config.output, done.iteration, rank) if mine else None
        if path is None:
            return self._dumped if mine else "another process dumped it"
        batch = to_device(done.loaded.batch, self.run.device)

        def losses_of(model: nn.Module) -> dict[str, Tensor]:
            with autocast(self.run.device, self.run.config.train.amp):
                found: dict[str, Tensor] = model(batch)
            return found

        name = first_not_finite(self.run.model, batch, losses_of, alone=self.run.distributed.world == 1)
        files = [str(self.run.train_set.annotations.images[i].file) for i in done.loaded.indices]
        b = done.loaded.batch
        content = {
            **vars(self.run.checkpoint()), "tensor": name, "losses": losses, "images": files, "iteration": done.iteration,
            "batch": {**b._asdict(), "targets": b.targets and b.targets._asdict()},
        }  # fmt: skip
        try:
            with atomic_write(path) as temporary:
                torch.save(content, temporary)
        except UserError as error:
            return f"first non-finite tensor: {name}; {error}"
        self._dumped = f"first non-finite tensor: {name}; batch and state are in {path}"
        return self._dumped
