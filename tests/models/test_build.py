"""Config -> modules: the numbers of the config arrive in the parts."""

from __future__ import annotations

import math

import pytest
import torch

import tiny
from resdet.checkpoints.names import to_ours
from resdet.config import TrainConfig, parse_config
from resdet.errors import UserError
from resdet.export.torchvision import to_torchvision
from resdet.models.build import build_model
from resdet.models.heads.box import BoxHead, TwoFC
from resdet.models.layers import BatchNorm2d, FrozenBatchNorm2d
from resdet.models.roi_align import RoIAlign
from resdet.structures import Detections, Samples, Targets
from resdet.training.optim import build_optimizer, learning_rate
from tiny import K, make_batch, small


def built(**changed: dict):
    values = {**tiny.MODEL, **{key: {**tiny.MODEL.get(key, {}), **value} for key, value in changed.items()}}
    return build_model(parse_config({"model": values}).model)


def test_anchor_ratios_set_the_width_of_the_rpn() -> None:
    model = built(anchors={"ratios": [0.5, 1.0]})
    assert (model.rpn.objectness.out_channels, model.rpn.deltas.out_channels) == (2, 8)


@pytest.mark.parametrize("section", ["rpn", "box"])
def test_nms_thresholds_arrive(section: str) -> None:
    model = built(**{section: {"nms_threshold": 0.9}})
    assert {"rpn": model.rpn, "box": model.heads["box"].selection}[section].nms_threshold == 0.9


def answer(head: BoxHead, boxes: list[list[float]], scores: list[float], proposals: list[float]) -> Detections:
    """What the head makes of boxes of its first class, with these scores of the class and of the proposals."""
    n, k = len(boxes), head.num_classes
    p = torch.full((1, n, k + 1), 1e-9)
    p[0, :, 0], p[0, :, -1] = torch.tensor(scores), 1 - torch.tensor(scores)
    head.forward = lambda *_: (p.log(), torch.zeros(1, n, k, 4))  # type: ignore[method-assign]
    every, labels = torch.ones(1, n, dtype=torch.bool), torch.zeros(1, n, dtype=torch.int64)
    given = Detections(torch.tensor([boxes]), torch.tensor([proposals]), labels, every, torch.tensor([[64, 64]]))
    return head.predict({}, given)


def test_class_agnostic_boxes_are_those_of_equal_regressors() -> None:
    """Also as torchvision's names, which have a regressor for each class."""
    one = small(False, box={"width": 32, "samples": 32, "class_agnostic": True, "score_threshold": 0.0}).eval()
    each = small(False, box={"width": 32, "samples": 32, "score_threshold": 0.0}).eval()
    torch.nn.init.normal_(one.heads["box"].regressor.weight, std=0.1)
    torch.nn.init.normal_(one.heads["box"].classifier.weight, std=0.5)
    config = parse_config({"model": {"num_classes": K, "box": {"class_agnostic": True}}}).model
    weights, unknown = to_ours(to_torchvision(one.state_dict(), config, "here"), "torchvision")
    assert not unknown
    assert one.heads["box"].regressor.out_features == 4
    each.load_state_dict(weights)
    batch = make_batch([3, 2])
    for name, loss in one(batch).items():
        torch.testing.assert_close(loss, each(batch)[name])
    found, expected = one.predict(batch), each.predict(batch)
    assert found.valid.all()
    torch.testing.assert_close(found.boxes, expected.boxes)
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)


# The first two have an IoU of 0.6, the third is apart, the last is the second again.
FOUR = [[0.0, 0, 10, 8], [0, 2, 10, 10], [20, 20, 30, 30], [0, 2, 10, 10]]


def test_soft_suppression_lowers_the_scores_that_hard_one_drops() -> None:
    scores = [0.9, 0.8, 0.3, 0.25]
    hard, soft = (
        answer(
            built(box={"soft_sigma": s, "score_threshold": 0.2, "max_detections": 4}).heads["box"], FOUR, scores, scores
        )
        for s in (0.0, 0.5)
    )
    torch.testing.assert_close(hard.scores, torch.tensor([[0.9, 0.3, 0, 0]]))
    # The last box is lowered twice, beneath the threshold.
    torch.testing.assert_close(soft.scores, torch.tensor([[0.9, 0.8 * math.exp(-0.36 / 0.5), 0.3, 0]]))
    assert soft.valid.tolist() == [[True, True, True, False]]
    assert soft.boxes[0, 1].tolist() == [0, 2, 10, 10]


def test_objectness_counts_where_it_is_asked_for() -> None:
    head = built(box={"objectness": True, "score_threshold": 0.2, "max_detections": 4}).heads["box"]
    found = answer(head, FOUR, [0.4, 0.9, 0.3, 0.02], [0.9, 0.1, 0.1, 0.9])
    # The first box, not the second, is the better of the two now; the third falls beneath the threshold.
    torch.testing.assert_close(found.scores, torch.tensor([[0.6, 0, 0, 0]]))
    assert found.boxes[0, 0].tolist() == FOUR[0]


def test_delta_weights_scale_the_boxes_that_are_learned() -> None:
    assert built(box={"delta_weights": [1, 2, 3, 4]}).heads["box"].delta_weights == (1, 2, 3, 4)


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, **options: object) -> float:
    """The box head's classification loss with these logits of two classes and the background."""
    head = BoxHead(RoIAlign(7), TwoFC(4, 7, 8), 2, **options)
    b, r = labels.shape
    head.forward = lambda *_: (logits, torch.zeros(b, r, 2, 4))  # type: ignore[method-assign]
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(b, r, 4)
    no = torch.zeros(b, r, dtype=torch.bool)
    targets = Targets(boxes, labels, labels >= 0, None)
    index, keys, sizes = torch.zeros_like(labels), torch.zeros(b, dtype=torch.int64), torch.full((b, 2), 10)
    samples = Samples(boxes, labels, no, labels >= 0, index, boxes, targets, keys, sizes)
    return head.loss({}, samples)["box_class"].mean().item()


def test_focal_and_weighted_classification_against_the_formula() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 3), torch.tensor([[0, 1, 2, 2, -1, 0], [1, 1, 0, 2, 2, -1]])
    valid = labels >= 0
    p = logits.softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    entropy = -p.log()
    weights = torch.tensor([2.0, 0.5, 0.1])[labels.clamp(min=0)]
    for options, expected in (
        ({}, entropy),
        ({"focal_gamma": 2.0}, (1 - p) ** 2 * entropy),
        ({"class_weights": [2.0, 0.5, 0.1]}, weights * entropy),
        ({"focal_gamma": 1.5, "class_weights": [2.0, 0.5, 0.1]}, weights * (1 - p) ** 1.5 * entropy),
    ):
        got = classification_loss(logits, labels, **options)
        assert got == pytest.approx(expected[valid].mean().item(), rel=1e-5)


def test_class_weights_must_cover_the_background() -> None:
    with pytest.raises(UserError, match=r"class_weights has 4 numbers, but there are 4 classes and the background"):
        built(box={"class_weights": [1, 1, 1, 1]})
    assert built(box={"class_weights": [1, 1, 1, 1, 0.5]}).heads["box"].class_weights.tolist() == [1, 1, 1, 1, 0.5]


def test_the_mask_is_twice_the_pool() -> None:
    assert built(mask={"pool_size": 7}).heads["mask"].size == 14


def test_momentum_and_warmup_factor() -> None:
    config = TrainConfig(momentum=0.5, warmup_factor=0.25, warmup_iters=4, lr=1.0)
    optimizer = build_optimizer(built(), config)
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert learning_rate(1, config) == pytest.approx(0.25 * 0.75 + 0.25)


def test_norms_are_folded_or_not_throughout() -> None:
    for fold in (True, False):
        values = {**tiny.MODEL, "fold_norm": fold, "fpn": {"channels": 16, "norm": "bn"}}
        model = build_model(parse_config({"model": values}).model)
        norms = [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d | BatchNorm2d)]
        assert len(norms) > 20
        assert {m.fold for m in norms} == {fold}


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        ({"mask": None}, {"boxes"}),
        ({}, {"boxes", "masks"}),
        ({"mask": {"point_rend": {}}}, {"boxes", "masks"}),
        ({"mask": None, "keypoint": {"num_keypoints": 3}}, {"boxes", "keypoints"}),
    ],
)
def test_a_detector_tells_what_it_gives(model: dict, outputs: set[str]) -> None:
    detector = build_model(parse_config({"model": {**tiny.MODEL, **model}}).model)
    assert detector.outputs == outputs
    detector.limit(max_detections=3)
    detector.limit(score_threshold=0.0)
    found = detector.eval().predict(tiny.make_batch([1, 1])._replace(targets=None))
    assert (found.mask_probs is not None) == ("masks" in outputs)
    assert (found.keypoint_logits is not None) == ("keypoints" in outputs)
    assert found.valid.shape == (2, 3)
    assert found.valid.any()
