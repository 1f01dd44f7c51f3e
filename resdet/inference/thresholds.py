"""Score thresholds, one for all classes or one for each: numbers, dictionaries, or the thresholds.json of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resdet.class_names import few
from resdet.data.json_files import read_json
from resdet.errors import UserError

Threshold = float | Mapping[str, float] | str | Path


def threshold_of(text: str) -> float | Path:
    """The value of a command's option: a number, or the path of a thresholds.json."""
    try:
        return float(text)
    except ValueError:
        return Path(text)


def by_label(given: Threshold | None, class_names: Sequence[str]) -> tuple[float | None, np.ndarray | None]:
    """(the lowest score of any class, None as configured; the lowest of each label, (K,) float32, None for one of all)

    A dictionary names each class; a file has a default for those that it does not name, and may name others.
    Raises `UserError`.
    """
    if given is None:
        return None, None
    if isinstance(given, int | float):
        return _score(given, "the score threshold"), None
    default = 1.0
    if isinstance(given, str | Path):
        content = read_json(Path(given))
        if not isinstance(content, dict) or not isinstance(content.get("classes"), dict) or "default" not in content:
            raise UserError(
                f'{given}: not a thresholds.json of a report: {{"default": 0.5, "classes": {{name: score}}}}'
            )
        name, default, values = str(given), _score(content["default"], f"{given}: default"), content["classes"]
        if not set(values) & set(class_names):
            raise UserError(
                f"{name}: no class in common: it names {few(list(values))}; the model has {few(class_names)}"
            )
    else:
        name, values = "score_threshold", dict(given)
        if set(values) != set(class_names):
            unknown, missing = sorted(set(values) - set(class_names)), sorted(set(class_names) - set(values))
            parts = [f"{what} {few(names)}" for what, names in (("unknown:", unknown), ("missing:", missing)) if names]
            raise UserError(f"{name} must name each class of the model: {'; '.join(parts)}")
    scores = [_score(values[k], f"{name}: {k}") if k in values else default for k in class_names]
    return min(scores), np.array(scores, np.float32)


def _score(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise UserError(f"{name} is {value!r}, not a score from 0 to 1")
    return float(value)
