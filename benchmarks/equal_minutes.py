"""Detectors side by side at an equal cost: each config is trained for so many minutes of processor time.

    python benchmarks/equal_minutes.py MINUTES CONFIG CONFIG [CONFIG …] [KEY=VALUE …]

A probe of each config measures what an iteration costs; its `train.max_iters` is then what fits into the minutes, and its
warm-up and learning-rate schedule are stretched to that length. The clock is that of the training process (all its threads;
the loader's workers are not counted), so that other work on the machine does not decide. One evaluation at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import resdet
from resdet.config import Config
from resdet.training.loop import Result

PROBE = (10, 40)  # iterations: what start and end of a run cost is in both and drops out


def run(config: Config, iterations: int, output: Path, evaluate: bool) -> tuple[float, Result]:
    """Trains a copy of the config; returns the seconds of processor time and the result."""
    config = config.model_copy(deep=True)
    t = config.train
    share = iterations / t.max_iters
    t.warmup_iters = round(t.warmup_iters * share)
    if t.schedule != "cosine":
        t.milestones = [max(1, round(m * share)) for m in t.milestones]
    t.max_iters, t.checkpoint_every, t.val_loss = iterations, iterations, False
    t.eval_every = iterations if evaluate else 0
    config.output = output
    began = time.process_time()
    result = resdet.train(config)
    return time.process_time() - began, result


def main(minutes: float, files: list[str], overrides: list[str]) -> None:
    configs = {file: resdet.load_config(file, overrides) for file in files}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (file, config) in enumerate(configs.items()):
            first, second = (run(config, n, Path(folder) / f"{number}-{n}", evaluate=False)[0] for n in PROBE)
            each = (second - first) / (PROBE[1] - PROBE[0])
            iterations = max(round(60 * minutes / each), 1)
            seconds, result = run(config, iterations, Path(folder) / f"{number}", evaluate=True)
            found = result.metrics["bbox"]
            scores = [
                f"{100 * value:.1f}" if (value := found.get(key)) is not None else "-" for key in ("AP", "AP50", "AP75")
            ]
            rows.append(f"| {Path(file).stem} | {iterations} | {seconds / 60:.1f} | {' | '.join(scores)} |")
            print(rows[-1], flush=True)
    print("\n| config | iterations | minutes, evaluation included | box AP | AP50 | AP75 |\n|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minutes", type=float, metavar="MINUTES")
    parser.add_argument("arguments", nargs="+", metavar="CONFIG or KEY=VALUE")
    args = parser.parse_args()
    files = [argument for argument in args.arguments if "=" not in argument]
    try:
        main(args.minutes, files, [argument for argument in args.arguments if "=" in argument])
    except resdet.UserError as error:
        sys.exit(f"error: {error}")
