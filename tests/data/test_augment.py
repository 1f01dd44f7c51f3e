"""Augmentations: picture, boxes and masks stay together, and every draw has a stream of its own."""

from __future__ import annotations

import inspect
import pickle
import tracemalloc

import albumentations as A
import cv2
import numpy as np
import pytest

from resdet.config import DataConfig, InputConfig
from resdet.data.augment import Augmentations
from resdet.data.dataset import DetectionDataset, crop_masks
from resdet.data.index import Objects
from resdet.data.patch import Patch, patch_of
from resdet.errors import UserError
from resdet.masks import encode_bitmap

GEOMETRIC: list[dict] = [
    {"name": "HorizontalFlip"},
    {"name": "VerticalFlip"},
    {"name": "Transpose"},
    {"name": "RandomRotate90"},
    {"name": "D4"},
    {"name": "Rotate", "limit": 40},
    {"name": "Rotate", "limit": 30, "crop_border": True},
    {"name": "Rotate", "limit": 30, "border_mode": 4},
    {"name": "SafeRotate", "limit": 40},
    {"name": "Affine", "scale": [0.7, 1.3], "rotate": [-20, 20], "shear": [-10, 10], "translate_percent": 0.1},
    {"name": "Affine", "rotate": [-30, 30], "fit_output": True},
    {"name": "ShiftScaleRotate"},
    {"name": "Perspective"},
    {"name": "Perspective", "keep_size": False, "fit_output": True},
    {"name": "ElasticTransform", "alpha": 20, "sigma": 8},
    {"name": "GridDistortion"},
    {"name": "OpticalDistortion"},
    {"name": "ThinPlateSpline"},
    {"name": "GridElasticDeform", "num_grid_xy": [4, 4], "magnitude": 10},
    {"name": "RandomGridShuffle"},
    {"name": "RandomCrop", "height": 140, "width": 180},
    {"name": "RandomCrop", "height": 300, "width": 180, "pad_if_needed": True},
    {"name": "CenterCrop", "height": 140, "width": 180},
    {"name": "Crop", "x_min": 20, "y_min": 30, "x_max": 200, "y_max": 190},
    {"name": "RandomCropFromBorders"},
    {"name": "RandomResizedCrop", "size": [160, 200]},
    {"name": "RandomSizedCrop", "min_max_height": [100, 200], "size": [160, 200]},
    {"name": "BBoxSafeRandomCrop"},
    {"name": "RandomSizedBBoxSafeCrop", "height": 200, "width": 220},
    {"name": "AtLeastOneBBoxRandomCrop", "height": 140, "width": 180},
    {"name": "CropNonEmptyMaskIfExists", "height": 140, "width": 180},
    {"name": "CropAndPad", "percent": [-0.2, 0.2]},
    {"name": "CropAndPad", "px": [-20, 30], "keep_size": False},
    {"name": "RandomScale", "scale_limit": 0.4},
    {"name": "Resize", "height": 200, "width": 333},
    {"name": "LongestMaxSize", "max_size": 223},
    {"name": "SmallestMaxSize", "max_size": 307},
    {"name": "Pad", "padding": [10, 20, 5, 30]},
    {"name": "PadIfNeeded", "min_height": 350, "min_width": 370},
    {"name": "PadIfNeeded", "min_height": 350, "min_width": 370, "border_mode": 2},
    {"name": "PadIfNeeded", "min_height": 100, "min_width": 100, "border_mode": 2},
    {"name": "OneOf", "transforms": [{"name": "Rotate", "p": 1}, {"name": "VerticalFlip", "p": 1}]},
]
CHAINS: list = [
    [{"name": "RandomCrop", "height": 150, "width": 190}, {"name": "Rotate"}, {"name": "Pad", "padding": 20}],
    [{"name": "Perspective"}, {"name": "HorizontalFlip"}, {"name": "RandomResizedCrop", "size": [160, 200]}],
    [{"name": "Rotate"}, {"name": "ElasticTransform", "alpha": 20, "sigma": 8}, {"name": "Transpose"}],
    [{"name": "CenterCrop", "height": 150, "width": 190}, {"name": "GridDistortion"}, {"name": "Rotate"}],
    pytest.param([{"name": "PiecewiseAffine"}], marks=pytest.mark.slow),
    [{"name": "Rotate"}, {"name": "BBoxSafeRandomCrop"}, {"name": "CoarseDropout"}],
]
PHOTOMETRIC = [
    {"name": "RandomBrightnessContrast", "p": 1},
    {"name": "HueSaturationValue", "p": 1},
    {"name": "GaussianBlur", "p": 1},
    {"name": "ImageCompression", "p": 1},
]


def scene() -> tuple[np.ndarray, Objects]:
    """Bright ellipses on black, as polygon, RLE and bare box: whatever moves, brightness shows where objects are."""
    image = np.zeros((240, 280, 3), np.uint8)
    boxes, segmentations = [], []
    for k, (x, y, w, h) in enumerate([(76, 90, 44, 30), (190, 80, 32, 48), (140, 176, 50, 28)]):
        turn, angles = np.radians(20 * k), np.linspace(0, 2 * np.pi, 60, endpoint=False)
        across, down = w * np.cos(angles), h * np.sin(angles)
        outline = np.stack(
            [x + across * np.cos(turn) - down * np.sin(turn), y + across * np.sin(turn) + down * np.cos(turn)], 1
        )
        mask = patch_of([outline.ravel().tolist()], np.zeros(4), (240, 280)).whole((240, 280)) > 0
        image[mask] = (255, 250, 245)
        tight = [*outline.min(0), *outline.max(0)]
        boxes.append(tight if k < 2 else np.round(tight))
        segmentations.append([[outline.ravel().tolist()], encode_bitmap(mask), None][k])
    return image, Objects(np.array(boxes, np.float32), np.arange(3), segmentations)


def moved_by_albumentations(augment: Augmentations, bitmap: np.ndarray) -> np.ndarray:
    """The oracle: a full bitmap through the mask path of every transform that ran, with the parameters it drew."""
    for transform in augment.transforms:
        if getattr(transform, "params", None):
            bitmap = transform.apply_to_mask(np.ascontiguousarray(bitmap), **transform.params)
    return bitmap > 0


def run(augment: Augmentations, image: np.ndarray, objects: Objects, seed: int) -> tuple[np.ndarray, Objects]:
    for transform in augment.transforms:
        transform.params = {}
    return augment(image, objects, [seed])


@pytest.mark.parametrize("entries", [[e] for e in GEOMETRIC] + CHAINS, ids=lambda e: "+".join(t["name"] for t in e))
def test_objects_move_as_full_bitmaps_would(entries: list[dict]) -> None:
    image, objects = scene()
    augment = Augmentations([{**entry, "p": 1} for entry in entries])
    assert augment.geometric
    for seed in range(4):
        moved, found = run(augment, image, objects, seed)
        size = (moved.shape[0], moved.shape[1])
        assert len(found.boxes) == len(found.labels) == len(found.segmentations)
        for g in range(3):
            before = patch_of(objects.segmentations[g], objects.boxes[g], (240, 280)).whole((240, 280))
            expected = moved_by_albumentations(augment, before)
            if g not in found.labels:
                assert expected.sum() <= 3 * max(size)  # at most a sliver, thinner than a pixel
                continue
            at = found.labels.tolist().index(g)
            box = found.boxes[at]
            assert (box >= 0).all()
            assert (box[2:] <= size[::-1]).all()
            tight = patch_box(expected)
            assert np.abs(box - tight).max() < 1.6
            if g < 2:
                mask = patch_of(found.segmentations[at], box, size).whole(size) > 0
                if expected.sum() > 400:
                    assert (mask & expected).sum() > 0.94 * (mask | expected).sum()
                crop = crop_masks(
                    Objects(found.boxes[at:][:1], found.labels[at:][:1], found.segmentations[at:][:1]), 56
                )[0]
                rows, columns = (np.flatnonzero(crop.any(axis)) for axis in (1, 0))
                assert rows[0] < 8  # the box is tight around its mask
                assert rows[-1] > 47
                assert columns[0] < 8
                assert columns[-1] > 47


def patch_box(bitmap: np.ndarray) -> np.ndarray:
    box = Patch(0, 0, bitmap).box()
    assert box is not None
    return box


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
        ({"p": 1}, "None is not an albumentations transform"),
        ("Rotate", "None is not an albumentations transform"),
    ],
)
def test_mistakes_are_named(entry: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentations([entry])


def test_flips_are_exact() -> None:
    image, objects = scene()
    twice = Augmentations([{"name": "HorizontalFlip", "p": 1}, {"name": "HorizontalFlip", "p": 1}])
    _, found = twice(image, objects, [0])
    assert np.array_equal(found.boxes, objects.boxes)
    assert np.allclose(found.segmentations[0], objects.segmentations[0], atol=1e-9)
    _, found = Augmentations([{"name": "VerticalFlip", "p": 1}])(image, objects, [0])
    assert np.array_equal(found.boxes[:, 1], 240 - objects.boxes[:, 3])
    rle = patch_of(objects.segmentations[1], objects.boxes[1], (240, 280)).whole((240, 280))
    assert np.array_equal(patch_of(found.segmentations[1], found.boxes[1], (240, 280)).whole((240, 280)), rle[::-1])


def test_a_crop_cuts_outlines_and_what_is_padded_later_stays_empty() -> None:
    ring = [20.0, 20, 80, 20, 80, 80, 20, 80, 20, 20, 35, 35, 35, 65, 65, 65, 65, 35, 35, 35]  # with a hole
    thin, far = [39.5, 10.0, 40.5, 10, 40.5, 15, 39.5, 15], [90.0, 90, 95, 90, 95, 95, 90, 95]
    boxes = np.array([[20, 20, 80, 80], [39.5, 10, 40.5, 15], [90, 90, 95, 95]], np.float32)
    objects = Objects(boxes, np.arange(3), [[ring, [30.0, 82, 45, 82, 45, 90]], [thin], [far]])
    entries = [{"name": "Crop", "x_min": 0, "y_min": 0, "x_max": 40, "y_max": 100}, {"name": "Pad", "padding": 10}]
    image, found = Augmentations([{**entry, "p": 1} for entry in entries])(
        np.zeros((100, 100, 3), np.uint8), objects, [0]
    )
    assert image.shape == (120, 60, 3)
    assert found.labels.tolist() == [0]  # half a pixel of the thin one is left
    assert np.allclose(found.boxes, [[30, 30, 50, 97 + 1 / 3]])  # and nothing beyond the crop's border
    mask = patch_of(found.segmentations[0], found.boxes[0], (120, 60)).whole((120, 60))
    before = patch_of(objects.segmentations[0], boxes[0], (100, 100)).whole((100, 100))
    assert (mask[10:110, 10:50] != before[:, :40]).sum() <= 2  # along the slanted edge
    assert not mask[:, 50:].any()


def test_masks_in_a_box_that_the_mask_does_not_fill_stay_where_they_are() -> None:
    bitmap = np.zeros((50, 60), bool)
    bitmap[10:20, 30:40] = True
    objects = Objects(np.array([[20, 5, 40, 45]], np.float32), np.zeros(1, np.int64), [encode_bitmap(bitmap)])
    _, found = Augmentations([{"name": "HorizontalFlip", "p": 1}])(np.zeros((50, 60, 3), np.uint8), objects, [0])
    assert found.boxes.tolist() == [[20, 5, 40, 45]]
    assert np.array_equal(crop_masks(found, 40)[0], crop_masks(objects, 40)[0][:, ::-1])


def test_memory_follows_the_image_not_the_number_of_objects() -> None:
    """200 objects of an image of 3 megapixels, as bitmaps 600 MB."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 1400, (200, 2))
    boxes = np.concatenate([corners, corners + 60], 1).astype(np.float32)
    outlines: list = [[[x, y, x + 60, y, x + 60, y + 60, x, y + 60]] for x, y in corners.astype(float).tolist()]
    rle = encode_bitmap(np.pad(np.ones((60, 60), bool), ((100, 1340), (200, 1740))))
    objects = Objects(boxes, np.zeros(200, np.int64), [*outlines[:100], *[None] * 90, *[rle] * 10])
    image = np.zeros((1500, 2000, 3), np.uint8)
    for name, limit in (("HorizontalFlip", 60), ("Rotate", 60), ("GridDistortion", 250)):
        augment = Augmentations([{"name": name, "p": 1}])
        tracemalloc.start()
        _, found = augment(image, objects, [0])
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        assert len(found.labels) > 100
        assert peak < limit, name


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "Normalize"}, "Normalize turns uint8 images into float32: leave it out"),
        ({"name": "ToTensorV2"}, "ToTensorV2 turns .* leave it out"),
        ({"name": "Mosaic"}, "Mosaic needs mosaic_metadata with every image"),
        ({"name": "MaskDropout"}, "MaskDropout drops out .* use CoarseDropout"),
        ({"name": "RandomCropNearBBox"}, "RandomCropNearBBox needs cropping_bbox"),
        ({"name": "CenterCrop3D", "size": [1, 2, 3]}, "works on volumes"),
        ({"name": "ToGray", "num_output_channels": 1}, "ToGray turns an image of shape"),
        ({"name": "OneOf", "transforms": [{"name": "ToFloat"}]}, "ToFloat turns"),
        ({"name": "OneOf", "transforms": {"name": "Rotate"}}, "OneOf: transforms must be a list"),
        ({"name": "Affine", "fill_mask": 255}, "Affine: fill_mask has no effect"),
        ({"name": "SelectiveChannelTransform", "transforms": [{"name": "VerticalFlip"}]}, "VerticalFlip would move"),
    ],
)
def test_what_cannot_work_here_is_refused_at_the_start(entry: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentations([entry])


def test_a_crop_larger_than_the_image_names_both_and_the_fix() -> None:
    augment = Augmentations([{"name": "RandomCrop", "height": 500, "width": 60, "p": 1}])
    with pytest.raises(
        UserError, match=r"RandomCrop crops 500 x 60 .* of 240 x 280: put {name: PadIfNeeded, min_height: 500"
    ):
        augment(*scene(), [0])


def test_a_spawned_worker_draws_the_same() -> None:
    crop = {"name": "BBoxSafeRandomCrop", "p": 1}
    augment = Augmentations([{"name": "OneOf", "transforms": [{"name": "Rotate"}, {"name": "GridDistortion"}]}, crop])
    image, objects = scene()
    augment(image, objects, [7])  # what came before makes no difference
    sent = pickle.loads(pickle.dumps(augment))
    (ours, found), (theirs, same) = augment(image, objects, [3]), sent(image, objects, [3])
    assert np.array_equal(ours, theirs)
    assert np.array_equal(found.boxes, same.boxes)


def test_images_too_small_for_a_crop_are_named_before_training(shapes) -> None:
    entries = [{"name": "RandomCrop", "height": 100, "width": 20, "p": 0.9}]
    data = DataConfig.model_validate({"train": {"augmentations": entries}})
    with pytest.raises(
        UserError, match=r"000\d+.jpg: .*RandomCrop crops 100 x 20 .* of 96 x 120: put {name: PadIfNeeded"
    ):
        DetectionDataset(shapes, data, InputConfig(), train=True, masks=True, seed=0)


def every_transform() -> list[str]:
    names = [n for n in dir(A) if isinstance(getattr(A, n), type)]
    bases = {"BasicTransform", "BaseCompose", "DualTransform", "ImageOnlyTransform", "Transform3D"}
    kinds = (A.BasicTransform, A.BaseCompose)
    return [n for n in names if issubclass(getattr(A, n), kinds) and n not in bases]


REFUSED = {
    *("CenterCrop3D", "CoarseDropout3D", "CubicSymmetry", "Pad3D", "PadIfNeeded3D", "RandomCrop3D", "ToTensor3D"),
    *("ConstrainedCoarseDropout", "MaskDropout", "Mosaic", "OverlayElements", "RandomCropNearBBox", "TextImage"),
    *("FDA", "HistogramMatching", "PixelDistributionAdaptation"),  # they need another image
    *("FromFloat", "Normalize", "ToFloat", "ToTensorV2", "Lambda", "ReplayCompose"),
}
ARGUMENTS: dict[str, dict] = {
    "CenterCrop3D": {"size": [1, 2, 3]},
    "RandomCrop3D": {"size": [1, 2, 3]},
    "Pad3D": {"padding": 1},
    "PadIfNeeded3D": {"min_zyx": [1, 2, 3]},
    "GridElasticDeform": {"num_grid_xy": [4, 4], "magnitude": 10},
    "LongestMaxSize": {"max_size": 100},
    "SmallestMaxSize": {"max_size": 100},
    "RandomResizedCrop": {"size": [50, 60]},
    "RandomSizedCrop": {"min_max_height": [40, 50], "size": [50, 60]},
    "RandomSizedBBoxSafeCrop": {"height": 50, "width": 60},
    "Resize": {"height": 50, "width": 60},
    "CropAndPad": {"px": 5},
    "Crop": {"x_max": 60, "y_max": 60},
    "TextImage": {"font_path": "font.ttf"},
    "FDA": {"reference_images": None},
}
COMPOSES = (
    "Compose",
    "OneOf",
    "OneOrOther",
    "RandomOrder",
    "ReplayCompose",
    "SelectiveChannelTransform",
    "Sequential",
    "SomeOf",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", every_transform())
def test_every_transform_works_or_is_refused_at_the_start(name: str) -> None:
    fixed = {"height": 64, "width": 60} if name.endswith(("Crop", "IfExists")) else {}
    arguments = ARGUMENTS.get(name, fixed if "height" in inspect.signature(getattr(A, name)).parameters else {})
    if name in COMPOSES:
        inner = [{"name": "RandomGamma", "p": 0.5}, {"name": "CLAHE", "p": 0.5}]
        if name != "SelectiveChannelTransform":
            inner.append({"name": "RandomCrop", "height": 64, "width": 60, "p": 0.5})
        arguments = {"transforms": inner}
    elif name not in ("Lambda",):
        arguments = {**arguments, "p": 1}
    entries = [{"name": name, **arguments}, {"name": "HorizontalFlip"}]
    if name in REFUSED:
        with pytest.raises(UserError, match=name):
            Augmentations(entries)
        return
    if name == "Morphological" and cv2.__version__ >= "5":
        pytest.skip("fails in OpenCV 5")
    augment = Augmentations(entries)
    image = np.random.default_rng(0).integers(0, 256, (90, 110, 3), np.uint8)
    boxes = np.array([[20, 30, 50, 70], [40, 10, 100, 40], [0, 0, 20, 20]], np.float32)
    square = [40.0, 10, 100, 10, 100, 40, 40, 40]
    rle = encode_bitmap(patch_of(None, boxes[0], (90, 110)).whole((90, 110)) > 0)
    objects = Objects(boxes, np.arange(3), [rle, [square], None])
    nothing = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])
    bare = objects._replace(segmentations=[None] * 3)
    for seed in range(3):
        for given in (objects, bare, nothing):
            moved, found = augment(image, given, [seed])
            assert moved.dtype == np.uint8
            assert moved.ndim == 3
            again, same = augment(image, given, [seed])
            assert np.array_equal(moved, again)
            assert np.array_equal(found.boxes, same.boxes)
            assert len(crop_masks(found, 28)) == len(found.boxes) <= len(given.boxes)
            if given is bare:
                assert all(segmentation is None for segmentation in found.segmentations)
