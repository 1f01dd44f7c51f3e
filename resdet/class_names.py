"""Matching of class names: two lists -> the label of each name in the other list.

Equal lists match by position. Otherwise equal names match, then names that differ only in case, spaces, "_", "-" or Unicode
form, if that is unambiguous. Ambiguous names are an error.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from resdet.errors import listed

OBJECT = "object"  # the only class of a proposal model


class Matches(NamedTuple):
    """labels: the label of each name in the other list, None if it has none. ambiguous: (name, candidates in the other list);
    their labels are None."""

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
        # Names with an exact match are taken.
        left = same or [k for k in other_folded.get(fold, []) if k not in taken]
        if left and len(folded[fold]) == len(other_folded[fold]) == 1:
            labels[label] = left[0]
        elif left:
            ambiguous.append((name, [others[k] for k in left]))
    return Matches(labels, ambiguous)


def match_classes(names: Sequence[str], others: Sequence[str], owner: str, other_owner: str) -> list[int | None]:
    """The labels of `find_matches`. owner, other_owner: names of the lists, for the error.

    Raises one `UserError` that lists all ambiguous names.
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
    """A class name normalised in case, spaces, underscores, hyphens and Unicode form."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).strip().casefold())


def few(names: Sequence[str], count: int = 10) -> str:
    """The first `count` names, and how many there are in all."""
    return ", ".join(names[:count]) + (f", … {len(names)} in all" if len(names) > count else "")


def _labels_by(key: Callable[[str], str], names: Sequence[str]) -> dict[str, list[int]]:
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(key(name), []).append(label)
    return labels
