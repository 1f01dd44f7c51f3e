"""Matches the class names of two lists -> the label of each name in the other list. Used wherever two lists meet.

In order: equal lists by position; a name that both write the same; a name spelled differently (case, spaces, "_", "-",
Unicode form), where it is the only such name on either side. Ambiguous names are refused, never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from resdet.errors import listed

OBJECT = "object"  # the one class of a model of proposals


class Matches(NamedTuple):
    """labels: for each name its label in the other list, None where that has no such class. ambiguous: names of the first
    list, each with the names of the other that it could be; their labels are None."""

    labels: list[int | None]
    ambiguous: list[tuple[str, list[str]]]


def find_matches(names: Sequence[str], others: Sequence[str]) -> Matches:
    """The label in `others` of each of `names`."""
    if list(names) == list(others):
        return Matches(list(range(len(names))), [])
    labels: list[int | None] = [None] * len(names)
    ambiguous: list[tuple[str, list[str]]] = []
    exact, other_exact = _labels_by(str, names), _labels_by(str, others)
    folded, other_folded = _labels_by(folded_name, names), _labels_by(folded_name, others)
    taken = {other_exact[name][0] for name in exact if len(other_exact.get(name, ())) == 1}
    for label, name in enumerate(names):
        same = other_exact.get(name, [])
        if len(exact[name]) == len(same) == 1:
            labels[label] = same[0]
            continue
        fold = folded_name(name)
        # A name that has an exact match is not available to others.
        left = same or [k for k in other_folded.get(fold, []) if k not in taken]
        if left and len(folded[fold]) == len(other_folded[fold]) == 1:
            labels[label] = left[0]
        elif left:
            ambiguous.append((name, [others[k] for k in left]))
    return Matches(labels, ambiguous)


def match_classes(names: Sequence[str], others: Sequence[str], owner: str, other_owner: str) -> list[int | None]:
    """`find_matches`, where nothing may be ambiguous. owner, other_owner: whose the lists are, for the message.

    Raises one `UserError` that names every pair.
    """
    labels, ambiguous = find_matches(names, others)
    if ambiguous:
        problems = [f"{name!r} could be {' or '.join(map(repr, options))}" for name, options in ambiguous]
        raise listed(
            f"class names of {owner} cannot be matched with those of {other_owner}: rename the categories so that each "
            "has one counterpart:",
            problems,
        )
    return labels


def folded_name(name: str) -> str:
    """A class name without what people spell differently: case, spaces, underscores, hyphens, Unicode form."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).strip().casefold())


def few(names: Sequence[str], count: int = 10) -> str:
    """The first names, and how many there are in all."""
    return ", ".join(names[:count]) + (f", … {len(names)} in all" if len(names) > count else "")


def _labels_by(key: Callable[[str], str], names: Sequence[str]) -> dict[str, list[int]]:
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(key(name), []).append(label)
    return labels
