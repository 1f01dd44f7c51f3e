"""Objects, label maps and panoptic segments, converted into each other: nothing changes but what the other form cannot hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import SHARED
from resdet import cli
from resdet.config import DataConfig
from resdet.data.formats.common import Source
from resdet.data.formats.write import WRITERS
from resdet.data.formats.write_maps import COVERED, FILLED, HIDDEN, NOT_DRAWN
from resdet.data.label_maps import as_labels, read_values
from resdet.data.sources import open_split
from resdet.masks import decode_rle
from resdet.structures import UNLABELLED
from tiny import panoptic

SIZE = H, W = 12, 20


def opened(root: Path, **given: object) -> Source:
    return open_split(DataConfig.model_validate({"root": root, **given}), "train")


def maps_of(source: Source) -> list[np.ndarray]:
    assert source.labels
    files = [source.labels.files[image["id"]] for image in source.content["images"]]
    return [as_labels(file, read_values(file, Image.open(file.file).size[::-1])) for file in files]


def segments_of(path: Path) -> list[list[tuple]]:
    """Of each image, in the order of ids: (category's name, whether it is a thing, crowd, area, bbox), from the JSON."""
    content = json.loads(path.read_text())
    names = {c["id"]: (c["name"], c["isthing"]) for c in content["categories"]}
    annotations = sorted(content["annotations"], key=lambda entry: entry["image_id"])
    ordered = [sorted(entry["segments_info"], key=lambda segment: segment["id"]) for entry in annotations]
    return [[(s["id"], *names[s["category_id"]], s["iscrowd"], s["area"], s["bbox"]) for s in some] for some in ordered]


def test_cocos_own_panoptic_annotations_stay_as_they_are(tmp_path) -> None:
    examples = SHARED / "coco_panoptic"
    if not examples.is_dir():
        pytest.skip(f"needs COCO's panoptic examples in {examples}")
    given = [str(examples / "panoptic_examples.json"), "--images", str(examples / "input_images")]
    assert cli.main(["data", "convert", *given, str(tmp_path / "same"), "--to", "coco_panoptic"]) == 0
    theirs = segments_of(examples / "panoptic_examples.json")
    assert segments_of(tmp_path / "same/annotations/panoptic_train.json") == theirs
    for png in (examples / "panoptic_examples").glob("*.png"):
        ours = Image.open(tmp_path / "same/annotations/panoptic_train" / png.name)
        assert np.array_equal(np.asarray(ours), np.asarray(Image.open(png)))
    assert cli.main(["data", "convert", *given, str(tmp_path / "maps"), "--to", "label_maps"]) == 0
    read = opened(tmp_path / "maps")
    names = [name for _, name in read.labels.classes]
    assert len(names) == 133
    for labels, segments in zip(maps_of(read), theirs, strict=True):
        areas: dict[str, int] = {}
        for _, name, _, _, area, _ in segments:
            areas[name] = areas.get(name, 0) + area
        counts = np.bincount(labels.ravel(), minlength=256)
        assert {name: counts[k] for k, name in enumerate(names) if counts[k]} == areas
        assert counts[UNLABELLED] == labels.size - sum(areas.values())


def test_label_maps_become_stuff_and_come_back(tmp_path, shapes_root) -> None:
    source = opened(panoptic(shapes_root, tmp_path / "from"))
    things = [c["name"] for c in source.content["categories"]]
    assert not WRITERS["label_maps"](source, tmp_path / "maps", "train")
    first = opened(tmp_path / "maps")
    assert [name for _, name in first.labels.classes] == [*things, "air", "ground"]  # stuff by id, as when it is read
    assert not WRITERS["coco_panoptic"](first, tmp_path / "stuff", "train")
    stuff = opened(tmp_path / "stuff")
    assert (stuff.labels.things, stuff.content["annotations"]) == (0, [])
    assert not WRITERS["label_maps"](stuff, tmp_path / "again", "train")
    again = opened(tmp_path / "again")
    assert [name for _, name in again.labels.classes] == [name for _, name in first.labels.classes]
    for one, other in zip(maps_of(first), maps_of(again), strict=True):
        assert np.array_equal(one, other)
    assert len(np.unique(maps_of(first)[0])) > 3


def objects(folder: Path) -> Source:
    """A square on a large one, a crowd under both, a box without a mask, and one that another covers."""
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (W, H)).save(folder / "pictures/a.png")

    def square(x: int, y: int, side: int) -> dict:
        x2, y2 = x + side, y + side
        return {"bbox": [x, y, side, side], "segmentation": [[x, y, x2, y, x2, y2, x, y2]], "iscrowd": 0}

    entries = [
        square(2, 2, 2), square(1, 1, 6), {**square(0, 0, 9), "iscrowd": 1}, {"bbox": [14, 1, 3, 4], "iscrowd": 0},
        square(11, 8, 2), square(11, 8, 2),
    ]  # fmt: skip
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": H, "width": W}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {**e, "id": k, "image_id": 7, "category_id": 5 if k == 1 else 3} for k, e in enumerate(entries, 1)
        ],
    }
    return Source(folder / "some.json", folder / "pictures", content)


def test_objects_become_things_and_label_maps(tmp_path) -> None:
    source = objects(tmp_path)
    lost = WRITERS["coco_panoptic"](source, tmp_path / "panoptic", "train")
    assert lost == {FILLED: 1, COVERED: 2, HIDDEN: 1}  # the large square and the crowd
    segments = segments_of(tmp_path / "panoptic/annotations/panoptic_train.json")
    assert segments == [[
        (1, "dog", 1, 0, 4, [2, 2, 2, 2]), (2, "cat", 1, 0, 32, [1, 1, 6, 6]), (3, "cat", 1, 1, 45, [0, 0, 9, 9]),
        (4, "cat", 1, 0, 12, [14, 1, 3, 4]), (5, "cat", 1, 0, 4, [11, 8, 2, 2]),
    ]]  # fmt: skip
    back = opened(tmp_path / "panoptic")
    expected = np.zeros(SIZE, int)
    expected[:9, :9], expected[1:7, 1:7], expected[2:4, 2:4] = 3, 2, 1
    expected[1:5, 14:17], expected[8:10, 11:13] = 4, 5
    for number, entry in enumerate(back.content["annotations"], 1):
        assert np.array_equal(decode_rle(entry["segmentation"], H, W) > 0, expected == number)
    lost = WRITERS["label_maps"](source, tmp_path / "maps", "train")
    assert lost == {NOT_DRAWN: 1}
    labels = np.choose(expected, [0, 2, 1, UNLABELLED, UNLABELLED, 1])
    read = opened(tmp_path / "maps")
    assert [name for _, name in read.labels.classes] == ["background", "cat", "dog"]
    assert np.array_equal(maps_of(read)[0], labels)


def test_what_cannot_be_converted_is_one_error(tmp_path, capsys) -> None:
    source = objects(tmp_path / "from")
    (tmp_path / "from/some.json").write_text(json.dumps(source.content))
    images = ["--images", str(tmp_path / "from/pictures")]

    def refused(*arguments: object) -> str:
        assert cli.main(["data", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    given = ["convert", tmp_path / "from/some.json", tmp_path / "maps", *images, "--to", "label_maps"]
    assert cli.main(["data", *map(str, given)]) == 0
    for to in ("coco", "masks", "yolo"):
        told = refused("convert", tmp_path / "maps", tmp_path / ("out.json" if to == "coco" else "out"), "--to", to)
        assert "its label maps have a class for each pixel, but no objects, so nothing would be left" in told
        assert not (tmp_path / "out").exists()
    assert "no objects" in refused("sample", tmp_path / "maps", tmp_path / "out.json", "--count", "1")
    assert "is the source itself" in refused("convert", tmp_path / "maps", tmp_path / "maps", "--to", "label_maps")
    (tmp_path / "maps/classes.txt").write_text("a\nb\nc\n")
    assert "classes.txt: exists, with other classes" in refused(*given)
    for entry in source.content["annotations"]:
        entry.pop("segmentation", None)
    (tmp_path / "from/some.json").write_text(json.dumps(source.content))
    given[2] = tmp_path / "others"
    assert "has neither label maps nor masks to draw them from" in refused(*given)
