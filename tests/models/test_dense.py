"""One-stage detectors: one graph, hostile targets, independence of images from each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resdet.config import parse_config
from resdet.export.program import export_prediction
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.structures import Batch, Targets
from tiny import DENSE, K, dense_model, make_batch

LOSSES = {
    "retinanet": {"box_class", "box_reg"}, "fcos": {"box_class", "box_reg", "centerness"},
    "atss": {"box_class", "box_reg", "centerness"}, "gfl": {"box_class", "box_reg", "box_dfl"},
    "yolof": {"box_class", "box_reg"},
}  # fmt: skip


def built(kind: str, **head: object) -> Detector:
    torch.manual_seed(0)
    model = {**dense_model(kind, score_threshold=0.0, **head), "num_classes": K}
    return build_model(parse_config({"model": model}).model)


def image(batch: Batch, i: int) -> Batch:
    one = slice(i, i + 1)
    targets = Targets(*(None if t is None else t[one] for t in batch.targets))
    return Batch(batch.images[one], batch.image_sizes[one], batch.keys[one], targets)


@pytest.mark.parametrize("kind", DENSE)
def test_images_without_objects_train(kind: str) -> None:
    for counts in ([0, 0], [0, 4]):
        model = built(kind)
        losses = model(make_batch(counts))
        assert set(losses) == LOSSES[kind]
        torch.stack(list(losses.values())).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (
                name
            )  # every parameter takes part, so that no process waits for another's
            assert parameter.grad.isfinite().all(), name
        assert all((loss > 0) == (name == "box_class" or sum(counts) > 0) for name, loss in losses.items())


@pytest.mark.parametrize("kind", DENSE)
def test_an_image_does_not_depend_on_its_neighbours(kind: str) -> None:
    model = built(kind).eval()
    both = make_batch([3, 5])
    together, apart = model.losses(both), [model.losses(image(both, i)) for i in range(2)]
    found = model.predict(both)
    assert found.valid.sum() > 20
    for name, loss in together.items():
        torch.testing.assert_close(loss.sum, sum(a[name].sum for a in apart), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loss.count, sum(a[name].count for a in apart), rtol=1e-5, atol=1e-6)
    for i in range(2):
        single = model.predict(image(both, i))
        torch.testing.assert_close(found.scores[i : i + 1], single.scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.boxes[i : i + 1], single.boxes, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", DENSE)
def test_an_unknown_class_is_not_taught(kind: str) -> None:
    model, batch, unknown = built(kind), make_batch([3, 5]), 3
    known = torch.ones(2, K, dtype=torch.bool)
    known[:, unknown] = False
    labels = torch.where(batch.targets.labels == unknown, 0, batch.targets.labels)
    model(batch._replace(targets=batch.targets._replace(labels=labels, known=known)))["box_class"].backward()
    gradient = model.head.classifier.bias.grad.view(-1, K)
    assert not gradient[:, unknown].any()
    assert gradient[:, :unknown].all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", DENSE)
def test_losses_predictions_and_the_exported_program_are_one_graph(kind: str) -> None:
    size = (160, 192)  # the smallest that an exported program with p7 takes
    model, batch, other = built(kind), make_batch([3, 5], size=size), make_batch([0, 8], seed=7, size=size)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found, expected = [compiled(batch)], [model(batch), model(other)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found.append(compiled(other))
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)
    wanted = model.eval().predict(batch)
    assert wanted.valid.sum() > 20
    given = export_prediction(model).module()(batch.images, batch.image_sizes)
    results = [value for value in wanted if isinstance(value, Tensor) and value is not wanted.image_sizes]
    for ours, theirs in zip(given, results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    ready = model.prepare_for_inference().predict(batch)
    torch.testing.assert_close(ready.boxes, wanted.boxes, rtol=1e-4, atol=1e-2)
