"""Other tools' annotations become COCO's structure: the same objects, wherever they come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pictures import textured
from resdet.config import DataConfig
from resdet.data.coco import parse_coco
from resdet.data.formats.common import Source
from resdet.data.sources import find_format, open_split
from resdet.errors import UserError

# Two pictures of 60 x 80 (H x W); objects as (class, x, y, w, h) in pixels.
OBJECTS = {"a": [("cat", 10, 20, 30, 25), ("dog", 0, 0, 80, 60)], "b": [("cat", 40, 5, 8, 16)], "c": []}


def save_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), textured(60, 80))


def voc(root: Path, **changes: str) -> Path:
    for name, objects in OBJECTS.items():
        save_picture(root / "JPEGImages" / f"{name}.jpg")
        body = "".join(
            f"<object><name>{kind}</name><difficult>{int(kind == 'dog')}</difficult><bndbox>"
            f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for kind, x, y, w, h in objects
        )
        text = f"<annotation><size><width>80</width><height>60</height></size>{body}</annotation>"
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{name}.xml").write_text(changes.get(name, text))
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, names in {"train": "a\nc\n", "val": "b\n"}.items():
        (root / f"ImageSets/Main/{split}.txt").write_text(names)
    return root


def yolo(root: Path, **changes: str) -> Path:
    names = ["cat", "dog"]
    for name, objects in OBJECTS.items():
        split = "val" if name == "b" else "train"
        save_picture(root / "images" / split / f"{name}.jpg")
        lines = [
            f"{names.index(k)} {(x + w / 2) / 80} {(y + h / 2) / 60} {w / 80} {h / 60}" for k, x, y, w, h in objects
        ]
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        if lines:
            (root / "labels" / split / f"{name}.txt").write_text(changes.get(name, "\n".join(lines)))
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    return root


def labelme(root: Path, **changes: object) -> Path:
    for name, objects in OBJECTS.items():
        save_picture(root / f"{name}.jpg")
        shapes = [
            {"label": k, "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle", "group_id": None}
            for k, x, y, w, h in objects
        ]
        content = {"shapes": shapes, "imagePath": f"{name}.jpg", "imageHeight": 60, "imageWidth": 80}
        (root / f"{name}.json").write_text(json.dumps(changes.get(name, content)))
    return root


def found(source: Source) -> dict[str, list[tuple]]:
    """{file stem: [(class, x, y, w, h), …]}"""
    names = {c["id"]: c["name"] for c in source.content["categories"]}
    result = {Path(i["file_name"]).stem: [] for i in source.content["images"]}
    stem = {i["id"]: Path(i["file_name"]).stem for i in source.content["images"]}
    for entry in source.content["annotations"]:
        result[stem[entry["image_id"]]].append((names[entry["category_id"]], *np.round(entry["bbox"], 6)))
    return result


@pytest.mark.parametrize(("make", "name"), [(voc, "voc"), (yolo, "yolo")])
def test_the_same_objects_from_each_format(make, name: str, tmp_path) -> None:
    data = DataConfig(root=make(tmp_path))
    assert find_format(data, data.train) == name
    train, val = open_split(data, "train"), open_split(data, "val")
    assert found(train) == {k: OBJECTS[k] for k in "ac"}
    assert found(val) == {"b": OBJECTS["b"]}
    assert (
        train.content["categories"] == val.content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    )
    read = parse_coco(train.content, train.images, train.path, origins=train.origins)
    assert [i.size for i in read.images] == [(60, 80)] * 2
    assert all(i.file.is_file() for i in read.images)


def test_coco_as_roboflow_writes_it(tmp_path, shapes_root) -> None:
    for folder, split in (("train", "train"), ("valid", "val")):
        shutil.copytree(shapes_root / f"{split}2017", tmp_path / folder)
        file = shapes_root / "annotations" / f"instances_{split}2017.json"
        shutil.copy(file, tmp_path / folder / "_annotations.coco.json")
    for split in ("train", "val"):
        expected = open_split(DataConfig(root=shapes_root), split)
        read = open_split(DataConfig(root=tmp_path), split)
        assert found(read) == found(expected)
        assert all((read.images / entry["file_name"]).is_file() for entry in read.content["images"])
    shutil.rmtree(tmp_path / "valid")
    train, val = (found(open_split(DataConfig(root=tmp_path, split=0.25), split)) for split in ("train", "val"))
    assert {**train, **val} == found(open_split(DataConfig(root=shapes_root), "train"))
    assert 1 <= len(val) <= 4
    assert len(train) + len(val) == 12


def test_labelme_has_no_splits_so_one_is_made(tmp_path) -> None:
    data = DataConfig(root=labelme(tmp_path), split=0.34)
    assert find_format(data, data.train) == "labelme"
    train, val = found(open_split(data, "train")), found(open_split(data, "val"))
    assert {**train, **val} == OBJECTS
    assert len(val) == 1
    assert found(open_split(data, "val")) == val  # the same each time
    first = open_split(DataConfig(root=tmp_path), "train").content["annotations"][0]
    assert first["segmentation"] == [[10, 20, 40, 20, 40, 45, 10, 45]]


def test_yolo_polygons(tmp_path) -> None:
    root = yolo(tmp_path, b="1 0.25 0.5 0.5 0.5 0.5 1.0\n")
    (entry,) = open_split(DataConfig(root=root), "val").content["annotations"]
    assert entry["segmentation"] == [[20, 30, 40, 30, 40, 60]]
    assert (entry["bbox"], entry["category_id"]) == ([20, 30, 20, 30], 2)


def test_labelme_groups_circles_and_points(tmp_path) -> None:
    shapes = [
        {"label": "cat", "points": [[0, 0], [4, 0], [4, 4]], "shape_type": "polygon", "group_id": 1},
        {"label": "cat", "points": [[10, 0], [14, 0], [14, 4]], "shape_type": "polygon", "group_id": 1},
        {"label": "dog", "points": [[40, 30], [40, 40]], "shape_type": "circle"},
        {"label": "dog", "points": [[1, 1]], "shape_type": "point"},
    ]
    root = labelme(tmp_path, a={"shapes": shapes, "imagePath": "..\\elsewhere\\a.jpg"})
    save_picture(tmp_path / "z.jpg")
    source = open_split(DataConfig(root=root), "train")
    first, second = [e for e in source.content["annotations"] if e["image_id"] == 1]
    assert (first["bbox"], len(first["segmentation"])) == ([0, 0, 14, 4], 2)
    np.testing.assert_allclose(second["bbox"], [30, 20, 20, 20], atol=1e-6)
    assert dict(source.remarks) == {
        "shapes of type point (left out: no region)": 1,
        "pictures without a JSON file (left out: nobody has said that they are empty)": 1,
    }


def test_voc_segmentations_are_the_objects_by_number(tmp_path) -> None:
    root = voc(tmp_path)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:45, 10:40], mask[0:5], mask[50] = 1, 2, 255
    (root / "SegmentationObject").mkdir()
    picture = Image.fromarray(mask)
    picture.putpalette([v for k in range(256) for v in (k, 255 - k, 7 * k % 256)])
    picture.save(root / "SegmentationObject/a.png")
    source = open_split(DataConfig(root=root), "train")
    from pycocotools import mask as coco_mask

    assert [coco_mask.area(e["segmentation"]) for e in source.content["annotations"]] == [25 * 30, 5 * 80]
    assert source.remarks["objects marked difficult (they count like any other)"] == 1


def test_coco_can_be_split_listed_and_grouped(tmp_path, shapes_root) -> None:
    data = DataConfig(root=shapes_root, split=0.25)
    train, val = open_split(data, "train"), open_split(data, "val")
    ids = [{e["id"] for e in s.content["images"]} for s in (train, val)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 12
    assert len(ids[1]) in (2, 3, 4)
    grouped = open_split(DataConfig(root=shapes_root, split=0.5, group=r"^0000(\d)"), "val")
    others = open_split(DataConfig(root=shapes_root, split=0.5, group=r"^0000(\d)"), "train")
    tens = [{e["file_name"][4] for e in s.content["images"]} for s in (grouped, others)]
    assert not tens[0] & tens[1]
    assert tens[0] | tens[1] == {"0", "1"}
    (tmp_path / "few.txt").write_text("000003\nfolder/000005.jpg\n")
    few = open_split(
        DataConfig.model_validate({"root": shapes_root, "train": {"files": tmp_path / "few.txt"}}), "train"
    )
    assert [e["file_name"] for e in few.content["images"]] == ["000003.jpg", "000005.jpg"]
    (tmp_path / "few.txt").write_text("nothing\n")
    with pytest.raises(UserError, match="1 of 1 lines name no image"):
        open_split(DataConfig.model_validate({"root": shapes_root, "train": {"files": tmp_path / "few.txt"}}), "train")


def test_splits_are_stratified(tmp_path) -> None:
    """40 pictures, a rare class in 8 of them: a quarter of each class is held out."""
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 10, "width": 10} for k in range(1, 41)]
    annotations = [
        {"id": k, "image_id": k, "category_id": 2 if k <= 8 else 1, "bbox": [0, 0, 5, 5]} for k in range(1, 37)
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(content))
    for seed in range(5):
        data = DataConfig.model_validate(
            {"split": 0.25, "split_seed": seed, "train": {"images": tmp_path, "annotations": tmp_path / "all.json"}}
        )
        held = {e["id"] for e in open_split(data, "val").content["images"]}
        assert (len(held & set(range(1, 9))), len(held & set(range(9, 37))), len(held & set(range(37, 41)))) == (
            2,
            7,
            1,
        )


@pytest.mark.parametrize(
    ("make", "name", "content", "message"),
    [
        (voc, "a", "<annotation><object>", r"a\.xml: not readable as XML"),
        (voc, "a", "<!DOCTYPE x [<!ENTITY e 'boom'>]><annotation>&e;</annotation>", r"a\.xml: not readable as XML"),
        (voc, "a", "<annotation><object><name>cat</name></object></annotation>", r"a\.xml: object 1: has no bndbox"),
        (voc, "a", "<annotation><object><name>cat</name><bndbox><xmin>x</xmin></bndbox></object></annotation>",
         r"object 1 \(cat\): xmin, ymin, xmax, ymax must be numbers"),
        (yolo, "a", "7 0.5 0.5 0.1 0.1", r"a\.txt:1: class 7, but data\.yaml names classes 0 to 1"),
        (yolo, "a", "0 10 20 30 25", r"a\.txt:1: .* values outside 0 to 1: YOLO's are shares"),
        (yolo, "a", "0 0.5 0.5 0.1", r"a\.txt:1: 3 numbers after the class"),
        (yolo, "a", "0 cat", r"a\.txt:1: '0 cat' is not numbers"),
        (labelme, "a", {"shapes": [{"label": "cat", "points": [1, 2]}]}, r"a\.json: shape 1: points must be"),
        (labelme, "a", {"shapes": [{"points": []}], "imagePath": "a.jpg"}, r"a\.json: shape 1: has no label"),
    ],
)  # fmt: skip
def test_mistakes_name_file_and_item(make, name: str, content: object, message: str, tmp_path) -> None:
    data = DataConfig(root=make(tmp_path, **{name: content}), format=make.__name__)
    with pytest.raises(UserError, match=message):
        open_split(data, "train")


def test_missing_parts_say_what_is_there(tmp_path) -> None:
    root = voc(tmp_path / "voc")
    with pytest.raises(UserError, match=r"no such split; it has train, val"):
        open_split(DataConfig.model_validate({"root": root, "val": {"split": "test"}}), "val")
    (root / "JPEGImages/a.jpg").unlink()
    with pytest.raises(UserError, match=r"a\.xml: its picture a\.\* is not there"):
        open_split(DataConfig(root=root), "train")
    root = yolo(tmp_path / "yolo")
    with pytest.raises(UserError, match=r"names no split 'test' \(it has: train, val\)"):
        open_split(DataConfig.model_validate({"root": root, "val": {"split": "test"}}), "val")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"no labelme files"):
        open_split(DataConfig(root=tmp_path / "nothing", format="labelme"), "train")
