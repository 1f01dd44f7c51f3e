"""What people and their files are called is printed as it is."""

from __future__ import annotations

import pytest

from resdet.data.quality.report import Finding
from resdet.data.quality.summary import report
from resdet.runtime.console import console

NAMES = "[red] [/] a[0] [bold]x[/bold] :car: %s %(name)s"


def test_markup_in_names_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(f"classes: {NAMES}")
    assert capsys.readouterr().out == f"classes: {NAMES}\n"


def test_markup_in_a_table_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"severity": "error", "code": "c", "split": "train", "count": 1, "what": "[/] a[0]", "examples": ["[red]"]}
    report([Finding(**fields, fix="rename [bold]")])  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[/] a[0]", "[red]", "rename [bold]", "error"))
