"""The steps of `gpu.py`, each called in a process of its own: gpu_steps.py STEP RESULTS DEVICE CONFIG HEIGHT WIDTH."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

import resdet
from benchmark import prepared
from gpu_clock import Clock
from gpu_kernels import kernels
from peers import side_of
from resdet.config import Config
from resdet.models.build import build_model
from workload import Load, Sides, made_batch

OBJECTS = 10
ROOT = Path(__file__).parents[1]


class Steps(Clock):
    def __init__(self, results: Path, device: str, config: str, size: tuple[int, int]) -> None:
        super().__init__(results, device, size)
        self.file = config

    def config(self, *overrides: str, amp: str = "bf16") -> Config:
        """The recipe, with random weights: only the sizes matter here."""
        return prepared(resdet.load_config(self.file, [f"train.amp={amp}", *overrides]))

    def side(self, batch: int, *overrides: str, peer: str = "resdet") -> Sides:
        return side_of(peer, self.config(*overrides), Load(self.size, batch, OBJECTS, 1), self.device)

    # ---- the steps ---------------------------------------------------------------------------------------------------

    def machine(self) -> None:
        """Rates that everything else is compared with: copies, launches, convolutions with and without cuDNN's search."""
        name = torch.cuda.get_device_name() if self.cuda else "CPU"
        self.note(what="machine", more=f"{name}, torch {torch.__version__}, {os.cpu_count()} CPUs")
        x = torch.randn(2**28 if self.cuda else 2**20, device=self.device)
        y = torch.empty_like(x)
        ms = self.clock("copy of 1 GiB", lambda: y.copy_(x))
        self.note(what="rate of copying", more=f"{2 * x.nbytes / ms / 1e9:.2f} TB/s read and written")
        one = torch.zeros(1, device=self.device)
        self.clock("1000 launches", lambda: [one.add_(1) for _ in range(1000)])
        shapes = [(8, 256, 200, 336, 3, 256), (8, 64, 200, 336, 1, 256), (8, 256, 100, 168, 3, 256), (8, 512, 50, 84, 3, 512),
                  (1, 256, 200, 336, 3, 256), (1024, 256, 14, 14, 3, 256)]  # fmt: skip
        for b, c, h, w, k, out in shapes:
            if not self.cuda:
                b, h, w = 1, h // 8, w // 8
            maps = self.random(b, c, h, w)
            kernel = self.random(out, c, k, k)
            giga = 2 * b * h * w * c * out * k * k / 1e9
            for search in (False, True):
                torch.backends.cudnn.benchmark = search
                conv = lambda m=maps, q=kernel, p=k // 2: F.conv2d(m, q, padding=p)  # noqa: E731
                grad = torch.randn_like(conv())
                text = f"convolution {b}x{c}x{h}x{w}, {k}x{k}, {'searched' if search else 'default'}"
                forward = self.clock(text, conv)
                both = self.clock(
                    f"{text}, with backward",
                    lambda c=conv, g=grad, m=maps, q=kernel: torch.autograd.grad(c(), (m, q), g),
                )
                self.note(
                    what="TFLOP/s",
                    more=f"forward {giga / forward:.0f}, backward {2 * giga / max(both - forward, 1e-6):.0f}",
                )

    def train(self) -> None:
        """A step in eager mode: is it finite, are its losses a CPU's, does it wait for the device, how long does it take."""
        self.losses_of_a_cpu()
        for b in (2, 4, 8, 16) if self.cuda else (1,):
            side = self.side(b)
            self.clock(f"training step, bf16, batch {b}", side.train, 8, 3, b)
            if self.cuda and b == 4:
                torch.cuda.set_sync_debug_mode("error")
                try:
                    side.train()
                    self.note(what="a step waits for the device", more="no")
                except RuntimeError as error:
                    self.note(what="a step waits for the device", more=f"yes: {str(error)[:200]}")
                torch.cuda.set_sync_debug_mode("default")
            del side
            if self.cuda:
                torch.cuda.empty_cache()

    def losses_of_a_cpu(self) -> None:
        torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(0)
        config = self.config(amp="off")
        model = build_model(config.model)
        classes = config.model.num_classes or 0
        batch = made_batch(Load((256, 320), 1, 3, 1), 1, classes, torch.device("cpu"))
        with torch.no_grad():
            expected = {name: float(value) for name, value in model(batch).items()}
            there = made_batch(Load((256, 320), 1, 3, 1), 1, classes, self.device)
            found = {name: float(value) for name, value in model.to(self.device)(there).items()}
        torch.backends.cudnn.allow_tf32 = True
        worst = max(abs(found[name] - value) / max(abs(value), 1e-6) for name, value in expected.items())
        self.note(what="losses beside a CPU's, float32", more=f"largest relative difference {worst:.2g}")
        assert worst < 1e-2, (expected, found)

    def train_torchvision(self) -> None:
        for b in (2, 4, 8) if self.cuda else (1,):
            self.clock(f"torchvision's training step, bf16, batch {b}", self.side(b, peer="torchvision").train, 5, 2, b)

    def train_detectron2(self) -> None:
        for b in (4,) if self.cuda else (1,):
            self.clock(f"detectron2's training step, bf16, batch {b}", self.side(b, peer="detectron2").train, 5, 2, b)

    def kernels(self) -> None:
        kernels(self)

    def tests(self) -> None:
        files = ["tests/test_cuda.py", "tests/kernels/test_nms_triton.py"]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=",
            *files,
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        lines = [
            line
            for line in done.stdout.splitlines()
            if line.startswith("FAILED") or " passed" in line or " skipped" in line
        ]
        self.note(what="tests", more="; ".join(lines)[:600])

    def predict(self) -> None:
        side = self.side(1)
        for b in (1, 8) if self.cuda else (1,):
            self.clock(f"prediction, bf16, batch {b}, masks pasted", lambda b=b: side.predict(b), 20, 5, b)

    def predict_torchvision(self) -> None:
        side = self.side(1, peer="torchvision")
        for b in (1, 8) if self.cuda else (1,):
            self.clock(f"torchvision's prediction, bf16, batch {b}, masks pasted", lambda b=b: side.predict(b), 8, 3, b)

    def profile(self) -> None:
        """The dearest kernels of a step and of a prediction, launches, and a trace of the step."""
        side = self.side(4 if self.cuda else 1)
        for name, run in (("training step", side.train), ("prediction", lambda: side.predict(1))):
            run()
            run()
            with torch.profiler.profile() as profiler:
                run()
                if self.cuda:
                    torch.cuda.synchronize()
            events = profiler.key_averages()
            order = "self_device_time_total" if self.cuda else "self_cpu_time_total"
            launches = sum(e.count for e in events if "aunchKernel" in e.key)
            self.note(what=f"launches of a {name}", more=str(launches))
            for event in sorted(events, key=lambda e: -getattr(e, order))[:10]:
                self.note(
                    what=f"{name}: {event.key[:60]}",
                    ms=round(getattr(event, order) / 1000, 3),
                    more=f"{event.count} calls",
                )
            if name == "training step" and self.cuda:
                profiler.export_chrome_trace(str(self.results.with_name("trace.json")))

    def compile_predict(self) -> None:
        self.compiled("predict", "reduce-overhead")

    def compile_train(self) -> None:
        self.compiled("train", "true")

    def graphs_train(self) -> None:
        self.compiled("train", "reduce-overhead")

    def compiled(self, what: str, how: str) -> None:
        b = 4 if self.cuda and what == "train" else 1
        began = time.perf_counter()
        side = self.side(b, f"train.compile={how}")
        run: Callable[[], object] = side.train if what == "train" else lambda: side.predict(1)
        run()
        if self.cuda:
            torch.cuda.synchronize()
        self.note(what=f"{what}, train.compile={how}: the first", more=f"{time.perf_counter() - began:.0f} s")
        self.clock(f"{what}, bf16, batch {b}, train.compile={how}", run, 10, 4, b)

    def loader(self) -> None:
        """Images a second from generated pictures of COCO's size, decoded, resized and collated by all CPUs."""
        from resdet.config import SyntheticConfig
        from resdet.data.dataset import DetectionDataset
        from resdet.data.loader import training_loader
        from resdet.data.shapes import ensure_shapes
        from resdet.data.splits import read_split

        with tempfile.TemporaryDirectory() as folder:
            ensure_shapes(Path(folder), SyntheticConfig(num_train=32, num_val=1, size=640 if self.cuda else 64, seed=0))
            config = resdet.load_config(self.file, [f"data.root={folder}", "model.num_classes=4"])
            config.data.min_size, config.data.max_size = [self.size[0]], self.size[1]
            dataset = DetectionDataset(
                read_split(config, "train"), config.data, config.model.input, train=True, masks=True, seed=0
            )
            batch, workers = (8, max(1, (os.cpu_count() or 1) - 1)) if self.cuda else (2, 1)
            batches = training_loader(dataset, batch, workers)
            for _ in range(4):
                next(batches)
            count = 60 if self.cuda else 2
            began = time.perf_counter()
            for _ in range(count):
                next(batches)
            rate = count * batch / (time.perf_counter() - began)
            self.note(
                what=f"loader with masks, {workers} workers", images_s=round(rate, 1), more="640 x 640 JPEG files"
            )

    def evaluation(self) -> None:
        from scoring import evaluation_times

        if not self.cuda:
            self.note(
                what="evaluation at val2017's size", more="left out on a CPU: tools/benchmark.py --sections evaluation"
            )
            return
        for name, spread in evaluation_times().items():
            self.note(what=f"evaluation at val2017's size: {name}", more=json.dumps(spread))

    def two_processes(self) -> None:
        """Training shared by two processes over NCCL; on a machine with one GPU, NCCL refuses to share it, which is noted."""
        if torch.cuda.device_count() < 2 and self.cuda:
            self.note(what="two processes over NCCL", more="left out: one GPU, which NCCL does not share")
            return
        with tempfile.TemporaryDirectory() as folder:
            sizes = [
                "data.synthetic.num_train=64",
                "data.synthetic.num_val=4",
                "train.max_iters=4",
                "train.eval_every=4",
            ]
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "tools/train.py"]
            command += ["configs/quickstart.yaml", f"data.root={folder}/shapes", f"output={folder}/run", *sizes]
            command += [] if self.cuda else ["device=cpu"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            print(done.stdout, done.stderr)
            self.note(what="two processes", more="trained" if done.returncode == 0 else f"failed: {done.stderr[-300:]}")

    def shapes(self) -> None:
        """How many graphs 40 batches of the sizes of real pictures need: traced, but not compiled."""
        from torch._dynamo.utils import counters

        config = self.config()
        model = build_model(config.model).to(self.device)
        forward = torch.compile(model, backend="eager", dynamic=False)
        chance = torch.Generator().manual_seed(0)
        seen = set()
        short = [640, 672, 704, 736, 768, 800] if self.cuda else [64, 96]
        for _ in range(40 if self.cuda else 3):
            low = short[int(torch.randint(len(short), (), generator=chance))]
            ratio = [0.667, 0.75, 1.0, 1.333, 1.5, 1.778][int(torch.randint(6, (), generator=chance))]
            size = (low, round(low * ratio)) if ratio >= 1 else (round(low / ratio), low)
            batch = made_batch(Load(size, 2, OBJECTS, 1), 2, config.model.num_classes or 0, self.device)
            seen.add(batch.images.shape[2:])
            with torch.no_grad():
                forward(batch)
        graphs = counters["stats"]["unique_graphs"]
        self.note(what="graphs that 40 batches of real sizes need", more=f"{graphs}, of {len(seen)} padded sizes")


if __name__ == "__main__":
    _, step, results, device, config, height, width = sys.argv
    sys.path.insert(0, str(ROOT))
    with contextlib.chdir(ROOT):
        getattr(Steps(Path(results), device, config, (int(height), int(width))), step)()
