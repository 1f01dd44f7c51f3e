"""What best.pt is the best of, where nothing can be measured, and validation sets of other categories."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tiny
from resdet.commands.eval import score_model
from resdet.config import Config, TrainConfig
from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation
from resdet.training.best import best_metric
from resdet.training.loop import train
from resdet.training.setup import crowded


def truth(folder: Path, *, masks: bool, **annotation: object) -> Evaluation:
    """One image with one object of 30 x 30 pixels."""
    outline = {"segmentation": [[0, 0, 30, 0, 30, 30, 0, 30]]} if masks else {}
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 30, 30], **outline, **annotation}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 50, "width": 60}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [entry],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    return Evaluation(folder / "truth.json")


BOXES, MASKS = ("boxes",), ("boxes", "masks")


def with_metric(name: str | None) -> TrainConfig:
    return TrainConfig().model_copy(update={"best_metric": name})


def test_the_best_is_the_mask_ap_where_there_are_masks_and_else_the_box_ap(tmp_path) -> None:
    assert best_metric(with_metric(None), truth(tmp_path, masks=True), MASKS) == "segm_AP"
    assert best_metric(with_metric(None), truth(tmp_path, masks=True), BOXES) == "bbox_AP"
    assert best_metric(with_metric(None), truth(tmp_path, masks=False), MASKS) == "bbox_AP"
    assert best_metric(with_metric("bbox_APs"), truth(tmp_path, masks=True), MASKS) == "bbox_APs"


def test_a_metric_that_cannot_be_measured_is_refused_by_name(tmp_path) -> None:
    for name, outputs in (("bbox_APl", MASKS), ("segm_AP", BOXES)):
        with pytest.raises(UserError, match=f"best_metric={name} cannot be measured on .*truth.json"):
            best_metric(with_metric(name), truth(tmp_path, masks=True), outputs)


def test_without_an_object_there_is_no_best_metric_and_it_is_told(tmp_path, capsys) -> None:
    assert best_metric(with_metric(None), truth(tmp_path, masks=True, iscrowd=1), MASKS) is None
    assert "val has no objects: AP cannot be measured" in capsys.readouterr().out


def val_of(shapes_root: Path, folder: Path, config: Config, keep: list[str]) -> None:
    """Give the config a validation set of some of the categories, under other ids, and their objects."""
    content = json.loads((shapes_root / "annotations/instances_val2017.json").read_text())
    new = {c["id"]: 70 - k for k, c in enumerate(content["categories"]) if c["name"] in keep}
    content["categories"] = [{**c, "id": new[c["id"]]} for c in content["categories"] if c["id"] in new]
    content["annotations"] = [
        {**a, "category_id": new[a["category_id"]]} for a in content["annotations"] if a["category_id"] in new
    ]
    (folder / "val.json").write_text(json.dumps(content))
    config.data.val.annotations = folder / "val.json"


@pytest.mark.slow
def test_training_and_eval_give_the_same_numbers_on_a_set_of_fewer_categories(shapes_root, tmp_path, capsys) -> None:
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=1, eval_every=1)
    val_of(shapes_root, tmp_path, config, ["box", "star"])
    result = train(config)
    said = capsys.readouterr().out
    assert "2 of the 4 classes of the training set are not in" in said
    assert score_model(config, tmp_path / "run/checkpoints/last.pt", tmp_path / "eval") == result.metrics
    in_training, alone = (
        Counter(entry["category_id"] for entry in json.loads((folder / "detections.json").read_text()))
        for folder in (tmp_path / "run/eval", tmp_path / "eval")
    )
    assert in_training == alone
    assert alone.keys() <= {69, 67}


@pytest.mark.slow
def test_patience_waits_for_nothing_where_there_is_no_ap(shapes_root, tmp_path, capsys) -> None:
    config = tiny.config(shapes_root, tmp_path / "run", max_iters=3, eval_every=1, patience=1)
    val_of(shapes_root, tmp_path, config, ["box"])
    content = json.loads((tmp_path / "val.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": []}))
    assert train(config).iteration == 3
    said = capsys.readouterr().out
    assert said.count("val has no objects: AP cannot be measured, best.pt and train.patience are off") == 1
    assert not (tmp_path / "run/checkpoints/best.pt").exists()


def test_images_of_more_objects_than_are_kept_are_told(shapes) -> None:
    most = int(shapes.images.counts.max())
    key = "model.box.max_detections"
    assert crowded(shapes, key, most) == ""
    more = int(np.sum(shapes.images.counts > most - 1))
    assert f"{more} of {len(shapes.images)} images have more objects, up to {most}" in crowded(shapes, key, most - 1)
    assert f"set model.box.max_detections={most}" in crowded(shapes, key, most - 1)
