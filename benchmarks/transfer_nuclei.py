"""ImageNet weights against none on real pictures, and how much of them to train: box AP on nuclei over iterations.

    pip install 'resdet[plots]' && python benchmarks/transfer_nuclei.py NUCLEI WEIGHTS [OUTPUT [SEED …]]

NUCLEI holds images/ and labels/ (configs/examples/nuclei.yaml); about a quarter is held out. WEIGHTS is a ResNet-18 in any
tool's names. Equal data, order, budget and rates for all runs. What OUTPUT has is not computed again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import resdet

COLORS = {"ImageNet weights": "#0072B2", "from scratch": "#D55E00"}


def run(root: Path, output: Path, *overrides: str) -> dict[str, float]:
    """-> {iteration: box AP in percent}"""
    file = output / "curve.json"
    if not file.exists():
        config = resdet.load_config(
            "configs/examples/nuclei.yaml", [f"data.root={root}", "train.val_loss=false", *overrides]
        )
        config.output = output
        resdet.train(config)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        file.write_text(json.dumps({line["iteration"]: 100 * line["bbox_AP"] for line in lines if "bbox_AP" in line}))
    curve: dict[str, float] = json.loads(file.read_text())
    print(f"{output.name}: " + "  ".join(f"{i}: {ap:.1f}" for i, ap in curve.items()), flush=True)
    return curve


def main(root: Path, weights: Path, output: Path, seeds: list[int]) -> None:
    pretrained = f"model.backbone.weights={weights}"
    curves: dict[str, list[dict[str, float]]] = {name: [] for name in COLORS}
    for seed in seeds:
        curves["ImageNet weights"].append(run(root, output / f"pretrained-{seed}", pretrained, f"seed={seed}"))
        curves["from scratch"].append(run(root, output / f"scratch-{seed}", f"seed={seed}"))
    for stages in (0, 1, 3, 4):  # 2 is the default
        run(root, output / f"frozen-{stages}", pretrained, f"model.backbone.frozen_stages={stages}")
    for factor in (0.3, 3.0):
        run(root, output / f"head-rate-{factor}", pretrained, f"train.head_lr={factor}")
    draw(curves, output / "transfer_nuclei.png")


def draw(curves: dict[str, list[dict[str, float]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, of_seeds in curves.items():
        for curve in of_seeds:
            axes.plot([int(i) for i in curve], list(curve.values()), color=COLORS[name], marker="o", markersize=4)
        last = max(map(int, of_seeds[0]))
        place = sum(curve[str(last)] for curve in of_seeds) / len(of_seeds)
        axes.annotate(f"  {name}", (last, place), color=COLORS[name], va="center")
    axes.set(xlabel="iteration", ylabel="box AP on held-out pictures, %", xlim=(0, 1.5 * last), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("nuclei, Faster R-CNN on ResNet-18, a line for each seed", fontsize=10)
    figure.savefig(file, dpi=110)
    print(f"written: {file}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    given = [Path(text) for text in sys.argv[1:4]]
    main(
        given[0],
        given[1],
        given[2] if len(given) > 2 else Path("outputs/transfer_nuclei"),
        [int(s) for s in sys.argv[4:]] or [0, 1],
    )
