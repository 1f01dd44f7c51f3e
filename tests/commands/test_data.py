"""`tools/data.py` and `tools/visualize.py data --augmented`, as commands."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

import resdet
import tiny
from resdet import cli
from resdet.config import parse_config
from resdet.data.splits import missing_data
from resdet.errors import UserError


@pytest.mark.slow
def test_bccd_is_checked_straight_from_its_xml(bccd, tmp_path, capsys) -> None:
    assert (
        cli.main(["data", "check", "configs/examples/bccd.yaml", f"data.root={bccd}", "--output", str(tmp_path)]) == 0
    )
    listed = json.loads((tmp_path / "findings.json").read_text())["findings"]
    boxes = [f for f in listed if f["code"] == "box-degenerate"]
    assert sum(f["count"] for f in boxes) == 2  # one in train, one in val, which this config does not use
    said = capsys.readouterr().out
    assert "boxes without area" in said
    assert "anchors match" in said


@pytest.mark.slow
def test_real_coco_has_no_errors(coco_open, tmp_path) -> None:
    assert cli.main(["data", "check", "maskrcnn_r50", f"data.root={coco_open}", "--output", str(tmp_path)]) == 0
    codes = {f["code"] for f in json.loads((tmp_path / "findings.json").read_text())["findings"]}
    assert codes <= {"class-rare", "class-unseen"}  # 92 pictures are few for 80 classes


def test_conversion_keeps_the_objects(bccd, tmp_path, capsys) -> None:
    assert cli.main(["data", "convert", str(bccd), str(tmp_path / "test.json"), "--split", "test"]) == 0
    content = json.loads((tmp_path / "test.json").read_text())
    assert (len(content["images"]), len(content["annotations"])) == (72, 945)
    assert [c["name"] for c in content["categories"]] == ["Platelets", "RBC", "WBC"]
    assert (bccd / content["images"][0]["file_name"]).is_file()
    assert cli.main(["data", "convert", str(tmp_path / "test.json"), str(tmp_path / "again.json")]) == 0
    assert json.loads((tmp_path / "again.json").read_text()) == content
    assert cli.main(["data", "convert", str(tmp_path / "none"), str(tmp_path / "x.json")]) == 2
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_statistics_are_drawn(shapes_root, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    config = tiny.config_file(shapes_root, tmp_path)
    assert cli.main(["data", "stats", str(config), "--output", str(tmp_path)]) == 0
    picture = cv2.imread(str(tmp_path / "stats.png"))
    assert picture.shape[0] > 500
    assert picture.std() > 10
    assert "12 images, 47 objects, 4 classes" in capsys.readouterr().out


def test_augmented_samples_are_drawn(shapes_root, tmp_path) -> None:
    config = tiny.config_file(shapes_root, tmp_path)
    command = ["data", str(config), "--augmented", "--count", "2", "data.flip=1", "--output", str(tmp_path / "look")]
    assert cli.main(["visualize", *command]) == 0
    sheet = cv2.imread(str(tmp_path / "look/sheet.jpg"))
    assert sheet.std() > 10


def test_bad_data_stop_a_training_with_the_list(shapes_root, tmp_path) -> None:
    content = json.loads((shapes_root / "annotations/instances_train2017.json").read_text())
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]
    (tmp_path / "corners.json").write_text(json.dumps(content))
    config = tiny.config(shapes_root, tmp_path / "run")
    config.data.train.annotations = tmp_path / "corners.json"
    with pytest.raises(UserError, match=r"boxes look like \[x1, y1, x2, y2\]") as caught:
        resdet.train(config)
    assert "--fix" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_check_finds_a_head_that_the_data_cannot_teach(shapes_root, tmp_path, capsys) -> None:
    config = tiny.config_file(shapes_root, tmp_path, eval_every=0)
    given = ["model.mask=null", "model.keypoint={}", "--output", str(tmp_path)]
    assert cli.main(["data", "check", str(config), *given]) == 2
    assert "the model cannot learn from these data" in " ".join(capsys.readouterr().out.split())
    (found,) = [f for f in json.loads((tmp_path / "findings.json").read_text())["findings"] if f["severity"] == "error"]
    assert found["code"] == "model"
    assert "a keypoint head cannot learn: set model.keypoint=null" in found["examples"][0]


@pytest.mark.slow
def test_training_straight_from_voc_with_a_made_split(bccd, tmp_path) -> None:
    values = {
        "auto": True, "device": "cpu", "output": str(tmp_path / "run"),
        "model": {**tiny.MODEL, "num_classes": None, "mask": None},
        "data": {"root": str(bccd), "val_fraction": 0.2, "min_size": 96, "max_size": 160, "workers": 0, "limit": 20},
        "train": {"max_iters": 2, "batch_size": 2, "eval_every": 2},
    }  # fmt: skip
    result = resdet.train(parse_config(values))
    assert set(result.metrics) == {"bbox"}
    weights = tmp_path / "run/checkpoints/last.pt"
    predictor = resdet.Predictor.from_checkpoint(weights, device="cpu")
    assert predictor.class_names == ["Platelets", "RBC", "WBC"]
    assert Path(tmp_path / "run/predictions.jpg").is_file()


def test_a_made_split_needs_no_validation_files(shapes_root, tmp_path) -> None:
    values = tiny.values(shapes_root)
    values["data"] |= {"val_fraction": 0.25, "val": {}}
    assert missing_data(parse_config(values), ["val"]) == []
    values["data"] |= {"val_fraction": None, "val": {"annotations": str(tmp_path / "not there.json")}}
    said = missing_data(parse_config(values), ["val"])[0]
    assert "not there.json" in said
    assert "looked in" not in said  # a file that is named is not looked for in data.root
    values["data"] |= {"root": None, "val": {}, "train": {"annotations": str(tmp_path / "a.json")}}
    assert missing_data(parse_config(values), ["val"])[0].startswith(
        "data.train names its own files, data.val does not"
    )
