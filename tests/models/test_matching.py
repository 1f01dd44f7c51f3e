from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from resdet.models import matching
from resdet.models.matching import match, sample, sample_rois, uniform
from resdet.structures import Targets


def boxes(*shape: int) -> torch.Tensor:
    corner = torch.rand(*shape, 2) * 100
    return torch.cat([corner, corner + 5 + torch.rand(*shape, 2) * 60], dim=-1)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("chunk", [3, 16])
def test_match_is_torchvisions(low_quality: bool, chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(matching, "CHUNK", chunk)
    anchors, gt = boxes(400), boxes(2, 10)
    valid = torch.tensor([[True] * 10, [True] * 4 + [False] * 6])
    found = match(anchors, gt, valid, high=0.7, low=0.3, low_quality=low_quality)
    for b, count in enumerate((10, 4)):
        expected = Matcher(0.7, 0.3, low_quality)(box_iou(gt[b, :count], anchors))
        assert torch.equal(found.positive[b], expected >= 0)
        assert torch.equal(found.negative[b], expected == Matcher.BELOW_LOW_THRESHOLD)
        assert torch.equal(found.gt_index[b][expected >= 0], expected[expected >= 0])
    assert found.positive.any(1).all() == low_quality or found.positive.any()


def test_an_image_without_objects_is_all_negative() -> None:
    found = match(
        boxes(50), torch.zeros(1, 8, 4), torch.zeros(1, 8, dtype=torch.bool), high=0.7, low=0.3, low_quality=True
    )
    assert found.negative.all()
    assert not found.positive.any()


def test_sample_counts() -> None:
    positive = torch.zeros(3, 1000, dtype=torch.bool)
    positive[0, :300] = True  # more than allowed
    positive[1, :7] = True  # few
    negative = ~positive
    negative[2, 50:] = False  # too few to fill
    index, chosen, valid = sample(positive, negative, torch.tensor([1, 2, 3]), 256, 64)
    assert index.shape == (3, 256)
    assert chosen.sum(1).tolist() == [64, 7, 0]
    assert valid.sum(1).tolist() == [256, 256, 50]
    for b in range(3):
        assert len(set(index[b, valid[b]].tolist())) == valid[b].sum()
        assert torch.equal(positive[b, index[b]][valid[b]], chosen[b][valid[b]])
        assert torch.equal(chosen[b].sort(descending=True).values, chosen[b])  # positives first


def test_sampling_depends_on_the_key_alone() -> None:
    positive = torch.rand(1, 500) > 0.9
    one = sample(positive, ~positive, torch.tensor([5]), 64, 16)
    both = sample(positive.expand(2, -1), ~positive.expand(2, -1), torch.tensor([9, 5]), 64, 16)
    assert torch.equal(one[0][0], both[0][1])
    assert not torch.equal(both[0][0], both[0][1])


def test_uniform_is_murmurs_finaliser_without_a_constant_that_triton_cannot_hold() -> None:
    """Inductor folds the product of a range and a constant; the result must fit int32, so the key stands between them."""
    keys, n = torch.tensor([0, 1, -7, 2**31, 2**40 + 5, 2**62 + 11]), 300
    found = uniform(keys, n)
    for row, key in zip(found, keys.tolist(), strict=True):
        for i in range(0, n, 37):
            x = (i * 0x9E3779B1 + key) % 2**32
            x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
            x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
            assert row[i].item() == ((x ^ (x >> 16)) >> 8) / 2**24
    graph = make_fx(lambda k: uniform(k, n))(keys)
    (arange,) = (node for node in graph.graph.nodes if "arange" in str(node.target))
    assert all("mul" not in str(user.target) for user in arange.users)


def test_uniform_is_uniform_and_independent_between_keys() -> None:
    draws = uniform(torch.tensor([0, 1, 2**32 - 1, 123456]), 100_000)
    assert draws.min() >= 0
    assert draws.max() < 1
    histogram = torch.stack([torch.histc(row, 20, 0, 1) for row in draws])
    assert ((histogram - 5000).abs() < 5 * 5000**0.5).all()
    correlation = torch.corrcoef(torch.cat([draws, draws[:1].roll(1, 1)]))
    assert (correlation - torch.eye(5)).abs().max() < 0.02


def test_sampled_rois_carry_their_objects() -> None:
    targets = Targets(
        boxes(2, 8), torch.randint(5, (2, 8)), torch.tensor([[True] * 3 + [False] * 5, [False] * 8]), None
    )
    proposals = boxes(2, 100)
    proposals[0, :20] = targets.boxes[0, 1] + torch.rand(20, 4)
    samples = sample_rois(
        proposals, torch.ones(2, 100, dtype=torch.bool), targets, torch.tensor([1, 2]), torch.full((2, 2), 200),
        count=40, positive_fraction=0.25, iou_threshold=0.5, low_quality=False, num_classes=5,
    )  # fmt: skip
    assert samples.boxes.shape == (2, 40, 4)
    assert samples.positive.sum(1).tolist() == [10, 0]
    on = samples.positive[0]
    assert (box_iou(samples.boxes[0, on], samples.gt_boxes[0, on]).diagonal() >= 0.5).all()
    assert torch.equal(samples.labels[0, on], targets.labels[0, samples.gt_index[0, on]])
    assert (samples.labels[1][samples.valid[1]] == 5).all()
    assert (samples.labels[~samples.valid] == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("objects", [5, 8, 16])
def test_a_compiled_match_takes_the_same_objects(objects: int) -> None:
    """inductor of torch 2.11 on a CPU takes others for 8 and 16, where the highest is asked for with its place."""
    torch._dynamo.reset()
    corner = torch.rand(2, 60, 2) * 80
    boxes = torch.cat([corner, corner + torch.rand(2, 60, 2) * 40 + 4], -1)
    given = boxes, boxes[:, :objects] + torch.rand(2, objects, 4), torch.rand(2, objects) < 0.7

    def index(*given: torch.Tensor) -> torch.Tensor:
        return match(*given, high=0.5, low=0.5).gt_index

    assert torch.equal(torch.compile(index, fullgraph=True)(*given), index(*given))
