"""What shortcuts do, shown on a CPU: degradation, gradients by layer, responses by layer, a detector with and without.

    pip install 'resdet[plots]' scikit-learn && python benchmarks/residual.py [OUTPUT [PART …]]

Parts: depth (plain and residual networks of 20 to 56 layers), gradients, responses, detector (Mask R-CNN on ResNet-34 with and
without shortcuts), table (parameters and multiply-adds). Networks are those of He et al. 2015, section 4.2, on scikit-learn's
8 x 8 digits: 6n + 2 layers of 16, 32 and 64 channels, made of the blocks that resdet's detectors have. Each part writes
OUTPUT/PART.json and residual_PART.png; what is there is not computed again, only drawn. docs/residual.md says what was found.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import resdet
import residual_plots
from resdet.config import parse_config
from resdet.models.backbones.resnet import Architecture, BasicBlock, Style
from resdet.models.layers import Norm, make_norm
from resdet.structures import Batch

DEPTHS, SEEDS = (20, 32, 44, 56), (0, 1, 2)
STEPS, BATCH, EVERY = 300, 128, 30
DEEP = 56
KINDS = ("residual", "plain")


class SmallResNet(nn.Module):
    """Digits (B, 1, 8, 8) -> logits (B, 10)."""

    def __init__(self, depth: int, *, residual: bool, norm: Norm = "bn") -> None:
        super().__init__()
        style = Style(norm=norm, residual=residual)
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), make_norm(norm, 16)
        blocks, inputs = [], 16
        for width in (16, 32, 64):
            for k in range((depth - 2) // 6):
                stride = 2 if width > 16 and k == 0 else 1
                blocks.append(BasicBlock(inputs, width, stride, Architecture(False, (1, 1, 1, 1)), style))
                inputs = width
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Digits:
    """scikit-learn's 1797 digits, 500 of them for the test; training pictures are shifted by up to a pixel."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
        images = torch.tensor(found.images, dtype=torch.float32)[order, None]
        images, labels = (images - images.mean()) / images.std(), torch.tensor(found.target)[order]
        self.train, self.test = (images[500:], labels[500:]), (images[:500], labels[:500])

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.train
        padded, g = F.pad(images, (1, 1, 1, 1), value=float(images.min())), torch.Generator().manual_seed(seed)
        while True:
            for rows in torch.randperm(len(images), generator=g).split(BATCH)[:-1]:
                shifts = torch.randint(3, (len(rows), 2), generator=g).tolist()
                crops = [padded[r, :, y : y + 8, x : x + 8] for r, (y, x) in zip(rows.tolist(), shifts, strict=True)]
                yield torch.stack(crops), labels[rows]


def error(net: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    net.eval()
    with torch.no_grad():
        wrong = sum((net(x).argmax(1) != y).sum().item() for x, y in zip(*(t.split(500) for t in part), strict=True))
    net.train()
    return 100 * wrong / len(part[1])


def fit(net: nn.Module, digits: Digits, seed: int, *, lr: float = 0.1, clip: float | None = None) -> list[list[float]]:
    """SGD as in the paper; the rate rises for 20 steps and falls tenfold after half and three quarters of them.

    -> rows of step, mean training loss since the row before, training and test error in percent.
    """
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    rows, losses = [], []
    for step, (images, labels) in zip(range(1, STEPS + 1), digits.batches(seed), strict=False):
        rate = lr * min(1.0, step / 20) * 0.1 ** ((step > STEPS / 2) + (step > STEPS * 3 / 4))
        for group in sgd.param_groups:
            group["lr"] = rate
        loss = F.cross_entropy(net(images), labels)
        sgd.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        sgd.step()
        losses.append(loss.item())
        if step % EVERY == 0:
            rows.append([step, sum(losses) / len(losses), error(net, digits.train), error(net, digits.test)])
            losses = []
    return rows


def network(depth: int, residual: bool, seed: int, norm: Norm = "bn") -> SmallResNet:
    torch.manual_seed(seed)
    return SmallResNet(depth, residual=residual, norm=norm)


def depth_part(_: Path) -> dict[str, Any]:
    digits, runs = Digits(), []
    for seed in SEEDS:
        for depth in DEPTHS:
            for kind in KINDS:
                began = time.perf_counter()
                rows = fit(network(depth, kind == "residual", seed), digits, seed)
                seconds = time.perf_counter() - began
                runs.append({"depth": depth, "kind": kind, "seed": seed, "rows": rows, "seconds": seconds})
                print(
                    f"{kind} {depth} seed {seed}: error {rows[-1][2]:.1f} / {rows[-1][3]:.1f} % ({seconds:.0f} s)",
                    flush=True,
                )
    return {"runs": runs}


def gradients_of(net: SmallResNet, digits: Digits) -> list[float]:
    """The norm of the loss's gradient by the weights of each 3x3 convolution, the first layer first."""
    net.train().zero_grad()
    images, labels = digits.train
    F.cross_entropy(net(images[:256]), labels[:256]).backward()
    layers = [net.conv1, *(conv for block in net.blocks for conv in (block.conv1, block.conv2))]
    return [float(conv.weight.grad.norm()) for conv in layers]


def gradients_part(_: Path) -> dict[str, Any]:
    digits, found = Digits(), []
    for norm in ("bn", "none"):
        for kind in KINDS:
            net = network(DEEP, kind == "residual", 0, norm)
            before = gradients_of(net, digits)
            # Without norms the paper's rate diverges: a tenth of it, gradients clipped.
            rows = fit(net, digits, 0, **({} if norm == "bn" else {"lr": 0.01, "clip": 1.0}))
            found.append(
                {"norm": norm, "kind": kind, "before": before, "after": gradients_of(net, digits), "rows": rows}
            )
            print(
                f"{kind} {DEEP}, norm {norm}: gradient {before[0]:.2g} … {before[-1]:.2g}, error {rows[-1][2]:.1f} %",
                flush=True,
            )
    return {"depth": DEEP, "networks": found}


def responses_part(_: Path) -> dict[str, Any]:
    """Standard deviations of the outputs of each 3x3 layer, after batch norm and before addition and ReLU (figure 7)."""
    digits, found = Digits(), []
    for kind, depth in (("plain", 20), ("residual", 20), ("residual", DEEP)):
        net = network(depth, kind == "residual", 0)
        fit(net, digits, 0)
        responses, shares = responses_of(net, digits.train[0][:512])
        found.append({"kind": kind, "depth": depth, "responses": responses, "shares": shares})
    return {"networks": found}


def responses_of(net: SmallResNet, images: Tensor) -> tuple[list[float], list[float]]:
    """Of each layer, and of each block as a share of its input: std(F(x)) / std(x)."""
    found: list[float] = []
    inputs: list[float] = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda _module, given: inputs.append(float(given[0].std())))
        for norm in (block.bn1, block.bn2):
            norm.register_forward_hook(lambda _module, _inputs, output: found.append(float(output.std())))
    with torch.no_grad():
        net.train()(images)
    return found, [response / given for response, given in zip(found[1::2], inputs, strict=True)]


def detector_part(output: Path) -> dict[str, Any]:
    runs = []
    for kind in KINDS:
        overrides = [
            f"data.root={output / 'shapes'}", "data.synthetic={num_train: 300, num_val: 50, size: 96}", "data.min_size=96",
            "data.max_size=96", "data.workers=0", "model.backbone.name=resnet34", "model.mask=null", "train.max_iters=120",
            "train.batch_size=6", "train.log_every=5", "train.eval_every=120", "train.checkpoint_every=120",
            f"model.backbone.residual={str(kind == 'residual').lower()}",
        ]  # fmt: skip
        config = resdet.load_config("configs/quickstart.yaml", overrides)
        config.output = output / f"detector-{kind}"
        resdet.train(config)
        lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
        losses = [[line["iteration"], line["loss"]] for line in lines if "loss" in line]
        aps = [[line["iteration"], line["bbox_AP"]] for line in lines if "bbox_AP" in line]
        runs.append({"kind": kind, "losses": losses, "aps": aps})
    return {"runs": runs}


def table_part(_: Path) -> dict[str, Any]:
    """Parameters and multiply-adds at 224 x 224 with a classifier of 1000 classes, counted; published top-1 as torchvision
    states it for its first weights. The ResNets are resdet's, the others torchvision's."""
    import torchvision
    from torch.utils.flop_counter import FlopCounterMode

    names = [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    rows = []
    for name in (*names, "vgg16", "vgg19", "densenet121", "efficientnet_b0"):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            images = torch.empty(1, 3, 224, 224)
            if name in names:
                section = {"kind": "classifier", "num_classes": 1000, "backbone": {"name": name, "weights": "none"}}
                net: nn.Module = resdet.build_model(parse_config({"model": section}).model).eval()
                net.logits(Batch(images, torch.tensor([[224, 224]]), torch.tensor([0]), None))
            else:
                net = torchvision.models.get_model(name, weights=None).eval()
                net(images)
        metrics = torchvision.models.get_model_weights(name).IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
        parameters, multiply_adds = sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2
        rows.append({"name": name, "parameters": parameters, "multiply_adds": multiply_adds, "top1": metrics["acc@1"]})
        print(f"| {name} | {parameters / 1e6:.1f} M | {multiply_adds / 1e9:.2f} G | {metrics['acc@1']:.1f} |")
    return {"rows": rows}


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "table": table_part, "depth": depth_part, "gradients": gradients_part, "responses": responses_part,
    "detector": detector_part,
}  # fmt: skip


def main(output: Path, parts: list[str]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for part in parts or list(PARTS):
        file = output / f"{part}.json"
        if not file.exists():
            found = PARTS[part](output)
            file.write_text(json.dumps(found))
        if drawn := residual_plots.PLOTS.get(part):
            drawn(json.loads(file.read_text()), output / f"residual_{part}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/residual"), sys.argv[2:])
