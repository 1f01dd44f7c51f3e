"""Failures during training: non-finite values, out of memory, unreadable images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resdet.config import Config
from resdet.errors import UserError
from resdet.runtime.console import console
from resdet.runtime.device import out_of_memory
from resdet.structures import Batch

BAD_STEPS = 3  # non-finite steps in a row that are skipped; one more stops the run
DUMPS = 3  # files per run


def first_not_finite(
    model: nn.Module, batch: Batch, losses_of: Callable[[nn.Module], dict[str, Tensor]], alone: bool = True
) -> str:
    """The name of the first non-finite tensor of a step: an input, a weight, an output, a loss, or a gradient.

    Repeats the step on a copy of the model. alone: False if a step in training mode would wait for other processes.
    """
    assert batch.targets is not None
    inputs = {"batch.images": batch.images, "batch.targets.boxes": batch.targets.boxes}
    weights = {f"weight {name}": value for name, value in model.state_dict().items()}
    name: str
    for name, value in (inputs | weights).items():
        if not _finite(value):
            return name
    model = copy.deepcopy(model).train(alone)
    found: list[str] = []
    for path, module in model.named_modules():
        if path:
            module.register_forward_hook(_check_output(f"output of {path}", found))
    losses = losses_of(model)
    found += [f"loss {name}" for name, value in losses.items() if not _finite(value)]
    if found:
        return found[0]
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [name for name, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"gradient of {gradients[-1]}" if gradients else "none when the step was repeated"


def _check_output(name: str, found: list[str]) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not all(map(_finite, _tensors(output))):
            found.append(name)

    return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


@contextmanager
def explain_oom(batch: Batch, config: Config, iteration: int) -> Iterator[None]:
    """Turn an out-of-memory error into a `UserError` that names the batch and the settings to change."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        b, _, h, w = batch.images.shape
        objects = 0 if batch.targets is None else batch.targets.boxes.shape[1]
        t = config.train
        raise UserError(
            f"out of memory at iteration {iteration}, with {b} images of {h} x {w} (H x W) and up to {objects} objects: "
            f"raise train.accumulate (now {t.accumulate}; the effective batch size stays the same), lower train.batch_size "
            f"(now {t.batch_size}) or data.min_size and data.max_size (now {max(config.data.min_size)} and "
            f"{config.data.max_size}), or set train.amp=bf16; then continue with --resume"
        ) from None


class Unreadable:
    """Counts the unreadable images of a split, reports each once, and stops the run when there are too many."""

    def __init__(self, split: str, images: int, share: float) -> None:
        self.split, self.images, self.share = split, images, share
        self.known: set[str] = set()

    def note(self, problems: dict[int, tuple[str, ...]], instead: str) -> None:
        """problems: of a batch, by image. instead: what happened to the images. Raises `UserError` above `share`."""
        for problem in (problem for several in problems.values() for problem in several):
            if problem not in self.known:
                self.known.add(problem)
                console.print(f"warning: {self.split}: {problem} ({instead})")
        if len(self.known) > self.share * self.images:
            shown = "\n".join(f"  - {problem}" for problem in sorted(self.known)[:10])
            raise UserError(
                f"{self.split}: {len(self.known)} of {self.images} images could not be read, more than "
                f"data.max_unreadable ({self.share:g}) allows: repair or remove them (tools/data.py check finds a detector's):"
                f"\n{shown}"
            )


def dump_path(folder: Path, iteration: int, rank: int) -> Path | None:
    """The file to dump a non-finite step to; None if the run has `DUMPS` of them."""
    folder = folder / "nonfinite"
    if len(list(folder.glob("*.pt"))) >= DUMPS:
        return None
    return folder / f"{iteration:08d}{f'-rank{rank}' if rank else ''}.pt"
