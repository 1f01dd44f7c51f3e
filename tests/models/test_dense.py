"""One-stage detectors: images without objects, and classes that an image's annotations are not complete for."""

from __future__ import annotations

import pytest
import torch

from tiny import DENSE, K, dense, make_batch, small

LOSSES = {
    "retinanet": {"box_class", "box_reg"}, "fcos": {"box_class", "box_reg", "centerness"},
    "atss": {"box_class", "box_reg", "centerness"}, "gfl": {"box_class", "box_reg", "box_dfl"},
    "yolof": {"box_class", "box_reg"},
}  # fmt: skip


@pytest.mark.parametrize("kind", DENSE)
def test_images_without_objects_train(kind: str) -> None:
    for counts in ([0, 0], [0, 4]):
        model = small(**dense(kind))
        losses = model(make_batch(counts))
        assert set(losses) == LOSSES[kind]
        torch.stack(list(losses.values())).sum().backward()
        for name, parameter in model.named_parameters():
            # Every parameter takes part, so that no process waits for another's gradient.
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert all((loss > 0) == (name == "box_class" or sum(counts) > 0) for name, loss in losses.items())


@pytest.mark.parametrize("kind", DENSE)
def test_an_unknown_class_is_not_taught(kind: str) -> None:
    model, batch, unknown = small(**dense(kind)), make_batch([3, 5]), 3
    known = torch.ones(2, K, dtype=torch.bool)
    known[:, unknown] = False
    labels = torch.where(batch.targets.labels == unknown, 0, batch.targets.labels)
    model(batch._replace(targets=batch.targets._replace(labels=labels, known=known)))["box_class"].backward()
    gradient = model.head.classifier.bias.grad.view(-1, K)
    assert not gradient[:, unknown].any()
    assert gradient[:, :unknown].all()
