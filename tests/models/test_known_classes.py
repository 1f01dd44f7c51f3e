"""Images whose annotations are complete for some classes only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resdet.models.matching import sample_rois
from resdet.structures import Batch, Targets
from tiny import SIZE, K, make_batch, small

UNKNOWN = 3  # to every image below, and without an object


def partly_labelled(known: list[list[int]] = [[0, 2], [0, 1, 2, 4]]) -> Batch:  # noqa: B006
    batch = make_batch([3, 5])
    t = batch.targets
    table = torch.zeros(2, K, dtype=torch.bool)
    for row, classes in zip(table, known, strict=True):
        row[classes] = True
    labels = torch.where(t.labels == UNKNOWN, 0, t.labels)
    return batch._replace(targets=t._replace(labels=labels, known=table))


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0}, {"class_weights": [1.0, 2.0, 0.5, 3.0, 1.0, 0.25]}])
def test_the_box_loss_is_a_softmax_over_what_an_image_knows(options: dict) -> None:
    model = small(box={"width": 32, "samples": 32, **options}).double()
    batch = partly_labelled()
    head, targets = model.heads["box"], batch.targets._replace(boxes=batch.targets.boxes.double())
    features = {k: v.double() for k, v in model.features(batch).items()}
    g = torch.Generator().manual_seed(1)
    corners = torch.rand(2, 60, 2, generator=g, dtype=torch.float64) * 60
    proposals = torch.cat([corners, corners + 30], -1)
    samples = sample_rois(
        proposals, torch.ones(2, 60, dtype=torch.bool), targets, batch.keys, batch.image_sizes,
        count=32, positive_fraction=0.5, iou_threshold=0.5, low_quality=False, num_classes=K,
    )  # fmt: skip
    logits = head(features, samples.boxes, samples.valid)[0].detach().numpy()
    gamma, weights = options.get("focal_gamma", 0.0), options.get("class_weights", [1.0] * (K + 1))
    expected = 0.0
    for i in range(2):
        for logit, label in zip(logits[i], samples.labels[i].tolist(), strict=True):
            if label >= 0:
                classes = {K, label, *np.flatnonzero(targets.known[i]).tolist()}
                p = np.exp(logit[label]) / sum(np.exp(logit[c]) for c in classes)
                expected += -np.log(p) * (1 - p) ** gamma * weights[label]
    found = head.loss(features, samples)["box_class"]
    torch.testing.assert_close(found.sum.item(), expected, rtol=1e-12, atol=0)
    assert found.count == samples.valid.sum()


def test_an_unknown_class_is_not_taught() -> None:
    model, batch = small(), partly_labelled()
    sum(model(batch).values()).backward()
    classifier = model.heads["box"].classifier
    assert not classifier.weight.grad[UNKNOWN].any()
    assert not classifier.bias.grad[UNKNOWN].any()
    assert all(classifier.weight.grad[k].any() for k in range(K + 1) if k != UNKNOWN)
    model.zero_grad()
    sum(model(batch._replace(targets=batch.targets._replace(known=None))).values()).backward()
    assert classifier.weight.grad[UNKNOWN].any()


def test_images_that_know_all_classes_are_trained_as_ever() -> None:
    batch = partly_labelled([[0, 1, 2, 3, 4]] * 2)
    losses = [small()(b) for b in (batch, batch._replace(targets=batch.targets._replace(known=None)))]
    assert {name: loss.item() for name, loss in losses[0].items()} == {k: v.item() for k, v in losses[1].items()}


def test_anchors_that_look_like_objects_are_no_background_where_classes_are_unknown() -> None:
    """A new RPN rates about half of all anchors above 0.5. The second image knows every class."""
    model, batch = small(), partly_labelled([[0, 2], [0, 1, 2, 3, 4]])
    features = model.features(batch)
    anchors = torch.cat(model.rpn(features, SIZE).anchors)
    for part, partly in ((0, True), (1, False)):
        of_image = {name: level[part : part + 1] for name, level in features.items()}
        t = Targets(*(None if t is None else t[part : part + 1] for t in batch.targets))
        found, usual = (model.rpn.loss(of_image, anchors, x, batch.keys[part : part + 1])
                        for x in (t, t._replace(known=None)))  # fmt: skip
        assert found["rpn_box"].sum == usual["rpn_box"].sum > 0
        if partly:
            assert 0 < found["rpn_objectness"].count < usual["rpn_objectness"].count
            assert found["rpn_objectness"].mean() < usual["rpn_objectness"].mean()  # the confident were the worst
        else:
            assert found["rpn_objectness"] == usual["rpn_objectness"]


@pytest.mark.slow
def test_the_losses_are_one_graph() -> None:
    torch._dynamo.reset()
    model, batch = small(), partly_labelled()
    compiled = torch.compile(model, fullgraph=True, backend="eager")(batch)
    for name, loss in model(batch).items():
        torch.testing.assert_close(compiled[name], loss, rtol=1e-3, atol=1e-4)  # as where all classes are known
