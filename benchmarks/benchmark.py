"""`tools/benchmark.py`: how long a training step and a prediction take, part by part, beside another tool's same model."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.table import Table
from torch import Tensor, nn

from peer_torchvision import reference_samples
from peers import InProcess, Peer
from resdet.config import Config
from resdet.data.dataset import DetectionDataset
from resdet.data.loader import training_loader
from resdet.data.splits import read_split, require_data
from resdet.errors import UserError
from resdet.models.build import build_model
from resdet.models.dense.detector import OneStage
from resdet.models.rcnn import RCNN
from resdet.models.rtdetr import losses
from resdet.models.rtdetr.detector import RTDETR
from resdet.runtime.console import console
from resdet.runtime.device import DTYPES, autocast
from resdet.training.optim import build_optimizer
from resdet.writing import make_folder, write_json
from scoring import evaluation_times
from workload import Load, made_batch, synchronize

Spread = dict[str, dict[str, float]]  # of each side: median, least and most


def benchmark(
    config: Config, load: Load, sections: list[str], device: torch.device, peer: Peer, output: Path, profile: bool
) -> dict[str, Any]:
    """Measure, print a table, write `output`/benchmark.json. Raises `UserError`."""
    if peer == "detectron2" and not find_spec(peer):
        raise UserError("--compare detectron2: it cannot be imported here")
    if "loader" in sections:
        require_data(config, ["train"])
    make_folder(output)
    config = prepared(config)
    results: dict[str, Any] = {"load": load._asdict(), "device": str(device), "threads": torch.get_num_threads()}
    models: dict[str, tuple[str, Config]] = {"resdet": ("resdet", config)}
    if peer != "none":
        models[peer] = peer, config
        if config.train.amp != "off":  # what people come from
            models[f"{peer} float32"] = peer, in_float32(config)
    names = list(models)
    needed = profile or {"train", "inference", "batch8"} & set(sections)
    # A compiled model compiles, then records its graphs, then runs.
    warm_up = 3 if config.train.compile or device.type == "cuda" else 1
    with ExitStack() as stack:
        sides = {n: stack.enter_context(InProcess(*m, load, device)) for n, m in models.items() if needed}

        def in_turn(order: str, repeats: int = load.repeats) -> Spread:
            return interleaved({name: partial(side.ask, order) for name, side in sides.items()}, repeats, warm_up)

        if "train" in sections:
            seconds = in_turn("train")
            results["train step, images/s"] = rates(seconds, load.batch)
            results["peak memory of a step, MiB"] = {name: side.ask("memory") for name, side in sides.items()}
            operations = sides["resdet"].ask("operations train")
            results["limit of the step"] = limit(operations, seconds["resdet"], device, config.train.amp)
        if {"inference", "batch8"} & set(sections):
            results["detections"] = {name: side.ask("predict 1") for name, side in sides.items()}
        if "inference" in sections:
            seconds = in_turn("predict 1")
            results["prediction at batch 1, ms an image"] = milliseconds(seconds)
            operations = sides["resdet"].ask("operations predict")
            results["limit of the prediction"] = limit(operations, seconds["resdet"], device, config.train.amp)
        if "batch8" in sections:
            results["prediction at batch 8, images/s"] = rates(in_turn("predict 8", max(2, load.repeats // 2)), 8)
        if profile:
            path = output / "trace.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            sides["resdet"].ask(f"trace {path}")
            console.print(f"written: {path} (open it in chrome://tracing)")
    if "parts" in sections:
        results["parts of a train step, s"] = parts(config, load, device)
    if "loader" in sections:
        results["loader, images/s on one core"] = loader_rates(config, peer)
    if "evaluation" in sections:
        results["evaluation at val2017's size, s"] = evaluation_times()
    write_json(output / "benchmark.json", results, indent=2)
    report(results, names)
    console.print(f"written: {output / 'benchmark.json'}")
    return results


def prepared(config: Config) -> Config:
    """With COCO's classes where none are set, and a rate at which nothing is learned: random weights diverge."""
    model = config.model.model_copy(deep=True)
    model.num_classes = model.num_classes or 80
    return config.model_copy(update={"model": model, "train": config.train.model_copy(update={"lr": 1e-12})})


def in_float32(config: Config) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"amp": "off"})})


# ---- measuring -------------------------------------------------------------------------------------------------------


def interleaved(work: dict[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> Spread:
    """Seconds of each, taken in turn after so many to warm up, so that all meet the same moods of the machine."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(warm_up + repeats):
        for name, run in work.items():
            began = time.perf_counter()
            run()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - began)
    return spread(times)


def spread(values: dict[str, list[float]]) -> Spread:
    return {n: {"median": statistics.median(v), "least": min(v), "most": max(v)} for n, v in values.items()}


def rates(seconds: Spread, images: int) -> Spread:
    """Seconds that `images` took -> images a second."""
    opposite = {"median": "median", "least": "most", "most": "least"}
    return {name: {key: images / times[other] for key, other in opposite.items()} for name, times in seconds.items()}


def milliseconds(seconds: Spread) -> Spread:
    return {name: {key: 1000 * value for key, value in times.items()} for name, times in seconds.items()}


def limit(operations: float, seconds: dict[str, float], device: torch.device, amp: str) -> dict[str, float]:
    """Floating-point operations, the device's own rate at a large convolution in that precision, and the share of it that
    `operations` in the median of `seconds` reach."""
    dtype = DTYPES.get(amp, torch.float32)
    images = 16 if device.type == "cuda" else 1  # enough work for a GPU to hide what starting it takes
    conv = nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    x = torch.randn(images, 256, 100, 168, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    def convolve() -> None:
        conv(x)
        synchronize(device)

    with torch.inference_mode():
        best = interleaved({"conv": convolve}, 10)["conv"]["least"]
    rate, reached = images * 2 * 256 * 256 * 9 * 100 * 168 / best, operations / seconds["median"]
    return {"GFLOP": operations / 1e9, "GFLOP/s of a convolution": rate / 1e9, "GFLOP/s reached": reached / 1e9,
            "share": reached / rate}  # fmt: skip


def parts(config: Config, load: Load, device: torch.device) -> dict[str, float]:
    """Seconds of each part of a step's forward, of the backward and of the optimiser."""
    torch.manual_seed(0)
    model = build_model(config.model).to(device).train()
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    assert config.model.num_classes is not None
    batch = made_batch(load, load.batch, config.model.num_classes, device)
    optimizer = build_optimizer(model, config.train)
    spent: dict[str, float] = {}

    def timed(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            synchronize(device)
            began = time.perf_counter()
            result = run(*arguments, **named)
            synchronize(device)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began
            return result

        return wrapped

    with ExitStack() as stack:
        for owner, method, name in parts_of(model):
            stack.enter_context(patch.object(owner, method, timed(name, getattr(owner, method))))
        for repeat in range(3):
            if repeat == 1:
                spent.clear()
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, config.train.amp):
                loss: Tensor = timed("forward in all", lambda: torch.stack(list(model(batch).values())).sum())()
            timed("backward", loss.backward)()
            timed("optimiser", optimizer.step)()
    return {name: seconds / 2 for name, seconds in spent.items()}


def parts_of(model: Any) -> list[tuple[Any, str, str]]:
    """(module, method, name for people) of what is timed."""
    if isinstance(model, RTDETR):
        return [
            (model.backbone, "forward", "backbone"), (model.fpn, "forward", "encoder"),
            (model.queries, "forward", "query selection"), (model.decoder, "forward", "decoder"),
            (model.loss, "costs", "costs of the matching"), (losses, "assign", "matching on the host"),
            (model.loss, "sums", "losses"),
        ]  # fmt: skip
    if not isinstance(model, RCNN):
        found = [(model.backbone, "forward", "backbone"), (model.fpn, "forward", "FPN")]
        return found + ([(model.head, "loss", "head")] if isinstance(model, OneStage) else [])
    return [
        (model.backbone, "forward", "backbone"), (model.fpn, "forward", "FPN"), (model.rpn, "forward", "RPN maps"),
        (model.rpn, "propose", "proposals"), (model.rpn, "loss", "RPN loss"),
        *((head, "loss", f"{name} head") for name, head in model.heads.items()),
    ]  # fmt: skip


def loader_rates(config: Config, peer: Peer, images: int = 80) -> Spread:
    """Images a second of one core from the file to the network's input, masks included: through our loader and, beside
    torchvision, through the steps of its training reference, in turn. Ours leaves the normalisation to the model."""
    data = DetectionDataset(
        read_split(config, "train"), config.data, config.model.input, train=True,
        masks="masks" in config.model.outputs, seed=0,
    )  # fmt: skip
    turns, size = 4, 4
    sources: dict[str, tuple[Iterator[Any], int]] = {"resdet": (training_loader(data, size, 0), size)}
    if peer == "torchvision":
        sources[peer] = reference_samples(data), 1
    found: dict[str, list[float]] = {name: [] for name in sources}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for turn in range(turns + 1):
        for name, (source, at_once) in sources.items():
            before = time.process_time()
            for _ in islice(source, images // turns // at_once):
                pass
            if turn:  # the first warms up
                found[name].append(images // turns / (time.process_time() - before))
    torch.set_num_threads(threads)
    return spread(found)


def report(results: dict[str, Any], names: list[str]) -> None:
    """One table of the medians, half their spread and how many times better ours is than each other; lines for the rest."""
    table = Table(width=62 + 31 * (len(names) - 1))
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
        if name != "resdet":
            table.add_column("better by", justify="right", no_wrap=True)
    for key, value in results.items():
        if not isinstance(value, dict) or "resdet" not in value:
            continue
        plain = {name: entry["median"] if isinstance(entry, dict) else entry for name, entry in value.items()}
        row = [key]
        for name, entry in value.items():
            spread = f" ±{(entry['most'] - entry['least']) / 2 / plain[name]:.0%}" if isinstance(entry, dict) else ""
            row.append(f"{plain[name]:.4g}{spread}")
            if name != "resdet":
                more, less = ("resdet", name) if "images/s" in key else (name, "resdet")
                row.append("" if key == "detections" else f"{plain[more] / plain[less]:.2f}")
        table.add_row(*row)
    console.print(table)
    for key, value in results.items():
        if not isinstance(value, dict) or "resdet" not in value:
            shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()) if (
                isinstance(value, dict)
            ) else value  # fmt: skip
            console.print(f"{key}: {json.dumps(shown) if isinstance(shown, list) else shown}")
