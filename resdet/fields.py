"""Operations on all fields of a structure (`Batch`, `Targets`, `Detections`, …).

A structure is a NamedTuple of tensors, None, other structures and plain values. Everything here can be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
S = TypeVar("S", bound=tuple[Any, ...])


def replace(structure: S, **fields: Any) -> S:
    """The structure with some fields replaced, like `_replace`, which torch 2.11 cannot compile."""
    names: tuple[str, ...] = structure._fields  # type: ignore[attr-defined]
    assert set(fields) <= set(names)
    values = zip(names, structure, strict=True)
    return type(structure)(*[fields.get(name, value) for name, value in values])


def map_tensors(function: Callable[[Tensor], Tensor], structure: T) -> T:
    """Apply `function` to a tensor or to all tensors of a structure; other values are unchanged."""
    if isinstance(structure, Tensor):
        return function(structure)  # type: ignore[return-value]
    if isinstance(structure, tuple):
        return type(structure)(*[map_tensors(function, value) for value in structure])
    return structure


def cat(parts: Sequence[T]) -> T:
    """Concatenate the tensors of structures along their first dimension; other values are the first structure's."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))  # type: ignore[arg-type, return-value]
    if isinstance(first, tuple):
        return type(first)(*[cat(values) for values in zip(*parts, strict=True)])
    return first


def chunk(structure: T, parts: int) -> list[T]:
    """The inverse of `cat`, like `torch.chunk`: equal parts, the last one possibly smaller."""
    if isinstance(structure, Tensor):
        return list(structure.chunk(parts))  # type: ignore[arg-type]
    if isinstance(structure, tuple):
        columns = [chunk(value, parts) for value in structure]
        count = min(map(len, columns))
        return [type(structure)(*values) for values in zip(*(c[:count] for c in columns), strict=True)]
    return [structure] * parts
