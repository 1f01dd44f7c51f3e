"""The same model, weights and images for resdet and others: what `tools/benchmark.py` runs side by side."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import resource
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from peer_detectron2 import detectron2_sides
from peer_torchvision import torchvision_sides
from peer_transformers import transformers_sides
from resdet.config import Config
from resdet.errors import UserError
from resdet.inference.postprocess import to_instances
from resdet.masks import paste_bitmaps
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.runtime.device import DTYPES, autocast, compiled, keep_memory
from resdet.structures import Batch
from resdet.training.optim import build_optimizer
from workload import Load, Sides, made_batch, synchronize


def _operations(x: list[int], weight: list[int], *others: Any, out_shape: list[int], **_: Any) -> int:
    """Of a fused convolution, which torch does not count; one that also adds has what it adds in the weight's place."""
    if len(others[0] or ()) == 4:
        weight = others[0]
    count: int = conv_flop_count(x, weight, out_shape)
    return count


FUSED = (
    {torch.ops.mkldnn._convolution_pointwise: _operations}
    if hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    else {}
)
Peer = Literal["torchvision", "detectron2", "transformers", "none"]


class InProcess:
    """A side in a process of its own, so that neither's memory allocator, threads or caches are the other's.

    ask(order) -> its answer, when the device has finished: "train", "predict N" (detections), "memory" (MiB that the
    training steps so far needed beyond the idle model), "operations train" and "operations predict" (floating-point, of a
    step and of one picture), "trace PATH" (of a step).
    """

    def __init__(self, name: str, config: Config, load: Load, device: torch.device) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        arguments = (theirs, name, config, load, device, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()  # so that its death ends our waiting
        self._receive(name)

    def ask(self, order: str) -> Any:
        self._ours.send(order)
        return self._receive(order)

    def _receive(self, what: str) -> Any:
        try:
            answer = self._ours.recv()
        except EOFError:
            raise UserError(f"{what}: the process that was measured died (killed for want of memory?)") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(connection: Any, name: str, config: Config, load: Load, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    if name == "resdet" and device.type == "cpu":
        keep_memory()  # as training and prediction do
    try:
        side = side_of(name, config, load, device)
    except UserError as error:
        connection.send(error)
        return
    gc.collect()
    before = memory(device, peak=False)
    connection.send("ready")
    while True:
        order, _, argument = connection.recv().partition(" ")
        answer: Any = None
        if order == "train":
            side.train()
        elif order == "predict":
            answer = side.predict(int(argument))
        elif order == "memory":
            answer = memory(device, peak=True) - before
        elif order == "operations":
            with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
                side.train() if argument == "train" else side.predict(1)
            answer = counter.get_total_flops()
        elif order == "trace":
            with torch.profiler.profile() as profiler:
                side.train()
            profiler.export_chrome_trace(argument)
        synchronize(device)
        connection.send(answer)


def memory(device: torch.device, peak: bool) -> float:
    """MiB of this process: on the device, or resident."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device) / 2**20
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def side_of(name: str, config: Config, load: Load, device: torch.device) -> Sides:
    """The model of one side with the same weights, on the same images."""
    torch.manual_seed(0)
    ours = build_model(config.model).to(device)
    ours.limit(score_threshold=0.0)  # a full set of detections: a model that finds nothing has less to do
    with torch.no_grad():
        for key, value in ours.backbone.state_dict().items():
            if key.endswith((".bn3.weight", "0.bn2.weight", "1.bn2.weight")):
                value.fill_(0.2)  # random branches would pile up, and no box would stay inside the image
    assert config.model.num_classes is not None
    batch = made_batch(load, load.batch, config.model.num_classes, device)
    if name == "resdet":
        return _resdet(ours, config, load, batch, device)
    if name == "torchvision":
        return torchvision_sides(ours, config, load, batch, device)
    if name == "transformers":
        return transformers_sides(ours, config, load, batch, device)
    return detectron2_sides(ours, config, load, batch, device)


def _resdet(model: Detector, config: Config, load: Load, batch: Batch, device: torch.device) -> Sides:
    if config.train.channels_last:
        model.to(memory_format=torch.channels_last)
    forward = compiled(model, config.train.compile, fullgraph=True, dynamic=False)
    optimizer = build_optimizer(model, config.train)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, config.train.amp):
            losses = forward(batch)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    predictor = copy.deepcopy(model).to(memory_format=torch.channels_last)  # all as `Predictor` has it
    predictor.prepare_for_inference(DTYPES.get(config.train.amp))
    predict_batch = compiled(predictor.predict, config.train.compile)

    def predict(count: int) -> int:
        with torch.inference_mode(), autocast(device, config.train.amp):
            images = batch.images[:1].expand(count, -1, -1, -1)
            sizes = batch.image_sizes[:1].expand(count, -1)
            found = predict_batch(Batch(images, sizes, batch.keys[:1].expand(count), None))
        if device.type == "cuda":
            if found.mask_probs is not None:
                for probs, boxes in zip(found.mask_probs, found.boxes, strict=True):
                    paste_bitmaps(probs, boxes, load.size)
            return int(found.valid.sum())
        instances = to_instances(found, [load.size] * count)
        return sum(len(i if i.masks is None else i.masks) for i in instances)

    return Sides(train, predict)
