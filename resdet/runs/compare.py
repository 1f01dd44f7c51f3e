"""Runs side by side: what they were set to, how far they came, where they differ."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resdet.errors import UserError
from resdet.runs.folder import RunFolder, is_run, read_json_object, read_run

NO_SETTING = ("output",)  # keys that differ between any two runs
MISSING = "(unknown)"


@dataclass(frozen=True)
class ClassRow:
    """The AP of a class in each run, in 0..1; None where a run has none."""

    kind: str
    name: str
    values: list[float | None]

    @property
    def difference(self) -> float:
        """Of the last run from the first; 0 where one has none."""
        first, last = self.values[0], self.values[-1]
        return 0.0 if first is None or last is None else last - first


def find_runs(folder: Path) -> list[RunFolder]:
    """The runs in a folder and below it, or the folder itself, by path. Raises `UserError` if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder")
    candidates = {path.parent for name in ("metrics.jsonl", "resolved.yaml") for path in folder.rglob(name)}
    runs = [read_run(path) for path in sorted(candidates) if is_run(path)]
    if not runs:
        raise UserError(f"{folder}: no run in it or below: a run's folder holds metrics.jsonl, or config.yaml")
    return runs


def differing(runs: Sequence[RunFolder], *, only_set: bool = False) -> dict[str, list[Any]]:
    """The config keys whose values differ, with the value in each run. only_set: only keys that some run's user has set.

    What a run without resolved.yaml does not tell is `MISSING`, which is no difference.
    """
    tables = [run.resolved or run.settings for run in runs]
    chosen = [run.settings if only_set else table for run, table in zip(runs, tables, strict=True)]
    keys = dict.fromkeys(key for table in chosen for key in table if key not in NO_SETTING)
    values = {key: [table.get(key, MISSING) for table in tables] for key in keys}

    def differ(row: list[Any]) -> bool:
        told = [value for run, value in zip(runs, row, strict=True) if run.resolved or value != MISSING]
        return any(value != told[0] for value in told)

    return {key: row for key, row in values.items() if differ(row)}


def names_of(runs: Sequence[RunFolder]) -> list[str]:
    """Each run by the shortest end of its path that no other has."""
    parts = [run.path.absolute().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return names


def main_metric(runs: Sequence[RunFolder]) -> str | None:
    """The metric to compare: the first run's that selects its best weights and that most runs have measured."""
    candidates = dict.fromkeys(run.best_metric for run in runs if run.best_metric)
    return max(candidates, key=lambda name: sum(bool(run.series(name)[0]) for run in runs), default=None)


def speed(run: RunFolder, name: str = "images_per_s") -> float | None:
    """The median of a number over the run's log lines."""
    values = run.series(name)[1]
    return statistics.median(values) if values else None


def class_rows(runs: Sequence[RunFolder]) -> list[ClassRow]:
    """AP by class of the last evaluations, the greatest differences between the last run and the first one on top."""
    tables = [read_json_object(run.path / "eval" / "classes.json") or {} for run in runs]
    rows: list[ClassRow] = []
    for kind in dict.fromkeys(kind for table in tables for kind in table):
        of_kind = [table.get(kind) or {} for table in tables]
        names = dict.fromkeys(name for table in of_kind for name in table)
        rows += [ClassRow(kind, name, [table.get(name) for table in of_kind]) for name in names]
    return sorted(rows, key=lambda row: -abs(row.difference))
