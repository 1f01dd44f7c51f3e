"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

import tiny
from resdet.config import Config
from resdet.data.collate import LoadedBatch, to_device
from resdet.fields import map_tensors
from resdet.kernels.nms import nms, soft_nms
from resdet.masks import paste_bitmaps
from resdet.models.build import build_model
from resdet.runtime.distributed import Distributed
from resdet.training.setup import prepare_inputs
from resdet.training.state import Run
from resdet.training.step import TrainingStep
from tiny import SIZE, make_batch, small

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def no_waiting():
    """From here on, whatever makes the host wait for the device raises."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def float32():
    """Convolutions as exact as a CPU's, which cuDNN rounds to TF32 unless told otherwise."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True


def prepared(config: Config) -> tuple[Run, LoadedBatch]:
    """A run and a batch on the device: copied beforehand, since pinning is the loader's business."""
    config, inputs = prepare_inputs(config, None)
    torch.manual_seed(0)
    device = torch.device("cuda", 0)
    run = Run(config, inputs, build_model(config.model).to(device), device, Distributed())
    batch = to_device(make_batch([3, 5], slots=8), device)
    batch = batch._replace(targets=batch.targets._replace(labels=batch.targets.labels.clamp(max=3)))
    return run, LoadedBatch(batch, [0, 1], {})


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_does_not_wait_for_the_device(shapes_root, tmp_path, no_waiting, amp: str) -> None:
    config = tiny.config(shapes_root, tmp_path, amp=amp, clip_grad_norm=5, ema_decay=0.9, max_iters=100)
    run, loaded = prepared(config)
    step = TrainingStep(run)
    for run.iteration in (1, 2, 3):
        if run.iteration == 2:
            no_waiting()
        step(loaded)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_in_cuda_graphs_are_those_without(shapes_root, tmp_path, float32, accumulate: int) -> None:
    losses: dict[bool | str, list[dict[str, float]]] = {False: [], "reduce-overhead": []}
    for compile, found in losses.items():
        run, loaded = prepared(
            tiny.config(shapes_root, tmp_path, accumulate=accumulate, max_iters=100, compile=compile)
        )
        step = TrainingStep(run)
        for run.iteration in range(1, 7):  # the first one warms up, the second is recorded
            found.append({name: float(loss) for name, loss in step(loaded).items()})
        step.settle()
        assert not step.bad_steps
    for plain, replayed in zip(*losses.values(), strict=True):
        assert replayed == pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("soft_sigma", [0.0, 0.5])
def test_a_prediction_does_not_wait_for_the_device(no_waiting, soft_sigma: float) -> None:
    model = small(box={"width": 32, "samples": 32, "soft_sigma": soft_sigma}).cuda().eval()
    batch = to_device(make_batch([1, 1]), torch.device("cuda"))

    def predict() -> None:
        found = model.predict(batch)
        assert found.mask_probs is not None
        paste_bitmaps(found.mask_probs[0], found.boxes[0], SIZE)

    predict()
    no_waiting()
    predict()


def test_the_losses_are_those_of_the_cpu(float32) -> None:
    model, batch = small(), make_batch([3, 5])
    expected = model(batch)
    found = model.cuda()(to_device(batch, torch.device("cuda")))
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-3, atol=1e-4)


def test_batches_arrive_whole_while_the_device_computes() -> None:
    device = torch.device("cuda", 0)
    work = torch.randn(4096, 4096, device=device)
    sums = []
    for k in range(30):
        batch = make_batch([3, 5])
        batch = map_tensors(torch.Tensor.pin_memory, batch._replace(images=torch.full((2, 3, 512, 512), k)))
        for _ in range(5):
            work = torch.nn.functional.normalize(work @ work)
        sums.append(to_device(batch, device).images.double().mean())
    assert torch.stack(sums).tolist() == list(range(30))


def test_suppression_keeps_what_the_cpu_keeps() -> None:
    torch.manual_seed(0)
    corner = torch.rand(2, 3000, 2) * SIZE[0]
    boxes = torch.cat([corner, corner + torch.rand(2, 3000, 2) * 50], -1)
    scores, groups, valid = torch.rand(2, 3000), torch.randint(5, (2, 3000)), torch.rand(2, 3000) < 0.9
    given = boxes, scores, groups, valid
    for count in (50, 3000):
        assert torch.equal(nms(*(t.cuda() for t in given), 0.5, count).cpu(), nms(*given, 0.5, count))
    for found, wanted in zip(soft_nms(*(t.cuda() for t in given), 0.5, 100), soft_nms(*given, 0.5, 100), strict=True):
        torch.testing.assert_close(found.cpu(), wanted)
