"""Distributed training: ranks, collectives, failures. With a single process everything is a no-op.

`torchrun` starts the processes and passes each its rank in environment variables.
"""

from __future__ import annotations

import inspect
import os
import re
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from resdet.errors import UserError
from resdet.runtime.console import console

T = TypeVar("T")
WRITER = "checkpoint"  # the name of threads that a failing process waits for before it exits
FAILED = "failed"  # the key in the store under which a failing process writes the reason


class Distributed:
    """The collectives of the training loop, in process 0 <= rank < world. The main process, rank 0, writes files and messages.

    Objects and barriers use gloo on the host, whatever backend reduces the gradients.
    """

    def __init__(self, rank: int = 0, world: int = 1, timeout: float = 600.0) -> None:
        self.rank, self.world, self.main, self.timeout = rank, world, rank == 0, timeout
        self.host: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world > 1 else None
        self._pending: tuple[Any, Tensor] | None = None

    def barrier(self, what: str) -> None:
        """Wait for all processes. After the timeout, raises a `UserError` that names the missing ranks."""
        if self.world == 1:
            return
        try:
            dist.monitored_barrier(self.host, timedelta(seconds=self.timeout), wait_all_ranks=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"rank {self.rank} timed out waiting for the other processes at {what}: {reason}") from None

    @contextmanager
    def main_first(self, what: str) -> Iterator[None]:
        """Run the block in the main process first, then in the others, which can use files that it has written."""
        if not self.main:
            self.barrier(what)
        yield
        if self.main:
            self.barrier(what)

    def broadcast(self, value: T) -> T:
        """The main process's value, in all processes."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in the main process; empty in the others."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.main else None
        dist.gather_object(value, values, dst=0, group=self.host)
        return values or []

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over processes of named scalars."""
        if self.world == 1:
            return values
        stacked = torch.stack(list(values.values()))
        dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.world, strict=True))

    def divisors(self, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean over processes of each named count, at least 1 / world; losses are their sums divided by it.

        The mean of the processes' gradients is then the gradient of the whole batch's sum divided by its count.
        """
        if self.world == 1:
            return {name: count.clamp(min=1) for name, count in counts.items()}
        stacked = torch.stack([count.to(torch.float32) for count in counts.values()])
        dist.all_reduce(stacked)
        return dict(zip(counts, stacked.clamp(min=1) / self.world, strict=True))

    def share_buffers(self, buffers: list[Tensor]) -> None:
        """Copy the main process's buffers to all, so that all evaluate the same model."""
        if self.world > 1:
            for buffer in buffers:
                dist.broadcast(buffer, src=0)

    def agree(self, request: bool) -> bool:
        """Whether any process made the request in the previous call; the delay of one step avoids waiting."""
        if self.world == 1:
            return request
        answer = self._settle()
        flag = torch.tensor(int(request))
        self._pending = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.host, async_op=True), flag
        return answer

    def _settle(self) -> bool:
        if self._pending is None:
            return False
        work, flag = self._pending
        self._pending = None
        work.wait()
        return bool(flag)

    def leave(self) -> None:
        """Complete pending communication, before the connections are closed."""
        self._settle()


@contextmanager
def joined(device: torch.device, timeout: float = 600.0) -> Iterator[Distributed]:
    """Connect to the other processes if `torchrun` started this one. timeout: seconds to wait for each other.

    If a process raises, the others end within a second or two and print the reason.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Distributed()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # or pinning memory would create a context of every process on the first GPU
    store, rank, world = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    store = PrefixStore(_name_of_start(store, rank, world, timeout), store)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=PrefixStore("group", store), rank=rank,
        world_size=world, timeout=timedelta(seconds=timeout),
    )  # fmt: skip
    quiet = console.quiet
    console.quiet = rank != 0
    processes = Distributed(rank, world, timeout)
    watch = _Watch(store, rank)
    watch.start()
    try:
        yield processes
        processes.leave()
    except BaseException as error:
        lost = _lost(error, rank)
        if lost is None:
            store.set(FAILED, f"rank {rank}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            raise
        raise lost from None
    finally:
        console.quiet = quiet
        watch.done.set()
        watch.join()
    dist.destroy_process_group()  # only after success: it may hang when another process is dead


def _name_of_start(store: Any, rank: int, world: int, timeout: float) -> str:
    """A key prefix shared by all processes of this start, and by none of an earlier one. Raises `UserError`.

    `torchrun` keeps one store across restarts: without a prefix, new processes would read addresses and errors of earlier
    ones. Restart counts cannot serve as prefix, since each machine has its own.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"resdet/here/{rank}", mine)
        try:
            start: str = store.get(f"resdet/welcome/{mine}").decode()
        except RuntimeError as error:
            raise UserError(
                f"rank {rank} timed out waiting for rank 0 to start: {str(error).splitlines()[0]}"
            ) from None
        store.set(f"resdet/{start}/{rank}", "")
        return f"resdet/{start}"
    missing, deadline = set(range(1, world)), time.monotonic() + timeout
    while missing:
        if time.monotonic() > deadline:
            raise UserError(f"rank 0 timed out after {timeout:g} s waiting for ranks {sorted(missing)} to start")
        for other in sorted(missing):
            if store.check([f"resdet/here/{other}"]):  # possibly of an earlier start, in which case nobody answers
                store.set(f"resdet/welcome/{store.get(f'resdet/here/{other}').decode()}", mine)
            if store.check([f"resdet/{mine}/{other}"]):
                missing.remove(other)
        time.sleep(0.02)
    return f"resdet/{mine}"


def _lost(error: BaseException, rank: int) -> UserError | None:
    """The error for the user if another process has failed; None if the error is this process's own."""
    text = str(error)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "Timed out waiting",
        "Read timeout",
    )
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(s in text for s in signs)):
        timed_out = any(sign in text for sign in ("Timed out", "timeout"))
        advice = "it, its machine or the network hangs" if timed_out else "see the message of that process"
        return UserError(f"rank {rank} lost another process ({_reason(text)}): {advice}; continue with --resume")
    return None


def _reason(text: str) -> str:
    """The first line, without the location in gloo's source code."""
    return re.sub(r"^\[\S*:\d+\] ", "", text.splitlines()[0])[:120]


class _Watch(threading.Thread):
    """Ends this process when another has failed: on CUDA, a step that waits for a dead process never returns."""

    def __init__(self, store: Any, rank: int) -> None:
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.done = store, rank, threading.Event()

    def run(self) -> None:
        while not self.done.wait(1.0):
            try:
                failed = self.store.check([FAILED])
                reason = self.store.get(FAILED).decode() if failed else ""
            except RuntimeError:  # the process that hosts the store has ended
                return
            while failed and not self.done.wait(1.0):  # give this process time to end by itself
                writers = [thread for thread in threading.enumerate() if thread.name == WRITER]
                if not writers:
                    print(f"rank {self.rank} ends because another process failed: {reason}", flush=True)
                    os._exit(1)
                writers[0].join(60)  # let it finish writing the checkpoint


def data_parallel(model: nn.Module, processes: Distributed, device: torch.device) -> nn.Module:
    """The model in DistributedDataParallel, which averages gradients over processes; unchanged for a single process.

    For losses divided by `Distributed.divisors` the average is the gradient of the whole batch.
    """
    if processes.world == 1:
        return model
    wrap = nn.parallel.DistributedDataParallel
    # Caused by the mask head's 1 x 1 kernels, whose channels_last strides are ambiguous.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Buffers are not synchronised in every step but before an evaluation (`share_buffers`); torch 2.15 renamed the option.
    renamed = "forward_sync_buffers" in inspect.signature(wrap).parameters
    no_sync: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return wrap(model, device_ids=[device.index] if device.type == "cuda" else None, **no_sync)


def restarted() -> bool:
    """Whether `torchrun --max-restarts` restarted this process after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
