"""`curves.png`: losses, learning rate, AP and validation losses of a run. Its own process, so that training never waits:

python -m resdet.runs.curves RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

from resdet.html import COLORS
from resdet.runs.folder import SPEED, RunFolder, read_run
from resdet.writing import atomic_write

KINDS = ("bbox", "segm", "keypoints", "proposals", "semantic", "panoptic", "classes")
SHOWN = ("AP", "AP50", "AP75", "AR1000", "mIoU", "PQ", "top1", "top5")  # the metrics that are drawn


def panels_of(run: RunFolder) -> dict[str, list[str]]:
    """The names of the numbers in each panel, those without one left out."""
    names = [name for name in run.names() if name != "iteration"]
    metrics = [name for name in names if name.partition("_")[0] in KINDS and name.partition("_")[2] in SHOWN]
    measured = [name for name in names if name.partition("_")[0] in KINDS]
    val = [name for name in names if name.startswith("val_")]
    losses = [name for name in names if name not in (*measured, *val, *SPEED)]
    what = "accuracy, percent" if "classes_top1" in metrics else "AP, percent"
    panels = {what: metrics, "training losses": losses, "validation losses": val, "learning rate": ["lr"]}
    return {title: found for title, found in panels.items() if set(found) & set(names)}


def draw_curves(run: RunFolder) -> None:
    """Write `curves.png` into the run's folder. Needs matplotlib; raises `UserError` if the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = panels_of(run)
    if not panels:
        return
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 4 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{run.path.name}: iteration {run.iteration} of {run.total or '?'}", fontsize=11)
    for place, (title, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, min(2, len(panels)), place)
        for k, name in enumerate(names):
            x, y = run.series(name)
            values = [100 * v for v in y] if title.endswith("percent") else y
            axes.plot(
                x, values, label=name.removeprefix("val_"), color=COLORS[k % len(COLORS)], markersize=3,
                linestyle=("-", "--", ":")[k // len(COLORS) % 3], marker="o" if len(x) < 30 else "",
                linewidth=2.2 if name in ("loss", "val_loss") else 1.3,
            )  # fmt: skip
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("iteration", fontsize=9)
        axes.set_xlim(left=0)
        if "losses" in title and min(run.series(names[0])[1]) > 0:
            axes.set_yscale("log")
        elif title.endswith("percent"):
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axes.legend(fontsize=8, frameon=False, ncols=1 + len(names) // 8)
    with atomic_write(run.path / "curves.png") as temporary:
        FigureCanvasAgg(figure).print_png(temporary)


if __name__ == "__main__":
    draw_curves(read_run(Path(sys.argv[1])))
