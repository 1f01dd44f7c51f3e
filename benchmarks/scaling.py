"""How much of a second process's work arrives: images/s of one process, and of two that share a batch twice as large.

    python benchmarks/scaling.py [ITERATIONS [OUTPUT]]

Each process has one thread. What is lost goes to averaging the gradients (gloo here), to waiting for the slower of the two,
and to what the two cores share: memory, caches and clock.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from soak import new

ROOT = Path(__file__).parents[1]


def images_per_second(processes: int, iterations: int, folder: Path) -> float:
    command = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone",
        str(ROOT / "tools/train.py"), "configs/quickstart.yaml", "--output", str(folder / f"of{processes}"),
        f"data.root={folder / 'shapes'}", f"train.max_iters={iterations}", f"train.batch_size={4 * processes}",
        "train.eval_every=0", "train.log_every=1", "train.checkpoint_every=1000000", "data.workers=0", "device=cpu",
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (folder / f"of{processes}" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(r["images_per_s"] for r in records[iterations // 4 :] if "images_per_s" in r)


def main(iterations: int, folder: Path) -> None:
    new(folder)
    one, two = (images_per_second(n, iterations, folder) for n in (1, 2))
    print(f"images/s: {one:.2f} with one process, {two:.2f} with two: efficiency {two / (2 * one):.2f}")


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    main(int(given.get(1, 40)), Path(given.get(2, "outputs/scaling")))
