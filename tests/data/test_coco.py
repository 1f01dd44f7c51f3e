from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pictures import textured
from resdet.config import DataConfig
from resdet.data.coco import read_coco
from resdet.data.sources import open_split
from resdet.errors import UserError


def write(folder: Path, **changes: Any) -> Path:
    """Two pictures with one object each, of categories 3 and 90."""
    content: dict[str, Any] = {
        "images": [
            {"id": 10, "file_name": "a.jpg", "height": 60, "width": 80},
            {"id": 7, "file_name": "b.jpg", "height": 50, "width": 40},
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 90, "bbox": [10, 20, 30, 15], "iscrowd": 0,
             "segmentation": [[10, 20, 40, 20, 40, 35, 10, 35]]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 10]},
        ],
    }  # fmt: skip
    content |= changes
    for name, size in (("a.jpg", (60, 80)), ("b.jpg", (50, 40))):
        cv2.imwrite(str(folder / name), textured(*size))
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], **changes}


def test_ids_with_gaps_become_contiguous_labels(tmp_path) -> None:
    read = read_coco(write(tmp_path), tmp_path)
    assert read.class_names == ["ant", "zebra"]
    assert read.category_ids == [3, 90]
    assert [image.image_id for image in read.images] == [10, 7]
    first, second = (image.objects for image in read.images)
    assert first.boxes.tolist() == [[10, 20, 40, 35]]  # XYWH in the file, XYXY here
    assert first.labels.tolist() == [1]
    assert second.segmentations == [None]
    assert first.boxes.dtype == np.float32
    assert first.labels.dtype == np.int64


def test_images_without_annotations_stay(tmp_path) -> None:
    read = read_coco(write(tmp_path, annotations=[annotation()]), tmp_path)
    assert [len(image.objects.labels) for image in read.images] == [1, 0]
    assert read.images[1].objects.boxes.shape == (0, 4)
    assert "1 images without objects" in read.summary()


def test_what_does_not_train_is_counted(tmp_path) -> None:
    skipped = [
        annotation(iscrowd=1, segmentation={"size": [60, 80], "counts": [4800]}),
        annotation(id=6, bbox=[1, 2, 0, 4]),
        annotation(id=7, bbox=[200, 2, 5, 4]),
        annotation(id=8, segmentation=[[1, 2, 3, 4]]),
    ]
    read = read_coco(write(tmp_path, annotations=skipped), tmp_path)
    assert dict(read.skipped) == {
        "crowd regions (no target of training)": 1,
        "boxes without area inside their image": 2,
        "polygons of fewer than three points": 1,
    }
    assert [len(image.objects.labels) for image in read.images] == [1, 0]
    assert "2 boxes without area" in read.summary()


def test_boxes_are_cut_to_their_image(tmp_path) -> None:
    read = read_coco(write(tmp_path, annotations=[annotation(bbox=[-5, 50, 200, 30])]), tmp_path)
    assert read.images[0].objects.boxes.tolist() == [[0, 50, 80, 60]]


def test_limit_keeps_the_first_images(tmp_path) -> None:
    values = {"limit": 1, "train": {"images": tmp_path, "annotations": write(tmp_path)}}
    content = open_split(DataConfig.model_validate(values), "train").content
    assert [image["id"] for image in content["images"]] == [10]
    assert {entry["image_id"] for entry in content["annotations"]} <= {10}


@pytest.mark.parametrize("choice", [{"limit": 1}, {"split": 0.5}])
def test_what_belongs_to_no_image_is_in_every_split(choice: dict, tmp_path) -> None:
    """Otherwise its error would be lost with it."""
    names = {10: "a.jpg", 11: "b.jpg"}
    images = [
        {"id": i, "file_name": names.get(i, "a.jpg"), "height": 60, "width": 80} for i in (10, 11, True, "x", 10**30)
    ]
    annotations = [annotation(image_id=image, id=k) for k, image in enumerate([10, 11, 99, None, [3]])]
    file = write(tmp_path, images=images, annotations=annotations)
    config = DataConfig.model_validate({**choice, "train": {"images": tmp_path, "annotations": file}})
    content = open_split(config, "train").content
    assert [image["id"] for image in content["images"]][-3:] == [True, "x", 10**30]
    assert [entry["image_id"] for entry in content["annotations"]][-3:] == [99, None, [3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [annotation(image_id=99)]}, "image_id 99 is not among"),
        ({"annotations": [annotation(category_id=0)]}, r"category_id 0 is not among the \"categories\" \(3, 90\)"),
        (
            {"annotations": [annotation(bbox=[1, 2, 3])]},
            r"annotation 5: bbox \[1, 2, 3\] is not \[x, y, width, height\]",
        ),
        ({"annotations": [annotation(bbox=[1, 2, 3, float("nan")])]}, "is not .x, y, width, height."),
        ({"annotations": [annotation(segmentation=[[1, 2, 3]])]}, "neither polygons"),
        ({"annotations": [annotation(segmentation={"size": [1, 2], "counts": "a"})]}, "RLE of size"),
        ({"annotations": [annotation(segmentation={"size": [60, 80], "counts": [5]})]}, "do not add up to 60 x 80"),
        ({"categories": []}, '"categories" is empty'),
        ({"categories": [{"id": 90, "name": " "}, {"id": 3, "name": "a"}]}, "category 90: its name ' ' is no name"),
        ({"categories": [{"id": 90, "name": "b"}, {"id": 3, "name": None}]}, "category 3: its name None is no name"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id 1 is used twice"),
        ({"images": [{"id": 10, "file_name": "no.jpg", "height": 60}]}, "width None must be positive"),
        ({"images": [{"id": 10, "file_name": "no.jpg", "height": 60, "width": 80}]}, r"no\.jpg does not exist"),
        ({"images": 3}, '"images" is missing or is not a list'),
    ],
)
def test_each_mistake_is_named(tmp_path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_coco(path, tmp_path)
    assert str(path) in str(caught.value)


def test_all_mistakes_are_listed_at_once(tmp_path) -> None:
    path = write(tmp_path, annotations=[annotation(image_id=99), annotation(category_id=4), annotation(bbox=None)])
    with pytest.raises(UserError, match="3 problem") as caught:
        read_coco(path, tmp_path)
    assert str(caught.value).count("\n  - ") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("", "is empty"),
        ('{"images": [], "annotations": [1], "annotations": []}', "the key 'annotations' occurs 2 times in one object"),
        ('[{"id": 3, "bbox": [1], "bbox": []}]', "the key 'bbox' occurs 2 times in one object .id 3, keys id, bbox"),
        ('{"images": [], "annotations": [{"segments_info": []}], "categories": []}', "COCO's panoptic annotations"),
        ("x.txt", "a text file that holds the path 'x.txt'"),
    ],
)
def test_files_of_another_kind(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    (tmp_path / "x.txt").touch()
    with pytest.raises(UserError, match=message) as caught:
        read_coco(path, tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["a..b.jpg", "deeper/./c.jpg", os.fsdecode(b"caf\xe9.jpg")])
def test_unusual_names(tmp_path, name: str) -> None:
    """Two dots within a name lead nowhere, and file systems know names that are no UTF-8."""
    (tmp_path / "deeper").mkdir()
    (tmp_path / name).write_bytes(b"")
    image = {"id": 10, "file_name": name, "height": 60, "width": 80}
    read = read_coco(write(tmp_path, images=[image], annotations=[annotation(), annotation()]), tmp_path)
    assert [info.file for info in read.images] == [tmp_path / name]
    assert len(read.images[0].objects.labels) == 2


def test_objects_find_their_images_in_any_order(tmp_path) -> None:
    entries = [annotation(image_id=image, bbox=[k, 0, 5, 5]) for k, image in enumerate([7, 10, 7, 10, 7])]
    read = read_coco(write(tmp_path, annotations=entries), tmp_path)
    assert [info.objects.boxes[:, 0].tolist() for info in read.images] == [[1, 3], [0, 2, 4]]


def test_missing_file_and_folder(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_coco(tmp_path / "no.json", tmp_path)
    with pytest.raises(UserError, match="no such image folder"):
        read_coco(write(tmp_path), tmp_path / "no")


def test_real_coco_annotations_are_valid(coco_open) -> None:
    read = read_coco(coco_open / "annotations" / "instances_train2017.json", coco_open / "train2017")
    assert len(read.images) == 92
    assert len(read.class_names) == 80
    assert sum(len(image.objects.labels) for image in read.images) == 829 - 9
    assert dict(read.skipped) == {"crowd regions (no target of training)": 9}
