"""Where to run, and in which precision."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from resdet.errors import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """ "auto": CUDA when there, else the CPU. Under `torchrun` each process has a GPU of its own.

    Raises `UserError` for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is no device; use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device: {name} asked for, but {torch.cuda.device_count()} CUDA device(s) found; use device=cpu"
        )
    return device


@functools.cache
def keep_memory() -> None:
    """Have glibc's malloc keep what is freed, for this process: a step on a CPU allocates the same gigabytes again and
    again, and giving them back each time costs page faults. Elsewhere, and where MALLOC_* is set by hand, does nothing."""
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)


def compiled(function: Callable[..., Any], how: bool | str, **options: Any) -> Any:
    """`torch.compile` by its default (True) or in a mode of its; "reduce-overhead" replays CUDA graphs. False: as it is."""
    return torch.compile(function, mode=None if how is True else how, **options) if how else function


def autocast(device: torch.device, amp: str) -> AbstractContextManager[None]:
    """Mixed precision: "off", "bf16" or "fp16"."""
    return torch.autocast(device.type, dtype=DTYPES.get(amp), enabled=amp != "off")
