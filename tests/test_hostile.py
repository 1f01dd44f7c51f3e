"""Broken and hostile input of every kind: read, or refused with our own error that names the file; never a traceback, a
hang, gigabytes, or a file written elsewhere. `benchmarks/fuzz.py` tries ten thousand more."""

from __future__ import annotations

import copy
import json
import random
import re
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzzing
from fuzzing_formats import CVAT
from resdet.config import load_config
from resdet.data.formats.common import Source
from resdet.data.images import read_image
from resdet.data.quality.files import inspect_files
from resdet.errors import UserError

OF_EXPORTS = {f"{name} {how}" for name in fuzzing.EXPORTS for how in ("values", "text")}


@pytest.mark.parametrize("target", [target for target in fuzzing.TARGETS if target not in OF_EXPORTS])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(chance=st.randoms(use_true_random=False))
def test_spoiled_input_is_read_or_refused(target: str, chance: random.Random, tmp_path_factory) -> None:
    assert fuzzing.outcome(target, chance, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("target", sorted(OF_EXPORTS))
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(chance=st.randoms(use_true_random=False))
def test_spoiled_exports_are_read_or_refused(target: str, chance: random.Random, tmp_path_factory) -> None:
    assert fuzzing.outcome(target, chance, tmp_path_factory.mktemp("fuzz"))


def test_what_is_spoiled_was_whole(tmp_path) -> None:
    """Without this, everything would be refused and nothing tested."""
    for name in ("coco", "results", "voc", "yolo", "labelme", "checkpoint"):
        (tmp_path / name).mkdir()
    fuzzing.read_config_text(fuzzing.CONFIG, tmp_path)
    fuzzing.read_coco_text(json.dumps(fuzzing.COCO), tmp_path / "coco")
    fuzzing.read_results_text(json.dumps(fuzzing.RESULTS), tmp_path / "results")
    fuzzing.read_voc_text(fuzzing.XML, tmp_path / "voc")
    fuzzing.read_yolo_text(fuzzing.YOLO, tmp_path / "yolo")
    fuzzing.read_labelme_text(json.dumps(fuzzing.LABELME), tmp_path / "labelme")
    for data in fuzzing.pictures():
        fuzzing.read_picture(data, tmp_path)
    for data in fuzzing.arrays():
        (tmp_path / "a.tif").write_bytes(data)
        assert any(_decodes(tmp_path / "a.tif", channels) for channels in (1, 3, 5))
    for name, export in fuzzing.EXPORTS.items():
        (tmp_path / "exports" / name).mkdir(parents=True)
        fuzzing.read_export(name, export.files, tmp_path / "exports" / name)
    for name, data in fuzzing.checkpoints():
        fuzzing.read_checkpoint_bytes(name, data, tmp_path / "checkpoint")


def _decodes(path: Path, channels: int) -> bool:
    try:
        return read_image(path, channels).shape[2] == channels
    except UserError:
        return False


def coco(**changes: object) -> str:
    """COCO's structure with the first annotation or image changed."""
    content = json.loads(json.dumps(fuzzing.COCO))
    of_image = {"height", "width", "file_name"}
    for key, value in changes.items():
        content["images" if key in of_image else "annotations"][0][key] = value
    return json.dumps(content)


BOMBS = {  # what failed once, and what is made to fail
    "ids that cannot be looked up": coco(image_id=[1]),
    "an id that is a dict": coco(id={}, category_id={}),
    "run lengths that never end": coco(segmentation={"size": [40, 50], "counts": "oooooooooooooooooooo"}),
    "run lengths past the picture": coco(segmentation={"size": [40, 50], "counts": "PPYd10"}),
    "run lengths of 2**31": coco(segmentation={"size": [40, 50], "counts": [2**31]}),
    "a mask of 10**18 pixels": coco(
        height=10**9, width=10**9, segmentation={"size": [10**9, 10**9], "counts": [10**18]}
    ),
    "a polygon round the world": coco(segmentation=[[-1e9, -1e9, 1e9, -1e9, 1e9, 1e9]]),
    "a polygon of a million points": coco(segmentation=[[float(i % 50) for i in range(2_000_000)]]),
    "numbers that no float holds": coco(bbox=[0, 0, 10**400, 1]),
    "iscrowd that is a list": coco(iscrowd=[1]),
    "a path out of the folder": coco(file_name="../../../../etc/passwd"),
    "a name with a zero": coco(file_name="a\x00b.jpg"),
    "lists a million deep": "[" * 1_000_000,
    "objects a million deep": '{"images":' * 1_000_000,
}


def _set(content: Any, *path: Any) -> None:
    *parents, key, value = path
    for parent in parents:
        content = content[parent]
    content[key] = value


@pytest.mark.parametrize(("name", "path"), [
    ("label_studio", ("export.json", 0, "annotations", 0.5)),
    ("supervisely", ("train/ann/1.jpg.json", "objects", 0, "classTitle", [])),
    ("supervisely", ("train/ann/1.jpg.json", "objects", 2, "points", "interior", True)),
    ("coco lvis", ("lvis_v1_train.json", "images", 0, "neg_category_ids", [[7]])),
    ("coco lvis", ("lvis_v1_train.json", "images", 0, "coco_url", 5)),
    ("supervisely", ("train/ann/1.jpg.json", "objects", 1, "bitmap", "data", "é")),
    ("via", ("via.json", "null")),
    ("kitti", ("training/label_2/000000.txt", "Car 1 2\n")),
    ("mot", ("MOT-02/gt/gt.txt", "1,1,21,30,15,1,1,1.0\n")),
    ("open_images", ("train-annotations-bbox.csv", "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\n"
                     "1,xclick,/m/01,0.125,0.5,0.25,0.75,0\n")),
    ("cvat", ("annotations.xml", CVAT.replace("0,0;40,0;40,30", "0,0;40;0;40,30,5,5"))),
])  # fmt: skip
def test_exports_that_once_broke_a_reader(name: str, path: tuple, tmp_path) -> None:
    files = copy.deepcopy(fuzzing.EXPORTS[name].files)
    _set(files, *path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        fuzzing.read_export(name, files, tmp_path)


def test_an_array_whose_header_never_ends_is_refused(tmp_path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(UserError, match=r"a\.npy: not a readable image"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("what", BOMBS)
def test_annotations_that_were_made_to_break_a_reader(what: str, tmp_path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with fuzzing.time_limit(10), pytest.raises(UserError, match=r"a\.json"):
        fuzzing.read_coco_text(BOMBS[what], tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # KiB


@pytest.mark.parametrize(
    "segmentation", [False, [], [[0, 0]], {"size": [40, 50]}, {"size": [40, 50], "counts": "oooooooo"}, True]
)
def test_results_whose_masks_would_crash_the_evaluation(segmentation: object, tmp_path) -> None:
    results = [{**fuzzing.RESULTS[0], "segmentation": segmentation}]
    with fuzzing.time_limit(10), pytest.raises(UserError, match=r"r\.json.*\n.*entry 0: "):
        fuzzing.read_results_text(json.dumps(results), tmp_path)


def test_a_yaml_of_aliases_is_refused(tmp_path) -> None:
    """A few lines that mean a thousand million entries."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 10)]
    (tmp_path / "c.yaml").write_text("\n".join(lines) + "\nseed: *a9\n")
    with fuzzing.time_limit(10), pytest.raises(UserError, match=r"c\.yaml.*aliases expand to"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("seed: &a [*a]\n")
    with fuzzing.time_limit(10), pytest.raises(UserError):
        load_config(tmp_path / "c.yaml")
    with fuzzing.time_limit(10), pytest.raises(UserError, match=r"data\.yaml"):
        fuzzing.read_yolo_text(fuzzing.YOLO, tmp_path, "\n".join(lines) + "\nnames: *a9\n")


def test_xml_entities_are_refused(tmp_path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;">]>' + fuzzing.XML.replace("cat", "&y;")
    outside = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + fuzzing.XML.replace("cat", "&x;")
    for text in (bomb, outside):
        with pytest.raises(UserError, match=r"1\.xml") as caught:
            fuzzing.read_voc_text(text, tmp_path)
        assert "root:" not in str(caught.value)


def test_a_picture_that_unpacks_to_gigabytes_is_refused(tmp_path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 60_000  # 3.6 thousand million pixels in half a megabyte
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(side // 8 + 1)) for _ in range(side)) + packed.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    file = tmp_path / "bomb.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with fuzzing.time_limit(10), pytest.raises(UserError, match=r"bomb\.png"):
        read_image(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


def test_nothing_is_written_outside_the_output_folder(tmp_path) -> None:
    """Names in the annotations lead elsewhere; drawings must not follow them."""
    from resdet.commands.visualize import draw_split
    from resdet.config import parse_config

    elsewhere, inside = tmp_path / "elsewhere", tmp_path / "data"
    for folder in (elsewhere, inside):
        folder.mkdir()
        for i in (1, 2):
            (folder / f"{i}.jpg").write_bytes(fuzzing.pictures()[0])
    before = sorted(tmp_path.rglob("*"))
    split = {"images": str(inside), "annotations": str(inside / "a.json")}
    config = parse_config({"data": {"train": split, "val": split}})
    (inside / "a.json").write_text(coco(file_name=str(elsewhere / "1.jpg")))
    draw_split(config, "val", 2, tmp_path / "out", "class")
    new = [p for p in tmp_path.rglob("*") if p not in before and p.name != "a.json"]
    assert new
    assert all(p.is_relative_to(tmp_path / "out") for p in new)
    (inside / "a.json").write_text(coco(file_name="../elsewhere/1.jpg"))
    with pytest.raises(UserError, match=r"is outside the image folder"):
        draw_split(config, "val", 2, tmp_path / "out", "class")


def test_labelme_and_yolo_with_names_that_no_file_can_have(tmp_path) -> None:
    content = {**copy.deepcopy(fuzzing.LABELME), "imagePath": "x" * 5000}
    fuzzing.read_labelme_text(json.dumps(content), tmp_path)  # the picture beside it is taken
    content["shapes"][0]["points"] = []
    with pytest.raises(UserError, match=r"1\.json.*points must be"):
        fuzzing.read_labelme_text(json.dumps(content), tmp_path)
    (tmp_path / "yolo").mkdir()
    with pytest.raises(UserError, match=r"data\.yaml: names must be"):
        fuzzing.read_yolo_text(fuzzing.YOLO, tmp_path / "yolo", fuzzing.DATA_YAML.replace("1: dog", "b: dog"))


def test_a_coco_file_name_that_no_file_can_have_is_missing(tmp_path) -> None:
    name = "x" * 5000
    image = {"id": 1, "file_name": name, "height": 4, "width": 4}
    findings, _ = inspect_files("train", Source(tmp_path / "a.json", tmp_path, {"images": [image]}), decode=False)
    assert [(f.code, f.count) for f in findings] == [("file-missing", 1)]
    assert "File name too long" in findings[0].examples[0]
