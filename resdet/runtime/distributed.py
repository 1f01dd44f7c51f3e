"""One process among those of a distributed run: its rank, collectives, failures. A single process makes all of it a no-op.

`torchrun` starts the processes and gives each its rank in environment variables.
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
FAILED = "failed"  # the key under which a failing process leaves its reason to the others


class Distributed:
    """Rank 0 <= rank < world, and the collectives of the training loop. The main process, rank 0, writes files and messages.

    Objects and barriers use gloo on the host, whichever backend reduces the gradients.
    """

    def __init__(self, rank: int = 0, world: int = 1, timeout: float = 600.0) -> None:
        self.rank, self.world, self.main, self.timeout = rank, world, rank == 0, timeout
        self.host: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if world > 1 else None
        self._asked: tuple[Any, Tensor] | None = None

    def barrier(self, what: str) -> None:
        """Wait for all processes. After the timeout, raises a `UserError` that names the missing ranks."""
        if self.world == 1:
            return
        try:
            dist.monitored_barrier(self.host, timedelta(seconds=self.timeout), wait_all_ranks=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"rank {self.rank} waited for the others at {what}, in vain: {reason}") from None

    @contextmanager
    def main_first(self, what: str) -> Iterator[None]:
        """The main process goes through the block alone, then all others: it leaves files that they find."""
        if not self.main:
            self.barrier(what)
        yield
        if self.main:
            self.barrier(what)

    def broadcast(self, value: T) -> T:
        """The main process's value."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.host)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Everyone's values by rank, in the main process; empty elsewhere."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.main else None
        dist.gather_object(value, values, dst=0, group=self.host)
        return values or []

    def mean(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the same named scalars in each process."""
        if self.world == 1:
            return values
        stacked = torch.stack(list(values.values()))
        dist.all_reduce(stacked)
        return dict(zip(values, stacked / self.world, strict=True))

    def divisors(self, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """What each process divides its sums by, from its counts by name: the mean of all processes' counts, above zero.

        The mean of the processes' gradients is then the sum over the whole batch divided by the count of the whole batch.
        """
        if self.world == 1:
            return {name: count.clamp(min=1) for name, count in counts.items()}
        stacked = torch.stack([count.to(torch.float32) for count in counts.values()])
        dist.all_reduce(stacked)
        return dict(zip(counts, stacked.clamp(min=1) / self.world, strict=True))

    def share_buffers(self, buffers: list[Tensor]) -> None:
        """The main process's statistics for all, so that all evaluate the same model."""
        if self.world > 1:
            for buffer in buffers:
                dist.broadcast(buffer, src=0)

    def agree(self, wish: bool) -> bool:
        """Whether anyone wished so at the last call: asked at every step, answered a step later, so that nobody waits."""
        if self.world == 1:
            return wish
        answer = self._settle()
        flag = torch.tensor(int(wish))
        self._asked = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.host, async_op=True), flag
        return answer

    def _settle(self) -> bool:
        if self._asked is None:
            return False
        work, flag = self._asked
        self._asked = None
        work.wait()
        return bool(flag)

    def leave(self) -> None:
        """After the last step: what is still under way ends before the connections do."""
        self._settle()


@contextmanager
def joined(device: torch.device, timeout: float = 600.0) -> Iterator[Distributed]:
    """Join the processes that `torchrun` started; alone if it did not. timeout: seconds to wait for one another.

    A process that raises leaves its reason to the others, which then end too, within a second or two.
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
        told = _lost(error, rank)
        if told is None:
            store.set(FAILED, f"rank {rank}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            raise
        raise told from None
    finally:
        console.quiet = quiet
        watch.done.set()
        watch.join()
    dist.destroy_process_group()  # only after success: it may hang when another process is dead


def _name_of_start(store: Any, rank: int, world: int, timeout: float) -> str:
    """A name that all processes of this start share, and none of an earlier one. Raises `UserError`.

    `torchrun` keeps one store over its restarts: without names of their own, the new processes would find the addresses
    and last words of the dead. Restart counts do not serve, since each machine counts its own.
    """
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"resdet/here/{rank}", mine)
        try:
            start: str = store.get(f"resdet/welcome/{mine}").decode()
        except RuntimeError as error:
            raise UserError(f"rank {rank} waited for rank 0 to start, in vain: {str(error).splitlines()[0]}") from None
        store.set(f"resdet/{start}/{rank}", "")
        return f"resdet/{start}"
    missing, deadline = set(range(1, world)), time.monotonic() + timeout
    while missing:
        if time.monotonic() > deadline:
            raise UserError(f"rank 0 waited {timeout:g} s for ranks {sorted(missing)} to start, in vain")
        for other in sorted(missing):
            if store.check([f"resdet/here/{other}"]):  # perhaps by one of an earlier start, who will not answer
                store.set(f"resdet/welcome/{store.get(f'resdet/here/{other}').decode()}", mine)
            if store.check([f"resdet/{mine}/{other}"]):
                missing.remove(other)
        time.sleep(0.02)
    return f"resdet/{mine}"


def _lost(error: BaseException, rank: int) -> UserError | None:
    """What to say where the error is only that another process has gone."""
    text = str(error)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "Timed out waiting",
        "Read timeout",
    )
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(s in text for s in signs)):
        silent = any(sign in text for sign in ("Timed out", "timeout"))
        advice = "it, its machine or the network hangs" if silent else "the message of that one says why"
        return UserError(f"rank {rank} lost another process ({_reason(text)}): {advice}; continue with --resume")
    return None


def _reason(text: str) -> str:
    """The first line, without the place in gloo's sources."""
    return re.sub(r"^\[\S*:\d+\] ", "", text.splitlines()[0])[:120]


class _Watch(threading.Thread):
    """Ends this process when another has failed: a step that waits for a dead process on CUDA never returns by itself."""

    def __init__(self, store: Any, rank: int) -> None:
        super().__init__(name="watch", daemon=True)
        self.store, self.rank, self.done = store, rank, threading.Event()

    def run(self) -> None:
        while not self.done.wait(1.0):
            try:
                failed = self.store.check([FAILED])
                reason = self.store.get(FAILED).decode() if failed else ""
            except RuntimeError:  # the store went with the process that kept it
                return
            while failed and not self.done.wait(1.0):  # a moment for this process to end in its own way
                writers = [thread for thread in threading.enumerate() if thread.name == WRITER]
                if not writers:
                    print(f"rank {self.rank} ends because another process failed: {reason}", flush=True)
                    os._exit(1)
                writers[0].join(60)  # a whole checkpoint is worth the wait


def data_parallel(model: nn.Module, processes: Distributed, device: torch.device) -> nn.Module:
    """The same forward, whose backward averages the gradients of all processes.

    Losses are divided by `Distributed.divisors`, so that the mean of the gradients is that of the whole batch.
    """
    if processes.world == 1:
        return model
    wrap = nn.parallel.DistributedDataParallel
    # With `channels_last`, of the mask head's 1 x 1 kernels, whose strides can be written in two ways.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # A step leaves the buffers alone (`share_buffers` does it before an evaluation); torch 2.15 renamed the option.
    renamed = "forward_sync_buffers" in inspect.signature(wrap).parameters
    alone: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return wrap(model, device_ids=[device.index] if device.type == "cuda" else None, **alone)


def restarted() -> bool:
    """Whether `torchrun --max-restarts` started this process anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
