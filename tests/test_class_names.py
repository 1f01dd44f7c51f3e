"""Which class of one list is which of another: nothing is folded away, nothing guessed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from resdet.class_names import find_matches, folded_name, match_classes
from resdet.errors import UserError


@pytest.mark.parametrize(
    ("names", "others", "labels"),
    [
        (["a", "A"], ["a", "A"], [0, 1]),
        (["a", "A"], ["A", "a"], [1, 0]),  # exact before folded
        (["a", "a", "b"], ["a", "a", "b"], [0, 1, 2]),  # doubled, but the same list: by position
        (["traffic_light", "Dog"], ["dog", "cat", "traffic light"], [2, 0]),
        (["cat", "Cat"], ["cat"], [0, None]),  # "cat" is taken, and nothing else is left for "Cat"
        (["cat"], ["Cat", "cat"], [1]),
        (["caf\u0065\u0301"], ["caf\u00e9"], [0]),  # composed and decomposed
        (["a-", "a"], ["a"], [None, 0]),
        (["x"], ["N/A", "x", "N/A"], [1]),  # others' doubles are nobody's trouble
        ([], ["a"], []),
    ],
)
def test_names_find_their_label(names: list[str], others: list[str], labels: list[int | None]) -> None:
    assert match_classes(names, others, "one", "other") == labels


@pytest.mark.parametrize(
    ("names", "others", "message"),
    [
        (["Cat"], ["cat", "CAT"], "'Cat' could be 'cat' or 'CAT'"),
        (["a b", "a_b"], ["A B"], "'a b' could be 'A B'"),
        (["a", "a"], ["a"], "'a' could be 'a'"),
        (["a"], ["a", "a", "b"], "'a' could be 'a' or 'a'"),
        (["cat", "Cat"], ["cat", "CAT"], "'Cat' could be 'CAT'"),
        (["a b", "A b"], ["A_b", "a_b"], "'A b' could be 'A_b' or 'a_b'"),  # not by position: the lists are not equal
    ],
)
def test_what_could_be_several_is_refused(names: list[str], others: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"names of mine cannot be matched with those of theirs(.|\n)*{message}"):
        match_classes(names, others, "mine", "theirs")


def test_matching_against_brute_force() -> None:
    """Whatever the lists: a match is the only possible one, equal names never lose to similar ones, both directions agree."""
    rng = np.random.default_rng(0)
    words = ["a", "A", "b", "B ", "b", "a b", "a_b", "A-B"]
    for _ in range(3000):
        names, others = (rng.choice(words, size=rng.integers(1, 5)).tolist() for _ in range(2))
        labels, ambiguous = find_matches(names, others)
        back, _ = find_matches(others, names)
        taken = [label for label in labels if label is not None]
        assert len(set(taken)) == len(taken)
        refused = {name for name, _ in ambiguous}
        for (i, name), (j, other) in itertools.product(enumerate(names), enumerate(others)):
            assert (labels[i] == j) == (back[j] == i)
            if names == others:
                assert labels[i] == i
            elif names.count(name) == others.count(name) == 1:
                assert others[labels[i]] == name
            elif folded_name(name) == folded_name(other):
                # Possible, so either matched as the only one of its kind, refused, or the other name is an equal one's.
                alone = [sum(folded_name(n) == folded_name(name) for n in side) == 1 for side in (names, others)]
                assert all(alone) == (labels[i] == j)
                assert labels[i] == j or name in refused or other in names
