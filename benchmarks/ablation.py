"""What each speed-up is worth: a training step and a prediction with one of them turned off at a time, against all on.

    python benchmarks/ablation.py [REPEATS [HEIGHT WIDTH [CONFIG]]]

Every variant runs in a process of its own, on the images, boxes and weights of tools/benchmark.py; they take turns, so that all
meet the same moods of the machine. Printed are medians in seconds, and by how much a variant is slower than all speed-ups.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import resdet
from benchmark import prepared
from peers import side_of
from resdet.config import Config
from resdet.kernels import convolution, winograd
from resdet.models.heads.mask import MaskHead
from resdet.models.heads.rpn import RPN
from resdet.models.roi_align import RoIAlign
from resdet.runtime.device import keep_memory
from workload import Load


def gradients_of_whole_maps() -> None:
    """The RPN's loss takes its anchors' outputs from maps that carry gradients, as everybody's does."""

    def at(self: RPN, features: dict[str, Tensor], index: Tensor) -> tuple[Tensor, Tensor]:
        scores = self(features, (64, 64))
        logits, deltas = torch.cat(scores.logits, 1), torch.cat(scores.deltas, 1)
        return logits.gather(1, index), deltas.gather(1, index[..., None].expand(-1, -1, 4))

    RPN.at = at  # type: ignore[method-assign]


def roi_align_by_operator() -> None:
    RoIAlign.by_gather = RoIAlign.by_level  # type: ignore[method-assign]


def convolutions_by_torch() -> None:
    winograd.pays = lambda x, weight: False  # type: ignore[attr-defined]


def nothing_fused() -> None:
    convolution.can_fuse = lambda x, weight, bias, shortcut: False  # type: ignore[attr-defined]


def masks_of_all_classes() -> None:
    def forward(self: MaskHead, features: Any, boxes: Tensor, image: Tensor, valid: Tensor, labels: Tensor) -> Tensor:
        x = self.pool(features, boxes, image)
        for conv in self.convs:
            x = F.relu(conv(x, valid))
        logits: Tensor = self.logits(F.relu(self.upsample(x)))
        return logits[torch.arange(len(labels)), labels]

    MaskHead.forward = forward  # type: ignore[method-assign]


# name: (config keys, a patch, whether malloc keeps what is freed)
VARIANTS: dict[str, tuple[list[str], Callable[[], None] | None, bool]] = {
    "all speed-ups": ([], None, True),
    "norms not folded": (["model.fold_norm=false"], None, True),
    "training not in channels_last": (["train.channels_last=false"], None, True),
    "malloc gives back what is freed": ([], None, False),
    "RPN's gradient over whole maps": ([], gradients_of_whole_maps, True),
    "RoIAlign by torchvision's operator": ([], roi_align_by_operator, True),
    "3x3 convolutions by torch alone": ([], convolutions_by_torch, True),
    "sums and ReLU after convolutions": ([], nothing_fused, True),
    "masks of all classes": ([], masks_of_all_classes, True),
    "compiled (inductor)": (["train.compile=true"], None, True),
}


def serve(connection: Any, name: str, config: Config, load: Load) -> None:
    _, patch, keep = VARIANTS[name]
    if keep:
        keep_memory()
    if patch:
        patch()
    side = side_of("resdet", config, load, torch.device("cpu"))
    while (work := connection.recv()) != "end":
        began = time.perf_counter()
        side.train() if work == "train" else side.predict(1)
        connection.send(time.perf_counter() - began)


def measure(repeats: int, size: tuple[int, int], name_of_config: str, amp: str) -> None:
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Any] = {}
    for name, (keys, _, _) in VARIANTS.items():
        config = prepared(resdet.load_config(name_of_config, [*keys, f"train.amp={amp}"]))
        ends[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, name, config, Load(size, 1, 10, repeats)), daemon=True).start()
    times: dict[str, dict[str, list[float]]] = {name: {"train": [], "predict": []} for name in VARIANTS}
    for turn in range(repeats + 1):
        for work in ("train", "predict"):
            for name, end in ends.items():
                end.send(work)
                seconds = end.recv()
                if turn:  # the first warms up
                    times[name][work].append(seconds)
    for end in ends.values():
        end.send("end")
    medians = {name: {work: statistics.median(t) for work, t in both.items()} for name, both in times.items()}
    print(
        f"\n{amp}, {size[0]} x {size[1]}, one image, {torch.get_num_threads()} threads: seconds (of those with all on)"
    )
    for name, both in medians.items():
        cells = [f"{work} {s:7.3f} ({s / medians['all speed-ups'][work]:4.2f})" for work, s in both.items()]
        print(f"{name:>36}: {'   '.join(cells)}", flush=True)


def main(repeats: int, size: tuple[int, int], config: str) -> None:
    for amp in ("off", "bf16"):
        measure(repeats, size, config, amp)


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    main(
        int(given.get(1, 5)),
        (int(given.get(2, 800)), int(given.get(3, 1333))),
        given.get(4, "configs/maskrcnn_r50.yaml"),
    )
