"""The live panel of a run in a terminal; colours are the terminal's own, so that it is readable on dark and on light."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from resdet.evaluation.coco import Metrics
from resdet.evaluation.tables import STANDARD_AP, percent
from resdet.runs.folder import SPEED, Record, best_of
from resdet.runs.text import BLOCKS, PLAIN_BLOCKS, duration, sparkline

TREND = 400  # log lines that a sparkline covers at most
WIDTH = 100  # of the panel at most, in characters
OTHER_LINES = 12  # of the panel, beside those of the losses
METRICS_SHOWN = 6  # of each kind: AP, AP50, AP75 and AP by size


class Panel:
    """What a run is doing: a rich renderable whose attributes the log updates.

    earlier: the lines of a resumed run, for the trends and the best.
    """

    def __init__(
        self, title: str, start: int, total: int, best_metric: str | None, earlier: Sequence[Record] = ()
    ) -> None:
        self.title, self.start, self.total, self.best_metric = title, start, total, best_metric
        self.iteration, self.began = start, time.perf_counter()
        self.values: Mapping[str, float] = {}
        self.trends: dict[str, deque[float]] = {}
        self.metrics: Metrics = {}
        self.measured_at = 0
        self.best: tuple[float, int] | None = best_of(list(earlier), best_metric)
        self.memory = self.doing = ""
        for record in earlier:
            if "loss" in record:
                self._extend(record)

    def train(self, iteration: int, values: Mapping[str, float], memory: str) -> None:
        """Losses and speeds of an iteration."""
        self.iteration, self.values, self.memory, self.doing = iteration, values, memory, ""
        self._extend(values)

    def evaluated(self, iteration: int, metrics: Metrics) -> None:
        self.metrics, self.measured_at, self.doing = metrics, iteration, ""
        kind, _, name = (self.best_metric or "").partition("_")
        value = metrics.get(kind, {}).get(name)
        if value is not None and (self.best is None or value > self.best[0]):
            self.best = value, iteration

    def left(self) -> float:
        """Seconds to the end, as this start of the run went so far."""
        elapsed = time.perf_counter() - self.began
        return elapsed / max(1, self.iteration - self.start) * (self.total - self.iteration)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDTH)
        unicode = not options.ascii_only
        room = max(3, console.size.height - OTHER_LINES)
        parts = [self._progress(width), self._speed(), Text(), self._losses(width, room, unicode)]
        if self.metrics or self.best:
            parts += [Text(), self._scores()]
        yield Frame(Group(*parts), title=Text(self.title, "bold"), title_align="left", width=width, border_style="dim",
                    box=box.ROUNDED)  # fmt: skip

    def _progress(self, width: int) -> RenderableType:
        numbers = f"{self.iteration}/{self.total}"
        moving = self.iteration > self.start
        elapsed = time.perf_counter() - self.began
        eta = f"eta {duration(self.left())}" if moving else self.doing or "starting"
        times = f"{eta}  elapsed {duration(elapsed)}"
        bar = max(10, width - len(numbers) - len(times) - 14)
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(numbers, "bold"),
            ProgressBar(
                self.total, self.iteration, bar, style="bright_black", complete_style="magenta", finished_style="green"
            ),
            f"{self.iteration / self.total:.0%}", times,
        )  # fmt: skip
        return line

    def _speed(self) -> RenderableType:
        if not self.values:
            return Text(self.doing or "the first iterations are not logged yet", "dim")
        v = self.values
        text = f"{v['images_per_s']:.1f} img/s   data wait {v['data_wait']:.0%}   lr {v['lr']:.2g}   {self.memory}"
        return Text(f"{text}   {self.doing}" if self.doing else text)

    def _losses(self, width: int, room: int, unicode: bool) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        names = list(self.trends)
        shown = names if len(names) <= room else names[: room - 1]
        label = max((len(name) for name in shown), default=0)
        for name in shown:
            trend = self.trends[name]
            line = sparkline(trend, max(8, width - label - 19), BLOCKS if unicode else PLAIN_BLOCKS)
            style = "bold" if name == "loss" else ""
            table.add_row(Text(name, style), Text(f"{trend[-1]:9.4f}", style), Text(line, "magenta"))
        if len(shown) < len(names):
            table.add_row(Text(f"and {len(names) - len(shown)} more", "dim"))
        return table

    def _scores(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for kind, values in self.metrics.items():
            shown = [(name, value) for name, value in values.items() if name != STANDARD_AP][:METRICS_SHOWN]
            cells = [Text.assemble((f"{name} ", "dim"), percent(value)) for name, value in shown]
            table.add_row(Text(kind, "bold"), *cells)
        lines: list[RenderableType] = []
        if self.metrics:
            lines += [Text(f"evaluated at iteration {self.measured_at}, percent", "dim"), table]
        if self.best:
            value, iteration = self.best
            best = Text.assemble((f"best {self.best_metric} ", "bold"), (percent(value), "bold green"))
            lines.append(best.append(f" at iteration {iteration}"))
        return Group(*lines)

    def _extend(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in (*SPEED, "iteration"):
                self.trends.setdefault(name, deque(maxlen=TREND)).append(value)
