"""What the doctor found, for people: the table of `tools/data.py check`, and the short check before each training."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from resdet.data.formats.common import Source
from resdet.data.normalise import READINGS
from resdet.data.quality.checks import compare, examine, unusable
from resdet.data.quality.files import inspect_files
from resdet.data.quality.report import Finding
from resdet.errors import UserError
from resdet.runtime.console import console

# Warnings that are told elsewhere, or of no weight before a training.
QUIET = ("class-rare", "class-unseen", "category-gap", "categories-differ", *READINGS)
SHORT = 3000  # pictures up to which a training looks at every file before it starts


def check_before_training(sources: dict[str, Source]) -> None:
    """The short form: annotations, and the files of small sets, without decoding. Raises `UserError` with all errors."""
    findings: list[Finding] = []
    for name, source in sources.items():
        if len(source.content["images"]) <= SHORT:
            findings += inspect_files(name, source, decode=False)[0]
    if len(sources) == 2:
        findings += compare(sources["train"], sources["val"])
    check_annotations(sources, findings)


def check_annotations(sources: dict[str, Source], others: Sequence[Finding] = ()) -> None:
    """Annotations alone, with other findings about the same data. Raises `UserError` with all errors."""
    findings = unusable(sources)
    for name, source in sources.items():
        findings += examine(name, source, outlines=len(source.content["annotations"]) <= 10 * SHORT)
    findings += others
    for finding in findings:
        if finding.severity == "warning" and finding.code not in QUIET:
            console.print(f"warning: {finding.split}: {finding.count} {finding.what}, such as {finding.examples[0]}")
    wrong = [f for f in findings if f.severity == "error"]
    if wrong:
        lines = [
            f"{f.split}: {f.count} {f.what}; to fix: {f.fix}"
            + "".join(f"\n      {example}" for example in f.examples + ["…"] * (f.count > len(f.examples)))
            for f in wrong
        ]
        raise UserError(
            "the data cannot be trained on (tools/data.py check CONFIG shows all, --fix OUT.json mends what it can):\n  - "
            + "\n  - ".join(lines)
        )


def errors(findings: list[Finding]) -> int:
    return sum(finding.severity == "error" for finding in findings)


def report(findings: list[Finding]) -> None:
    """One table for people."""
    if not findings:
        console.print("nothing found: the data are in order")
        return
    table = Table(show_lines=True, width=min(console.width, 140) if console.is_terminal else 140)
    for head in ("split", "", "count", "what", "first examples", "to fix"):
        table.add_column(head, justify="right" if head == "count" else "left", overflow="fold")
    for f in sorted(findings, key=lambda f: f.severity != "error"):
        style = "bold red" if f.severity == "error" else "yellow"
        examples = "\n".join(textwrap.shorten(e, 160) for e in f.examples[:3])
        table.add_row(f.split, Text(f.severity, style), str(f.count), f.what, examples, f.fix)
    console.print(table)
    warnings = len(findings) - errors(findings)
    console.print(
        f"{errors(findings)} kind(s) of error, which stop training; {warnings} kind(s) of warning, which do not"
    )
