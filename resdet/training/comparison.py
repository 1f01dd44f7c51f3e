"""The same detector on several backbones at an equal budget: a process and a result.json for each training.

    python -m resdet.training.comparison CONFIG FOLDER MINUTES MODE key.sub=value …

trains one (`MINUTES` 0: `train.max_iters` is the budget) and writes FOLDER/measured.json; `run_all` starts these processes.
"""

from __future__ import annotations

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from resdet.config import Config, load_config
from resdet.errors import UserError
from resdet.writing import write_text

Mode = Literal["probe", "finetune"]
RESULT, MEASURED, LOG = "result.json", "measured.json", "log.txt"
CALIBRATION = 8  # iterations that measure the speed, of which the first three do not count


class Candidate(NamedTuple):
    """A backbone and its weights. label: as the user wrote it."""

    label: str
    name: str
    weights: str


class Trial(NamedTuple):
    """One training. problem: why it failed, else "". values: of its result.json."""

    candidate: Candidate
    mode: Mode
    seed: int
    folder: Path
    values: dict[str, Any]
    problem: str = ""


def candidate(text: str) -> Candidate:
    """NAME, NAME@WEIGHTS, or a weights file whose backbone resdet recognises. Raises `UserError`."""
    from resdet.checkpoints.recognise import recognise

    name, at, weights = text.partition("@")
    if not at and Path(text).is_file():
        return Candidate(text, recognise(text).model.backbone.name, text)
    return Candidate(text, name, weights or "imagenet")


def short_label(c: Candidate) -> str:
    """The label without the folders of a file."""
    return f"{c.name}@{Path(c.weights).name}" if "/" in c.weights else c.label


def planned(candidates: Sequence[Candidate], modes: Sequence[Mode], seeds: int, output: Path) -> list[Trial]:
    """All trainings, seed by seed, so that an interrupted comparison covers all candidates. Random backbones are not probed:
    frozen, they would stay random."""
    folders = {
        c.label: output / "".join(ch if ch.isalnum() or ch in "._-" else "_" for ch in short_label(c))
        for c in candidates
    }
    if len(set(folders.values())) < len(candidates):
        raise UserError("a backbone is named twice, or two names differ only in punctuation")
    return [
        Trial(c, mode, seed, folders[c.label] / mode / f"seed{seed}", {})
        for seed in range(seeds) for mode in modes for c in candidates if not (mode == "probe" and c.weights == "none")
    ]  # fmt: skip


def base_config(config: str, overrides: Sequence[str]) -> Config:
    """The config as for pretrained weights, whatever weights it names itself."""
    return load_config(config, [*overrides, "model.backbone.weights=imagenet"])


def run_all(
    trials: Iterable[Trial], config: str, overrides: Sequence[str], minutes: float, note: Callable[[Trial], None]
) -> None:
    """Run those that have no result of the same settings yet; a failure does not end the others. note: called after each."""
    norm = base_config(config, overrides).model.backbone.norm
    for trial in trials:
        own = _overrides(trial, norm)
        settings = [given for given in overrides if given.partition("=")[0] not in {o.partition("=")[0] for o in own}]
        note(_run(trial, config, settings + own, minutes))


def _overrides(trial: Trial, norm: str) -> list[str]:
    """What distinguishes a training; of a random backbone nothing is frozen. norm: of the config."""
    c = trial.candidate
    given = [
        f"model.backbone.name={c.name}",
        f"model.backbone.weights={c.weights}",
        "model.weights=null",
        f"seed={trial.seed}",
    ]
    if c.weights == "none":
        given += ["model.backbone.frozen_stages=0", f"model.backbone.norm={'bn' if norm == 'frozen_bn' else norm}"]
    return given


def _run(trial: Trial, config: str, settings: list[str], minutes: float) -> Trial:
    asked = {"config": config, "settings": settings, "minutes": minutes, "mode": trial.mode}
    result = trial.folder / RESULT
    if result.is_file():
        values = json.loads(result.read_text())
        if values["asked"] != asked:
            raise UserError(
                f"{trial.folder}: holds a training with other settings; choose another --output, or delete it"
            )
        return trial._replace(values=values)
    trial.folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "resdet.training.comparison",
        config,
        str(trial.folder),
        f"{minutes:g}",
        trial.mode,
    ]
    with (trial.folder / LOG).open("w") as log:
        # In a session of its own, so that an interruption reaches it once, from here: it keeps a checkpoint and ends.
        process = subprocess.Popen([*command, *settings], stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if code or not (trial.folder / MEASURED).is_file():
        return trial._replace(problem=_reason(trial.folder / LOG, code))
    values = json.loads((trial.folder / MEASURED).read_text()) | {"asked": asked}
    write_text(result, json.dumps(values, indent=1) + "\n")
    return trial._replace(values=values)


def _reason(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = next((k for k in reversed(range(len(lines))) if lines[k].startswith("error:")), len(lines) - 1)
    killed = f"killed by signal {-code} (9: mostly out of memory); " if code < 0 else ""
    return killed + (" ".join(lines[told : told + 3]).removeprefix("error: ") if lines else f"exit code {code}")


def train_one(config: Config, folder: Path, minutes: float, mode: Mode) -> None:
    """Train in this process, resuming, and write measured.json."""
    import torch

    from resdet.models.build import build_backbone
    from resdet.runtime.device import choose_device, peak_memory
    from resdet.training.loop import train

    if mode == "probe":
        with torch.device("meta"):
            config.model.backbone.frozen_stages = len(build_backbone(config.model).stages())
    t = config.train
    if minutes:
        t.max_iters = iterations_in(config, folder, minutes)
    t.eval_every = t.checkpoint_every = t.max_iters
    config.output = folder / "run"
    began = time.perf_counter()
    result = train(config, resume=True)
    if not result.finished:
        raise UserError("interrupted; the same command continues it")
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    speeds = [record["images_per_s"] for record in records if "images_per_s" in record]
    weights = torch.load(config.output / "checkpoints/last.pt", weights_only=True, map_location="cpu")["model"]
    numbers = {name: value.numel() for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    values = {
        "iterations": t.max_iters,
        "seconds": time.perf_counter() - began,
        "metrics": result.metrics,
        "images_per_s": statistics.median(speeds[1:] or speeds),
        "parameters": sum(numbers.values()),
        "backbone_parameters": sum(count for name, count in numbers.items() if name.startswith("backbone.")),
        "memory_gb": peak_memory(choose_device(config.device)),
    }
    write_text(folder / MEASURED, json.dumps(values, indent=1) + "\n")


def iterations_in(config: Config, folder: Path, minutes: float) -> int:
    """The number of iterations that fit, from the speed of a few; the schedule's warm-up and milestones are scaled with it."""
    from resdet.training.loop import train

    kept = folder / "iterations.txt"
    if not kept.is_file():
        trial = config.model_copy(deep=True)
        trial.output = folder / "calibration"
        shutil.rmtree(trial.output, ignore_errors=True)
        trial.train.max_iters, trial.train.log_every, trial.train.eval_every = CALIBRATION, 1, 0
        trial.train.checkpoint_every = CALIBRATION
        train(trial)
        lines = (trial.output / "metrics.jsonl").read_text().splitlines()
        speeds = [json.loads(line)["images_per_s"] for line in lines][3:]
        write_text(kept, f"{max(1, round(60 * minutes * statistics.median(speeds) / config.train.batch_size))}\n")
        shutil.rmtree(trial.output)
    iterations = int(kept.read_text())
    share = iterations / config.train.max_iters
    config.train.warmup_iters = round(config.train.warmup_iters * share)
    config.train.milestones = [max(1, round(m * share)) for m in config.train.milestones]
    return iterations


def main(arguments: Sequence[str]) -> int:
    from resdet.runtime.device import tune_process

    file, folder, minutes, mode, *overrides = arguments
    try:
        config = load_config(file, overrides)
        tune_process(config.device)
        train_one(config, Path(folder), float(minutes), "probe" if mode == "probe" else "finetune")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
