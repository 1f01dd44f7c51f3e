"""What resdet does on a GPU: one command, no network, and a table whenever it is stopped.

    python benchmarks/gpu.py [--seconds 470] [--steps machine,train,…] [--output gpu] [--device cpu --size 128 160]

The steps of `gpu_steps.py` run in order of worth, each in a process of its own with its own limit, and every number is on the
disk as soon as it is known: `results.jsonl`, and after each step `gpu.md` and `gpu.json`. A step that fails, or that the time
does not allow, is listed with the reason. Needs torch, torchvision, triton and what `pip install -e .` brings; a machine
without a network gets that as wheels, which `gpu_wheels.py` collects.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# A step and its limit in seconds. What has to compile comes behind what tells whether that is worth it.
STEPS = {
    "machine": 30, "train": 75, "kernels": 45, "tests": 70, "train_torchvision": 50, "predict": 45, "predict_torchvision": 40,
    "profile": 40, "compile_predict": 100, "compile_train": 150, "graphs_train": 120, "train_detectron2": 40, "loader": 40,
    "evaluation": 60, "two_processes": 40, "shapes": 120,
}  # fmt: skip
SPARE = 15  # seconds below which no step is started
RESULTS = "results.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=470)
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--output", type=Path, default=Path("gpu"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--config", default="configs/maskrcnn_r50.yaml")
    args = parser.parse_args()
    steps = args.steps.split(",")
    if unknown := [name for name in steps if name not in STEPS]:
        parser.error(f"--steps: {', '.join(unknown)} is none of {', '.join(STEPS)}")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / RESULTS).unlink(missing_ok=True)
    began = time.monotonic()
    for name in steps:
        left = args.seconds - (time.monotonic() - began)
        limit = STEPS[name] if args.device == "cuda" else left
        ended = run(name, min(limit, left), args) if left > SPARE else {"skipped": "no time left"}
        with (args.output / RESULTS).open("a") as file:
            file.write(json.dumps({"step": name, **ended}) + "\n")
        rows = [json.loads(line) for line in (args.output / RESULTS).read_text().splitlines()]
        (args.output / "gpu.json").write_text(json.dumps(rows, indent=1))
        (args.output / "gpu.md").write_text(table(rows))
    print(table(rows))


def run(name: str, seconds: float, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a step in a session of its own, so that at its limit its children end with it. -> how it ended."""
    script = Path(__file__).with_name("gpu_steps.py")
    results = (args.output / RESULTS).resolve()
    command = [sys.executable, "-W", "ignore", script, name, results, args.device, args.config, *map(str, args.size)]
    began = time.monotonic()
    log = args.output / "log.txt"
    with log.open("a") as file:
        file.write(f"===== {name}\n")
        file.flush()
        start = file.tell()
        with subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True) as process:
            try:
                code: int | str = process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = f"stopped at its limit of {seconds:.0f} s"
    found: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    if code:
        lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
        found["failed"] = f"{code}: {lines[-1][:300] if lines else 'no output'}" if isinstance(code, int) else code
    print(name, found, flush=True)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown: the numbers of each step, then how the steps ended."""
    lines = ["| what | ms | images/s | peak MiB | more |", "|---|---|---|---|---|"]
    keys = ("what", "ms", "images_s", "MiB", "more")
    lines += ["| " + " | ".join(str(row.get(key, "")) for key in keys) + " |" for row in rows if "what" in row]
    lines += ["", "| step | seconds | ended |", "|---|---|---|"]
    for row in rows:
        if "step" in row:
            ended = row.get("failed") or row.get("skipped") or "done"
            lines.append(f"| {row['step']} | {row.get('seconds', '')} | {ended.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
