"""What the modules of a model were given and returned while it predicted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

# All others would keep gigabytes of activations.
SHOWN = re.compile(
    r"backbone|fpn|rpn|head|queries|(rpn|head)\.(anchors|points)|heads\.box(\.stages\.\d+)?(\.pool)?"
    r"|decoder\.layers\.\d+\.cross_attention(\.offsets|\.weights)?|decoder\.scores\.\d+"
)


class Call(NamedTuple):
    """A call of a module: its positional inputs and its output."""

    module: nn.Module
    inputs: tuple[Any, ...]
    output: Any


Calls = dict[str, Call]  # the last call of each module that was called, by its name, in the order of the calls' ends


@contextmanager
def recorded(model: nn.Module) -> Iterator[Calls]:
    """Record the calls of the modules of a detector whose names match `SHOWN`."""
    calls: Calls = {}

    def hook(name: str) -> Any:
        return lambda module, inputs, output: calls.update({name: Call(module, inputs, output)})

    named = [(name, module) for name, module in model.named_modules() if SHOWN.fullmatch(name)]
    handles = [module.register_forward_hook(hook(name)) for name, module in named]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
