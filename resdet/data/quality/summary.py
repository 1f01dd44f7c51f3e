"""Findings, formatted for people: the table of `tools/data.py check`, and the short check before each training."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from resdet.data.formats.common import Source
from resdet.data.quality.checks import examine, unusable
from resdet.data.quality.files import inspect_files
from resdet.data.quality.label_maps import inspect_label_maps
from resdet.data.quality.report import Finding
from resdet.data.readings import READINGS
from resdet.errors import UserError
from resdet.runtime.console import console

# Warnings that are reported elsewhere, or do not matter before training.
QUIET = ("class-rare", "class-unseen", "category-gap", "categories-differ", *READINGS)
SHOWN = 3  # examples of each kind in the table
SHORT = 3000  # images up to which a training looks at every file before it starts


def check_before_training(sources: dict[str, Source]) -> None:
    """The short form: annotations, and the files of small sets, without decoding. Raises `UserError` with all errors."""
    findings: list[Finding] = []
    for name, source in sources.items():
        if len(source.content["images"]) <= SHORT and not source.read_image:
            findings += inspect_files(name, source, decode=False)[0] + inspect_label_maps(name, source)
    check_annotations(sources, findings)


def check_annotations(sources: dict[str, Source], others: Sequence[Finding] = ()) -> None:
    """Annotations alone, with other findings about the same data. Raises `UserError` with all errors."""
    findings = unusable(sources)
    for name, source in sources.items():
        findings += examine(name, source, outlines=len(source.content["annotations"]) <= 10 * SHORT)
    findings += others
    for finding in findings:
        if finding.severity == "warning" and finding.code not in QUIET:
            console.print(f"warning: {finding.split}: {finding.what} ({finding.count}), such as {finding.examples[0]}")
    refuse("the data cannot be trained on", findings)


def refuse(what: str, findings: Sequence[Finding]) -> None:
    """Raises `UserError`, which begins with `what`, with all errors among the findings."""
    lines = [
        f"{f.split}: {f.what} ({f.count}); to fix: {f.fix}"
        + "".join(f"\n      {example}" for example in f.examples[:5] + ["…"] * (f.count > 5))
        for f in findings
        if f.severity == "error"
    ]
    if lines:
        raise UserError(
            f"{what} (tools/data.py check CONFIG lists all, --fix OUT.json repairs what it can):\n  - "
            + "\n  - ".join(lines)
        )


def errors(findings: list[Finding]) -> int:
    return sum(finding.severity == "error" for finding in findings)


def report(findings: list[Finding], roots: Sequence[Path] = ()) -> None:
    """One table for people, as wide as the terminal or $COLUMNS. roots: folders, below which paths are relative."""
    if not findings:
        console.print("no problems found")
        return
    known_width = console.is_terminal or "COLUMNS" in os.environ
    table = Table(show_lines=True, width=min(console.width, 140) if known_width else 140)
    for head in ("split", "kind", "count"):
        table.add_column(head, justify="right" if head == "count" else "left", no_wrap=True)
    table.add_column("what, first examples, to fix", ratio=1)
    used: dict[Path, None] = {}  # those of the roots that paths were cut below
    for f in sorted(findings, key=lambda f: f.severity != "error"):
        style = "bold red" if f.severity == "error" else "yellow"
        examples = [_relative(example, roots, used) for example in f.examples[:SHOWN]]
        more = [f"… and {f.count - len(examples)} more"] * (f.count > len(examples))
        indented = [Padding(Text(_cut(line), overflow="fold"), (0, 0, 0, 2)) for line in examples + more]
        table.add_row(f.split, Text(f.severity, style), str(f.count), Group(f.what, *indented, f"to fix: {f.fix}"))
    console.print(table)
    if used:
        console.print(f"paths are relative to {' or '.join(map(str, used))}")
    warnings = len(findings) - errors(findings)
    console.print(
        f"{errors(findings)} kind(s) of error, which stop training; {warnings} kind(s) of warning, which do not"
    )


def _relative(text: str, roots: Sequence[Path], used: dict[Path, None]) -> str:
    for root in roots:
        if root.name:  # neither "/" nor "."
            text, count = re.subn(rf"(?<![\w./-]){re.escape(str(root))}/", "", text)
            used |= dict.fromkeys([root] * bool(count))
    return text


def _cut(text: str, length: int = 240) -> str:
    """One line; of a long one its beginning and end, which say what and why."""
    text = text.replace("\n", " ")
    return text if len(text) <= length else f"{text[: length // 2]} … {text[-length // 2 :]}"
