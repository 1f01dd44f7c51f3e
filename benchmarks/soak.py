"""Kill a training again and again with SIGKILL, at random moments, and compare what it becomes with one left in peace.

    python benchmarks/soak.py [KILLS [OUTPUT [SEED]]]

Both runs must end with the same weights and optimiser, bit for bit, and the same metrics.jsonl but for times. The moments
are drawn over the whole life of a process: while it starts, steps, evaluates, writes a checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import resdet
from resdet.checkpoints.checkpoint import checksum, read_checkpoint
from resdet.config import Config

TIMES = ("images_per_s", "data_wait")  # of a line in metrics.jsonl: what differs from run to run


def config(output: Path, iterations: int) -> Config:
    values = [
        f"data.root={output / 'shapes'}", "data.synthetic={num_train: 24, num_val: 6, size: 96}", "data.min_size=96",
        "data.workers=1", "model.fpn.channels=16", "model.mask={num_convs: 1, width: 16}", "model.box.width=32",
        "model.box.samples=16", "model.rpn={pre_nms_train: 100, post_nms_train: 50, pre_nms_predict: 50, post_nms_predict: 20}",
        f"train.max_iters={iterations}", "train.batch_size=2", "train.eval_every=20", "train.checkpoint_every=3",
        "train.log_every=1", "train.ema_decay=0.9", "train.val_loss=false", "train.warmup_iters=5", "device=cpu",
    ]  # fmt: skip
    return resdet.load_config("configs/quickstart.yaml", values)


def start(config: Config, log: Path) -> int:
    """A process of its own that trains, or goes on. -> its id. Forked, so that it need not import PyTorch again."""
    child = os.fork()
    if child:
        return child
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.setsid()  # so that its loader's workers die with it
    code = 1
    try:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        code = 0 if resdet.train(config, resume=True).finished else 75
    finally:
        os._exit(code)


def wait_for_progress(log: Path, chance: random.Random) -> None:
    """Until a moment to kill: one in four while it still starts, otherwise some steps after it has gone on."""
    if chance.random() < 0.25:
        time.sleep(2 * chance.random())
        return
    before, wanted = written(log), chance.randint(1, 8)
    deadline = time.monotonic() + 60
    while written(log) < before + wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3 * chance.random())


def written(log: Path) -> int:
    """The last iteration that the log tells of."""
    try:
        return max(json.loads(line)["iteration"] for line in log.read_text().splitlines())
    except (OSError, ValueError, KeyError):  # not there yet, or being written
        return 0


def lines(output: Path) -> list[dict[str, object]]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def new(folder: Path) -> None:
    """Make a folder for results; nothing that is there is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        sys.exit(f"{folder} is not empty: remove it, or name another OUTPUT")


def main(kills: int, folder: Path, seed: int) -> int:
    new(folder)
    iterations = 12 * kills
    chance = random.Random(seed)
    undisturbed = config(folder, iterations)
    undisturbed.output = folder / "undisturbed"
    _, status = os.waitpid(start(undisturbed, folder / "undisturbed.log"), 0)
    if status:
        print((folder / "undisturbed.log").read_text())
        return 1
    killed = config(folder, iterations)
    killed.output = folder / "killed"
    done = 0
    while True:
        child = start(killed, folder / "killed.log")
        if done == kills:
            _, status = os.waitpid(child, 0)
            break
        wait_for_progress(killed.output / "metrics.jsonl", chance)
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            break
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += 1
        print(f"kill {done}: at iteration {written(killed.output / 'metrics.jsonl')} of {iterations}", flush=True)
    if status:
        print((folder / "killed.log").read_text()[-3000:])
        return 1
    one, two = (read_checkpoint(f / "checkpoints/last.pt") for f in (undisturbed.output, killed.output))
    one.config = two.config = ""  # names another folder
    weights, metrics = checksum(vars(one)) == checksum(vars(two)), lines(undisturbed.output) == lines(killed.output)
    print(
        f"{done} kills over {iterations} iterations: weights, averages and optimiser "
        f"{'identical' if weights else 'DIFFERENT'}, metrics.jsonl {'identical' if metrics else 'DIFFERENT'}; "
        f"{(folder / 'killed.log').read_text().count('skipped: ')} truncated checkpoints skipped"
    )
    return 0 if weights and metrics else 1


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    sys.exit(main(int(given.get(1, 100)), Path(given.get(2, "outputs/soak")), int(given.get(3, 0))))
