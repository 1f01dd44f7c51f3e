"""Spoil ten thousand inputs of every kind: each must be read, or be refused with our own error that names the file.

    python benchmarks/fuzz.py [COUNT [SEED [KIND …]]]

Each kind runs in a process of its own, whose peak memory is printed; an input may take 10 seconds. What fails is printed
with the seed that makes it, and belongs into tests/test_hostile.py.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fuzzing


def run(target: str, count: int, seed: int, answer: multiprocessing.Queue) -> None:
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng and others speak to stderr from C
    ends: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as name:
        for k in range(count):
            folder = Path(name) / str(k % 50)
            folder.mkdir(exist_ok=True)
            try:
                found = fuzzing.outcome(target, random.Random(f"{seed} {target} {k}"), folder)
                ends["read" if found == "success" else "refused"] += 1
            except BaseException as error:
                ends["FAILED"] += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                failures.append(f"{k}: {type(error).__name__}: {str(error)[:150]} ({where.filename}:{where.lineno})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer.put((ends, failures, peak))


def main(count: int, seed: int, only: list[str]) -> int:
    context = multiprocessing.get_context("fork")
    total: Counter[str] = Counter()
    for target in only or fuzzing.TARGETS:
        answer = context.Queue()
        process = context.Process(target=run, args=(target, count // len(only or fuzzing.TARGETS), seed, answer))
        process.start()
        while process.is_alive() and answer.empty():
            process.join(0.2)
        if answer.empty():
            ends, failures, peak = Counter(CRASHED=1), [f"the process ended with {process.exitcode}"], float("nan")
        else:
            ends, failures, peak = answer.get()
        process.join()
        total += ends
        print(f"{target:>10}: {dict(ends)}  peak {peak:.0f} MiB", flush=True)
        for failure in failures[:20]:
            print(f"            {failure}")
    print(f"{sum(total.values())} inputs: {total['read']} read, {total['refused']} refused with our own error, "
          f"{total['FAILED'] + total['CRASHED']} failed")  # fmt: skip
    return 1 if total["FAILED"] or total["CRASHED"] else 0


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    sys.exit(main(int(given.get(1, 10_000)), int(given.get(2, 0)), sys.argv[3:]))
