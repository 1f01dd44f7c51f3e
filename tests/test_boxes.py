from __future__ import annotations

import math

import pytest
import torch
import torchvision

from resdet.boxes import area, big_enough, clip, decode, encode, iou, paired_iou
from resdet.kernels.nms import nms, place, soft_nms

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def boxes(*shape: int) -> torch.Tensor:
    corner = torch.rand(*shape, 2) * 100
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2) * 60], dim=-1)


def test_decode_inverts_encode() -> None:
    wanted, anchors = boxes(3, 50), boxes(3, 50)
    torch.testing.assert_close(decode(encode(wanted, anchors, WEIGHTS), anchors, WEIGHTS), wanted, rtol=1e-4, atol=1e-3)


def test_encode_and_decode_are_torchvisions() -> None:
    from torchvision.models.detection._utils import BoxCoder

    wanted, anchors, deltas = boxes(50), boxes(50), torch.randn(50, 4) * 4
    coder = BoxCoder(WEIGHTS)
    torch.testing.assert_close(encode(wanted, anchors, WEIGHTS), coder.encode_single(wanted, anchors))
    torch.testing.assert_close(decode(deltas, anchors, WEIGHTS), coder.decode_single(deltas, anchors))


def test_encode_stays_finite_for_padding() -> None:
    assert encode(torch.zeros(4), torch.zeros(4), WEIGHTS).isfinite().all()


def test_decode_limits_growth_and_half_precision() -> None:
    grown = decode(torch.tensor([0.0, 0, 1e4, 1e4]), torch.tensor([0.0, 0, 16, 16]), WEIGHTS)
    torch.testing.assert_close(grown[2] - grown[0], torch.tensor(1000.0))
    exact = decode(torch.zeros(4, dtype=torch.bfloat16), torch.tensor([0.0, 0, 1001, 777]), WEIGHTS)
    assert exact.tolist() == [0, 0, 1001, 777]


def test_iou_is_torchvisions_and_zero_for_empty_boxes() -> None:
    a, b = boxes(2, 30), boxes(2, 20)
    a[0, 0] = 0
    found = iou(a, b)
    for k in range(2):
        torch.testing.assert_close(found[k], torchvision.ops.box_iou(a[k], b[k]).nan_to_num())
    assert iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0
    torch.testing.assert_close(paired_iou(a[:, :20], b), found[:, range(20), range(20)])
    torch.testing.assert_close(iou(a[0], b), torch.stack([iou(a[0], b[0]), iou(a[0], b[1])]))


def test_clip_cuts_each_image_to_its_own_size() -> None:
    cut = clip(torch.tensor([[[-5.0, -5, 500, 500]]] * 2), torch.tensor([[40, 60], [80, 20]]))
    assert cut.tolist() == [[[0, 0, 60, 40]], [[0, 0, 20, 80]]]


def test_big_enough_refuses_empty_inverted_and_nan() -> None:
    candidates = torch.tensor([[0.0, 0, 2, 2], [0, 0, 0, 2], [3, 0, 1, 5], [float("nan"), 0, 1, 1], [0, 0, 0.5, 9]])
    assert big_enough(candidates, 0.0).tolist() == [True, False, False, False, True]
    assert big_enough(candidates, 1.0).tolist() == [True, False, False, False, False]
    assert area(candidates[0]) == 4


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms_is_torchvisions_with_a_fixed_size(threshold: float) -> None:
    candidates, scores = boxes(2, 300), torch.rand(2, 300)
    groups, valid = torch.randint(3, (2, 300)), torch.rand(2, 300) > 0.2
    keep, some = (nms(candidates, scores, groups, valid, threshold, count) for count in (300, 20))
    for b in range(2):
        rows = valid[b].nonzero().flatten()
        kept = rows[torchvision.ops.batched_nms(candidates[b, rows], scores[b, rows], groups[b, rows], threshold)]
        assert set(keep[b].nonzero().flatten().tolist()) == set(kept.tolist())
        assert 20 < len(kept) < len(rows)
        assert set(some[b].nonzero().flatten().tolist()) == set(kept[:20].tolist())
    assert not nms(candidates, scores, groups, torch.zeros_like(valid), threshold, 300).any()


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("threshold", [0.05, 0.5])
def test_nms_of_thousands_keeps_the_best_of_all(threshold: float, grouped: bool) -> None:
    """Both where the first of them suffice and where they do not."""
    torch.manual_seed(0)
    candidates, scores, valid = boxes(1, 5000), torch.rand(1, 5000), torch.rand(1, 5000) > 0.2
    groups = torch.randint(3, (1, 5000)) if grouped else torch.zeros(1, 5000, dtype=torch.int64)
    rows = valid[0].nonzero().flatten()
    kept = rows[torchvision.ops.batched_nms(candidates[0, rows], scores[0, rows], groups[0, rows], threshold)]
    for count in (5, 60, len(kept), 5000):
        keep = nms(candidates, scores, groups if grouped else None, valid, threshold, count)
        assert set(keep[0].nonzero().flatten().tolist()) == set(kept[:count].tolist())


def test_nms_passes_torchs_own_check_of_custom_operators() -> None:
    torch.library.opcheck(
        nms, (boxes(1, 20), torch.rand(1, 20), torch.zeros(1, 20, dtype=torch.int64), torch.ones(1, 20) > 0, 0.5, 9)
    )


def soft_reference(boxes, scores, groups, valid, sigma):
    """Bodla et al.'s loop, one box at a time in float64: every box's (score, index), best first."""
    left = {k: float(scores[k]) for k in range(len(boxes)) if valid[k]}
    overlaps, found = torchvision.ops.box_iou(boxes.double(), boxes.double()), []
    while left:
        best = max(left, key=left.__getitem__)
        found.append((left.pop(best), best))
        for k in left:
            if groups[k] == groups[best]:
                left[k] *= math.exp(-(overlaps[best, k].item() ** 2) / sigma)
    return found


@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_soft_suppression_is_the_papers_loop(sigma: float) -> None:
    torch.manual_seed(0)
    candidates, scores = boxes(2, 90), torch.rand(2, 90)
    groups, valid = torch.randint(3, (2, 90)), torch.rand(2, 90) > 0.2
    found, index = soft_nms(candidates, scores, groups, valid, sigma, 85)
    for b in range(2):
        wanted = soft_reference(candidates[b], scores[b], groups[b], valid[b], sigma)
        assert index[b, : len(wanted)].tolist() == [k for _, k in wanted]
        torch.testing.assert_close(found[b, : len(wanted)], torch.tensor([score for score, _ in wanted]))
        assert len(wanted) < 85
        assert (found[b, len(wanted) :] == -torch.inf).all()
        assert wanted[-1][0] < scores[b][valid[b]].min()
    best, which = soft_nms(candidates, scores, groups, valid, sigma, 7)
    assert torch.equal(best, found[:, :7])
    assert torch.equal(which, index[:, :7])


def test_soft_suppression_becomes_hard_as_sigma_vanishes() -> None:
    torch.manual_seed(0)
    candidates, scores, groups = boxes(1, 300), torch.rand(1, 300), torch.randint(3, (1, 300))
    valid = torch.ones(1, 300, dtype=torch.bool)
    found, index = soft_nms(candidates, scores, groups, valid, 1e-9, 300)
    kept = set(index[0, torch.isin(found[0], scores[0])].tolist())
    assert kept == set(nms(candidates, scores, groups, valid, 1e-4, 300).nonzero()[:, 1].tolist())
    assert 5 < len(kept) < 150


def test_soft_suppression_passes_torchs_own_check_of_custom_operators() -> None:
    given = boxes(2, 20), torch.rand(2, 20), torch.zeros(2, 20, dtype=torch.int64), torch.rand(2, 20) > 0.3
    torch.library.opcheck(soft_nms, (*given, 0.5, 6))


def test_places_are_those_of_torchs_sort_among_the_valid() -> None:
    torch.manual_seed(0)
    scores = torch.rand(2, 3000)
    scores[:, ::2] = 1.0  # ties, as saturated sigmoids have
    valid = torch.rand(2, 3000) > 0.3
    places = place(scores, valid)
    assert (places[~valid] == -torch.inf).all()
    for row, mask, got in zip(scores, valid, places, strict=True):
        order = torch.sort(row[mask], descending=True).indices
        assert torch.equal((-got[mask]).argsort(), order)
    torch.library.opcheck(place, (scores, valid))
