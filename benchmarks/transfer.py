"""Does it pay to start from pretrained residual weights? Two trainings of equal budget, two curves in one picture.

    pip install 'resdet[plots]' && python benchmarks/transfer.py [OUTPUT]

The pretraining task and the target task are halves of the generated dataset with other pictures and other classes: disks
and triangles first, boxes and stars then. Only the backbone's weights go from one to the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import resdet
from resdet.config import SyntheticConfig
from resdet.data.shapes import ensure_shapes

PRETRAINING, TARGET = ("disk", "triangle"), ("box", "star")
ITERATIONS, EVERY = 120, 20


def only(root: Path, classes: tuple[str, ...]) -> Path:
    """Leave the objects of these classes in a dataset's annotations."""
    for file in (root / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        content["categories"] = [c for c in content["categories"] if c["name"] in classes]
        kept = {c["id"] for c in content["categories"]}
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in kept]
        file.write_text(json.dumps(content))
    return root


def dataset(root: Path, classes: tuple[str, ...], count: int, seed: int) -> Path:
    ensure_shapes(root, SyntheticConfig(num_train=count, num_val=100, size=128, seed=seed))
    return only(root, classes)


def run(root: Path, output: Path, iterations: int, weights: str, *more: str) -> dict[int, float]:
    """-> {iteration: box AP}"""
    overrides = [
        f"data.root={root}", "data.synthetic=null", "model.num_classes=2", f"model.backbone.weights={weights}",
        "model.backbone.frozen_stages=0", f"train.max_iters={iterations}", f"train.checkpoint_every={iterations}", *more,
    ]  # fmt: skip
    config = resdet.load_config("configs/quickstart.yaml", overrides)
    config.output = output
    resdet.train(config)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["iteration"]: line["bbox_AP"] for line in lines if "bbox_AP" in line}


def main(output: Path) -> None:
    from matplotlib.figure import Figure

    first = dataset(output / "first", PRETRAINING, 600, seed=1)
    second = dataset(output / "second", TARGET, 120, seed=2)
    run(first, output / "pretraining", 300, "none", "train.eval_every=0")
    weights = output / "pretraining/checkpoints/last.pt"
    curves = {
        "from the pretrained backbone": run(
            second, output / "pretrained", ITERATIONS, str(weights), f"train.eval_every={EVERY}"
        ),
        "from scratch": run(second, output / "scratch", ITERATIONS, "none", f"train.eval_every={EVERY}"),
    }
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, curve), color in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
        axes.plot(list(curve), [100 * ap for ap in curve.values()], marker="o", color=color)
        last = max(curve)
        axes.annotate(f"  {name}", (last, 100 * curve[last]), color=color, va="center")
        print(f"{name}: " + "  ".join(f"{i}: {100 * ap:.1f}" for i, ap in curve.items()))
    axes.set(
        xlabel="iteration", ylabel="box AP on 100 held-out pictures, %", xlim=(0, 1.55 * ITERATIONS), ylim=(0, None)
    )
    axes.set_xticks(range(0, ITERATIONS + 1, EVERY))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("120 training pictures of two new classes, ResNet-18, equal budget")
    figure.savefig(output / "transfer.png", dpi=150)
    print(f"written: {output / 'transfer.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/transfer"))
