"""RoIAlign: our two ways against torchvision's operator."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from resdet.models import roi_align as roi_align_module
from resdet.models.roi_align import RoIAlign, flatten_rois, levels_of, occupied


def pyramid() -> dict[str, torch.Tensor]:
    return {f"p{k}": torch.randn(2, 6, 256 // 2**k, 320 // 2**k, dtype=torch.float64) for k in range(2, 7)}


def some_boxes() -> torch.Tensor:
    corner = torch.rand(2, 40, 2, dtype=torch.float64) * 200 - 10
    size = torch.rand(2, 40, 2, dtype=torch.float64) ** 3 * 400
    boxes = torch.cat([corner, corner + size], dim=-1)
    boxes[0, 0] = 0  # a padded RoI
    boxes[0, 1] = torch.tensor([300.0, 240, 900, 700])  # far outside
    boxes[1, 0] = torch.tensor([5.0, 5, 5.5, 5.5])  # half a pixel
    return boxes


@pytest.mark.parametrize("aligned", [True, False])
def test_gather_equals_the_operator_with_its_gradient(aligned: bool) -> None:
    pool = RoIAlign(7, sampling_ratio=2, aligned=aligned)
    boxes, image = flatten_rois(some_boxes())
    grads = []
    for way in (pool.by_gather, pool.by_level):
        torch.manual_seed(1)
        maps = [m.requires_grad_() for m in list(pyramid().values())[:4]]
        out = way(maps, boxes, image, levels_of(boxes))
        (out * torch.linspace(0, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
        grads.append([out, *(m.grad for m in maps)])
    for gathered, operator in zip(*grads, strict=True):
        torch.testing.assert_close(gathered, operator, rtol=1e-9, atol=1e-9)
    assert grads[0][0].abs().sum() > 1


@pytest.mark.parametrize("ratio", [0, 2])
def test_the_operator_reads_nothing_where_a_box_does_not_belong(monkeypatch, ratio: int) -> None:
    ones = [torch.ones_like(m) for m in list(pyramid().values())[:4]]
    boxes, image = flatten_rois(some_boxes())
    seen = []
    monkeypatch.setattr(roi_align_module, "roi_align", lambda *given: seen.append(roi_align(*given)) or seen[-1])
    RoIAlign(7, sampling_ratio=ratio).by_level(ones, boxes, image, levels_of(boxes))
    for k, values in enumerate(seen):
        here = levels_of(boxes) == k
        assert values[here].any()
        assert not values[~here].any()


@pytest.mark.parametrize("learning", [True, False])
def test_bfloat16_maps_are_weighted_in_float32_to_learn_and_as_they_are_to_predict(learning: bool) -> None:
    torch.manual_seed(0)
    maps = [m.bfloat16().requires_grad_() for m in list(pyramid().values())[:4]]
    pool, (boxes, image) = RoIAlign(7), flatten_rois(some_boxes().float())
    wanted = pool.by_gather([m.detach().double() for m in maps], boxes.double(), image, levels_of(boxes))
    with torch.set_grad_enabled(learning):
        found = pool.by_gather(maps, boxes, image, levels_of(boxes))
    assert found.dtype == (torch.float32 if learning else torch.bfloat16)
    error = (found.double() - wanted).abs().mean() / wanted.abs().mean()
    assert error < (1e-5 if learning else 2**-8)


@pytest.mark.parametrize("ratio", [0, 2])
def test_levels_and_scales_are_torchvisions(ratio: int) -> None:
    features, boxes = pyramid(), some_boxes()
    theirs = MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], output_size=7, sampling_ratio=ratio)
    expected = theirs(features, list(boxes), [(256, 320), (256, 320)])
    found = RoIAlign(7, sampling_ratio=ratio, aligned=False)(features, *flatten_rois(boxes))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert levels_of(boxes.flatten(0, 1)).unique().tolist() == [0, 1, 2, 3]


def test_occupied_holds_every_valid_row_and_few_others() -> None:
    valid = torch.zeros(2, 100, dtype=torch.bool)
    for count in (0, 1, 9, 40, 200):
        valid.view(-1)[:] = False
        valid.view(-1)[torch.randperm(200)[:count]] = True
        rows = occupied(valid)
        assert set(valid.flatten().nonzero().flatten().tolist()) <= set(rows.tolist())
        assert len(set(rows.tolist())) == len(rows) <= max(8, min(200, int(count * 1.5)))
