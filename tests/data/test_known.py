"""Images whose annotations are complete for some classes only: LVIS's lists and `known_category_ids`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from resdet.config import DataConfig
from resdet.data.coco import parse_coco
from resdet.data.collate import Sample, pad_targets
from resdet.data.formats.common import Source
from resdet.data.known import known_ids
from resdet.data.quality.checks import examine
from resdet.data.sources import open_split
from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation

CATEGORIES = [{"id": k, "name": name} for k, name in ((3, "cup"), (5, "fork"), (8, "hat"), (9, "mug"))]
IMAGES = [
    {"id": 1, "height": 50, "width": 80, "neg_category_ids": [8], "not_exhaustive_category_ids": [5]},
    {"id": 2, "height": 50, "width": 80},  # knows all
    {"id": 3, "height": 50, "width": 80, "known_category_ids": [3]},
]
OBJECTS = [
    {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
    {"id": 2, "image_id": 1, "category_id": 5, "bbox": [20, 0, 10, 10], "area": 100, "iscrowd": 0},
    {"id": 3, "image_id": 2, "category_id": 9, "bbox": [20, 0, 10, 10], "area": 100, "iscrowd": 0},
    {"id": 4, "image_id": 3, "category_id": 3, "bbox": [20, 0, 10, 10], "area": 100, "iscrowd": 0},
]


def lvis(root: Path, split: str = "train") -> Path:
    """As LVIS writes it: the file names stand in COCO's addresses alone."""
    images = []
    for image in IMAGES:
        file = root / f"{'val' if image['id'] == 2 else 'train'}2017/{image['id']:012}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        images.append({**image, "coco_url": f"http://images.example.org/{file.parent.name}/{file.name}"})
    path = root / f"lvis_v1_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": OBJECTS, "categories": CATEGORIES}))
    return path


def test_lvis_is_read_with_its_addresses_and_the_classes_that_images_know(tmp_path) -> None:
    lvis(tmp_path)
    source = open_split(DataConfig(root=tmp_path), "train")
    read = parse_coco(source.content, source.images, source.path)
    assert [i.file.relative_to(tmp_path).as_posix() for i in read.images] == [
        f"{s}2017/{k:012}.jpg" for s, k in (("train", 1), ("val", 2), ("train", 3))
    ]
    known = [info.known.tolist() for info in read.images]
    assert known == [[True, False, True, False], [True] * 4, [True, False, False, False]]
    assert [known_ids(image, {3, 5}) for image in IMAGES] == [{3, 8}, None, {3}]
    read.images.save(tmp_path / "index", {})
    loaded, _ = type(read.images).load(tmp_path / "index")
    assert [info.known.tolist() for info in loaded] == known
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None, 0, 0, (), None
    targets = pad_targets([Sample(np.zeros((8, 8, 3), np.uint8), *empty, info.known) for info in read.images], (8, 8))
    assert torch.equal(targets.known, torch.tensor(known))


def test_sets_that_know_all_carry_nothing(tmp_path) -> None:
    (tmp_path / "1.jpg").touch()
    image = {"id": 1, "height": 50, "width": 80, "file_name": "1.jpg", "known_category_ids": [3, 5, 8, 9]}
    content = {"images": [image], "annotations": OBJECTS[:2], "categories": CATEGORIES}
    assert parse_coco(content, tmp_path, tmp_path / "x.json").images[0].known is None


@pytest.mark.parametrize("wrong", [{"neg_category_ids": [4]}, {"known_category_ids": 3}, {"known_category_ids": [[3]]}])
def test_lists_of_other_categories_are_refused_wherever_they_are_read(wrong: dict, tmp_path) -> None:
    (tmp_path / "1.jpg").touch()
    content = {
        "images": [{"id": 1, "height": 50, "width": 80, "file_name": "1.jpg", **wrong}],
        "annotations": OBJECTS[:1], "categories": CATEGORIES,
    }  # fmt: skip
    key = next(iter(wrong))
    with pytest.raises(UserError, match=f"image 1: {key}"):
        parse_coco(content, tmp_path, tmp_path / "x.json")
    with pytest.raises(UserError, match=f"image 1: {key}"):
        Evaluation(tmp_path / "x.json", content=content)
    findings = examine("train", Source(tmp_path / "x.json", tmp_path, content))
    assert [f.count for f in findings if f.code == "known-classes"] == [1]


def test_detections_count_only_where_their_class_is_known() -> None:
    """Perfect detections, and wrong ones of higher scores: of each class, in each image, away from all objects."""
    evaluation = Evaluation(
        Path("x.json"), content={"images": IMAGES, "annotations": OBJECTS, "categories": CATEGORIES}
    )
    perfect = [
        {"image_id": o["image_id"], "category_id": o["category_id"], "bbox": o["bbox"], "score": 0.5} for o in OBJECTS
    ]

    def ap(*wrong: tuple[int, int]) -> float | None:
        extra = [{"image_id": i, "category_id": c, "bbox": [50, 30, 9, 9], "score": 0.9} for i, c in wrong]
        return evaluation.score(perfect + extra, ["bbox"], backend="pycocotools")[0]["bbox"]["AP"]

    assert ap() == 1
    assert ap((1, 5), (1, 9), (3, 5), (3, 8), (3, 9)) == 1  # not exhaustive, or unknown
    assert ap((1, 3)) < 1  # known by its object
    assert ap((2, 9)) < 1
    assert ap((3, 3)) < 1
    assert evaluation.without_mask == len(OBJECTS)
