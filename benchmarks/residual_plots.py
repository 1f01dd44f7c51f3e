"""The pictures of residual.py and of docs/residual.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = {"residual": "#0072B2", "plain": "#D55E00"}


def _figure(columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.4 * columns, 3.4 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
    return figure, axes


def draw_depth(found: dict[str, Any], file: Path) -> None:
    """Left: error after training by depth, a point for each seed. Right: training error over steps, seed 0."""
    figure, (left, right) = _figure(2)
    runs = found["runs"]
    for kind, color in COLORS.items():
        for column, style, name in ((2, "--", "training"), (3, "-", "test")):
            depths = sorted({run["depth"] for run in runs})
            errors = [
                [run["rows"][-1][column] for run in runs if (run["kind"], run["depth"]) == (kind, d)] for d in depths
            ]
            left.plot(depths, [sum(e) / len(e) for e in errors], style, color=color, label=f"{kind}, {name}")
            for depth, values in zip(depths, errors, strict=True):
                left.plot([depth] * len(values), values, ".", color=color, alpha=0.5)
        for run in runs:
            if run["kind"] == kind and run["seed"] == 0 and run["depth"] in (min(depths), max(depths)):
                deep = run["depth"] == max(depths)
                steps, errors_then = [row[0] for row in run["rows"]], [row[2] for row in run["rows"]]
                right.plot(steps, errors_then, "-" if deep else ":", color=color, label=f"{kind} {run['depth']}")
    left.set(xlabel="layers", ylabel="error after training, %", xticks=depths, ylim=(0, None))
    right.set(xlabel="step", ylabel="training error, %", ylim=(0, None))
    for ax in (left, right):
        ax.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=100)


def draw_gradients(found: dict[str, Any], file: Path) -> None:
    figure, axes = _figure(2, 2)
    for row, norm in enumerate(("bn", "none")):
        for column, when in enumerate(("before", "after")):
            ax = axes[2 * row + column]
            for net in found["networks"]:
                if net["norm"] == norm:
                    ax.semilogy(range(1, len(net[when]) + 1), net[when], color=COLORS[net["kind"]], label=net["kind"])
            norms, state = "with" if norm == "bn" else "without", "at initialisation" if when == "before" else "trained"
            title = f"{norms} batch norm, {state}"
            ax.set_title(title, fontsize=10)
            ax.set(xlabel="layer", ylabel="gradient norm")
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=100)


def draw_responses(found: dict[str, Any], file: Path) -> None:
    """Left: by layer. Right: by block, as a share of the block's input."""
    figure, axes = _figure(2)
    for net, style in zip(found["networks"], ("--", "--", "-"), strict=True):
        for ax, key in zip(axes, ("responses", "shares"), strict=True):
            values = net[key]
            place = [k / (len(values) - 1) for k in range(len(values))]
            ax.plot(place, values, style, color=COLORS[net["kind"]], label=f"{net['kind']} {net['depth']}")
    axes[0].set(xlabel="depth of the layer, first to last", ylabel="response", ylim=(0, None))
    axes[1].set(xlabel="depth of the block, first to last", ylabel="response / the block's input", ylim=(0, None))
    axes[1].legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=100)


def draw_detector(found: dict[str, Any], file: Path) -> None:
    figure, (ax,) = _figure(1)
    for run in found["runs"]:
        steps = [step for step, _ in run["losses"]][2:-2]
        raw = [loss for _, loss in run["losses"]]
        losses = [sum(raw[k : k + 5]) / 5 for k in range(len(steps))]
        ap = run["aps"][-1][1]
        ax.plot(steps, losses, color=COLORS[run["kind"]], label=f"{run['kind']} 34, box AP {100 * ap:.1f}")
    ax.set(xlabel="iteration", ylabel="training loss, mean of 25 iterations", ylim=(0, None))
    ax.legend(fontsize=8, frameon=False)
    figure.savefig(file, dpi=100)


PLOTS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "depth": draw_depth, "gradients": draw_gradients, "responses": draw_responses, "detector": draw_detector,
}  # fmt: skip
