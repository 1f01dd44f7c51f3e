"""12-bit and 5-channel sets from training to drawing: one range, kept, and the same detections everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import tiny
from resdet.commands.eval import score_model
from resdet.commands.visualize import draw_predictions, draw_split
from resdet.config import load_config, parse_config
from resdet.errors import UserError
from resdet.inference.predictor import Predictor
from resdet.training.loop import train


def write_set(root: Path, kind: str) -> None:
    """Six images with a bright square each, in COCO's layout."""
    chance = np.random.default_rng(0)
    for split in ("train", "val"):
        folder = root / f"{split}2017"
        folder.mkdir(parents=True)
        images, annotations = [], []
        for k in range(1, 7):
            x, y, side = (int(v) for v in chance.integers(5, 30, 3))
            channels = 5 if kind == "bands" else 1
            image = chance.integers(300, 700, (64, 80, channels)).astype(np.uint16)
            image[y : y + side, x : x + side] += 3000
            name = f"{k}.npy" if kind == "bands" else f"{k}.png"
            if kind == "bands":
                np.save(folder / name, image)
            else:
                cv2.imwrite(str(folder / name), image)
            images.append({"id": k, "file_name": name, "height": 64, "width": 80})
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append({"id": k, "image_id": k, "category_id": 1, **box})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["12-bit", "bands"])
def test_from_training_to_drawing(tmp_path, capsys, kind: str) -> None:
    root, output = tmp_path / "data", tmp_path / "run"
    write_set(root, kind)
    values = tiny.values(root, max_iters=2, eval_every=2, checkpoint_every=1, val_loss=False)
    values["model"] = {**tiny.MODEL, "num_classes": 1, "mask": None}
    values["model"]["box"] = {**tiny.MODEL["box"], "score_threshold": 0.0, "max_detections": 10}
    values["data"]["train"] = {"augmentations": [{"name": "RandomBrightnessContrast", "p": 1}]}
    if kind == "bands":
        with pytest.raises(UserError, match=r"6 of 6 sampled images do not have model\.input\.channels channels"):
            train(parse_config({**values, "output": str(output)}))
        values["model"]["input"] = {"channels": 5}
    train(parse_config({**values, "output": str(output)}))
    assert capsys.readouterr().out.count("becomes 0..255 in all images") == 1
    low, high = kept = yaml.safe_load((output / "resolved.yaml").read_text())["data"]["pixel_range"]
    assert 295 < low < 305
    assert 3600 < high < 3700

    longer = {**values, "output": str(output), "train": {**values["train"], "max_iters": 3}}
    train(parse_config(longer), resume=True)
    assert yaml.safe_load((output / "resolved.yaml").read_text())["data"]["pixel_range"] == kept
    other = {**longer, "data": {**values["data"], "pixel_range": [0, 4095]}}
    with pytest.raises(UserError, match=r"data\.pixel_range=\[0\.0, 4095\.0\]: the run was trained with \["):
        train(parse_config(other), resume=True)

    weights = output / "checkpoints" / "last.pt"
    config = parse_config(values)
    score_model(config, weights, tmp_path / "eval")
    scored = json.loads((tmp_path / "eval" / "detections.json").read_text())
    assert scored
    predictor = Predictor.from_checkpoint(weights, device="cpu", score_threshold=0.0)
    assert predictor.pixel_range == (low, high)
    files = sorted((root / "val2017").iterdir())
    for k, found in enumerate(predictor(files), 1):
        mine = [entry for entry in scored if entry["image_id"] == k]
        corners = np.array([[x, y, x + w, y + h] for x, y, w, h in (e["bbox"] for e in mine)])
        np.testing.assert_allclose(found.boxes, corners, atol=1e-2)
        np.testing.assert_allclose(found.scores, [e["score"] for e in mine], atol=1e-5)

    draw_split(config, "val", 2, tmp_path / "drawn", "class", weights, score=0.0)
    draw_predictions(config, weights, [root / "val2017"], tmp_path / "predicted", 0.0, "class")
    draw_split(config, "val", 2, tmp_path / "truth", "class")
    for folder in ("drawn", "predicted", "truth"):
        drawn = cv2.imread(str(next((tmp_path / folder).glob("[0-9]*.jpg"))))
        assert drawn.max() > 150  # not nearly black
        assert np.median(drawn) < 90
    assert load_config(output / "resolved.yaml").data.pixel_range == (low, high)
