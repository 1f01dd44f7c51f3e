"""`resdet compare`: runs side by side, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resdet.commands.common import guarded, parser_of

if TYPE_CHECKING:
    from resdet.runs.folder import RunFolder

CLASSES = 15  # rows of the table of classes in a terminal
KEYS = 30  # rows of the table of settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare runs."""
    parser = parser_of("compare", "Compare runs: curves, AP, AP of each class, speed, and settings.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="two or more run folders, the baseline first")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="also write a page that needs no other file")
    args = parser.parse_args(arguments)
    return guarded(lambda: compare(args.runs, args.output))


def compare(folders: Sequence[Path], output: Path | None) -> int:
    from resdet.errors import UserError
    from resdet.runs.folder import read_run
    from resdet.runs.page import write_page
    from resdet.runtime.console import console
    from resdet.writing import make_folder

    folders = list(dict.fromkeys(folders))
    if len(folders) < 2:
        raise UserError("comparing takes two or more different run folders; `resdet runs FOLDER` lists them")
    if output and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{output}: must end in .html")
    runs = [read_run(folder) for folder in folders]
    if output:
        make_folder(output.parent)
    print_comparison(runs)
    if output:
        write_page(runs, output)
        console.print(f"page: {output}")
    else:
        console.print("--output FILE.html writes this as a page, with curves")
    return 0


def print_comparison(runs: Sequence[RunFolder]) -> None:
    from rich.table import Table

    from resdet.runs.compare import class_rows, differing, main_metric, names_of
    from resdet.runs.page import number, remarks, summary
    from resdet.runs.text import BLOCKS, PLAIN_BLOCKS, short, sparkline
    from resdet.runtime.console import console

    names, metric = names_of(runs), main_metric(runs)
    blocks = BLOCKS if console.encoding.startswith("utf") else PLAIN_BLOCKS

    def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
        )
        for k, name in enumerate(head):
            table.add_column(name, justify="right" if k else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table, soft_wrap=False)
        console.print()

    show("runs", ["", *names], summary(runs))
    for curve in [name for name in (metric, "loss", "val_loss") if name]:
        series = [run.series(curve)[1] for run in runs]
        finite = [v for values in series for v in values if abs(v) < float("inf")]
        if finite:
            span = min(finite), max(finite)
            lines = [[name, sparkline(values, 50, blocks, span)] for name, values in zip(names, series, strict=True)]
            width = max(map(len, names))
            console.print(f"{curve}, from {span[0]:.3g} to {span[1]:.3g}", style="bold")
            for name, line in lines:
                console.print(f"{name:<{width}}  {line}")
            console.print()
    if rows := class_rows(runs):
        more = f" (the {CLASSES} that differ most, of {len(rows)})" if len(rows) > CLASSES else ""
        show(f"AP by class{more}", ["", *names, "change"], [
            [f"{row.kind} {row.name}", *(number(value, ".1f", 100) for value in row.values), f"{100 * row.difference:+.1f}"]
            for row in rows[:CLASSES]
        ])  # fmt: skip
    settings = differing(runs)
    more = f" (the first {KEYS} of {len(settings)})" if len(settings) > KEYS else ""
    if settings:
        cells = [[key, *(short(value, 60 // len(runs)) for value in row)] for key, row in settings.items()]
        show(f"settings that differ{more}", ["", *names], cells[:KEYS])
    else:
        console.print("no setting differs\n")
    for line in remarks(runs, names):
        console.print(line)
