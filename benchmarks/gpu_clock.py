"""Where the steps of `gpu.py` write their numbers, and how they time."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Clock:
    """results: the file that every number is appended to. On a CPU the steps are only tried out: once each, at small sizes."""

    def __init__(self, results: Path, device: str, size: tuple[int, int]) -> None:
        self.results, self.device, self.size = results, torch.device(device), size
        self.cuda = self.device.type == "cuda"
        if self.cuda and not torch.cuda.is_available():
            sys.exit(
                "no GPU: torch.cuda.is_available() is False; --device cpu --size 128 160 tries the steps without one"
            )

    def note(self, **values: Any) -> None:
        print(values, flush=True)
        with self.results.open("a") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def clock(
        self, what: str, run: Callable[[], object], repeats: int = 10, warm_up: int = 3, images: int = 0
    ) -> float:
        """Milliseconds of a run in steady state: on a GPU the runs are queued without waiting, with an event between them."""
        if not self.cuda:
            repeats, warm_up = 1, 1
        for _ in range(warm_up):
            run()
        more: dict[str, Any] = {}
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
            began = time.perf_counter()
            events[0].record()
            for event in events[1:]:
                run()
                event.record()
            host = (time.perf_counter() - began) * 1000 / repeats
            torch.cuda.synchronize()
            times = [a.elapsed_time(b) for a, b in itertools.pairwise(events)]
            more = {"MiB": round(torch.cuda.max_memory_allocated() / 2**20)}
        else:
            times = []
            for _ in range(repeats):
                began = time.perf_counter()
                run()
                times.append((time.perf_counter() - began) * 1000)
            host = statistics.mean(times)
        mean = statistics.mean(times)
        rate = {"images_s": round(images * 1000 / mean, 1)} if images else {}
        spread = f"median {statistics.median(times):.3f}, least {min(times):.3f}, host {host:.2f}"
        self.note(what=what, ms=round(mean, 3), **rate, **more, more=spread)
        return mean

    def random(self, *shape: int) -> Tensor:
        x = torch.randn(*shape, device=self.device, dtype=torch.bfloat16)
        return x.to(memory_format=torch.channels_last).requires_grad_()
