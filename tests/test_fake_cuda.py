"""What can be said of CUDA without a GPU: a step and a prediction on fake tensors, which have a device but no values.

Fake tensors raise where devices are mixed and where the host asks for a value (`.item()`, a boolean index, `nonzero`);
what is copied between host and device is noted here. `test_cuda.py` says the same of real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from resdet.data import collate
from resdet.data.collate import LoadedBatch
from resdet.fields import map_tensors
from resdet.masks import paste_bitmaps
from resdet.models.build import build_model
from resdet.runtime.device import DTYPES, autocast
from resdet.runtime.distributed import Distributed
from resdet.structures import Batch
from resdet.training import step as step_module
from resdet.training.setup import prepare_inputs
from resdet.training.state import Run
from resdet.training.step import TrainingStep
from tiny import SIZE, make_batch, small

GPU = torch.device("cuda", 0)


class Copies(TorchDispatchMode):
    """Notes what travels between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if len({t.device.type for t in tensors}) > 1:
            self.seen.append(f"{func.name()} {[(tuple(t.shape), t.device.type) for t in tensors]}")
        return result


class OnDevice:
    """Turns tensors, batches and models into fake ones on a GPU."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    def tensor(self, real: Tensor) -> Tensor:
        fake = self.mode.from_tensor(real.detach())
        with self.mode:
            return fake.to(GPU)

    def batch(self, batch: Batch) -> Batch:
        return map_tensors(self.tensor, batch)

    def host(self, batch: Batch) -> Batch:
        """Fake ones that are still on the host."""
        return map_tensors(self.mode.from_tensor, batch)

    def model(self, model: nn.Module) -> nn.Module:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(self.tensor(parameter), parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, self.tensor(buffer))
        return model

    @contextmanager
    def nothing_travels(self) -> Iterator[None]:
        copies = Copies()
        with self.mode, copies:
            yield
        assert not copies.seen


@pytest.fixture
def gpu(monkeypatch) -> OnDevice:
    # Else autocast and the gradient scaler switch themselves off.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    return OnDevice()


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(3),
        lambda x: x + torch.ones(3).to(GPU),
        lambda x: x[[0, 1]],
    ],
    ids=["item", "boolean index", "two devices", "copy", "an index from the host"],
)
def test_waiting_is_noticed(gpu: OnDevice, ask: Callable[[Tensor], object]) -> None:
    x = gpu.tensor(torch.ones(3))
    with pytest.raises((RuntimeError, AssertionError)), gpu.nothing_travels():
        ask(x)


MODELS: dict[str, dict[str, object]] = {
    "masks": {},
    "boxes": {"mask": False},
    "soft suppression": {"box": {"width": 32, "samples": 32, "soft_sigma": 0.5, "objectness": True}},
    "adaptive sampling": {"pool": {"sampling_ratio": 0, "aligned": False}},
    "trained batch norm": {"backbone": {"name": "resnet50", "weights": "none", "norm": "bn"}},
    "batch norm in the heads": {"box": {"trunk": "4conv1fc", "width": 32, "samples": 32, "norm": "bn"}},
    **{kind: tiny.dense(kind) for kind in tiny.DENSE},
    "rtdetr": tiny.RTDETR,
}


@pytest.mark.parametrize("amp", ["off", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_predictions(gpu: OnDevice, name: str, amp: str) -> None:
    model, batch = gpu.model(small(**MODELS[name])), gpu.batch(make_batch([3, 5]))
    made_ready = gpu.model(small(**MODELS[name]).prepare_for_inference(DTYPES.get(amp)))
    with gpu.nothing_travels(), autocast(GPU, amp):
        losses = model(batch)
        found = [model.eval().predict(batch), made_ready.predict(batch)]
        for f in found:
            if f.mask_probs is not None:
                assert paste_bitmaps(f.mask_probs[0], f.boxes[0], SIZE).device == GPU
    assert {(loss.device, loss.dtype) for loss in losses.values()} == {(GPU, torch.float32)}
    assert all(
        f.boxes.device == GPU and (f.mask_probs is None) == (name in ("boxes", "rtdetr", *tiny.DENSE)) for f in found
    )


def test_a_batch_travels_on_a_stream_of_its_own(gpu: OnDevice, monkeypatch) -> None:
    streams = {name: Mock(name=name) for name in ("computing", "copying")}
    current = ["computing"]

    @contextmanager
    def stream(other: Mock) -> Iterator[None]:
        current.append("copying" if other is streams["copying"] else "?")
        yield
        current.pop()

    used: list[tuple[Tensor, Mock]] = []
    copied: list[str] = []
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams["computing"])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(collate, "_copying", lambda device: streams["copying"])
    monkeypatch.setattr(Tensor, "record_stream", lambda t, stream: used.append((t, stream)))
    host = gpu.host(make_batch([3, 5]))
    travelling = Tensor.to

    def to(t: Tensor, *args: object, **options: object) -> Tensor:
        assert options == {"non_blocking": True}
        copied.append(current[-1])
        return travelling(t, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Tensor, "to", to)
    with gpu.mode:
        batch = collate.to_device(host, GPU)
    assert batch.targets
    fields = [batch.images, batch.image_sizes, batch.keys, *batch.targets]
    tensors = [t for t in fields if t is not None]
    assert {t.device for t in tensors} == {GPU}
    assert copied == ["copying"] * len(tensors)
    streams["computing"].wait_stream.assert_called_once_with(streams["copying"])
    assert [id(t) for t, _ in used] == [id(t) for t in tensors]
    assert {id(stream) for _, stream in used} == {id(streams["computing"])}


@pytest.mark.parametrize("amp", ["off", *(pytest.param(amp, marks=pytest.mark.slow) for amp in DTYPES)])
def test_a_step(gpu: OnDevice, shapes_root, tmp_path, monkeypatch, amp: str) -> None:
    """All of it but the backward pass, whose engine wants a real GPU: every gradient is a made-up one."""
    config = tiny.config(
        shapes_root,
        tmp_path,
        optimizer="adamw",
        clip_grad_norm=5,
        ema_decay=0.9,
        accumulate=2,
        channels_last=False,
        amp=amp,
    )
    config, inputs = prepare_inputs(config, None)
    model = gpu.model(build_model(config.model))
    batch = make_batch([3, 5])
    batch = gpu.batch(batch._replace(targets=batch.targets._replace(labels=batch.targets.labels.clamp(max=3))))

    def backward(loss: Tensor) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    later: list[Tensor] = []
    monkeypatch.setattr(Tensor, "backward", backward)
    monkeypatch.setattr(step_module, "AsyncHostCopy", later.append)  # which starts a copy that nobody waits for
    with gpu.mode:
        run = Run(config, inputs, model, GPU, Distributed())
    step = TrainingStep(run)
    for run.iteration in (1, 2):
        step._previous = None  # it would be read now, when the next step is on its way
        with gpu.nothing_travels():
            losses = step(LoadedBatch(batch, [0, 1], {}))
    assert {tensor.device for tensor in (*losses.values(), *later)} == {GPU}
