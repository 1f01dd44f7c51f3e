"""Cascade R-CNN's head against a plain float64 computation, RoI by RoI."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from resdet.boxes import iou
from resdet.config import parse_config
from resdet.models.matching import sample_rois
from resdet.models.rcnn import RCNN
from resdet.structures import Batch, Detections, Samples
from tiny import K, make_batch, small

DETECTRON2 = {"ious": [0.3, 0.4, 0.5], "average": "scores"}  # low, for boxes that nobody has trained
MMDETECTION = {
    **DETECTRON2, "loss_weights": [1, 0.5, 0.25], "resample": True, "scale_gradients": False, "average": "logits",
    "mask_heads": "each",
}  # fmt: skip


def cascade(**options: object) -> RCNN:
    model = small(box={"width": 16, "samples": 24, "score_threshold": 0.0, "loss_beta": 0.5}, cascade=options)
    for stage in model.heads["box"].stages:
        torch.nn.init.normal_(stage.classifier.weight, std=0.5)
        torch.nn.init.normal_(stage.regressor.weight, std=0.3)
    return model.double()


def sampled(model: RCNN) -> tuple[dict[str, Tensor], Samples, Batch]:
    """Features, RoIs near the objects, and the batch that they are of; the second image has no object."""
    batch = make_batch([4, 0])
    targets = batch.targets._replace(boxes=batch.targets.boxes.double())
    near = targets.boxes[:, :4].repeat(1, 6, 1) + torch.randn(2, 24, 4, generator=torch.Generator().manual_seed(1)) * 4
    near[1] = torch.tensor([10.0, 10, 60, 50]) + torch.arange(24)[:, None]
    samples = sample_rois(
        near, torch.ones(2, 24, dtype=torch.bool), targets, batch.keys, batch.image_sizes,
        count=24, positive_fraction=0.75, iou_threshold=0.3, low_quality=False, num_classes=K,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    features = {
        f"p{k}": torch.randn(2, 32, 96 >> k, 128 >> k, generator=generator, dtype=torch.float64, requires_grad=True)
        for k in range(2, 7)
    }
    return features, samples, batch


def refined(deltas: Tensor, box: Tensor, weights: tuple[float, ...], size: Tensor) -> list[float]:
    """One box after its deltas, clipped."""
    dx, dy, dw, dh = (d / w for d, w in zip(deltas.tolist(), weights, strict=True))
    x1, y1, x2, y2 = box.tolist()
    w, h = x2 - x1, y2 - y1
    x, y = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
    w, h = w * math.exp(min(dw, math.log(1000 / 16))), h * math.exp(min(dh, math.log(1000 / 16)))
    (height, width) = size.tolist()
    corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return [min(max(c, 0), limit) for c, limit in zip(corners, (width, height, width, height), strict=True)]


def smooth_l1(value: float, beta: float) -> float:
    return 0.5 * value * value / beta if abs(value) < beta else abs(value) - beta / 2


def test_losses_are_those_of_a_plain_computation() -> None:
    """Without drawing anew: every stage looks at the RoIs of the first, where the stage before has put them."""
    model = cascade(**DETECTRON2, loss_weights=[1, 0.5, 0.25])
    head = model.heads["box"]
    features, samples, batch = sampled(model)
    found = head.loss(features, samples)
    assert set(found) == {f"box_{name}_{k}" for name in ("class", "reg") for k in (1, 2, 3)}
    for b in range(2):
        objects = batch.targets.boxes[b][batch.targets.valid[b]].double()
        labels = batch.targets.labels[b][batch.targets.valid[b]]
        boxes, sums, positives = samples.boxes[b][samples.valid[b]], [], []
        for k, stage in enumerate(head.stages):
            one = {name: f[b : b + 1] for name, f in features.items()}
            logits, deltas = (t[0] for t in stage(one, boxes[None], torch.ones(1, len(boxes), dtype=torch.bool)))
            entropy = distance = 0.0
            positives.append(0)
            for i, box in enumerate(boxes):
                label = K
                overlaps = iou(box[None], objects)[0] if len(objects) else torch.zeros(1)
                if overlaps.max() >= head.ious[k]:
                    positives[k] += 1
                    g = int(overlaps.argmax())
                    label = int(labels[g])
                    (x1, y1, x2, y2), (u1, v1, u2, v2) = box.tolist(), objects[g].tolist()
                    w, h = x2 - x1, y2 - y1
                    wanted = (
                        (u1 + u2 - x1 - x2) / 2 / w, (v1 + v2 - y1 - y2) / 2 / h,
                        math.log((u2 - u1) / w), math.log((v2 - v1) / h),
                    )  # fmt: skip
                    for d, t, weight in zip(deltas[i, 0].tolist(), wanted, stage.delta_weights, strict=True):
                        distance += smooth_l1(d - t * weight, 0.5)
                entropy -= float(logits[i].detach().log_softmax(0)[label])
            sums.append((entropy, distance, len(boxes)))
            moved = [
                refined(d[0], box, stage.delta_weights, batch.image_sizes[b])
                for d, box in zip(deltas, boxes, strict=True)
            ]
            boxes = torch.tensor([m for m in moved if m[2] > m[0] and m[3] > m[1]], dtype=torch.float64)
        if b == 0:
            assert positives[0] > 2
            first = sums
    for k in range(3):
        assert int(found[f"box_class_{k + 1}"].count) == first[k][2] + sums[k][2]
        for name, i in (("class", 0), ("reg", 1)):
            expected = (first[k][i] + sums[k][i]) * head.loss_weights[k]
            assert found[f"box_{name}_{k + 1}"].sum.item() == pytest.approx(expected, rel=1e-9)


def test_features_learn_as_from_one_head() -> None:
    """All stages' gradients into the features are a third; those of the stages' weights are whole."""
    gradients = []
    for scale in (True, False):
        torch.manual_seed(0)
        model = cascade(**DETECTRON2, scale_gradients=scale)
        features, samples, _ = sampled(model)
        sum(loss.mean() for loss in model.heads["box"].loss(features, samples).values()).backward()
        gradients.append((features["p2"].grad, model.heads["box"].stages[2].trunk.fc1.weight.grad))
    (few, weights), (many, same) = gradients
    torch.testing.assert_close(few * 3, many)
    torch.testing.assert_close(weights, same)
    assert many.abs().sum() > 0


def test_later_stages_draw_anew_with_the_objects_own_boxes() -> None:
    model = cascade(**MMDETECTION)
    head = model.heads["box"]
    features, samples, _ = sampled(model)
    looked_at: list[Samples] = []
    for stage in head.stages:
        stage.losses_of = lambda logits, deltas, s, real=stage.losses_of: (
            looked_at.append(s),
            real(logits, deltas, s),
        )[1]
    losses = head.loss(features, samples)
    assert {f"mask_{k}" for k in (1, 2, 3)} <= set(losses)
    own = [s.positive & (s.boxes == s.gt_boxes).all(-1) for s in looked_at]
    for s, o in zip(looked_at, own, strict=True):  # an object's own box is there once: it joins anew and is not moved
        drawn = s.gt_index[o].tolist()
        assert 0 < len(drawn) == len(set(drawn))
    for s, threshold in zip(looked_at, head.ious, strict=True):
        overlaps = torch.stack(
            [iou(s.boxes[b], s.targets.boxes[b] * s.targets.valid[b][:, None]) for b in range(2)]
        ).amax(-1)
        assert bool(((overlaps >= threshold) == s.positive)[s.valid].all())
        assert all(p.tolist() == sorted(p.tolist(), reverse=True) for p in s.positive)
    assert not torch.equal(looked_at[0].boxes, looked_at[1].boxes)
    assert max(s.positive.sum(1).max() for s in looked_at[1:]) <= 6  # a quarter of 24


@pytest.mark.parametrize("options", [DETECTRON2, MMDETECTION])
def test_predictions_average_all_stages(options: dict) -> None:
    model = cascade(**options).eval()
    head = model.heads["box"]
    features, samples, batch = sampled(model)
    boxes, kept = samples.boxes, torch.ones_like(samples.valid)
    proposals = Detections(boxes, torch.ones(2, 24), torch.zeros(2, 24, dtype=torch.int64), kept, batch.image_sizes)
    said = []
    for stage in head.stages:
        logits, deltas = stage(features, boxes, kept)
        said.append(logits)
        boxes = torch.tensor([
            [refined(d[0], box, stage.delta_weights, size) for d, box in zip(of, its, strict=True)]
            for of, its, size in zip(deltas, boxes, batch.image_sizes, strict=True)
        ], dtype=torch.float64)  # fmt: skip
    stacked = torch.stack(said)
    expected = stacked.mean(0).softmax(-1) if options["average"] == "logits" else stacked.softmax(-1).mean(0)
    scores, found = head.scores_and_boxes(features, proposals)
    torch.testing.assert_close(scores, expected[..., :-1])
    sizes = batch.image_sizes.flip(1).repeat(1, 2)[:, None].double()
    torch.testing.assert_close(found.squeeze(2).clamp(min=0).minimum(sizes), boxes)
    answer = model.predict(batch._replace(images=batch.images.double()))
    assert answer.valid.all()
    if head.masks:
        of_each = [m.predict(features, answer).mask_probs for m in head.masks]
        given = head.predict(features, proposals)
        again = torch.stack([m.predict(features, given).mask_probs for m in head.masks]).mean(0)
        assert not torch.equal(of_each[0], of_each[1])
        torch.testing.assert_close(given.mask_probs, again)
    assert answer.mask_probs is not None


@pytest.mark.parametrize("counts", [[0, 0], [0, 3]])
def test_images_without_objects_train(counts: list[int]) -> None:
    model = small(False, cascade=MMDETECTION)
    losses = model(make_batch(counts))
    torch.stack(list(losses.values())).sum().backward()
    assert len(losses) == 8
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_lists_are_as_long_as_there_are_stages() -> None:
    with pytest.raises(Exception, match="one entry for each stage in each list, but ious has 2, delta_weights has 3"):
        parse_config({"model": {"cascade": {"ious": [0.5, 0.6]}}})
