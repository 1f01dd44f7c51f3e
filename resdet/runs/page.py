"""Runs side by side, as one page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from resdet import html
from resdet.runs.compare import class_rows, differing, main_metric, names_of, speed
from resdet.runs.curves import panels_of
from resdet.runs.folder import RunFolder
from resdet.runs.text import duration, short
from resdet.writing import write_text

POINTS = 300  # of a curve; longer ones are thinned out
SETTING = 60  # characters of a value


def write_page(runs: Sequence[RunFolder], path: Path) -> None:
    """Raises `UserError` if the file cannot be written."""
    names = names_of(runs)
    parts = [
        html.key(names), _notes(runs, names), html.table(["", *names], summary(runs)),
        *_curves(runs, names), *_classes(runs, names), *_settings(runs, names),
    ]  # fmt: skip
    write_text(path, html.document(" against ".join(names) if len(names) < 4 else f"{len(names)} runs", "".join(parts)))


def summary(runs: Sequence[RunFolder]) -> list[list[str]]:
    """What each run reached, and how fast: a row for each of these, its name first."""
    metric = main_metric(runs)
    series = [run.series(metric)[1] if metric else [] for run in runs]
    return [
        ["state", *(run.state for run in runs)],
        ["iterations", *(f"{run.iteration}/{run.total or '?'}" for run in runs)],
        [f"best {metric or 'metric'}", *(number(max(values, default=None), ".1f", 100) for values in series)],
        ["last", *(number(values[-1] if values else None, ".1f", 100) for values in series)],
        ["images/s, median", *(number(speed(run), ".1f") for run in runs)],
        ["data wait, median", *(number(speed(run, "data_wait"), ".0%") for run in runs)],
        ["time", *("-" if run.seconds is None else duration(run.seconds) for run in runs)],
    ]


def remarks(runs: Sequence[RunFolder], names: Sequence[str]) -> list[str]:
    """Why runs failed, and what their folders lack."""
    lines = []
    for run, name in zip(runs, names, strict=True):
        lines += [f"{name}: {run.state}: {run.reason}"] if run.reason else []
        lines += [f"{name}: {problem}" for problem in run.problems]
        if not (run.path / "eval" / "classes.json").is_file():
            lines.append(f"{name}: eval/classes.json is missing, so its AP by class is unknown")
    return lines


def number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(factor * value, form)


def _notes(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    return "".join(f'<p class="note">{escape(line)}</p>' for line in remarks(runs, names))


def _curves(runs: Sequence[RunFolder], names: Sequence[str]) -> list[str]:
    """Charts in groups; a number that any run has is drawn for all that have it."""
    groups: dict[str, dict[str, None]] = {}
    for run in runs:
        for title, found in panels_of(run).items():
            groups.setdefault(title, {}).update(dict.fromkeys(found))
    parts = []
    for title, together in groups.items():
        charts = []
        for number_name in together:
            curves = []
            for k, (run, name) in enumerate(zip(runs, names, strict=True)):
                x, y = run.series(number_name)
                step = -(-len(x) // POINTS) or 1
                scaled = [100 * v for v in y[::step]] if title.startswith("AP") else y[::step]
                curves.append(html.Curve(name, x[::step], scaled, k))
            charts.append(html.figure(html.chart(number_name, curves), number_name))
        parts.append(f'<h2>{title}</h2><div class="row">{"".join(charts)}</div>')
    return parts


def _classes(runs: Sequence[RunFolder], names: Sequence[str]) -> list[str]:
    rows = [
        [f"{row.kind} {row.name}", *(number(v, ".1f", 100) for v in row.values), f"{100 * row.difference:+.1f}"]
        for row in class_rows(runs)
    ]
    note = (
        '<p class="note">Of the last evaluation, in percent; the greatest change from first to last run is on top.</p>'
    )
    return ["<h2>AP by class</h2>", note, html.table(["class", *names, "change"], rows)] if rows else []


def _settings(runs: Sequence[RunFolder], names: Sequence[str]) -> list[str]:
    rows = [[key, *(short(value, SETTING) for value in values)] for key, values in differing(runs).items()]
    return ["<h2>Settings that differ</h2>", html.table(["key", *names], rows) if rows else "<p>None.</p>"]
