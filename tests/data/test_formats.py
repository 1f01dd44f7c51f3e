"""Other tools' annotations become COCO's structure: the same objects, wherever they come from."""

from __future__ import annotations

import base64
import codecs
import json
import shutil
import unicodedata
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pictures import textured
from resdet.cli import main
from resdet.config import DataConfig, DataFormat
from resdet.data.coco import parse_coco
from resdet.data.formats.common import Source, all_files
from resdet.data.formats.detect import FINDERS, FORMATS
from resdet.data.formats.yolo_layout import read_layout
from resdet.data.images import read_image
from resdet.data.quality.files import inspect_files
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
    train, val = (found(open_split(DataConfig(root=tmp_path, val_fraction=0.25), split)) for split in ("train", "val"))
    assert {**train, **val} == found(open_split(DataConfig(root=shapes_root), "train"))
    assert 1 <= len(val) <= 4
    assert len(train) + len(val) == 12


def test_labelme_has_no_splits_so_one_is_made(tmp_path) -> None:
    data = DataConfig(root=labelme(tmp_path), val_fraction=0.34)
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
        "images without a JSON file (left out: unlabelled images are not negatives)": 1,
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

    assert [coco_mask.area(e["segmentation"]) for e in source.content["annotations"]] == [25 * 30, 5 * 80]
    assert source.remarks["objects marked difficult (treated like any other)"] == 1


def test_coco_can_be_split_listed_and_grouped(tmp_path, shapes_root) -> None:
    data = DataConfig(root=shapes_root, val_fraction=0.25)
    train, val = open_split(data, "train"), open_split(data, "val")
    ids = [{e["id"] for e in s.content["images"]} for s in (train, val)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 12
    assert len(ids[1]) in (2, 3, 4)
    grouped = open_split(DataConfig(root=shapes_root, val_fraction=0.5, group=r"^0000(\d)"), "val")
    others = open_split(DataConfig(root=shapes_root, val_fraction=0.5, group=r"^0000(\d)"), "train")
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
        (yolo, "a", "0 10 20 30 25", r"a\.txt:1: .* values outside 0 to 1: YOLO's coordinates are fractions"),
        (yolo, "a", "0 0.5 0.5 0.1", r"a\.txt:1: 3 numbers after the class"),
        (yolo, "a", "0 cat", r"a\.txt:1: '0 cat' is not numbers"),
        (labelme, "a", {"shapes": [{"label": "cat", "points": [1, 2]}]}, r"a\.json: shape 1: points must be"),
        (labelme, "a", {"shapes": [{"label": " "}], "imagePath": "a.jpg"}, r"a\.json: shape 1: has no label"),
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
    with pytest.raises(UserError, match=r"a\.xml: its image 'a' is not there"):
        open_split(DataConfig(root=root), "train")
    root = yolo(tmp_path / "yolo")
    with pytest.raises(UserError, match=r"names no split 'test' \(it has: train, val\)"):
        open_split(DataConfig.model_validate({"root": root, "val": {"split": "test"}}), "val")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"no labelme files"):
        open_split(DataConfig(root=tmp_path / "nothing", format="labelme"), "train")


# ---- YOLO ------------------------------------------------------------------------------------------------------------


def convert(source: Path, *more: str) -> dict:
    """What `resdet data convert` writes."""
    target = source.parent / f"{source.name}.coco.json"
    assert main(["data", "convert", str(source), str(target), *more]) == 0
    return json.loads(target.read_text())


@pytest.mark.parametrize(
    ("shape", "points", "expected"),
    [
        (2, "0.25 0.5 0 0 0.5 0.25", [20, 30, 2, 0, 0, 0, 40, 15, 2]),
        (2, "-1 -1 0.5 0.5 0 0.5", [0, 0, 0, 40, 30, 2, 0, 30, 2]),
        (3, "0.25 0.5 1 0.9 7 0 0.5 0.25 2", [20, 30, 1, 0, 0, 0, 40, 15, 2]),
        (3, "0 0 1 0.5 0.5 0.0 1 1 1.0", [0, 0, 1, 0, 0, 0, 80, 60, 1]),
    ],
)
def test_yolo_poses_are_boxes_with_keypoints(shape: int, points: str, expected: list[float], tmp_path) -> None:
    root = yolo(tmp_path, b=f"1 0.5 0.5 0.25 0.5 {points}\n", a="0 0.5 0.5 0.25 0.5")
    text = (root / "data.yaml").read_text() + f"kpt_shape: [3, {shape}]\n"
    (root / "data.yaml").write_text(text)
    source = open_split(DataConfig(root=root), "val")
    (entry,) = source.content["annotations"]
    assert (entry["bbox"], entry["keypoints"]) == ([30, 15, 20, 30], expected)
    assert entry["num_keypoints"] == sum(v > 0 for v in expected[2::3])
    assert "segmentation" not in entry
    assert [c["keypoints"] for c in source.content["categories"]] == [["1", "2", "3"]] * 2
    (root / "data.yaml").write_text(text + "kpt_names: {0: [nose, tail, ear]}\n")
    assert open_split(DataConfig(root=root), "val").content["categories"][1]["keypoints"] == ["nose", "tail", "ear"]
    with pytest.raises(UserError, match=rf"a\.txt:1: 4 numbers .* kpt_shape \[3, {shape}\] asks for 4 \+ {3 * shape}"):
        open_split(DataConfig(root=root), "train")


@pytest.mark.parametrize("form", ["[{}]", "{{{}}}", "\n- {}"])
def test_yolo_class_names_are_the_text_that_is_written(form: str, tmp_path) -> None:
    names = ["007", "true", "1e3", "2024-01-01", "2024-13-45", "null", "~", "0x1f", "no", "1_000", "a: b #1"]
    written = [*names[:-1], '"a: b #1"']
    numbered = [f"{k}: {name}" for k, name in enumerate(written)]
    entries = "\n- ".join(written) if "-" in form else ", ".join(numbered if "{{" in form else written)
    file = tmp_path / "data.yaml"
    file.write_text(f"path: null\ntrain: 007\nval: ~\ntest: [2024-01-01]\nnames: {form.format(entries)}\n")
    layout = read_layout(file)
    assert layout.classes == names
    assert layout.entries == {"train": ["007"], "test": ["2024-01-01"]}
    file.write_text("train: a\nnames: [cat, , dog]\n" if "[" in form else "train: a\nnames: {0: cat, 1: , 2: dog}\n")
    with pytest.raises(UserError):
        read_layout(file)


def test_yolo_classes_are_never_counted_differently(tmp_path) -> None:
    root = yolo(tmp_path)
    sheet = (root / "data.yaml").read_text()
    (root / "data.yaml").write_text(f"{sheet}nc: 2\n")
    open_split(DataConfig(root=root), "train")
    (root / "data.yaml").write_text(f"{sheet}nc: 3\n")
    with pytest.raises(UserError, match=r"data\.yaml: nc is 3, but names has 2 classes"):
        open_split(DataConfig(root=root), "train")
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("\ufeffcat\ndog\n\n", encoding="utf-8")
    assert [c["name"] for c in open_split(DataConfig(root=root), "train").content["categories"]] == ["cat", "dog"]
    (root / "classes.txt").write_text("cat\n\ndog\n")  # the dog's number is 2
    with pytest.raises(UserError, match=r"classes\.txt: names: class 1 has no name"):
        open_split(DataConfig(root=root), "train")


def test_yolo_oriented_boxes_are_polygons(tmp_path) -> None:
    root = yolo(tmp_path, b="0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n")
    (entry,) = open_split(DataConfig(root=root), "val").content["annotations"]
    assert entry["segmentation"] == [[40, 15, 60, 30, 40, 45, 20, 30]]
    assert entry["bbox"] == [20, 15, 40, 30]


@pytest.mark.parametrize("encoding", ["GBK", "shift_jis", "windows-1251"])
def test_voc_in_the_encoding_that_it_declares(encoding: str, tmp_path) -> None:
    root = voc(tmp_path)
    name = "д" if encoding == "windows-1251" else "木"
    file = root / "Annotations/a.xml"
    text = file.read_text().replace("<name>cat<", f"<name>{name}<")
    file.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n{text}'.encode(encoding))
    source = open_split(DataConfig(root=root, val_fraction=0.4), "train", tolerant=True)
    assert not source.problems
    assert name in {category["name"] for category in source.content["categories"]}


def test_yolo_lists_and_marks_and_line_ends(tmp_path) -> None:
    """Byte order marks, CRLF and UTF-16 in labels, lists and data.yaml; lines of a list relative or absolute."""
    root = yolo(tmp_path)
    label = root / "labels/val/b.txt"
    label.write_bytes(codecs.BOM_UTF8 + label.read_bytes() + b"\r\n")
    label = root / "labels/train/a.txt"
    label.write_bytes(label.read_text().encode("utf-16"))
    lines = f"./images/train/a.jpg\r\nimages/train/c.jpg\r\n{root.resolve()}/images/val/b.jpg\r\n"
    (root / "all.txt").write_bytes(codecs.BOM_UTF8 + lines.encode())
    (root / "data.yaml").write_bytes(codecs.BOM_UTF8 + b"train: all.txt\r\nval: [images/val]\r\nnames: [cat, dog]\r\n")
    data = DataConfig(root=root)
    assert found(open_split(data, "train")) == OBJECTS
    assert found(open_split(data, "val")) == {"b": OBJECTS["b"]}
    (root / "all.txt").write_text("/elsewhere/images/train/a.jpg\nother/a.jpg\n")
    with pytest.raises(
        UserError, match=r"all\.txt: its image 'other/a\.jpg' is not there \(images/train/a\.jpg lies elsewhere"
    ):
        open_split(data, "train")


def test_yolo_as_roboflow_lays_it_out(tmp_path) -> None:
    source = yolo(tmp_path / "plain")
    root = tmp_path / "set"
    for split, folder in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            shutil.copytree(source / kind / split, root / folder / kind)
    for prefix in ("../", "", "./"):
        text = f"train: {prefix}train/images\nval: {prefix}valid/images\nnames: ['cat', 'dog']\nnc: 2\n"
        (root / "data.yaml").write_text(text)
        assert found(open_split(DataConfig(root=root), "train")) == {k: OBJECTS[k] for k in "ac"}
        assert found(open_split(DataConfig(root=root), "val")) == {"b": OBJECTS["b"]}
    (root / "data.yaml").write_text("path: ../set\ntrain: train/images\nvalid: valid/images\nnames: [cat, dog]\n")
    assert found(open_split(DataConfig(root=root), "val")) == {"b": OBJECTS["b"]}
    (root / "data.yaml").write_text("training: train/images\nvalidation: valid/images\nnames: [cat, dog]\n")
    assert found(open_split(DataConfig(root=root), "train")) == {k: OBJECTS[k] for k in "ac"}
    for place in ("/content/set", "C:\\work\\set"):  # of the machine on which it was exported
        (root / "data.yaml").write_text(f"train: {place}/train/images\nval: {place}/valid/images\nnames: [cat, dog]\n")
        source = open_split(DataConfig(root=root), "val")
        assert (found(source), sum(source.remarks.values())) == ({"b": OBJECTS["b"]}, 1)
    shutil.copytree(root / "train", tmp_path / "train")  # now "../train/images" is there, too
    (root / "data.yaml").write_text("train: ../train/images\nval: valid/images\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match=r"'\.\./train/images' may be .*/set/\.\./train/images or .*/set/train/images"):
        open_split(DataConfig(root=root), "train")


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".bmp", ".jfif", ".PNG", ".JPeG", ".avif", ".gif"])
def test_images_of_less_common_types_keep_their_labels(suffix: str, tmp_path) -> None:
    root = yolo(tmp_path)
    picture = root / "images/val/b.jpg"
    kind = {".jfif": "jpeg", ".jpeg": "jpeg", ".tif": "tiff"}.get(suffix.lower(), suffix[1:].lower())
    Image.open(picture).save(picture.with_suffix(suffix), kind)
    picture.unlink()
    source = open_split(DataConfig(root=root), "val")
    assert found(source) == {"b": OBJECTS["b"]}
    read = parse_coco(source.content, source.images, source.path)
    assert read_image(read.images[0].file).shape == (60, 80, 3)


def test_images_that_cannot_be_read_are_named_with_their_number(tmp_path, capsys) -> None:
    root = yolo(tmp_path)
    for name in ("d.heic", "e.heic"):
        (root / "images/train" / name).touch()
    with pytest.raises(UserError, match=r"d\.heic: \.heic files cannot be read \(2 here\)"):
        open_split(DataConfig(root=root), "train")
    for path in (root / "images/val").iterdir():
        path.rename(path.with_suffix(".xyz"))
    assert main(["data", "convert", str(root), str(tmp_path / "o.json"), "--split", "val"]) == 2
    assert "no images here (found: 1 .xyz; supported are " in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()


def test_yolo_labels_never_go_to_another_image(tmp_path) -> None:
    root = yolo(tmp_path)
    labels = root / "labels/val"
    for name in ("\u00e9", "e\u0301"):  # the same letter, composed and not: no other name comes near
        save_picture(root / f"images/val/{name}1.jpg")
        (labels / f"{unicodedata.normalize('NFD' if len(name) == 1 else 'NFC', name)}1.txt").write_text("0 .5 .5 1 1")
        source = open_split(DataConfig(root=root), "val")
        assert len(source.content["annotations"]) == 2
        assert source.remarks["label files whose name differs in case or Unicode form from their image's"] == 1
        (root / f"images/val/{name}1.jpg").unlink()
        shutil.rmtree(labels)
        shutil.copytree(yolo(tmp_path / f"again{len(name)}") / "labels/val", labels)
    (labels / "B.txt").write_text("1 .5 .5 1 1")  # b.txt is there: this belongs to nobody
    source = open_split(DataConfig(root=root), "val")
    assert found(source) == {"b": OBJECTS["b"]}
    assert sum(count for text, count in source.remarks.items() if "label files without an image" in text) == 1
    save_picture(root / "images/val/b.png")
    with pytest.raises(UserError, match=r"b\.txt: may be the label file of .*b\.jpg or .*b\.png"):
        open_split(DataConfig(root=root), "val")


def test_yolo_without_any_label_file_is_an_error(tmp_path) -> None:
    root = yolo(tmp_path)
    (root / "labels").rename(root / "Labels_old")
    with pytest.raises(UserError, match=r"none of 2 images has a label file: .*images/train/a\.jpg needs a\.txt"):
        open_split(DataConfig(root=root), "train")


# ---- labelme ---------------------------------------------------------------------------------------------------------


def png(mask: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()).decode()


def shape(points: list, kind: str | None, **more: object) -> dict:
    return {"label": "cat", "points": points, "shape_type": kind, **more}


def boxes(root: Path, *shapes: dict) -> list[list[float]]:
    labelme(root, a={"shapes": list(shapes), "imagePath": "a.jpg"})
    content = open_split(DataConfig(root=root), "train").content
    return [e["bbox"] for e in content["annotations"] if e["image_id"] == 1]


def test_labelme_regions_of_every_type(tmp_path) -> None:
    mask = np.zeros((21, 31), bool)
    mask[5:15, 5:25] = True
    corners = [[50, 5], [70, 5], [70, 25], [50, 25]]
    diamond = [[30, 40], [45, 50], [30, 59], [15, 50]]
    untyped = shape([[1, 1], [9, 1], [9, 9]], None)
    del untyped["shape_type"]
    assert boxes(
        tmp_path,
        shape([[10, 20], [40, 40]], "mask", mask=png(mask)),
        shape(corners, "rectangle"),
        shape(diamond, "rotation", direction=0.8),
        shape(diamond, "oriented_rectangle"),
        shape([[1, 1], [9, 1], [9, 9]], None),
        untyped,
        shape([[70, 50], [60, 45]], "rectangle"),
    ) == [[15, 25, 20, 10], [50, 5, 20, 20], *[[15, 40, 30, 19]] * 2, *[[1, 1, 8, 8]] * 2, [60, 45, 10, 5]]


def test_labelme_masks_are_cut_to_their_image_and_joined_in_groups(tmp_path) -> None:
    full = np.ones((11, 11), bool)
    parts = [
        shape([[-5, -5], [5, 5]], "mask", mask=png(full), group_id=1),
        shape([[70, 50], [79, 50], [79, 59], [70, 59]], "polygon", group_id=1),
    ]
    assert boxes(tmp_path, *parts) == [[0, 0, 79, 59]]
    entry = open_split(DataConfig(root=tmp_path), "train").content["annotations"][0]
    expected = np.zeros((60, 80), np.uint8)
    expected[:6, :6] = expected[50:59, 70:79] = 1
    np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), expected)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape([[0, 0], [9, 9]], "mask", mask="no"), "its mask is not a PNG"),
        (shape([[0, 0], [9, 9]], "mask"), "its mask is not a PNG"),
        (shape([[0, 0], [9, 9]], "mask", mask=png(np.ones((5, 5)))), "its mask has 5 x 5 pixels, its box 10 x 10"),
        (shape([[0, 0], [9, 9], [5, 5]], "cuboid"), "shape_type 'cuboid' with 3 points"),
        (shape([[0, 0]], "rectangle"), "shape_type 'rectangle' with 1 points"),
    ],
)
def test_labelme_regions_that_cannot_be_read_are_errors(bad: dict, message: str, tmp_path) -> None:
    with pytest.raises(UserError, match=rf"a\.json: shape 1: {message}"):
        boxes(tmp_path, bad)


def test_labelme_labels_may_be_numbers(tmp_path) -> None:
    bad = shape([[0, 0], [9, 9]], "rectangle", label=0)
    assert boxes(tmp_path, bad, {**bad, "label": "0"}) == [[0, 0, 9, 9]] * 2
    with pytest.raises(UserError, match="shape 1: has no label"):
        boxes(tmp_path, {**bad, "label": ""})


def test_labelme_files_apart_from_their_images(tmp_path) -> None:
    labelme(tmp_path / "json")
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "json").glob("*.jpg"):
        path.rename(tmp_path / "images" / path.name)
    for path in (tmp_path / "json").glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"imagePath": f"..\\images\\{content['imagePath']}"}))
    source = open_split(DataConfig(root=tmp_path), "train")
    assert found(source) == OBJECTS
    assert [e["file_name"] for e in source.content["images"]] == ["images/a.jpg", "images/b.jpg", "images/c.jpg"]
    assert not source.remarks
    shutil.copytree(tmp_path / "images", tmp_path / "other")
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(
        UserError, match=r"a\.json: its image '\.\.\\\\images\\\\a\.jpg' is not there \(other/a\.jpg lies"
    ):
        open_split(DataConfig(root=tmp_path), "train")


# ---- Pascal VOC ------------------------------------------------------------------------------------------------------


def voc_object(x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>cat</name><bndbox>{corners}</bndbox>{more}</object>"


def voc_file(root: Path, name: str, body: str) -> None:
    path = root / "Annotations" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{body}</annotation>")


@pytest.mark.parametrize("evidence", [(0, 5, 9, 9), (3, 0, 9, 9), (2.5, 3, 9, 9), (2, 3, 9, 9.25)])
def test_voc_counts_from_zero_where_one_object_of_the_data_set_says_so(evidence: tuple, tmp_path) -> None:
    root = voc(tmp_path, b=f"<annotation>{voc_object(*evidence)}</annotation>")
    train = open_split(DataConfig(root=root), "train")  # b is of val, and decides for train, too
    assert [e["bbox"] for e in train.content["annotations"]] == [[11, 21, 29, 24], [1, 1, 79, 59]]
    assert any("counted from zero" in note and "b.xml, object 1" in note for note in train.notes)
    told = open_split(DataConfig(root=root, voc_origin=1), "train")
    assert found(told) == {k: OBJECTS[k] for k in "ac"}
    x1, y1, x2, y2 = evidence
    assert open_split(DataConfig(root=root), "val").content["annotations"][0]["bbox"] == [x1, y1, x2 - x1, y2 - y1]


@pytest.mark.parametrize(("x1", "y1", "x2", "y2"), [(9, 2, 3, 7), (3, 7, 9, 2), (9, 7, 3, 2)])
def test_exchanged_corners_are_the_same_box(x1: int, y1: int, x2: int, y2: int, tmp_path) -> None:
    root = voc(tmp_path / "voc", a=f"<annotation>{voc_object(x1, y1, x2, y2)}</annotation>")
    source = open_split(DataConfig(root=root), "train")
    assert source.content["annotations"][0]["bbox"] == [2, 1, 7, 6]  # both corners inside, counted from one
    assert source.readings["box-swapped"].count == 1
    line = f"0 {(x1 + x2) / 2 / 80} {(y1 + y2) / 2 / 60} {(x2 - x1) / 80} {(y2 - y1) / 60}"
    source = open_split(DataConfig(root=yolo(tmp_path / "yolo", a=line)), "train")
    np.testing.assert_allclose(source.content["annotations"][0]["bbox"], [3, 2, 6, 5])
    assert source.readings["box-swapped"].count == 1


def test_voc_filename_counts(tmp_path) -> None:
    for name in ("1", "2", "3"):
        save_picture(tmp_path / "JPEGImages" / f"{name}.jpg")
    voc_file(tmp_path, "1", f"<filename>2.jpg</filename>{voc_object(1, 1, 9, 9)}")
    voc_file(tmp_path, "2", f"<filename>1.jpg</filename>{voc_object(1, 1, 5, 5)}")
    voc_file(tmp_path, "3", voc_object(1, 1, 3, 3))
    source = open_split(DataConfig(root=tmp_path), "train")
    assert {name: entries[0][3] for name, entries in found(source).items()} == {"2": 9, "1": 5, "3": 3}
    voc_file(tmp_path, "3", f"<filename>gone.jpg</filename>{voc_object(1, 1, 3, 3)}")
    source = open_split(DataConfig(root=tmp_path), "train")
    assert source.remarks["images named as their XML, whose <filename> is not there (taken by the XML's name)"] == 1
    voc_file(tmp_path, "3", f"<filename>2.jpg</filename>{voc_object(1, 1, 3, 3)}")
    with pytest.raises(UserError, match=r"3\.xml: annotates .*2\.jpg, as .*1\.xml does"):
        open_split(DataConfig(root=tmp_path), "train")


def test_voc_sub_folders_and_near_names(tmp_path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "2.PNG"):
        save_picture(tmp_path / "JPEGImages" / name)
    voc_file(tmp_path, "a/1", f"<filename>1.jpg</filename>{voc_object(1, 1, 9, 9)}")
    voc_file(tmp_path, "x", f"<folder>b</folder><filename>1.jpg</filename>{voc_object(1, 1, 5, 5)}")
    voc_file(tmp_path, "2", f"<filename>C:\\data\\2.png</filename>{voc_object(1, 1, 3, 3)}")
    source = open_split(DataConfig(root=tmp_path), "train")
    images = {e["id"]: e["file_name"] for e in source.content["images"]}
    assert {images[e["image_id"]]: e["bbox"][2] for e in source.content["annotations"]} == {
        "JPEGImages/a/1.jpg": 9, "JPEGImages/b/1.jpg": 5, "JPEGImages/2.PNG": 3,
    }  # fmt: skip
    voc_file(tmp_path, "x", f"<filename>1.jpg</filename>{voc_object(1, 1, 5, 5)}")
    with pytest.raises(
        UserError, match=r"x\.xml: the image '1\.jpg' may be JPEGImages/a/1\.jpg or JPEGImages/b/1\.jpg"
    ):
        open_split(DataConfig(root=tmp_path), "train")


def test_voc_files_and_images_in_folders_of_their_own(tmp_path) -> None:
    root = voc(tmp_path / "set")
    shutil.move(root / "JPEGImages", tmp_path / "pictures")
    train = {"annotations": root / "Annotations", "images": tmp_path / "pictures"}
    source = open_split(DataConfig.model_validate({"train": train}), "train")
    assert found(source) == OBJECTS
    assert source.content["images"][0]["file_name"] == "a.jpg"


def test_voc_as_roboflow_lays_it_out(tmp_path) -> None:
    outline = "<polygon><x1>1.5</x1><y1>2</y1><x2>9</x2><y2>2</y2><x3>9</x3><y3>8</y3></polygon>"
    for folder in ("train", "valid"):
        save_picture(tmp_path / folder / "p.jpg")
        text = f"<annotation><filename>p.jpg</filename>{voc_object(1, 2, 9, 8, outline)}</annotation>"
        (tmp_path / folder / "p.xml").write_text(text)
    for split, folder in (("train", "train"), ("val", "valid")):
        source = open_split(DataConfig(root=tmp_path), split)
        assert [e["file_name"] for e in source.content["images"]] == [f"{folder}/p.jpg"]
        assert [e["bbox"] for e in source.content["annotations"]] == [[1, 2, 8, 6]] or split == "train"
        assert source.content["annotations"][0]["segmentation"] == [[1.5, 2, 9, 2, 9, 8]] or split == "val"


# ---- detection, lists, links -----------------------------------------------------------------------------------------


def test_every_format_that_a_config_may_name_is_found_and_read() -> None:
    assert set(FINDERS) == set(FORMATS) == set(get_args(DataFormat))


def test_yolo_is_found_by_what_is_in_its_files(tmp_path) -> None:
    root = yolo(tmp_path / "set")
    (root / "data.yaml").rename(root / "cells.yaml")
    (root / "notes.yaml").write_text("names: of people\n")
    assert found(open_split(DataConfig(root=root), "val")) == {"b": OBJECTS["b"]}
    (root / "cells.yaml").unlink()
    (root / "classes.txt").write_bytes(codecs.BOM_UTF8 + b"cat\r\ndog\r\n")
    assert found(open_split(DataConfig(root=root), "val")) == {"b": OBJECTS["b"]}
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"no data\.yaml \(or classes\.txt\) with the class names"):
        open_split(DataConfig(root=root), "val")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.xml", "<?xml version='1.0'?><!-- c --><dataset><images/></dataset>", r"x.xml is dlib's XML"),
        ("export.json", '{"items": [], "categories": {}}', "export.json is Datumaro's: export it as COCO"),
        ("r.json", '[{"image_id": 1, "category_id": 1, "score": 1}]', "r.json is COCO results, not ground truth"),
        ("labels.csv", "a,b", "labels.csv is a table"),
        ("a.jpg", "", "1 .jpg"),
    ],
)
def test_unknown_formats_are_named_with_what_is_read(name: str, content: str, message: str, tmp_path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"(?s)Supported \(.*coco: .*voc: .*yolo: .*labelme: .*{message}"):
        open_split(DataConfig(root=tmp_path), "train")


def test_several_formats_are_an_error_but_for_a_conversion_beside_its_source(tmp_path) -> None:
    root = voc(tmp_path)
    content = convert(root)
    (root / "coco.json").write_text(json.dumps(content))
    assert find_format(DataConfig(root=root), DataConfig().train) == "voc"
    shutil.copy(yolo(tmp_path / "y") / "data.yaml", root)
    with pytest.raises(UserError, match=r"(?s)several formats; choose one with data\.format.*voc: .*yolo: "):
        open_split(DataConfig(root=root), "train")


def test_coco_files_of_other_tools_are_found(tmp_path) -> None:
    content = convert(labelme(tmp_path / "labelme"))
    for name in ("annotations/instances_default.json", "result.json", "train/labels_train.json"):
        root = tmp_path / Path(name).stem
        for picture in (tmp_path / "labelme").glob("*.jpg"):
            (root / "images").mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, root / "images")
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(codecs.BOM_UTF8 + json.dumps(content).encode())
        source = open_split(DataConfig(root=root), "train")
        assert found(source) == OBJECTS
        assert source.images == root / "images"
    data = DataConfig.model_validate({"root": tmp_path / "labelme", "train": {"split": "test"}})
    with pytest.raises(UserError, match=r"data\.train\.split=test: labelme has no named splits"):
        open_split(data, "train")


def test_a_split_of_a_coco_set_is_the_one_that_is_read(tmp_path) -> None:
    content = convert(labelme(tmp_path / "labelme"))
    for number, folder in enumerate(("train", "valid", "test"), 1):
        shutil.copytree(tmp_path / "labelme", tmp_path / "set" / folder, ignore=shutil.ignore_patterns("*.json"))
        part = content | {"images": content["images"][:number], "annotations": []}
        (tmp_path / "set" / folder / "_annotations.coco.json").write_text(json.dumps(part))
    data = DataConfig.model_validate({"root": tmp_path / "set", "val": {"split": "test"}})
    assert len(open_split(data, "val").content["images"]) == 3
    assert len(convert(tmp_path / "set", "--split", "valid")["images"]) == 2


def test_lists_of_files_never_name_another_image(tmp_path) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg"):
        save_picture(tmp_path / name)
    images = [
        {"id": k, "file_name": n, "height": 60, "width": 80} for k, n in enumerate(("a/1.jpg", "b/1.jpg", "b/2.jpg"))
    ]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "all.json").write_text(json.dumps(content))

    def read(text: bytes) -> list[str]:
        (tmp_path / "few.txt").write_bytes(text)
        files = {"images": tmp_path, "annotations": tmp_path / "all.json", "files": tmp_path / "few.txt"}
        source = open_split(DataConfig.model_validate({"train": files}), "train")
        return [e["file_name"] for e in source.content["images"]]

    assert read(codecs.BOM_UTF8 + b"b/1.jpg\r\n2.jpg\r\n") == ["b/1.jpg", "b/2.jpg"]
    assert read(b"/data/a/1.jpg\n2\n") == ["a/1.jpg", "b/2.jpg"]
    for text, message in (
        (b"1.jpg", r"may be a/1\.jpg or b/1\.jpg"), (b"a/2.jpg", "'a/2.jpg'"), (b"c/1.jpg", "'c/1.jpg'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"1 of 1 lines name no image .*{message}"):
            read(text)


def test_a_folder_of_links_is_a_folder_of_images(tmp_path) -> None:
    for name in ("a", "b"):
        save_picture(tmp_path / "store" / f"{name}.jpg")
        (tmp_path / "links").mkdir(exist_ok=True)
        (tmp_path / "links" / f"{name}.png").symlink_to(tmp_path / "store" / f"{name}.jpg")
    (tmp_path / "more").symlink_to(tmp_path / "store")
    (tmp_path / "links/loop").symlink_to(tmp_path / "links")
    names = ["a.png", "b.png", "../store/a.jpg", "../links/a.png", "x/../b.png"]
    images = [{"id": k, "file_name": n, "height": 60, "width": 80} for k, n in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    source = Source(tmp_path / "a.json", tmp_path / "links", content)
    findings, _ = inspect_files("train", source, decode=True)
    assert [(f.code, f.count) for f in findings if f.code == "file-outside"] == [("file-outside", 2)]
    with pytest.raises(
        UserError, match=r"(?s)2 problem.*'\.\./store/a\.jpg' is outside.*'\.\./links/a\.png' is outside"
    ):
        parse_coco({**content, "images": images[:4]}, source.images, source.path)
    assert [p.name for p in all_files(tmp_path / "links")] == ["a.png", "b.png"]
    assert len(all_files(tmp_path / "more")) == 2
