"""The options of `resdet eval` that make a report, and what they do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdet.errors import UserError

if TYPE_CHECKING:
    from resdet.evaluation.coco import Evaluation, Metrics


def add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report",
        action="store_true",
        help="write report/index.html into the output folder: what AP is lost to, and pictures",
    )
    parser.add_argument("--images", type=Path, help="the folder of the pictures, for --results with --report")
    parser.add_argument(
        "--others",
        type=Path,
        nargs="+",
        default=[],
        metavar="DETECTIONS",
        help="detections.json of other checkpoints, so that --report counts no annotation as wrong that one of them finds",
    )


def check_report_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.images and not (args.results and args.report):
        parser.error("--images needs --results and --report")
    if args.others and not args.report:
        parser.error("--others needs --report")


def refuse_report(args: argparse.Namespace, why: str) -> None:
    if args.report:
        raise UserError(f"--report is a page about detections, and {why}: leave it out")


def write_page(
    evaluation: Evaluation,
    metrics: Metrics,
    entries: list[dict[str, Any]],
    output: Path,
    others: Sequence[Path],
    *,
    tables: str = "",
    recipe: Path | None = None,
    **options: Any,
) -> None:
    """Write the report of an evaluation into `output`/report, and say where.

    others: results of other checkpoints. tables: shown if they are of pixels. recipe: the config whose published numbers are
    quoted. options: of `write_report`.
    """
    from resdet.evaluation.results import read_results
    from resdet.report.write import PAGE, published_numbers, write_report
    from resdet.runtime.console import console

    folder = output / "report"
    replaced = (folder / PAGE).exists()
    beside = [read_results(path, evaluation) for path in others]
    for found in beside:
        if found.left_out:
            console.print(f"warning: {found.left_out}", markup=False)
    page = write_report(
        folder, evaluation, metrics, entries, others=[found.entries for found in beside],
        published=published_numbers(recipe, evaluation) if recipe else {},
        tables=tables if {"semantic", "panoptic"} & set(metrics) else "", **options,
    )  # fmt: skip
    console.print(f"report: {page}{' (replaced the one that was there)' if replaced else ''}", markup=False)
