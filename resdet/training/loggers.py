"""The log of a run: a progress bar in a terminal, plain lines elsewhere, and `metrics.jsonl`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resdet.errors import UserError
from resdet.runtime.console import console
from resdet.writing import write_text


class RunLog:
    """Writes a run's numbers to `metrics.jsonl`, the console and TensorBoard; a context manager.

    start: the iteration that the run resumes at; lines of later iterations, left by the interrupted run, are removed.
    main: False in all processes but one, which write nothing.
    """

    def __init__(self, folder: Path, start: int, total: int, tensorboard: bool, main: bool = True) -> None:
        self.path, self.start, self.total = folder / "metrics.jsonl" if main else Path(os.devnull), start, total
        if self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if _iteration(line) <= start]
            write_text(self.path, "".join(line + "\n" for line in kept))
        self.file = self.path.open("a")
        self.lost = 0  # lines that could not be written
        self.board: Any = _tensorboard(folder, start) if tensorboard and main else None
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.progress = Progress(*columns, console=console, disable=not (main and console.is_terminal))
        self.task = self.progress.add_task("", total=total, completed=start)
        self.began = time.perf_counter()

    def __enter__(self) -> RunLog:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
        with contextlib.suppress(OSError):  # a full disk has been reported
            self.file.close()
        if self.lost:
            console.print(f"warning: {self.lost} lines could not be written to {self.path}")
        if self.board:
            self.board.close()

    def write(self, iteration: int, **values: Any) -> None:
        """Write one JSON line, and scalars to TensorBoard. A failed write is counted; training continues."""
        try:
            self.file.write(json.dumps({"iteration": iteration, **values}) + "\n")
            self.file.flush()
            if self.board:
                for name, value in values.items():
                    if isinstance(value, int | float):
                        self.board.add_scalar(name, value, iteration)
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                console.print(f"warning: cannot write {self.path} ({error.strerror}); training continues without it")

    def train_line(self, iteration: int, values: dict[str, float]) -> None:
        """Log the losses, learning rate, images per second and the fraction of time spent waiting for data."""
        self.write(iteration, **{k: float(f"{v:.6g}") for k, v in values.items()})
        losses = "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k not in ("lr", "images_per_s", "data_wait"))
        text = f"{losses}  lr {values['lr']:.2g}  {values['images_per_s']:.1f} img/s  data {values['data_wait']:.0%}"
        if console.is_terminal:
            self.progress.update(self.task, completed=iteration, description=text)
        else:
            elapsed = time.perf_counter() - self.began
            left = elapsed / max(1, iteration - self.start) * (self.total - iteration)
            console.print(f"{iteration:>{len(str(self.total))}}/{self.total}  eta {duration(left)}  {text}")


def duration(seconds: float) -> str:
    """Hours, minutes, seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):  # the truncated last line of a killed run
        return float("inf")


def _tensorboard(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("train.tensorboard=true needs the extra: pip install 'resdet[tensorboard]'") from None
    return SummaryWriter(folder / "tensorboard", purge_step=start + 1)
