"""Augmentations: picture, boxes and masks stay together, and every draw has a stream of its own."""

from __future__ import annotations

import numpy as np
import pytest

from resdet.data.augment import Augmentations
from resdet.data.dataset import crop_masks
from resdet.data.index import Objects
from resdet.errors import UserError

GEOMETRIC = [
    {"name": "HorizontalFlip", "p": 1},
    {"name": "VerticalFlip", "p": 1},
    {"name": "Transpose", "p": 1},
    {"name": "RandomRotate90", "p": 1},
    {"name": "Rotate", "limit": 40, "p": 1},
    {"name": "Affine", "scale": [0.7, 1.3], "rotate": [-20, 20], "shear": [-10, 10], "translate_percent": 0.1, "p": 1},
    {"name": "Perspective", "p": 1},
    {"name": "ElasticTransform", "alpha": 20, "sigma": 8, "p": 1},
    {"name": "GridDistortion", "p": 1},
    {"name": "OpticalDistortion", "p": 1},
    {"name": "RandomCrop", "height": 70, "width": 90, "p": 1},
    {"name": "RandomResizedCrop", "size": [80, 100], "p": 1},
    {"name": "RandomScale", "scale_limit": 0.4, "p": 1},
    {"name": "PadIfNeeded", "min_height": 150, "min_width": 170, "p": 1},
    {"name": "OneOf", "transforms": [{"name": "Rotate", "p": 1}, {"name": "VerticalFlip", "p": 1}], "p": 1},
]
PHOTOMETRIC = [
    {"name": "RandomBrightnessContrast", "p": 1},
    {"name": "HueSaturationValue", "p": 1},
    {"name": "GaussianBlur", "p": 1},
    {"name": "ImageCompression", "p": 1},
]


def scene() -> tuple[np.ndarray, Objects]:
    """Bright ellipses on black, as polygon, RLE and bare box: whatever moves, brightness shows where objects are."""
    import cv2

    from resdet.masks import encode_bitmap

    picture = np.zeros((120, 140, 3), np.uint8)
    boxes, segmentations = [], []
    for k, (x, y, w, h) in enumerate([(38, 45, 22, 15), (95, 40, 16, 24), (70, 88, 25, 14)]):
        mask = np.zeros(picture.shape[:2], np.uint8)
        cv2.ellipse(mask, (x, y), (w, h), 20 * k, 0, 360, 1, -1)
        picture[mask > 0] = (255, 250, 245)
        ys, xs = np.nonzero(mask)
        boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        if k == 0:
            contour = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
            segmentations.append([(contour[:, 0].astype(float) + 0.5).ravel().tolist()])
        else:
            segmentations.append(encode_bitmap(mask > 0))
    return picture, Objects(np.array(boxes, np.float32), np.arange(3), segmentations)


@pytest.mark.parametrize("entry", GEOMETRIC, ids=lambda e: e["name"])
def test_boxes_and_masks_follow_the_picture(entry: dict) -> None:
    picture, objects = scene()
    augment = Augmentations([entry])
    assert augment.geometric
    moved = 0
    for seed in range(6):
        image, found = augment(picture, objects, [seed])
        assert image.dtype == np.uint8
        assert len(found.boxes) == len(found.labels) == len(found.segmentations)
        moved += not np.array_equal(found.boxes, objects.boxes) or image.shape != picture.shape
        height, width = image.shape[:2]
        crops = crop_masks(found, (height, width), 56)
        covered = np.zeros((height, width), bool)
        for box, crop in zip(found.boxes, crops, strict=True):
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            ys, xs = np.mgrid[:height, :width] + 0.5
            inside = (xs > x1) & (xs < x2) & (ys > y1) & (ys < y2)
            rows = np.clip(((ys - y1) / (y2 - y1) * 56).astype(int), 0, 55)
            columns = np.clip(((xs - x1) / (x2 - x1) * 56).astype(int), 0, 55)
            covered |= inside & (crop[rows, columns] > 0)
            if (x2 - x1) > 8 and (y2 - y1) > 8:  # the box is tight around its mask
                assert crop[:6].any()
                assert crop[-6:].any()
                assert crop[:, :6].any()
                assert crop[:, -6:].any()
        bright = image[..., 0] > 127
        assert (covered != bright).sum() < 0.1 * max(bright.sum(), 1) + 30
    assert moved


@pytest.mark.parametrize("entry", PHOTOMETRIC, ids=lambda e: e["name"])
def test_photometric_transforms_leave_objects_alone(entry: dict) -> None:
    picture, objects = scene()
    augment = Augmentations([entry])
    assert not augment.geometric
    image, found = augment(picture // 2 + 40, objects, [0])
    assert found is objects
    assert image.shape == picture.shape
    assert not np.array_equal(image, picture // 2 + 40)


def test_objects_that_no_transform_touched_keep_their_exact_outline() -> None:
    picture, objects = scene()
    _, found = Augmentations([{"name": "HorizontalFlip", "p": 0}])(picture, objects, [0])
    assert np.array_equal(found.boxes, objects.boxes)
    assert found.segmentations == objects.segmentations


def test_an_image_without_objects_passes() -> None:
    nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])
    image, found = Augmentations([{"name": "HorizontalFlip", "p": 1}])(scene()[0], nothing, [0])
    assert np.array_equal(image, scene()[0][:, ::-1])
    assert found.boxes.shape == (0, 4)


def test_transforms_draw_independently_and_reproducibly() -> None:
    picture = np.tile(np.arange(128, dtype=np.uint8)[None, :, None], (64, 1, 3))
    names = ["HorizontalFlip", "VerticalFlip", "InvertImg"]
    augment = Augmentations([{"name": name, "p": 0.5} for name in names])
    picture[:32] //= 2
    nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])
    fired = np.zeros((200, 3), bool)
    for seed in range(200):
        image, _ = augment(picture, nothing, [seed])
        again, _ = augment(picture, nothing, [seed])
        assert np.array_equal(image, again)
        inverted = image[[0, -1]].astype(int).sum() > 255 * image[[0, -1]].size / 2
        upright = 255 - image if inverted else image
        fired[seed] = [upright[:, 0].sum() > upright[:, -1].sum(), upright[0].sum() > upright[-1].sum(), inverted]
    assert (abs(fired.mean(0) - 0.5) < 0.15).all()
    correlation = np.corrcoef(fired.T)
    assert abs(correlation - np.eye(3)).max() < 0.25  # one shared stream would give 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "HorizontalFlop"}, "did you mean HorizontalFlip"),
        ({"name": "Rotate", "limits": 3}, "Rotate: .*limits"),
        ({"name": "RandomCrop", "height": -3, "width": 5}, "RandomCrop: "),
        ({"p": 1}, "None is no albumentations transform"),
        ("Rotate", "None is no albumentations transform"),
    ],
)
def test_mistakes_are_named(entry: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentations([entry])


def test_transforms_that_are_the_models_work_are_refused() -> None:
    with pytest.raises(UserError, match="leave out Normalize"):
        Augmentations([{"name": "Normalize", "p": 1}])(*scene(), [0])
