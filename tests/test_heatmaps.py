"""Heatmaps against torchvision's functions: targets, loss, gradients, and the way back to points."""

from __future__ import annotations

import torch
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints as theirs
from torchvision.models.detection.roi_heads import keypointrcnn_loss, keypoints_to_heatmap

from resdet.keypoints import heatmap_targets, heatmaps_to_keypoints
from resdet.models.heads.keypoint import keypoint_loss

ROIS = torch.tensor([[4.0, 6, 40, 50], [10, 3, 30.5, 60.25], [0, 0, 64, 64], [5, 5, 5.3, 70]], dtype=torch.float64)


def points(per_roi: int = 40) -> torch.Tensor:
    keypoints = torch.rand(len(ROIS), per_roi, 3, dtype=torch.float64) * 70
    keypoints[..., 2] = torch.randint(3, keypoints.shape[:2])
    keypoints[:, 0, :2], keypoints[:, 1, :2] = ROIS[:, 2:], ROIS[:, :2]  # corners: the last and the first cell
    keypoints[:, :2, 2] = 2
    return keypoints


def test_targets_equal_torchvisions() -> None:
    keypoints = points()
    place, inside = heatmap_targets(keypoints, ROIS, 56)
    wanted, valid = keypoints_to_heatmap(keypoints, ROIS, 56)
    assert torch.equal(inside, valid.bool())
    assert torch.equal(place, wanted)
    assert inside.float().mean() > 0.2
    assert inside[:3, :2].all()


def test_loss_and_gradients_equal_torchvisions() -> None:
    keypoints = points()
    given = torch.randn(len(ROIS), 40, 56, 56, dtype=torch.float64, requires_grad=True)
    expected = keypointrcnn_loss(given, [ROIS], [keypoints], [torch.arange(len(ROIS))])
    found = keypoint_loss(given, keypoints, ROIS, torch.ones(len(ROIS), dtype=torch.bool)).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, given)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)


def test_a_loss_without_labelled_points_is_zero_and_has_gradients() -> None:
    given = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    for keypoints, positive in ((torch.zeros(4, 3, 3), True), (points(3), False)):
        loss = keypoint_loss(given, keypoints.double(), ROIS, torch.full((4,), positive))
        assert loss.count == 0
        loss.mean().backward()
        assert not given.grad.any()


def test_points_equal_torchvisions() -> None:
    rois = torch.cat([ROIS.float(), torch.tensor([[3.2, 4.7, 101.9, 33.3]])])
    maps = torch.nn.functional.interpolate(torch.randn(5, 7, 14, 14), scale_factor=4, mode="bilinear") * 3
    wanted, scores = theirs(maps, rois)
    found = heatmaps_to_keypoints(maps, rois, "torchvision")
    torch.testing.assert_close(found[..., :2], wanted[..., :2], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[..., 2], scores)
    shares = heatmaps_to_keypoints(maps, rois, "detectron2")
    assert torch.equal(shares[..., :2], found[..., :2])
    # The share of the softmax in the heatmap's own resolution, where the box is as large as that.
    square = torch.tensor([[0.0, 0, 56, 56]])
    (share,) = heatmaps_to_keypoints(maps[:1], square, "detectron2")
    torch.testing.assert_close(share[:, 2], maps[0].flatten(1).softmax(1).amax(1))
    assert heatmaps_to_keypoints(maps[:0], rois[:0]).shape == (0, 7, 3)
