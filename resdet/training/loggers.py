"""The log of a run: a live panel in a terminal, plain lines elsewhere, `metrics.jsonl`, `status.json` and trackers."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.live import Live

from resdet.config import Tracker
from resdet.errors import UserError, first_line
from resdet.evaluation.dataset import Scores
from resdet.runs.folder import METRICS, SPEED, RunStatus, State, read_records
from resdet.runs.text import duration
from resdet.runtime.console import console
from resdet.runtime.device import peak_memory
from resdet.training.panel import Panel
from resdet.training.trackers import Trackers
from resdet.writing import write_text


class RunLog:
    """All that a run tells of itself while it trains; a context manager.

    start: the iteration that the run resumes at; lines of later iterations, left by the interrupted run, are removed.
    settings: the config, for the trackers. best_metric: that selects the best weights, such as "bbox_AP".
    main: False in all processes but one, which write nothing.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        total: int,
        *,
        device: torch.device | None = None,
        trackers: Sequence[Tracker] = (),
        settings: dict[str, Any] | None = None,
        best_metric: str | None = None,
        main: bool = True,
    ) -> None:
        self.path, self.main = folder / METRICS if main else Path(os.devnull), main
        self.device = device or torch.device("cpu")
        earlier = [r for r in read_records(self.path)[0] if r["iteration"] <= start] if main else []
        if self.path.is_file():
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in earlier))
        self.file = self.path.open("a")
        self.lost = 0  # lines that could not be written
        self.trackers = Trackers(trackers if main else (), folder, settings or {}, start)
        self.panel = Panel(str(folder), start, total, best_metric, earlier)
        self.live = Live(self.panel, console=console, refresh_per_second=2)
        self.status = RunStatus(folder, total, best_metric) if main else None
        self.end: tuple[State, str] = "stopped", ""

    def __enter__(self) -> RunLog:
        self._note("running")
        if self.main and console.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.live.stop()
        with contextlib.suppress(OSError):  # a full disk has been reported
            self.file.close()
        if self.lost:
            console.print(f"warning: {self.lost} lines could not be written to {self.path}")
        failed = error is not None and not isinstance(error, KeyboardInterrupt)
        self._note(*(("failed", first_line(error)) if error and failed else self.end))
        self.trackers.close(failed)

    def ended(self, *, done: bool) -> None:
        """How training ended: to its end, or stopped before."""
        self.end = "done" if done else "stopped", ""

    def write(self, iteration: int, **values: Any) -> None:
        """Write one JSON line, and its numbers to the trackers. A failed write is counted; training continues."""
        self.panel.iteration = iteration
        try:
            self.file.write(json.dumps({"iteration": iteration, **values}) + "\n")
            self.file.flush()
        except OSError as error:
            self.lost += 1
            if self.lost == 1:
                console.print(f"warning: cannot write {self.path} ({error.strerror}); training continues without it")
        self.trackers.numbers(iteration, {k: v for k, v in values.items() if isinstance(v, int | float)})

    def train_line(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the losses, learning rate, images per second and the fraction of time spent waiting for data."""
        self.write(iteration, **{k: float(f"{v:.6g}") for k, v in values.items()})
        place = "on the GPU" if self.device.type == "cuda" else "of memory"
        memory = f"{peak_memory(self.device):.1f} GB {place}"
        self.panel.train(iteration, values, memory)
        if console.live and not console.verbose:
            return
        losses = "  ".join(f"{k} {v:.3f}" for k, v in values.items() if k not in SPEED)
        text = f"{losses}  lr {values['lr']:.2g}  {values['images_per_s']:.1f} img/s  data {values['data_wait']:.0%}"
        text += f"  {memory}" if console.verbose else ""
        total = self.panel.total
        console.print(f"{iteration:>{len(str(total))}}/{total}  eta {duration(self.panel.left())}  {text}")

    def evaluating(self, images: int, total: int) -> None:
        """Show how many of its images an evaluation has predicted in this process."""
        self.panel.doing = f"evaluating {images}/{total}"

    def evaluated(self, iteration: int, scores: Scores) -> None:
        """Write and print the scores of an evaluation."""
        val_losses = {f"val_{name}": round(value, 6) for name, value in scores.losses.items()}
        tables = scores.tables
        if val_losses:
            val_losses = {"val_loss": round(sum(val_losses.values()), 6), **val_losses}
            tables += "validation losses: " + "  ".join(f"{k[4:]} {v:.3f}" for k, v in val_losses.items()) + "\n"
        numbers = {f"{kind}_{name}": v for kind, values in scores.metrics.items() for name, v in values.items()}
        self.write(iteration, **val_losses, **numbers)
        self.panel.evaluated(iteration, scores.metrics)
        what = "predictions" if "classes" in scores.metrics else "detections"
        title = f"iteration {iteration}: {scores.images} validation images, {len(scores.entries)} {what}"
        console.print(f"\n{title}\n{tables}", markup=False)
        self._note("running")

    def _note(self, state: State, reason: str = "") -> None:
        if self.status:
            try:
                self.status.write(self.panel.iteration, state, reason)
            except UserError as error:
                console.print(f"warning: {error}; training continues")
