from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from resdet import masks
from resdet.masks import (
    crop_bitmap,
    crop_polygons,
    decode_rle,
    encode_bitmap,
    encode_in_boxes,
    paste_bitmaps,
    paste_in_boxes,
    targets_in_rois,
)


def paste_in_box(
    probs: np.ndarray, box: np.ndarray, size: tuple[int, int], style: str = "resdet"
) -> tuple[tuple[int, int], np.ndarray]:
    return next(paste_in_boxes(probs[None], box[None], size, style))


def encode_in_box(
    probs: np.ndarray, box: np.ndarray, size: tuple[int, int], style: str = "resdet"
) -> dict[str, object]:
    (rle,) = encode_in_boxes(probs[None], box[None], size, style)
    return rle


def blob(rng: np.random.Generator, center: tuple[float, float], radius: float, points: int = 24) -> np.ndarray:
    """A star-shaped polygon (N, 2)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    reach = radius * rng.uniform(0.6, 1.0, points)
    return np.stack([np.cos(angle) * reach, np.sin(angle) * reach], 1) + center


def box_of(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)]).astype(np.float32)


def supersampled(points: np.ndarray, roi: np.ndarray, size: int, factor: int = 16) -> np.ndarray:
    """The share of each RoI bin inside the polygon, by brute force."""
    scaled = (points - roi[:2]) / (roi[2:] - roi[:2]) * size * factor
    canvas = np.zeros((size * factor, size * factor), np.uint8)
    cv2.fillPoly(canvas, [np.round((scaled - 0.5) * 256).astype(np.int32)], 1, shift=8)
    return canvas.reshape(size, factor, size, factor).mean((1, 3))


def roi_near(rng: np.random.Generator, box: np.ndarray) -> np.ndarray:
    side = np.tile(box[2:] - box[:2], 2)
    return (box + rng.uniform(-0.15, 0.15, 4) * side).astype(np.float32)


def test_targets_are_closer_to_the_polygon_than_torchvisions() -> None:
    from torchvision.models.detection.roi_heads import project_masks_on_boxes

    rng, ours, theirs = np.random.default_rng(0), [], []
    for _ in range(60):
        radius = rng.uniform(6, 70)
        points = blob(rng, (rng.uniform(80, 120), rng.uniform(80, 120)), radius)
        box = box_of(points)
        roi = roi_near(rng, box)
        truth = supersampled(points, roi, 28)
        crop = torch.from_numpy(crop_polygons([points.ravel().tolist()], box, 112))
        found = targets_in_rois(crop[None], torch.from_numpy(box)[None], torch.from_numpy(roi)[None], 28)[0].numpy()
        rle = coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist()], 200, 200))
        bitmap = torch.from_numpy(coco_mask.decode(rle))[None].float()
        other = project_masks_on_boxes(bitmap, torch.from_numpy(roi)[None], torch.tensor([0]), 28)[0].numpy()
        ours.append(np.abs(found - truth).mean())
        theirs.append(np.abs(other - truth).mean())
    assert np.mean(ours) < 0.01
    assert np.mean(ours) < np.mean(theirs) / 3


def test_targets_are_zero_outside_the_object_and_exact_for_a_full_mask() -> None:
    box = torch.tensor([[10.0, 10, 30, 30]])
    full = torch.ones(1, 112, 112, dtype=torch.uint8)
    found = targets_in_rois(full, box, torch.tensor([[0.0, 0, 40, 40]]), 4)[0]
    assert found.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]] or found.sum() == pytest.approx(4)
    torch.testing.assert_close(targets_in_rois(full, box, box, 28), torch.ones(1, 28, 28))
    assert targets_in_rois(full, box, torch.tensor([[50.0, 50, 60, 60]]), 4).sum() == 0
    assert targets_in_rois(full, torch.zeros(1, 4), torch.zeros(1, 4), 4).isfinite().all()  # padding


def test_bitmap_and_polygon_crops_agree() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        points = blob(rng, (100, 90), rng.uniform(20, 70))
        box = box_of(points)
        polygon = crop_polygons([points.ravel().tolist()], box, 112)
        bitmap = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([points.ravel().tolist()], 200, 200)))
        assert (polygon != crop_bitmap(bitmap, box, 112)).mean() < 0.04
        assert 0.2 < polygon.mean() < 0.95


def test_uncompressed_and_compressed_runs_decode_alike() -> None:
    bitmap = np.zeros((5, 4), np.uint8)
    bitmap[1:4, 2] = 1  # runs go down the columns: 11 off, 3 on, 6 off
    runs: dict[str, object] = {"size": [5, 4], "counts": [11, 3, 6]}
    assert np.array_equal(decode_rle(runs, 5, 4), bitmap)
    assert np.array_equal(decode_rle(encode_bitmap(bitmap), 5, 4), bitmap)


def test_crop_of_one_pixel_box_is_not_empty() -> None:
    bitmap = np.zeros((20, 20), np.uint8)
    bitmap[7, 9] = 1
    crop = crop_bitmap(bitmap, np.array([9, 7, 10, 8], np.float32), 28)
    assert crop.mean() > 0.5
    assert crop[6:-6, 6:-6].all()
    assert crop_polygons([[9, 7, 10, 7, 10, 8, 9, 8]], np.array([9, 7, 10, 8], np.float32), 28).all()


@pytest.mark.parametrize("style", ["resdet", "torchvision"])
def test_runs_equal_the_pasted_bitmap(style: str) -> None:
    rng = np.random.default_rng(2)
    size = (61, 83)
    for _ in range(150):
        probs = cv2.GaussianBlur(rng.random((28, 28)).astype(np.float32), (5, 5), 1.5) + rng.uniform(-0.2, 0.2)
        corner = rng.uniform(-20, 80, 2)
        box = np.concatenate([corner, corner + rng.uniform(0.2, 90, 2)]).astype(np.float32)
        (y, x), crop = paste_in_box(probs, box, size, style)
        bitmap = np.zeros(size, bool)
        bitmap[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        assert encode_in_box(probs, box, size, style) == encode_bitmap(bitmap)


@pytest.mark.parametrize("style", ["resdet", "torchvision"])
def test_bitmaps_on_the_device_are_those_of_the_host(monkeypatch, style: str) -> None:
    rng, size = np.random.default_rng(6), (70, 95)
    monkeypatch.setattr(masks, "PIXELS_AT_ONCE", 7 * 70 * 95)  # 29 pieces
    probs = np.stack([cv2.GaussianBlur(rng.random((28, 28)).astype(np.float32), (5, 5), 1.5) for _ in range(200)])
    corner = rng.uniform(-20, 80, (200, 2))
    side = rng.uniform(0.2, 90, (200, 2)) * (rng.random((200, 2)) < 0.95)  # some without extent
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = paste_bitmaps(torch.from_numpy(probs), torch.from_numpy(boxes), size, style).numpy()
    expected = np.zeros((200, *size), bool)
    for bitmap, ((y, x), crop) in zip(expected, paste_in_boxes(probs, boxes, size, style), strict=True):
        bitmap[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    assert 0.02 < expected.mean() < 0.5
    assert (found != expected).sum() <= 2  # a probability of one half but for rounding


@pytest.mark.parametrize("style", ["resdet", "torchvision"])
def test_many_at_once_are_what_each_is_alone(style: str) -> None:
    rng, size = np.random.default_rng(5), (1300, 1100)  # the first ones are encoded in several blocks
    probs = np.stack([cv2.GaussianBlur(rng.random((28, 28)), (5, 5), 1.5) for _ in range(12)])
    corner = rng.uniform(-20, 40, (12, 2))
    boxes = np.concatenate([corner, corner + np.linspace(1500, 0, 12)[:, None] * [1, 0.9]], 1).astype(np.float32)
    pasted = list(paste_in_boxes(probs, boxes, size, style))
    rles = encode_in_boxes(probs, boxes, size, style)
    assert len(pasted) == len(rles) == 12
    for k, ((y, x), crop) in enumerate(pasted):
        corner_alone, alone = paste_in_box(probs[k], boxes[k], size, style)
        assert ((y, x), crop.tolist()) == (corner_alone, alone.tolist())
        bitmap = np.zeros(size, bool)
        bitmap[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        assert rles[k] == encode_bitmap(bitmap)
    nothing = np.zeros((0, 28, 28)), np.zeros((0, 4))
    assert list(paste_in_boxes(*nothing, size, style)) == encode_in_boxes(*nothing, size, style) == []


def test_full_and_empty_masks_encode() -> None:
    everything = np.array([-50, -50, 200, 200], np.float32)
    assert coco_mask.area(encode_in_box(np.ones((28, 28), np.float32), everything, (60, 80))) == 60 * 80
    assert coco_mask.area(encode_in_box(np.zeros((28, 28), np.float32), everything, (60, 80))) == 0


def test_paste_is_grid_samples() -> None:
    """detectron2 and mmdetection paste by grid_sample at pixel centres, zero outside, from one half on."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        probs = rng.random((28, 28)).astype(np.float32)
        corner = rng.uniform(-10, 40, 2)
        box = np.concatenate([corner, corner + rng.uniform(2, 60, 2)]).astype(np.float32)
        x = (torch.arange(80) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        y = (torch.arange(60) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].float()
        soft = torch.nn.functional.grid_sample(torch.from_numpy(probs)[None, None], grid, align_corners=False)[0, 0]
        (top, left), crop = paste_in_box(probs, box, (60, 80))
        pasted = np.zeros((60, 80), bool)
        pasted[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        clear = (soft - 0.5).abs().numpy() > 1e-4  # rounding may decide elsewhere
        np.testing.assert_array_equal(pasted[clear], soft.numpy()[clear] >= 0.5)


def test_paste_is_torchvisions() -> None:
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    rng = np.random.default_rng(4)
    for _ in range(40):
        probs = rng.random((28, 28)).astype(np.float32)
        corner = rng.uniform(0, 40, 2)  # their code fails on boxes outside the picture
        box = np.concatenate([corner, corner + rng.uniform(2, 60, 2)]).astype(np.float32)
        expected = paste_masks_in_image(torch.from_numpy(probs)[None, None], torch.from_numpy(box)[None], (60, 80))
        soft = expected[0, 0].numpy()
        (top, left), crop = paste_in_box(probs, box, (60, 80), "torchvision")
        pasted = np.zeros((60, 80), bool)
        pasted[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        clear = np.abs(soft - 0.5) > 1e-5
        np.testing.assert_array_equal(pasted[clear], soft[clear] > 0.5)


def test_across_a_box_without_extent_the_middle_of_the_mask_is_repeated() -> None:
    """mmdetection keeps such boxes: the column under the box's line gets the mean of the two middle columns."""
    probs = np.zeros((28, 28), np.float32)
    probs[7:21, 13:15] = 1
    (y, x), crop = paste_in_box(probs, np.array([20.0, 0, 20, 28], np.float32), (28, 20))
    assert (y, x, crop.shape) == (0, 19, (28, 1))
    assert crop[:, 0].tolist() == [7 <= row < 21 for row in range(28)]
    rle = encode_in_box(probs, np.array([20.0, 0, 20, 28], np.float32), (28, 20))
    assert coco_mask.area(rle) == 14
