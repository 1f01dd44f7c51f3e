"""`resdet runs`: the runs in a folder, their state and what they reached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdet.commands.common import guarded, parser_of

KEYS = 8  # settings shown of a run


def main(arguments: Sequence[str] | None = None) -> int:
    """List runs."""
    parser = parser_of("runs", "List the runs in a folder: their state, best AP, iterations, time, and what differs.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), help="(default: outputs)")
    args = parser.parse_args(arguments)
    return guarded(lambda: list_runs(args.folder))


def list_runs(folder: Path) -> int:
    from rich.table import Table

    from resdet.runs.compare import MISSING, differing, find_runs, names_of
    from resdet.runs.text import duration, short
    from resdet.runtime.console import console

    runs = find_runs(folder)
    differences = differing(runs, only_set=True)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, justify in (
        ("run", "left"),
        ("state", "left"),
        ("best", "left"),
        ("iterations", "right"),
        ("time", "right"),
    ):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("differs in", overflow="fold", style="dim", min_width=24)
    names = names_of(runs)
    for k, (run, name) in enumerate(zip(runs, names, strict=True)):
        best = f"{run.best_metric} {100 * run.best[0]:.1f}" if run.best else "-"
        keys = [f"{key}={short(values[k], 24)}" for key, values in differences.items() if values[k] != MISSING]
        if len(keys) > KEYS:
            keys = [*keys[: KEYS - 1], f"… {len(keys) - KEYS + 1} more: resdet compare"]
        time = "-" if run.seconds is None else duration(run.seconds)
        table.add_row(name, run.state, best, f"{run.iteration}/{run.total or '?'}", time, "\n".join(keys))
    console.print(table, soft_wrap=False)
    for run, name in zip(runs, names, strict=True):
        for remark in ([f"{run.state}: {run.reason}"] if run.reason else []) + run.problems:
            console.print(f"{name}: {remark}")
    return 0
