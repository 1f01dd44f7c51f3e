"""Which images a split gets: what a config names is used, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resdet.config import DataConfig
from resdet.data.sources import open_split
from resdet.errors import UserError


def coco(names: list[str]) -> str:
    images = [{"id": k, "file_name": name, "width": 9, "height": 9} for k, name in enumerate(names, 1)]
    objects = [{"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
               for k in range(1, len(names) + 1)]  # fmt: skip
    return json.dumps({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]})


def roboflow(root: Path) -> DataConfig:
    for folder in ("train", "valid", "test"):
        (root / folder).mkdir()
        (root / folder / "_annotations.coco.json").write_text(coco([f"{folder}.png"]))
    return DataConfig(root=root)


def names(data: DataConfig, split: str) -> list[str]:
    return [entry["file_name"] for entry in open_split(data, split).content["images"]]  # type: ignore[arg-type]


def test_a_named_split_of_roboflow_is_that_folder(tmp_path) -> None:
    data = roboflow(tmp_path)
    assert names(data, "val") == ["valid.png"]
    data.val.split = "test"
    assert names(data, "val") == ["test.png"]
    data.val.split = "banana"
    with pytest.raises(UserError, match=r"no such split \(it has: test, train, valid\)$"):
        open_split(data, "val")
    (tmp_path / "all.json").write_text(coco(["train.png"]))
    with pytest.raises(
        UserError, match=r"with data\.val\.annotations, such as all\.json, and set data\.val\.split=null"
    ):
        open_split(data, "val")


def test_a_named_split_of_coco_is_its_instances_file(tmp_path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "minival").mkdir()
    (tmp_path / "annotations/instances_minival.json").write_text(coco(["m.png"]))
    data = DataConfig.model_validate({"root": tmp_path, "val": {"split": "minival"}})
    assert names(data, "val") == ["m.png"]
    data.val.annotations = tmp_path / "annotations/instances_minival.json"
    with pytest.raises(UserError, match="no effect with"):
        open_split(data, "val")


def test_keys_that_a_format_does_not_use_are_refused(tmp_path) -> None:
    for values, message in (
        ({"format": "labelme", "val": {"split": "x"}}, "no named splits"),
        ({"format": "yolo", "val": {"images": "x"}}, "names the image folders"),
    ):
        with pytest.raises(UserError, match=message):
            open_split(DataConfig.model_validate({"root": tmp_path, **values}), "val")


@pytest.mark.parametrize(
    ("group", "share", "message"),
    [
        (r"^vid_(\d+)", 0.3, "matches none of the 6 file names"),
        ("^(p)", 0.3, "all 6 images into one group"),
        (None, 0.01, "leaves none for val"),
        (None, 0.999, "leaves none for train"),
    ],
)
def test_a_made_split_that_is_none_is_refused(tmp_path, group: str | None, share: float, message: str) -> None:
    (tmp_path / "a.json").write_text(coco([f"p{k}.png" for k in range(6)]))
    train = {"images": tmp_path, "annotations": tmp_path / "a.json"}
    with pytest.raises(UserError, match=message):
        open_split(DataConfig.model_validate({"split": share, "group": group, "train": train}), "val")


def test_images_outside_the_groups_are_told(tmp_path) -> None:
    (tmp_path / "a.json").write_text(coco(["v1_a", "v1_b", "v2_a", "v2_b", "other"]))
    train = {"images": tmp_path, "annotations": tmp_path / "a.json"}
    data = DataConfig.model_validate({"split": 0.4, "group": r"^(v\d)", "train": train})
    source = open_split(data, "val")
    assert sum(count for text, count in source.remarks.items() if "pattern does not match" in text) == 1
