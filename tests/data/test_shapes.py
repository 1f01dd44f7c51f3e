from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from resdet.config import SyntheticConfig
from resdet.data import shapes
from resdet.data.coco import read_coco
from resdet.data.shapes import CLASSES, ensure_shapes
from resdet.errors import UserError

SPEC = SyntheticConfig(num_train=80, num_val=10, size=96)


def digest(folder) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*")) if p.is_file()
    }  # fmt: skip


def test_generated_data_are_the_same_anywhere_and_made_once(tmp_path) -> None:
    assert ensure_shapes(tmp_path / "a", SPEC)
    assert ensure_shapes(tmp_path / "b", SPEC)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert not ensure_shapes(tmp_path / "a", SPEC)
    assert ensure_shapes(tmp_path / "a", SPEC.model_copy(update={"seed": 1}))
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_data_of_another_origin_are_left_alone(tmp_path) -> None:
    (tmp_path / "annotations").mkdir()
    assert not ensure_shapes(tmp_path, SPEC)
    assert list(tmp_path.iterdir()) == [tmp_path / "annotations"]


def test_nothing_of_another_origin_is_ever_removed(tmp_path) -> None:
    """A folder of pictures, labels or anything else: it once was replaced."""
    for name in ("train/a.jpg", "labels/a.txt", "notes.txt", "coco/annotations/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
        before = digest(tmp_path)
        assert not ensure_shapes(tmp_path, SPEC)
        assert digest(tmp_path) == before
    (tmp_path / "file").write_text("mine")
    assert not ensure_shapes(tmp_path / "file", SPEC)
    (tmp_path / "empty").mkdir()
    assert ensure_shapes(tmp_path / "empty", SPEC)
    (tmp_path / "empty/train2017/mine.jpg").write_text("mine")
    assert not ensure_shapes(tmp_path / "empty", SPEC)
    with pytest.raises(UserError, match=r"empty: .*1 other file\(s\).*train2017/mine\.jpg"):
        ensure_shapes(tmp_path / "empty", SPEC.model_copy(update={"num_val": 11}))
    assert (tmp_path / "empty/train2017/mine.jpg").read_text() == "mine"


def test_two_that_generate_at_once_do_not_disturb_each_other(tmp_path, monkeypatch) -> None:
    def with_another(root: Path, *arguments: object) -> None:
        monkeypatch.setattr(shapes, "write_split", write_split)
        with monkeypatch.context() as other:
            other.setattr(shapes.os, "getpid", lambda: -1)
            ensure_shapes(tmp_path / "a", SPEC)
        write_split(root, *arguments)

    write_split = shapes.write_split
    monkeypatch.setattr(shapes, "write_split", with_another)
    assert not ensure_shapes(tmp_path / "a", SPEC)
    assert ensure_shapes(tmp_path / "b", SPEC)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/x: cannot be written .*data\.root"):
        ensure_shapes(tmp_path / "file/x", SPEC)


def test_it_holds_what_a_detector_meets(tmp_path) -> None:
    ensure_shapes(tmp_path, SPEC)
    file = tmp_path / "annotations" / "instances_train2017.json"
    read = read_coco(file, tmp_path / "train2017")
    assert read.class_names == list(CLASSES)
    assert len(read.images) == 80
    assert read.skipped["crowd regions (no target of training)"] > 0
    assert any(not len(image.objects.labels) for image in read.images)
    kinds = {type(s["segmentation"]) for s in json.loads(file.read_text())["annotations"]}
    assert kinds == {list, dict}
    coco = COCO(str(file))
    for entry in coco.dataset["annotations"]:
        assert abs(coco.annToMask(entry).sum() - entry["area"]) <= 1
        assert 0 < entry["area"] <= entry["bbox"][2] * entry["bbox"][3]
    masks = [[coco.annToMask(a) for a in coco.imgToAnns[i]] for i in coco.imgs]
    assert all(sum(m).max() <= 1 for m in masks if m)  # what hides another is cut out of its mask
