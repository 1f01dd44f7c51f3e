"""PointRend against the paper's steps, written out image by image with torch's own samplers."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from resdet.checkpoints.names import from_ours
from resdet.checkpoints.recognise import recognise
from resdet.checkpoints.transfer import fill
from resdet.models.build import build_model
from resdet.models.heads.point_rend import PointRendHead, regular_grid, sample_feature
from resdet.structures import Detections, Samples, Targets
from tiny import small

BOXES = torch.tensor([[10, 12, 60, 70], [0, 0, 158, 126], [100, 50, 120, 90.5], [3, 4, 19, 18], [20, 30, 140, 100.0]])
IMAGE = torch.tensor([0, 1, 0, 1, 1])


def feature() -> Tensor:
    return torch.randn(2, 8, 32, 40, generator=torch.Generator().manual_seed(0))


def head(**options: int) -> PointRendHead:
    torch.manual_seed(1)
    made = PointRendHead(8, 3, width=16, point_width=12, points=20, **options)
    for module in (made.coarse.logits, made.point.logits):
        torch.nn.init.normal_(module.weight, std=0.5)  # so that masks are not all alike
    return made


def points_of(maps: Tensor, points: Tensor) -> Tensor:
    """(C, h, w), (N, 2) shares -> (N, C), by torch."""
    return F.grid_sample(maps[None], points[None, None] * 2 - 1, align_corners=False)[0, :, 0].T


def test_features_are_sampled_as_torch_does() -> None:
    maps, points = feature(), torch.rand(5, 11, 2)
    found = sample_feature(maps, points, BOXES, IMAGE)
    pixels = BOXES[:, None, :2] + points * (BOXES[:, 2:] - BOXES[:, :2])[:, None]
    for k in range(5):
        expected = points_of(maps[IMAGE[k]], pixels[k] / torch.tensor([160.0, 128.0]))
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-4)
    grid = sample_feature(maps, regular_grid(14, BOXES), BOXES, IMAGE).view(5, 14, 14, 8).permute(0, 3, 1, 2)
    rois = torch.cat([IMAGE[:, None].float(), BOXES], dim=1)
    torch.testing.assert_close(grid, roi_align(maps, rois, 14, 0.25, 1, True), rtol=1e-4, atol=1e-4)


def test_prediction_refines_the_most_uncertain_points() -> None:
    maps, model = feature(), head(steps=4, subdivision_points=784)
    labels = torch.tensor([0, 2, 1, 1, 2])
    detections = Detections(
        torch.stack([BOXES[IMAGE == 0][[0, 1, 1]], BOXES[IMAGE == 1]]),
        torch.ones(2, 3),
        torch.stack([labels[IMAGE == 0][[0, 1, 1]], labels[IMAGE == 1]]),
        torch.tensor([[True, True, False], [True, True, True]]),
        torch.tensor([[128, 160]] * 2),
    )
    with torch.no_grad():
        found = model.predict({"p2": maps}, detections).mask_probs
        assert found.shape == (2, 3, 112, 112)
        assert not found[0, 2].any()
        for k, place in enumerate([(0, 0), (1, 0), (0, 1), (1, 1), (1, 2)]):
            box, image = BOXES[k : k + 1], IMAGE[k : k + 1]
            coarse = model.coarse_logits(maps, box, image)[0]
            mask = coarse[labels[k]]
            for size in (14, 28, 56, 112):
                mask = F.interpolate(mask[None, None], size=(size, size), mode="bilinear", align_corners=False)[0, 0]
                if size == 14:  # 784 points are the whole of the next step
                    continue
                chosen = mask.flatten().abs().argsort(stable=True)[:784]
                points = (torch.stack([chosen % size, chosen // size], dim=1) + 0.5) / size
                x = sample_feature(maps, points[None], box, image)[0]
                given = points_of(coarse, points)
                for fc in model.point.fcs:
                    x = F.relu(fc(torch.cat([x, given], dim=1)))
                logits = model.point.logits(torch.cat([x, given], dim=1))[:, labels[k]]
                mask = mask.flatten().scatter(0, chosen, logits).view(size, size)
            torch.testing.assert_close(found[place], mask.sigmoid(), rtol=1e-3, atol=1e-4)


def test_losses_against_a_plain_reference() -> None:
    """Coarse cross-entropy over 7 x 7 cells; the points' against the mask's own values there; sums over the positives."""
    maps, model = feature(), head()
    gt = torch.zeros(2, 1, 112, 112, dtype=torch.uint8)
    gt[0, 0, :56], gt[1, 0, :, 28:] = 1, 1
    gt_boxes = torch.stack([BOXES[:1], BOXES[1:2]])
    targets = Targets(gt_boxes, torch.tensor([[2], [0]]), torch.ones(2, 1, dtype=torch.bool), gt)
    boxes = torch.stack([torch.stack([BOXES[0], BOXES[2]]), torch.stack([BOXES[1] + 4, BOXES[3]])])
    positive = torch.tensor([[True, False], [True, False]])
    samples = Samples(
        boxes, torch.tensor([[2, 3], [0, 3]]), positive, torch.ones_like(positive), torch.zeros(2, 2, dtype=torch.int64),
        gt_boxes.expand(-1, 2, -1), targets, torch.tensor([0, 1]), torch.tensor([[128, 160]] * 2),
    )  # fmt: skip
    losses = model.loss({"p2": maps}, samples)
    assert [int(loss.count) for loss in losses.values()] == [2, 2]
    coarse_sum = point_sum = torch.zeros(())
    for k, label in ((0, 2), (1, 0)):
        box, image = boxes[k, :1], torch.tensor([k])
        coarse = model.coarse_logits(maps, box, image)[0]
        cells = regular_grid(7, box)[0]  # cells whose middle is on an edge of the mask do not occur here
        middle = box[0, :2] + cells * (box[0, 2:] - box[0, :2])
        share = (middle - gt_boxes[k, 0, :2]) / (gt_boxes[k, 0, 2:] - gt_boxes[k, 0, :2])
        inside = ((share > 0) & (share < 1)).all(dim=1)
        on = inside & (share[:, 1] < 0.5 if k == 0 else share[:, 0] >= 0.25)
        coarse_sum = coarse_sum + F.binary_cross_entropy_with_logits(coarse[label].flatten(), on.float())
        points = model.uncertain_points(coarse[label : label + 1], box)
        pixels = box[0, :2] + points[0] * (box[0, 2:] - box[0, :2])
        of_gt = (pixels - gt_boxes[k, 0, :2]) / (gt_boxes[k, 0, 2:] - gt_boxes[k, 0, :2])
        wanted = points_of(gt[k].float(), of_gt)[:, 0]
        x, given = sample_feature(maps, points, box, image)[0], points_of(coarse, points[0])
        for fc in model.point.fcs:
            x = F.relu(fc(torch.cat([x, given], dim=1)))
        logits = model.point.logits(torch.cat([x, given], dim=1))[:, label]
        point_sum = point_sum + F.binary_cross_entropy_with_logits(logits, wanted)
    torch.testing.assert_close(losses["mask"].sum, coarse_sum, rtol=0.02, atol=0.0)
    torch.testing.assert_close(losses["mask_point"].sum, point_sum, rtol=1e-4, atol=1e-5)
    again = model.loss({"p2": maps}, samples)["mask_point"].sum
    assert torch.equal(again, losses["mask_point"].sum)  # the points are drawn by a hash


def test_training_points_are_mostly_uncertain() -> None:
    model = head()
    logits = torch.linspace(-8, 8, 7).expand(7, 7)[None].contiguous()  # uncertain in the middle column
    points = model.uncertain_points(logits, BOXES[:1])
    assert points.shape == (1, 20, 2)
    assert ((points >= 0) & (points < 1)).all()
    distance = (points[0, :, 0] - 0.5).abs()
    assert distance[:15].max() < 0.25 < distance.max()


SMALL = {"width": 16, "point_width": 8, "points": 12, "steps": 3, "subdivision_points": 49}


@pytest.mark.parametrize("old", [True, False])
def test_detectron2s_files(old: bool, tmp_path) -> None:
    """The PointRend project's names, in its first and its present form; points' layers are convolutions of width 1 there."""
    model = small(mask={"point_rend": SMALL}, keypoint=None)
    theirs = {}
    for name, value in model.state_dict().items():
        given = from_ours(name, "detectron2")
        if name.startswith("heads.mask."):
            part, _, rest = name.removeprefix("heads.mask.").partition(".")
            fc = "coarse_mask_fc" if old and part == "coarse" else "fc"
            rest = re.sub(r"^fcs\.(\d)", lambda m, fc=fc: f"{fc}{int(m[1]) + 1}", rest)
            rest = rest.replace("reduce.", "reduce_spatial_dim_conv.")
            rest = rest.replace("logits.", "prediction." if part == "coarse" else "predictor.")
            given = f"roi_heads.{f'mask_{part}_head' if old else f'mask_head.{part}_head'}.{rest}"
            value = value[..., None] if part == "point" and value.ndim == 2 else value
        theirs[given] = value.numpy()
    assert None not in theirs
    with (tmp_path / "model.pkl").open("wb") as file:
        pickle.dump({"model": theirs, "__author__": "Detectron2 Model Zoo"}, file, protocol=2)
    found = recognise(tmp_path / "model.pkl")
    assert [name for name in found.left_over if "num_batches" not in name] == []
    assert found.model.mask.point_rend.model_dump(include={"side", "width", "num_fc", "point_width", "point_num_fc"}) == {
        "side": 7, "width": 16, "num_fc": 2, "point_width": 8, "point_num_fc": 3,
    }  # fmt: skip
    assert "Mask R-CNN with PointRend" in found.report()
    built = build_model(found.model)
    built.load_state_dict(found.weights, strict=False)
    for name, value in model.heads.state_dict().items():
        assert torch.equal(built.heads.state_dict()[name], value), name
    other = build_model(found.model.model_copy(update={"num_classes": 2}))
    report = fill(other, found, ["a", "b"], found.model)
    assert "re-initialised: " in report
    assert "heads.mask.point.fcs.0" in report
