"""Device, precision, compilation, and settings of the process."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch import Tensor

from resdet.errors import UserError
from resdet.fields import map_tensors

T = TypeVar("T")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """ "auto": CUDA if available, else the CPU. Under `torchrun` each process gets its own GPU.

    Raises `UserError` if the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: {name!r} is not a device; use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device: {name} requested, but {torch.cuda.device_count()} CUDA device(s) found; use device=cpu"
        )
    return device


def peak_memory(device: torch.device) -> float:
    """The most memory held so far, in GB (1e9 bytes): on the device if it has its own, else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def tune_process(device: str) -> None:
    """Process-wide settings, for commands only: a library must not change OpenCV and malloc for its host.

    device: as in the config. Loader workers provide the parallelism, so OpenCV gets no threads.
    """
    cv2.setNumThreads(0)
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        keep_memory()


@functools.cache
def keep_memory() -> None:
    """Make glibc's malloc keep freed memory, for the whole process; only commands may call this.

    A training step on the CPU allocates the same gigabytes over and over; returning them to the system costs page faults.
    Does nothing with another allocator, or if a MALLOC_* variable is set.
    """
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
    """`torch.compile` in its default mode (True) or another ("reduce-overhead" uses CUDA graphs); unchanged if False."""
    return torch.compile(function, mode=None if how is True else how, **options) if how else function


def autocast(device: torch.device, amp: str) -> AbstractContextManager[None]:
    """The context of mixed precision. amp: "off", "bf16" or "fp16"."""
    return torch.autocast(device.type, dtype=DTYPES.get(amp), enabled=amp != "off")


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that the GPU or the host is out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class AsyncHostCopy(Generic[T]):
    """A non-blocking copy of a device tensor, or of all tensors in a structure, to the host; reading it waits for the copy
    only."""

    def __init__(self, value: T) -> None:
        self._events: list[Any] = []
        self._value = map_tensors(self._copy, value)

    def _copy(self, tensor: Tensor) -> Tensor:
        if not tensor.is_cuda:
            return tensor
        host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
        self._events.append(torch.cuda.current_stream(tensor.device).record_event())
        return host

    def value(self) -> T:
        """The copy, once it has arrived."""
        for event in self._events:
            event.synchronize()
        return self._value
