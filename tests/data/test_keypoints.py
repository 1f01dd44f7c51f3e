"""Keypoints from the annotation file to the batch, and where augmentation moves them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import SHARED
from resdet.config import Config
from resdet.data.augment import Augmentations
from resdet.data.cache import keep_index, load_index
from resdet.data.coco import Annotations, parse_coco, read_coco
from resdet.data.collate import collate
from resdet.data.dataset import DetectionDataset
from resdet.data.index import Objects
from resdet.data.splits import read_split
from resdet.errors import UserError
from resdet.keypoints import COCO_EDGES, COCO_NAMES, flip_order

NAMES = ["top", "left_foot", "right_foot"]
POSE = [10, 4, 2, 3, 30, 1, 20, 29, 2]


def content(**changes: object) -> dict:
    category = {"id": 1, "name": "figure", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
    annotation = {"id": 7, "image_id": 1, "category_id": 1, "bbox": [2, 3, 20, 30], "keypoints": POSE}
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 64}],
        "annotations": [annotation | changes],
        "categories": [category],
    }


def annotations(folder: Path, given: dict) -> Annotations:
    cv2.imwrite(str(folder / "a.png"), np.zeros((40, 64, 3), np.uint8))
    return parse_coco(given, folder, folder / "a.json")


def test_keypoints_are_read_as_pixels_centres(tmp_path) -> None:
    read = annotations(tmp_path, content())
    assert read.skeleton == (NAMES, [(0, 1), (0, 2)])
    np.testing.assert_array_equal(read.images[0].objects.keypoints, [[[10.5, 4.5, 2], [3.5, 30.5, 1], [20.5, 29.5, 2]]])


def test_real_keypoints() -> None:
    folder = SHARED / "coco_keypoints"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    read = read_coco(folder / "person_keypoints.json", folder / "images")
    assert read.skeleton == (COCO_NAMES, COCO_EDGES)
    assert (read.images.keypoints[..., 2] > 0).sum(1).tolist() == [17, 14, 15, 0, 15, 15, 0, 12, 17, 16, 16, 15, 16, 13]


def test_cocos_keypoint_files_are_splits_by_their_name(tmp_path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train2017").mkdir()
    cv2.imwrite(str(tmp_path / "train2017/a.png"), np.zeros((40, 64, 3), np.uint8))
    for name in ("instances", "person_keypoints"):
        given = content() if name == "person_keypoints" else {**content(), "categories": [{"id": 1, "name": "figure"}]}
        (tmp_path / f"annotations/{name}_train2017.json").write_text(json.dumps(given))
    config = Config()
    config.data.root = tmp_path
    assert read_split(config, "train").skeleton is None
    config.data.train.split = "person_keypoints_train2017"
    assert read_split(config, "train").skeleton.names == NAMES


def test_objects_without_keypoints_have_none_labelled(tmp_path) -> None:
    given = content()
    given["annotations"] += [
        {**given["annotations"][0], "id": 8, "keypoints": None},
        {**given["annotations"][0], "id": 9},
    ]
    given["categories"].append({"id": 2, "name": "box"})
    given["annotations"][2]["category_id"] = 2
    keypoints = annotations(tmp_path, given).images[0].objects.keypoints
    assert keypoints.shape == (3, 3, 3)
    assert keypoints[0].any()
    assert not keypoints[1:].any()


def test_a_dataset_with_keypoints_may_have_no_objects(tmp_path) -> None:
    read = annotations(tmp_path, content() | {"annotations": []})
    assert read.images.keypoints.shape == (0, 3, 3)
    assert read.skeleton


def test_a_dataset_without_keypoints_takes_no_memory_for_them(tmp_path) -> None:
    given = content()
    del given["categories"][0]["keypoints"]
    read = annotations(tmp_path, given)
    assert read.skeleton is None
    assert read.images.keypoints.nbytes == 0
    assert read.images[0].objects.keypoints is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (POSE[:-3], "6 numbers in keypoints, but its category lists 3 keypoints, which take 3 x 3 = 9"),
        ([*POSE[:2], 3, *POSE[3:]], "visibility 3"),
        (["x", *POSE[1:]], "is not \\[x, y, visibility"),
    ],
)
def test_wrong_keypoints_are_named(tmp_path, value: list, said: str) -> None:
    with pytest.raises(UserError, match=f"annotation 7: .*{said}"):
        annotations(tmp_path, content(keypoints=value))


def test_a_skeleton_of_other_keypoints_is_refused_and_one_from_zero_is_read(tmp_path) -> None:
    given = content()
    given["categories"][0]["skeleton"] = [[0, 1], [2, 0]]
    assert annotations(tmp_path, given).skeleton.edges == [(0, 1), (2, 0)]
    given["categories"][0]["skeleton"] = [[1, 4]]
    with pytest.raises(UserError, match="numbers from 1 to 3"):
        annotations(tmp_path, given)


def test_labelled_points_outside_the_image_are_counted_and_not_labelled(tmp_path) -> None:
    read = annotations(tmp_path, content(keypoints=[90, 4, 2, *POSE[3:]]))
    assert not read.images[0].objects.keypoints[0, 0].any()
    assert read.skipped["labelled keypoints outside their image (taken as not labelled)"] == 1


def test_the_kept_index_has_the_keypoints(tmp_path) -> None:
    read = annotations(tmp_path, content())
    kept = keep_index(read, tmp_path / "index")
    assert load_index(tmp_path / "index").skeleton == read.skeleton
    for images in (kept.images, pickle.loads(pickle.dumps(kept.images)), read.images.relabelled(np.array([0]))):
        np.testing.assert_array_equal(images[0].objects.keypoints, read.images[0].objects.keypoints)
    assert len(read.images.relabelled(np.array([-1])).keypoints) == 0


def test_pairs_are_found_by_their_names_or_given() -> None:
    assert flip_order(COCO_NAMES) == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    assert flip_order(["L_Eye", "nose", "r_eye", "ear-l", "ear-r", "Left Hip", "right hip", "tail"]) == [
        2, 1, 0, 4, 3, 6, 5, 7,
    ]  # fmt: skip
    assert flip_order(["a", "b", "c"], [("c", "a")]) == [2, 1, 0]
    for wrong in ([("a", "d")], [("a", "a")], [("a", "b"), ("b", "c")]):
        with pytest.raises(UserError, match="keypoint_flip_pairs"):
            flip_order(["a", "b", "c"], wrong)


def test_a_flipped_sample_swaps_its_pairs(tmp_path) -> None:
    config = Config()
    config.data.min_size, config.data.max_size, config.data.flip = [80], 200, 1.0
    read = annotations(tmp_path, content(keypoints=[*POSE[:6], 0, 0, 0]))
    data = DetectionDataset(read, config.data, config.model.input, train=True, masks=False, keypoints=True, seed=0)
    batch = collate([data[0, 0]]).batch
    keypoints = batch.targets.keypoints
    assert keypoints.shape == (1, 8, 3, 3)
    assert keypoints[0, 0].tolist() == [[107, 9, 2], [0, 0, 0], [121, 61, 1]]  # twice as large, 128 wide
    assert not keypoints[0, 1:].any()


@pytest.mark.parametrize(
    ("entry", "swapped"),
    [
        ({"name": "HorizontalFlip"}, True),
        ({"name": "Transpose"}, True),
        ({"name": "RandomRotate90"}, False),
        ({"name": "Affine", "rotate": [20, 20], "scale": [1.1, 1.1]}, False),
        ({"name": "Perspective", "scale": [0.05, 0.1]}, False),
        ({"name": "RandomCrop", "height": 48, "width": 40}, False),
        ({"name": "ElasticTransform", "alpha": 30, "sigma": 6}, False),
        ({"name": "Sequential", "transforms": [
            {"name": "ElasticTransform", "alpha": 20, "sigma": 6, "p": 1}, {"name": "HorizontalFlip", "p": 1},
        ]}, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_augmentation_moves_points_as_it_moves_pixels(entry: dict, swapped: bool, seed: int) -> None:
    """Each point is drawn as a disc of a colour of its own, and looked for in the image afterwards."""
    size, colors = (64, 80), np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    points = np.array([[20.5, 20.5], [50.5, 25.5], [35.5, 45.5]])
    image = np.zeros((*size, 3), np.uint8)
    for point, color in zip(points, colors.tolist(), strict=True):
        cv2.circle(image, tuple((point - 0.5).astype(int).tolist()), 3, color, -1)
    keypoints = np.concatenate([points, [[2], [1], [2]]], 1)[None].astype(np.float32)
    objects = Objects(np.array([[10, 10, 70, 60]], np.float32), np.zeros(1, np.int64), [None], keypoints)
    swap = np.array(flip_order(NAMES))
    moved, found = Augmentations([{"p": 1, **entry}], swap)(image, objects, [seed])
    assert len(found.labels) == 1
    known = 0
    for k in range(3):
        x, y, seen = found.keypoints[0, swap[k] if swapped else k]
        weight = moved[..., k].astype(float) * (moved.argmax(2) == k)
        rows, columns = np.nonzero(weight > 127)
        inside = len(rows) > 20 and rows.min() > 0 and columns.min() > 0
        inside = inside and rows.max() < moved.shape[0] - 1 and columns.max() < moved.shape[1] - 1
        if inside:
            assert seen == keypoints[0, k, 2]
            assert abs(x - columns.mean() - 0.5) < 1.2
            assert abs(y - rows.mean() - 0.5) < 1.2
            known += 1
        if not len(rows):
            assert (x, y, seen) == (0, 0, 0)
    assert known or entry["name"] == "RandomCrop"
