"""The same done to every field of a structure (`Batch`, `Targets`, `Detections`, …), so that a new field is one line there.

A structure is a NamedTuple of tensors, None, other structures and plain values. All of this compiles as part of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
S = TypeVar("S", bound=tuple[Any, ...])


def replace(structure: S, **fields: Any) -> S:
    """The structure with these fields replaced; `_replace` does the same, but torch 2.11 cannot compile it."""
    names: tuple[str, ...] = structure._fields  # type: ignore[attr-defined]
    assert set(fields) <= set(names)
    values = zip(names, structure, strict=True)
    return type(structure)(*[fields.get(name, value) for name, value in values])


def map_tensors(function: Callable[[Tensor], Tensor], structure: T) -> T:
    """A tensor, or a structure with `function` of each of its tensors; all else stays as it is."""
    if isinstance(structure, Tensor):
        return function(structure)  # type: ignore[return-value]
    if isinstance(structure, tuple):
        return type(structure)(*[map_tensors(function, value) for value in structure])
    return structure


def cat(parts: Sequence[T]) -> T:
    """The parts of a batch as one: tensors joined along their first dimension; of all else, the first part's."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))  # type: ignore[arg-type, return-value]
    if isinstance(first, tuple):
        return type(first)(*[cat(values) for values in zip(*parts, strict=True)])
    return first


def chunk(structure: T, parts: int) -> list[T]:
    """The reverse of `cat`, as `torch.chunk`: equal parts, the last one smaller where the batch does not divide."""
    if isinstance(structure, Tensor):
        return list(structure.chunk(parts))  # type: ignore[arg-type]
    if isinstance(structure, tuple):
        columns = [chunk(value, parts) for value in structure]
        count = min(map(len, columns))
        return [type(structure)(*values) for values in zip(*(c[:count] for c in columns), strict=True)]
    return [structure] * parts
