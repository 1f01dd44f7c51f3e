"""Training on label maps: COCO's panoptic annotations, PNGs of classes, and those drawn from masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resdet
from resdet.commands.eval import score_model, score_pixels
from resdet.commands.visualize import draw_augmented, draw_predictions, draw_split
from resdet.config import parse_config
from resdet.errors import UserError
from tiny import MODEL, panoptic, values

HEAD = {"width": 32}
SEMANTIC = {"kind": "semantic", "backbone": MODEL["backbone"], "fpn": {"channels": 32}, "head": HEAD}


@pytest.fixture(scope="module")
def panoptic_root(shapes_root, tmp_path_factory) -> Path:
    return panoptic(shapes_root, tmp_path_factory.mktemp("data") / "panoptic")


def config_of(root: Path, output: Path, model: dict, **train: object):
    return parse_config({**values(root, **train), "output": str(output), "model": model})


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_panoptic_fpn_trains_resumes_and_is_evaluated(panoptic_root, tmp_path) -> None:
    model = {**MODEL, "num_classes": None, "semantic": HEAD}
    config = config_of(panoptic_root, tmp_path / "run", model, max_iters=2)
    resdet.train(config)
    resdet.train(config_of(panoptic_root, tmp_path / "run", model, max_iters=4), resume=True)
    logged = lines(tmp_path / "run")
    assert {"semantic", "mask", "rpn_box"} <= logged[0].keys()
    last = [line for line in logged if "panoptic_PQ" in line][-1]
    assert {"semantic_mIoU", "semantic_bIoU", "panoptic_PQst", "segm_AP"} <= last.keys()
    assert 0 < last["semantic_pAcc"] <= 1
    checkpoint = tmp_path / "run/checkpoints/last.pt"
    metrics = score_model(config, checkpoint, tmp_path / "eval")
    assert metrics["panoptic"]["PQ"] == pytest.approx(last["panoptic_PQ"], abs=0.01)
    assert metrics["semantic"]["mIoU"] == pytest.approx(last["semantic_mIoU"], abs=0.01)
    assert json.loads((tmp_path / "eval/metrics.json").read_text())["panoptic"]["RQ"] == metrics["panoptic"]["RQ"]
    predictor = resdet.Predictor(config, checkpoint)
    section = predictor.model_config.semantic
    assert (section.num_classes, section.names, section.category_ids) == (3, ["air", "ground"], [120, 150])
    (found,) = predictor([panoptic_root / "val2017" / "000012.jpg"])
    assert found.semantic.shape == found.image_size
    assert found.semantic.max() <= 2
    draw_predictions(config, checkpoint, [str(panoptic_root / "val2017")], tmp_path / "drawn", 0.5, "class")
    draw_split(config, "val", 2, tmp_path / "compared", "class", checkpoint)
    draw_augmented(config, 1, tmp_path / "augmented", "class")
    written = json.loads((tmp_path / "drawn/panoptic.json").read_text())
    assert [len(written[key]) for key in ("images", "annotations", "categories")] == [4, 4, 6]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "drawn/label_maps/000012.png")), found.semantic)
    truth = panoptic_root / "annotations/panoptic_val2017.json"
    for results, kind in (("drawn/panoptic.json", "panoptic"), ("drawn/label_maps", "semantic")):
        again = score_pixels(tmp_path / results, truth, tmp_path / kind)
        assert again[kind] == pytest.approx(metrics[kind], abs=1e-4)


@pytest.mark.slow
def test_a_model_of_pixels_alone_on_label_maps(shapes_root, tmp_path) -> None:
    root = tmp_path / "pngs"
    for split, name in (("train", "train2017"), ("val", "val2017")):
        (root / "annotations" / split).mkdir(parents=True)
        (root / "images").mkdir(exist_ok=True)
        (root / "images" / split).symlink_to(shapes_root / name)
        for file in (shapes_root / name).iterdir():
            width, height = Image.open(file).size
            labels = np.repeat((np.arange(height) * 3 // height).astype(np.uint8)[:, None], width, 1)
            labels[0] = 255
            Image.fromarray(labels).save(root / "annotations" / split / f"{file.stem}.png")
    (root / "classes.txt").write_text("unlabelled\nmiddle\nbottom\n")
    config = config_of(root, tmp_path / "run", SEMANTIC, max_iters=2, eval_every=2)
    config.auto = True
    resdet.train(config)
    assert {"semantic_mIoU", "semantic_fwIoU"} <= lines(tmp_path / "run")[-1].keys()
    predictor = resdet.Predictor(config, tmp_path / "run/checkpoints/best.pt")
    assert predictor.class_names == ["middle", "bottom"]
    bad = next((root / "annotations/train").iterdir())
    Image.fromarray(np.full_like(np.asarray(Image.open(bad)), 3)).save(bad)
    with pytest.raises(UserError, match=r"has the value 3, but the classes are numbered 0 to 2"):
        resdet.train(config_of(root, tmp_path / "other", SEMANTIC))


@pytest.mark.slow
def test_label_maps_drawn_from_masks(shapes_root, tmp_path) -> None:
    config = config_of(shapes_root, tmp_path / "run", SEMANTIC, max_iters=2, eval_every=2)
    resdet.train(config)
    predictor = resdet.Predictor(config, tmp_path / "run/checkpoints/last.pt")
    assert predictor.class_names == ["background", "disk", "box", "triangle", "star"]
    last = lines(tmp_path / "run")[-1]
    metrics = score_model(config, tmp_path / "run/checkpoints/last.pt", tmp_path / "eval")
    assert metrics == {"semantic": metrics["semantic"]}
    assert metrics["semantic"]["mIoU"] == pytest.approx(last["semantic_mIoU"], abs=0.01)
