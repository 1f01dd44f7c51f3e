"""Whether a long training stays as small and as fast as it began: 2,000 iterations, 20 evaluations, 166 epochs of a tiny set.

    python benchmarks/long_run.py [ITERATIONS [OUTPUT]]

Every second the resident memory of the main process and of each loader worker is read. What counts is the second tenth of
the run against the last: the first one still warms up.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

from soak import config, new, start, written

MiB = 2**20


def resident(process: int) -> float:
    """MiB."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MiB
    except (OSError, IndexError):  # it has just ended
        return 0.0


def workers(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def tenths(values: list[tuple[int, float]], iterations: int) -> tuple[float, float]:
    """Medians over the second tenth of the iterations and over the last."""
    early = [v for i, v in values if iterations // 10 <= i < iterations // 5]
    late = [v for i, v in values if i >= iterations - iterations // 10]
    return statistics.median(early), statistics.median(late)


def main(iterations: int, folder: Path) -> int:
    new(folder)
    settings = config(folder, iterations)
    settings.output = folder / "run"
    settings.train.eval_every = max(1, iterations // 20)
    settings.train.checkpoint_every = 50
    log = settings.output / "metrics.jsonl"
    child, status = start(settings, folder / "run.log"), None
    main_memory: list[tuple[int, float]] = []
    worker_memory: list[tuple[int, float]] = []
    while status is None:
        time.sleep(1.0)
        now = written(log)
        main_memory.append((now, resident(child)))
        # The longest-lived worker: those of an evaluation come and go.
        if own := workers(child):
            worker_memory.append((now, resident(min(own))))
        finished, code = os.waitpid(child, os.WNOHANG)
        status = code if finished else None
    if status:
        print((folder / "run.log").read_text()[-3000:])
        return 1
    records = [json.loads(line) for line in log.read_text().splitlines()]
    seconds = [(r["iteration"], 1 / r["images_per_s"]) for r in records if "images_per_s" in r]
    evaluations = sum("bbox_AP" in record for record in records)
    print(f"{iterations} iterations, {evaluations} evaluations; second tenth -> last tenth, medians:")
    for name, values, unit in (
        ("main process, MiB", main_memory, ".0f"), ("loader worker, MiB", worker_memory, ".0f"),
        ("seconds an image", seconds, ".4f"),
    ):  # fmt: skip
        early, late = tenths(values, iterations)
        print(f"  {name}: {early:{unit}} -> {late:{unit}} ({100 * (late / early - 1):+.1f} %)")
    return 0


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    sys.exit(main(int(given.get(1, 2000)), Path(given.get(2, "outputs/long_run"))))
