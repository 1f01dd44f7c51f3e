"""The account of a converted config: as a table for people, and as the YAML file with its header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from resdet.migration.expressions import Unknown
from resdet.migration.keys import Kind, Row

WIDTH = 60  # of a value that is shown


class Migration(NamedTuple):
    """origin: whose config it is and which files were read. rows: what became of each key. values: ours, nested.

    always: those of our values, by dotted key, that are the tool's ways of computing, for which it has no keys.
    """

    origin: str
    rows: list[Row]
    values: dict[str, Any]
    always: dict[str, Any]


def report(migration: Migration) -> str:
    """Every key with what became of it: first what is lost, then what was converted, then the rest; each kind counted."""
    lines = [migration.origin]
    counts = []
    for kind in Kind:
        rows = [row for row in migration.rows if row.kind is kind]
        counts.append(f"{len(rows)} {kind.value}")
        if rows:
            title = (
                f"warning: {len(rows)} key(s) {kind.value}" if kind is Kind.WARNING else f"{kind.value} ({len(rows)})"
            )
            lines += ["", f"{title}:", *_table(rows)]
    lines += [
        "",
        "set because the other tool always works this way:",
        f"  {', '.join(f'{k}={shown(v)}' for k, v in migration.always.items())}",
    ]
    return "\n".join([*lines, "", f"{len(migration.rows)} keys: {', '.join(counts)}"])


def _table(rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in rows:
        ours = ", ".join(f"{key}={shown(value)}" for key, value in row.ours.items())
        theirs = f"{row.key}={shown(row.value)}" if row.value != "" else row.key
        cells.append((theirs, " ".join(filter(None, (ours, f"({row.note})" * bool(row.note))))))
    width = min(max(len(left) for left, _ in cells), 70)
    return [f"  {left:<{width}}  {right}".rstrip() for left, right in cells]


def shown(value: Any) -> str:
    """On one line, shortened; control characters escaped."""
    text = value.text if isinstance(value, Unknown) else value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"


def to_yaml(migration: Migration) -> str:
    """The config to write: what differs from our defaults, under a header that says where it came from and what is lost."""
    header = [f"Converted by `resdet convert --config` from {shown_whole(migration.origin)}."]
    lost = [row for row in migration.rows if row.kind is Kind.WARNING]
    if lost:
        header += ["Not converted, though it affects the results:"]
        header += [f"  {shown_whole(row.key)}={shown(row.value)}: {row.note}" for row in lost]
    body = yaml.safe_dump(migration.values, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return "".join(f"# {line}\n" for line in header) + body


def shown_whole(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()
