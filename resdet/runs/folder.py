"""What a run folder holds, also of a run that goes on, was killed or lacks files."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from resdet.errors import UserError
from resdet.writing import write_json

METRICS, STATUS = "metrics.jsonl", "status.json"
MAIN_METRICS = (
    "panoptic_PQ",
    "keypoints_AP",
    "segm_AP",
    "bbox_AP",
    "proposals_AR1000",
    "semantic_mIoU",
    "classes_top1",
)
SPEED = ("lr", "images_per_s", "data_wait")  # the numbers of a training line that are no losses
State = Literal["running", "stopped", "done", "failed"]
Record = dict[str, Any]  # a line of metrics.jsonl: "iteration", and numbers by name


class RunStatus:
    """`status.json`: the state of a run, for other processes. It is written rarely: when a run starts, after each evaluation,
    and when it ends, whatever the reason; a killed run is recognised by its process being gone."""

    def __init__(self, folder: Path, total: int, best_metric: str | None = None) -> None:
        self.path, self.began = folder / STATUS, time.time()
        earlier = read_json_object(self.path) or {}
        self.before = float(earlier.get("seconds") or 0)
        if earlier.get("state") == "running":  # killed: its lines tell until when it ran
            self.before += max(0.0, last_sign(folder) - float(earlier.get("began") or 0) - self.before)
        self.content: dict[str, Any] = {
            "state": "running", "iteration": 0, "total": total, "best_metric": best_metric, "pid": os.getpid(),
            "host": socket.gethostname(), "began": self.began - self.before, "seconds": self.before,
        }  # fmt: skip

    def write(self, iteration: int, state: State = "running", reason: str = "") -> None:
        """Raises `UserError` if the file cannot be written."""
        seconds = self.before + time.time() - self.began
        self.content |= {"state": state, "iteration": iteration, "seconds": round(seconds, 1), "reason": reason}
        write_json(self.path, self.content, indent=2)


@dataclass(frozen=True)
class RunFolder:
    """A run as far as its folder tells.

    records: the lines of metrics.jsonl in order. settings, resolved: config.yaml and resolved.yaml, flat: {"train.lr": 0.02}.
    seconds: of training, all starts together; None where nothing tells. problems: what is missing or damaged, a sentence each.
    """

    path: Path
    state: str
    reason: str
    iteration: int
    total: int | None
    seconds: float | None
    best_metric: str | None
    records: list[Record]
    settings: dict[str, Any]
    resolved: dict[str, Any]
    problems: list[str]

    @property
    def best(self) -> tuple[float, int] | None:
        """The best value of `best_metric` and its iteration."""
        return best_of(self.records, self.best_metric)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """The iterations and values of a number."""
        points = [(r["iteration"], r[name]) for r in self.records if isinstance(r.get(name), int | float)]
        return [x for x, _ in points], [y for _, y in points]

    def names(self) -> list[str]:
        """The names of all numbers, in order of appearance."""
        return list(dict.fromkeys(name for r in self.records for name, v in r.items() if isinstance(v, int | float)))


def best_of(records: list[Record], metric: str | None) -> tuple[float, int] | None:
    found = [(r[metric], -r["iteration"]) for r in records if metric and isinstance(r.get(metric), int | float)]
    value, iteration = max(found, default=(None, 0))
    return None if value is None else (value, -iteration)


def read_run(path: Path) -> RunFolder:
    """Read a run folder. Raises `UserError` if it is not one."""
    if not is_run(path):
        what = (
            "is not a folder" if not path.is_dir() else f"is not a run folder: it has neither {METRICS} nor config.yaml"
        )
        raise UserError(f"{path}: {what}")
    problems: list[str] = []
    records, torn = read_records(path / METRICS)
    if torn:
        problems.append(f"{METRICS}: {torn} incomplete line{'s' * (torn > 1)} left out")
    if not records:
        problems.append(f"{METRICS} has no lines yet" if (path / METRICS).exists() else f"{METRICS} is missing")
    settings, resolved = (_read_config(path / name, problems) for name in ("config.yaml", "resolved.yaml"))
    status = read_json_object(path / STATUS)
    if status is None:
        problems.append(f"{STATUS} is {'damaged' if (path / STATUS).exists() else 'missing'}: the state is a guess")
    total = resolved.get("train.max_iters", settings.get("train.max_iters", (status or {}).get("total")))
    iteration = max((r["iteration"] for r in records), default=0)
    state, reason = _state(status, iteration, total)
    began, seconds = (_number((status or {}).get(key)) for key in ("began", "seconds"))
    if status and status.get("state") == "running" and began is not None:
        seconds = max(seconds or 0.0, (time.time() if state == "running" else last_sign(path)) - began)
    named = (status or {}).get("best_metric")
    measured = next((name for name in MAIN_METRICS if any(r.get(name) is not None for r in records)), None)
    best_metric = named if isinstance(named, str) else measured
    return RunFolder(
        path, state, reason, iteration, total if isinstance(total, int) else None, seconds, best_metric, records, settings,
        resolved, problems,
    )  # fmt: skip


def is_run(path: Path) -> bool:
    return (path / METRICS).is_file() or ((path / "config.yaml").is_file() and (path / "resolved.yaml").is_file())


def read_records(path: Path) -> tuple[list[Record], int]:
    """The whole lines of metrics.jsonl, and how many were not, such as the torn last one of a killed run."""
    records: list[Record] = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [], 0
    for line in lines:
        try:
            record = json.loads(line)
            if isinstance(record["iteration"], int):
                records.append(record)
        except (ValueError, KeyError, TypeError):
            pass
    return records, len(lines) - len(records)


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def last_sign(folder: Path) -> float:
    """When the run last wrote a line, in seconds since 1970; 0 if it never did."""
    try:
        return (folder / METRICS).stat().st_mtime
    except OSError:
        return 0.0


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}"""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _state(status: dict[str, Any] | None, iteration: int, total: Any) -> tuple[str, str]:
    """How a run stands, and why."""
    state, reason = str((status or {}).get("state")), str((status or {}).get("reason") or "")
    if state in ("stopped", "done", "failed"):
        return state, reason
    if status and state == "running":
        if status.get("host") != socket.gethostname():
            return "running", f"on {status.get('host')}, if it still runs"
        return (
            ("running", "")
            if _alive(status.get("pid"))
            else ("failed", "its process is gone: killed, or out of memory")
        )
    return ("done", "") if isinstance(total, int) and iteration >= total else ("stopped", "")


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path.name} {'is missing' if isinstance(error, FileNotFoundError) else 'cannot be read'}")
        return {}
    return flat(content) if isinstance(content, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
