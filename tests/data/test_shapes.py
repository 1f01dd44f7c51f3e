from __future__ import annotations

import hashlib
import json

from pycocotools.coco import COCO

from resdet.config import SyntheticConfig
from resdet.data.coco import read_coco
from resdet.data.shapes import CLASSES, ensure_shapes

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
