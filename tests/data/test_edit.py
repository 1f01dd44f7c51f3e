"""Datasets made from datasets, written in other formats and read back; near-duplicates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pictures import textured
from resdet.commands.data import main
from resdet.config import DataConfig
from resdet.data.duplicates import hash_files, near_duplicates
from resdet.data.edit import remap, sample
from resdet.data.formats.coco import coco_splits
from resdet.data.formats.common import Source, usual_name
from resdet.data.formats.voc import voc_splits
from resdet.data.formats.write import WRITERS
from resdet.data.merge import merge
from resdet.data.sources import open_split
from resdet.errors import UserError
from resdet.masks import decode_rle, encode_bitmap

H, W = 60, 80


def dataset(root: Path, classes: list[str], names: str, category: int = 1) -> Source:
    """One object of `category` an image, a box alone."""
    for name in names:
        (root / "img").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"img/{name}.png"), textured(H, W))
    images = [{"id": 10 + k, "file_name": f"{n}.png", "height": H, "width": W} for k, n in enumerate(names)]
    annotations = [
        {"id": 5 + k, "image_id": 10 + k, "category_id": category, "bbox": [10, 20, 30, 25], "area": 750, "iscrowd": 0}
        for k in range(len(names))
    ]
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return Source(root / "all.json", root / "img", content)


def test_merging_joins_classes_by_name(tmp_path) -> None:
    one, two = dataset(tmp_path / "one", ["cat", "dog"], "ab", 2), dataset(tmp_path / "two", ["bird", "dog"], "ac", 1)
    merged = merge([one, two])
    assert [(c["id"], c["name"]) for c in merged.content["categories"]] == [(1, "cat"), (2, "dog"), (3, "bird")]
    assert [i["file_name"] for i in merged.content["images"]] == [f"one/img/{n}.png" for n in "ab"] + [
        f"two/img/{n}.png" for n in "ac"
    ]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in merged.content["annotations"]] == [
        (1, 1, 2), (2, 2, 2), (3, 3, 3), (4, 4, 3),
    ]  # fmt: skip
    assert all((merged.images / i["file_name"]).is_file() for i in merged.content["images"])
    with pytest.raises(UserError, match=r"one/img/a\.png|a\.png is in"):
        merge([one, one])


def test_sampling_and_other_classes(tmp_path) -> None:
    source = dataset(tmp_path, ["cat", "dog", "bird"], "abcdef", 2)
    some = sample(source, 3, seed=1)
    assert len(some.content["images"]) == len(some.content["annotations"]) == 3
    assert sample(source, 3, seed=1).content == some.content
    with pytest.raises(UserError, match="has 6 images, fewer than the 7"):
        sample(source, 7, seed=0)
    changed = remap(source, {"cat": "animal", "dog": "animal"})
    assert [c["name"] for c in changed.content["categories"]] == ["animal", "bird"]
    assert {a["category_id"] for a in changed.content["annotations"]} == {1}
    dropped = remap(source, {"dog": None})
    assert (len(dropped.content["annotations"]), list(dropped.remarks.values())) == (0, [6])
    with pytest.raises(UserError, match="no class 'cats'; the classes are cat, dog, bird"):
        remap(source, {"cats": "cat"})


@pytest.mark.parametrize("format", ["yolo", "voc", "labelme"])
def test_what_is_written_is_read_back(format: str, tmp_path) -> None:
    source = dataset(tmp_path / "from", ["cat", "dog & co"], "ab", 2)
    mask = np.zeros((H, W), bool)
    mask[5:25, 10:30] = True
    mask[5:15, 10:20] = False
    polygon = [[10.5, 20, 40, 20, 40, 45.25]]
    masks = format != "voc"
    if masks:
        first, second = source.content["annotations"]
        first |= {"segmentation": polygon, "bbox": [10.5, 20, 29.5, 25.25]}
        second |= {"segmentation": encode_bitmap(mask), "bbox": [10, 5, 20, 20]}
    lost = WRITERS[format](source, tmp_path / "to", "train")
    assert not lost
    data = DataConfig.model_validate({"root": tmp_path / "to", "format": format})
    read = open_split(data, "train")
    assert len(read.content["images"]) == 2
    names = {c["id"]: c["name"] for c in read.content["categories"]}
    for before, after in zip(source.content["annotations"], read.content["annotations"], strict=True):
        np.testing.assert_allclose(after["bbox"], before["bbox"], atol=0.3 if masks else 1e-6)
        assert names[after["category_id"]] == "dog & co"
    if masks:
        np.testing.assert_allclose(read.content["annotations"][0]["segmentation"], polygon, atol=1e-6)
        outline = read.content["annotations"][1]["segmentation"]
        from pycocotools import mask as coco_mask

        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outline, H, W))).astype(bool)
        assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
        assert decode_rle(encode_bitmap(drawn), H, W).shape == (H, W)


def test_what_a_format_cannot_hold_is_counted(tmp_path) -> None:
    source = dataset(tmp_path / "from", ["cat"], "ab")
    first, second = source.content["annotations"]
    first["iscrowd"] = 1
    second["segmentation"] = [[0, 0, 10, 0, 10, 10], [20, 20, 30, 20, 30, 30]]
    assert sorted(WRITERS["yolo"](source, tmp_path / "yolo", "train").values()) == [1, 1]
    assert sorted(WRITERS["voc"](source, tmp_path / "voc", "train").values()) == [1, 1]
    assert list(WRITERS["labelme"](source, tmp_path / "labelme", "train").values()) == [1]
    first |= {"iscrowd": 0, "keypoints": [3, 4, 2]}
    for number, (format, write) in enumerate(WRITERS.items()):
        lost = write(source, tmp_path / f"{number}", "train")
        assert lost["objects whose keypoints were left out"] == 1
        assert ("objects without a mask (their boxes are written as polygons)" in lost) == (format == "yolo")


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([10.25, 20.5, 30.5, 20], [10, 20, 31, 20]),  # a fraction, which readers take for coordinates from zero
        ([-5, 20, 15, 60], [0, 20, 10, 40]),
        ([10, 20, 1, 0.2], [10, 20, 2, 2]),
        ([79.5, 59.6, 3, 3], [78, 58, 2, 2]),
        ([80, 20, 5, 5], None),
        ([10, 20, 0, 5], None),
    ],
)
def test_boxes_in_voc_are_whole_pixels_of_their_image(box: list[float], expected: list[int] | None, tmp_path) -> None:
    source = dataset(tmp_path / "from", ["cat"], "a")
    source.content["annotations"][0]["bbox"] = box
    lost = WRITERS["voc"](source, tmp_path / "to", "train")
    assert list(lost.values()) == [1] * (box[0] >= 0)  # a box is cut in silence, as in training
    found = open_split(DataConfig(root=tmp_path / "to", format="voc"), "train").content["annotations"]
    assert [entry["bbox"] for entry in found] == ([expected] if expected else [])


def test_yolo_gets_the_parts_inside_the_image(tmp_path) -> None:
    """YOLO's readers, ours too, refuse shares outside 0 to 1."""
    source = dataset(tmp_path / "from", ["cat"], "abc")
    first, second, third = source.content["annotations"]
    first["bbox"] = [-20, -10, 200, 300]
    WRITERS["yolo"](source, tmp_path / "boxes", "train")
    assert (tmp_path / "boxes/labels/train/a.txt").read_text() == "0 0.5 0.5 1 1\n"
    second |= {"segmentation": [[-20, 10, 40, 10, 40, 50, -20, 50], [1, 2, 3, 4]], "bbox": [-20, 10, 60, 40]}
    third |= {"bbox": [70, 50, 40, 40], "segmentation": [[75, 80, 110, 80, 110, 90]]}  # no part of it is inside
    WRITERS["yolo"](source, tmp_path / "masks", "train")
    found = open_split(DataConfig(root=tmp_path / "masks", format="yolo"), "train").content["annotations"]
    boxes = [[0, 0, W, H], [0, 10, 40, 40], [70, 50, 10, 10]]
    np.testing.assert_allclose([entry["bbox"] for entry in found], boxes, atol=1e-6)


def test_other_classes_keep_what_images_know_and_keypoints(tmp_path) -> None:
    source = dataset(tmp_path, ["a", "b", "c"], "pqr", 3)
    first, second, third = source.content["images"]
    first["known_category_ids"] = [2, 3]
    second |= {"neg_category_ids": [1], "not_exhaustive_category_ids": []}  # and 3, of which it has an object
    source.content["categories"][2] |= {"keypoints": ["head", "tail"], "skeleton": [[1, 2]]}
    changed = remap(source, {"a": None, "c": "cat"}).content
    assert changed["categories"][1] == {"id": 2, "name": "cat", "keypoints": ["head", "tail"], "skeleton": [[1, 2]]}
    assert [i.get("known_category_ids") for i in changed["images"]] == [[1, 2], [2], None]
    assert not any("neg_category_ids" in image for image in changed["images"])
    merged = remap(source, {"a": "x", "b": "x"}).content
    assert [i.get("known_category_ids") for i in merged["images"]] == [[2], [2], None]
    assert "known_category_ids" not in third
    source.content["categories"][0]["name"] = "b"
    with pytest.raises(UserError, match="2 categories are called 'b'"):
        remap(source, {"c": "d"})
    del source.content["categories"][0]["name"]  # its id counts, as in training
    assert [c["name"] for c in remap(source, {"1": "one"}).content["categories"]] == ["one", "b", "c"]
    source.content["annotations"][0]["category_id"] = 9
    with pytest.raises(UserError, match="annotation 5: category_id 9"):
        remap(source, {"c": "d"})


def test_copies_are_found_and_other_images_are_not(tmp_path) -> None:
    random = np.random.default_rng(0)
    images = [cv2.resize(random.integers(0, 255, (6, 8, 3), dtype=np.uint8), (160, 120)) for _ in range(30)]
    for k, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{k}.png"), image)
    cv2.imwrite(str(tmp_path / "copy.jpg"), cv2.resize(images[7], (97, 71)), [cv2.IMWRITE_JPEG_QUALITY, 60])
    cv2.imwrite(str(tmp_path / "bright.png"), cv2.convertScaleAbs(images[3], alpha=0.8, beta=30))
    cv2.imwrite(str(tmp_path / "plain.png"), np.full((50, 50, 3), 90, np.uint8))
    first, problems = hash_files([tmp_path / f"{k}.png" for k in range(30)])
    others, _ = hash_files([tmp_path / n for n in ("copy.jpg", "bright.png", "plain.png")])
    assert problems == []
    assert [(p.first, p.second) for p in near_duplicates(first, others)] == [(3, 1), (7, 0)]
    assert near_duplicates(first) == []
    assert hash_files([tmp_path / "absent.png"])[1] != []


def test_the_commands(tmp_path, capsys) -> None:
    """Each verb on a real file, the result read back."""

    def data(*words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        found = capsys.readouterr()
        return found.out + found.err

    source = dataset(tmp_path / "set", ["cat", "dog"], "abcdefgh", 2)
    source.content["annotations"][0]["category_id"] = 1
    file = tmp_path / "set/img/all.json"
    file.write_text(json.dumps(source.content))
    assert "written" in data("split", file, tmp_path / "out", "--val", 0.25, "--test", 0.25)
    parts = [json.loads((tmp_path / f"out/{name}.json").read_text()) for name in ("train", "val", "test")]
    assert [len(part["images"]) for part in parts] == [4, 2, 2]
    assert len({image["file_name"] for part in parts for image in part["images"]}) == 8
    assert "must be fractions" in data("split", file, tmp_path / "out", "--val", 1.5, code=2)
    (tmp_path / "map.yaml").write_text("cat: animal\ndog: animal\n")
    data("remap", file, tmp_path / "animals.json", "--classes", tmp_path / "map.yaml")
    assert [c["name"] for c in json.loads((tmp_path / "animals.json").read_text())["categories"]] == ["animal"]
    (tmp_path / "map.yaml").write_text("cat: 007\ndog: null\n")  # text as it is written, and a class to drop
    data("remap", file, tmp_path / "agents.json", "--classes", tmp_path / "map.yaml")
    assert [c["name"] for c in json.loads((tmp_path / "agents.json").read_text())["categories"]] == ["007"]
    assert "no class 'cow'" in data("remap", file, tmp_path / "x.json", "--classes", wrong_map(tmp_path), code=2)
    data("sample", file, tmp_path / "few.json", "--count", 3)
    assert len(json.loads((tmp_path / "few.json").read_text())["images"]) == 3
    other = dataset(tmp_path / "two", ["dog"], "xy")
    (tmp_path / "two/img/all.json").write_text(json.dumps(other.content))
    data("merge", tmp_path / "both.json", file, tmp_path / "two/img/all.json")
    assert len(json.loads((tmp_path / "both.json").read_text())["images"]) == 10
    cv2.imwrite(str(tmp_path / "two/img/x.png"), np.random.default_rng(0).integers(0, 255, (H, W, 3), dtype=np.uint8))
    said = data("dedupe", tmp_path / "two/img/all.json", file, "--output", tmp_path / "new.json")
    assert "y.png = a.png" in said
    assert [i["file_name"] for i in json.loads((tmp_path / "new.json").read_text())["images"]] == ["x.png"]
    assert "no image would be left" in data("dedupe", file, file, "--output", tmp_path / "none.json", code=2)
    data("convert", file, tmp_path / "yolo", "--to", "yolo")
    assert (tmp_path / "yolo/labels/train/a.txt").read_text().startswith("0 ")


def test_what_cannot_be_written_is_one_error(tmp_path, capsys) -> None:
    source = dataset(tmp_path / "set", ["cat", "cat"], "ab")
    file = tmp_path / "all.json"
    for change, message in (
        ({"image_id": 99}, "annotation of an image that is not listed"),
        ({"category_id": [1]}, "annotation of a category that is not listed"),
        ({"bbox": ["x", 1, 2, 3]}, "bbox is not four finite numbers"),
        ({"segmentation": {"size": [H, W], "counts": "abc"}}, "do not add up"),
        ({}, "2 categories are called 'cat'"),
    ):
        changed = {**source.content["annotations"][0], **change}
        file.write_text(json.dumps({**source.content, "annotations": [changed]}))
        for to in ("yolo", "voc", "labelme"):
            assert main(["convert", str(file), str(tmp_path / to), "--to", to, "--images", str(source.images)]) == 2
            assert message in "".join(capsys.readouterr()).replace("\n", " ")
            assert not list(tmp_path.glob(f"{to}/**/*.png"))
    for entry in source.content["annotations"]:  # what one verb refuses, all refuse, as training does
        entry.update(bbox=[0.1, 0.2, 0.3, 0.4], segmentation=None)
    file.write_text(json.dumps(source.content))
    out = tmp_path / "out.json"
    images = ["--images", str(source.images)]
    for verb in (["convert", str(file), str(out), *images], ["sample", str(file), str(out), "--count", "1", *images],
                 ["dedupe", str(file), "--output", str(out), *images], ["merge", str(out), str(file), str(file)],
                 ["split", str(file), str(tmp_path / "parts"), "--val", "0.5", *images]):  # fmt: skip
        assert main(verb) == 2
        assert "boxes look like fractions of the image; COCO's are in pixels (2)" in "".join(
            capsys.readouterr()
        ).replace("\n", " ")
        assert not out.exists()
    source = dataset(tmp_path / "set", ["cat", "cat"], "ab")
    file.write_text(json.dumps(source.content))
    assert main(["split", str(file), str(tmp_path / "out"), "--group", "(", "--images", str(source.images)]) == 2
    assert "--group '(': not a regular expression" in "".join(capsys.readouterr())
    del source.content["categories"][1]["name"]
    file.write_text(json.dumps(source.content))
    assert main(["sample", str(file), str(tmp_path / "few.json"), "--count", "1", "--images", str(source.images)]) == 0
    assert "classes: cat, 2" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "SET", "out.json", "--count", "-1"], "--count -1: must be at least 1"),
        (["dedupe", "SET", "--bits", "-1"], "--bits -1: must be 0 to 256"),
        (["convert", "absent", "out.json"], "absent: no such file or folder"),
        (["remap", "SET", "out.json", "--classes", "cat: a\ncat: b"], "cannot be read as YAML (cat"),
        (["remap", "SET", "out.json", "--classes", "cat: [a"], "cannot be read as YAML"),
        (["remap", "SET", "out.json", "--classes", "cat: ''"], "'cat' gets no name: write null to drop the class"),
    ],
)
def test_arguments_without_a_meaning_are_errors(
    arguments: list[str], message: str, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = dataset(tmp_path, ["cat"], "ab")
    (tmp_path / "img/all.json").write_text(json.dumps(source.content))
    if arguments[0] == "remap":
        (tmp_path / "map.yaml").write_text(arguments.pop())
        arguments = [*arguments, "map.yaml"]
    assert main(["img/all.json" if word == "SET" else word for word in arguments]) == 2
    assert message in "".join(capsys.readouterr())
    assert not (tmp_path / "out.json").exists()


@pytest.fixture
def splits(tmp_path, capsys) -> Callable[..., tuple[int, str]]:
    """A YOLO data set of three splits and of one that has no usual name, and a command on it."""
    for k, name in enumerate(("train", "valid", "test", "holdout"), 1):
        for kind in ("images", "labels"):
            (tmp_path / f"set/{name}/{kind}").mkdir(parents=True)
        for n in range(k):
            cv2.imwrite(str(tmp_path / f"set/{name}/images/{name}{n}.png"), textured(H, W, seed=10 * k + n))
            (tmp_path / f"set/{name}/labels/{name}{n}.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (tmp_path / "set/data.yaml").write_text(
        "train: train/images\nval: valid/images\ntest: test/images\nnames: [cat, dog]\n"
    )

    def command(verb: str, target: str, *options: str) -> tuple[int, str]:
        code = main([verb, str(tmp_path / "set"), str(tmp_path / target), *options])
        return code, "".join(capsys.readouterr()).replace("\n", " ")

    return command


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_all_splits_are_converted_where_the_format_has_splits(to: str, splits, tmp_path) -> None:
    assert splits("convert", to, "--to", to)[0] == 0
    for name, count in (("train", 1), ("val", 2), ("test", 3)):
        data = DataConfig.model_validate({"root": tmp_path / to, "val": {"split": name}})
        assert len(open_split(data, "val").content["annotations"]) == count
    assert splits("convert", to, "--to", to)[0] == 0  # again: the same images
    cv2.imwrite(str(tmp_path / "set/valid/images/valid0.png"), textured(H, W, seed=99))
    code, said = splits("convert", to, "--to", to)
    assert (code, "valid0.png: is there already, and is another image than" in said) == (2, True)


def test_splits_that_one_file_cannot_hold_are_named(splits, tmp_path) -> None:
    map_file = tmp_path / "map.yaml"
    map_file.write_text("cat: animal\n")
    for verb, options in (("convert", ()), ("sample", ("--count", "1")), ("remap", ("--classes", str(map_file)))):
        code, said = splits(verb, "one.json", *options)
        assert (code, "the splits val, test are left out; --split NAME reads one" in said) == (0, True)
        assert len(json.loads((tmp_path / "one.json").read_text())["images"]) == 1
    for verb, options in (("convert", ()), ("remap", ("--classes", str(map_file)))):
        assert splits(verb, "all", *options)[0] == 0
        counts = {path.stem: len(json.loads(path.read_text())["images"]) for path in (tmp_path / "all").glob("*.json")}
        assert counts == {"train": 1, "val": 2, "test": 3}
    assert splits("convert", "test.json", "--split", "test")[1].count("left out") == 0
    (tmp_path / "set/data.yaml").write_text("train: train/images\nval: gone\nnames: [cat]\n")
    code, said = splits("convert", "more")
    assert (code, "the split val of" in said, (tmp_path / "more").exists()) == (2, True, False)


def test_splits_of_each_layout_are_found(tmp_path) -> None:
    coco = json.dumps({"images": [], "annotations": [], "categories": []})
    for name in ("coco/annotations/instances_train2017", "coco/annotations/instances_val2017", "coco/annotations/x",
                 "coco/annotations/person_keypoints_val2017", "flat/train", "flat/val", "one/all"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.json").write_text(coco)
    assert list(coco_splits(tmp_path / "coco")) == ["train2017", "val2017", "person_keypoints_val2017"]
    assert list(coco_splits(tmp_path / "flat")) == ["train", "val"]
    assert list(coco_splits(tmp_path / "one")) == ["train"]
    (tmp_path / "flat/val.json").unlink()
    with pytest.raises(
        UserError, match=r"no annotations of val, but train\.json: name the file with data\.val\.annotations"
    ):
        open_split(DataConfig(root=tmp_path / "flat"), "val")
    names = ["train2017", "valid", "test", "person_keypoints_val2017", "trainval"]
    assert [usual_name(name) for name in names] == ["train", "val", "test", None, None]
    for name in ("training/a", "validation/b", "other/c"):
        (tmp_path / "voc" / name).parent.mkdir(parents=True)
        (tmp_path / f"voc/{name}.xml").touch()
    assert voc_splits(tmp_path / "voc") == ["training", "validation"]


def test_supervisely_projects_are_converted_whole(tmp_path, capsys) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"classes": [{"title": "cat"}]}))
    for name in ("one", "two"):
        (tmp_path / name / "ann").mkdir(parents=True)
        (tmp_path / name / "img").mkdir()
        cv2.imwrite(str(tmp_path / name / "img/a.png"), textured(H, W))
        (tmp_path / name / "ann/a.png.json").write_text('{"objects": []}')
    for part, count in ((), 2), (("--split", "two"), 1):
        assert main(["convert", str(tmp_path), str(tmp_path / "out.json"), *part]) == 0
        assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == count
    assert main(["convert", str(tmp_path), str(tmp_path / "out.json"), "--split", "x"]) == 2
    assert "no dataset 'x'; it has one, two: name those that are meant" in "".join(capsys.readouterr())


def wrong_map(folder: Path) -> Path:
    (folder / "wrong.yaml").write_text("cow: animal\n")
    return folder / "wrong.yaml"
