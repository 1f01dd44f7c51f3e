"""The results of a comparison of backbones as JSON, as a Markdown table and as a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from resdet.html import COLORS
from resdet.training.comparison import Candidate, Mode, Trial, short_label
from resdet.writing import write_text

TITLES: dict[Mode, str] = {"probe": "frozen", "finetune": "fine-tuned"}
KINDS = ("segm", "keypoints", "bbox")  # whose AP is compared: the first that is there


def metric_of(trials: Sequence[Trial]) -> str:
    """ "segm_AP" or the like, of what all detectors give."""
    there = [set(t.values["metrics"]) for t in trials if t.values]
    kind = next((kind for kind in KINDS if there and all(kind in metrics for metrics in there)), None)
    return f"{kind}_AP" if kind else ""


def ap_of(trial: Trial, metric: str) -> float:
    """In %."""
    kind, _, name = metric.partition("_")
    return 100 * float(trial.values["metrics"][kind][name])


def table(candidates: Sequence[Candidate], trials: Sequence[Trial], metric: str) -> str:
    """A row for each backbone: AP as mean ± standard deviation over seeds, speed and memory of fine-tuning."""
    modes = [mode for mode in TITLES if any(t.mode == mode for t in trials)]
    heads = ["backbone", *(f"AP, {TITLES[m]}" for m in modes), "iterations", "images/s", "backbone, M", "memory, GB"]
    rows = [heads, ["---", *("---:" for _ in heads[1:])]]
    for c in candidates:
        own = [t for t in trials if t.candidate == c]
        cells = [_spread([ap_of(t, metric) for t in own if t.mode == m and t.values]) for m in modes]
        full = [t.values for t in own if t.values and t.mode == modes[-1]] or [t.values for t in own if t.values]
        rest = ["-"] * 4
        if full:
            numbers = {
                key: statistics.mean(v[key] for v in full) for key in full[0] if isinstance(full[0][key], int | float)
            }
            rest = [
                f"{numbers['iterations']:.0f}", f"{numbers['images_per_s']:.1f}", f"{numbers['backbone_parameters'] / 1e6:.1f}",
                f"{numbers['memory_gb']:.2f}",
            ]  # fmt: skip
        rows.append([f"`{short_label(c)}`", *cells, *rest])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    failed = [
        f"- `{short_label(t.candidate)}`, {TITLES[t.mode]}, seed {t.seed}: {t.problem}" for t in trials if t.problem
    ]
    if failed:
        lines += ["", "Failed:", *failed]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f} ({len(values)})" if len(values) > 1 else mean


def write_report(output: Path, title: str, candidates: Sequence[Candidate], trials: Sequence[Trial]) -> str:
    """results.json, results.md and, with matplotlib, results.png -> the table."""
    metric = metric_of(trials)
    text = table(candidates, trials, metric)
    found: list[dict[str, Any]] = [
        {
            "backbone": t.candidate.name, "weights": t.candidate.weights, "label": t.candidate.label, "mode": t.mode,
            "seed": t.seed, "problem": t.problem, **t.values,
        }
        for t in trials
    ]  # fmt: skip
    write_text(
        output / "results.json", json.dumps({"title": title, "metric": metric, "trials": found}, indent=1) + "\n"
    )
    write_text(output / "results.md", f"# {title}\n\n{metric}, mean ± standard deviation (seeds)\n\n{text}")
    if find_spec("matplotlib") and metric:
        plot(output / "results.png", title, candidates, trials, metric)
    return text


def plot(path: Path, title: str, candidates: Sequence[Candidate], trials: Sequence[Trial], metric: str) -> None:
    """A line for each backbone with a point for each seed, and a bar at the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.2 + 0.6 * len(candidates)), layout="constrained")
    axes = figure.add_subplot()
    colors = {"finetune": COLORS[0], "probe": COLORS[1]}
    for mode, shift in (("probe", 0.12), ("finetune", -0.12)):
        for row, c in enumerate(candidates):
            values = [ap_of(t, metric) for t in trials if t.candidate == c and t.mode == mode and t.values]
            height = [len(candidates) - 1 - row + shift] * len(values)
            axes.plot(values, height, "o", color=colors[mode], alpha=0.8, ms=5)
            if values:
                axes.plot([statistics.mean(values)], height[:1], "|", color=colors[mode], ms=16, mew=2)
        if any(t.mode == mode for t in trials):
            axes.plot([], [], "o", color=colors[mode], label=TITLES[mode])  # type: ignore[index]
    most = max(ap_of(t, metric) for t in trials if t.values) or 1
    axes.set_yticks(range(len(candidates)), [short_label(c).replace("@", "\n@") for c in reversed(candidates)])
    axes.set(xlabel=f"{metric}, %", xlim=(0, 1.1 * most), ylim=(-0.6, len(candidates) - 0.4), title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="best", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
