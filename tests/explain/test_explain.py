"""What is shown of a prediction is what the detector computed in that prediction, whatever its kind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from pictures import textured
from resdet.boxes import iou
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.commands.explain import main
from resdet.config import dump_config, parse_config
from resdet.explain.page import explain
from resdet.explain.pictures import heat
from resdet.explain.record import recorded
from resdet.explain.stages import sampling_points
from resdet.inference.predictor import Predictor
from resdet.models.rtdetr.attention import DeformableAttention
from tiny import RTDETR, SEMANTIC_HEAD, K, dense, make_batch, shaken, small

FEATURES = ["The backbone's stages", "The neck's levels"]
RCNN = ["Objectness", "Proposals", "From proposals to boxes", "RoI crops"]
DENSE = ["Classification", "Anchors that respond"]
KINDS = {
    "mask": ({"keypoint": None}, [*RCNN, "Mask logits"]),
    "cascade": ({"cascade": {}, "mask": None, "keypoint": None}, RCNN),
    "rpn": ({"box": None, "mask": None, "keypoint": None}, ["Objectness"]),
    "semantic": ({"kind": "semantic", "head": SEMANTIC_HEAD}, []),
    "retinanet": (dense("retinanet"), DENSE),
    "fcos": (dense("fcos"), DENSE),
    "gfl": (dense("gfl"), DENSE),
    "rtdetr": (RTDETR, ["Attention"]),
}


def weights(model: dict, folder: Path) -> Path:
    count = 4 if model.get("kind") == "semantic" else K
    body = {"num_classes": K, "backbone": {"name": "resnet18", "weights": "none"}, **model}
    data = {"min_size": 64, "max_size": 96}
    config = dump_config(parse_config({"model": body, "data": data})) if model.get("kind") in tiny.DENSE else ""
    names = list("abcde")[:count]
    save_checkpoint(Checkpoint(shaken(small(**model)).state_dict(), names, list(range(count)), config), folder / "w.pt")
    return folder / "w.pt"


@pytest.mark.parametrize(("model", "titles"), KINDS.values(), ids=KINDS)
def test_every_detector_shows_what_it_has(model: dict, titles: list[str], tmp_path) -> None:
    predictor = Predictor.from_checkpoint(weights(model, tmp_path), device="cpu", score_threshold=0.0, max_detections=3)
    predictor.min_size, predictor.max_size = 64, 96
    image = textured(80, 110)
    sections = explain(predictor, image)
    assert [section.title for section in sections] == ["The result", *FEATURES, *titles]
    assert all(section.figures for section in sections)
    for section in sections:
        for picture, _ in section.figures:
            assert picture.dtype == np.uint8
            assert picture.shape[2] == 3
    assert not any(module._forward_hooks for module in predictor.model.modules())


def test_the_path_of_a_detection_begins_at_the_proposal_that_it_was_refined_from(tmp_path) -> None:
    predictor = Predictor.from_checkpoint(
        weights({"keypoint": None, "mask": None}, tmp_path), device="cpu", score_threshold=0.0, max_detections=3
    )
    predictor.min_size, predictor.max_size = 96, 128
    image = textured(96, 128)
    with recorded(predictor.model) as calls:
        (found,) = predictor.predict_units([image])
    sections = {section.title: section for section in explain(predictor, image)}
    captions = [caption for _, caption in sections["From proposals to boxes"].figures]
    rows = [int(re.search(r"proposal (\d+)", caption)[1]) - 1 for caption in captions]
    head = calls["heads.box"]
    scores = head.output[0][0].softmax(-1)
    for i, row in enumerate(rows):
        assert scores[row, found.labels[i]].item() == pytest.approx(found.scores[i], rel=1e-4)
        refined = head.module.refine(head.output[1], head.inputs[1])[0, row, found.labels[i]]
        assert iou(refined[None].clamp(min=0), torch.from_numpy(found.boxes[i : i + 1])).item() > 0.8


def test_attention_points_are_those_that_the_layer_samples(monkeypatch) -> None:
    model, sampled = shaken(small(**RTDETR)).eval(), []
    for name in ("_by_gather", "_by_level"):
        plain = getattr(DeformableAttention, name)
        monkeypatch.setattr(
            DeformableAttention, name,
            lambda self, value, points, weights, sizes, plain=plain: sampled.append((points, weights))
            or plain(self, value, points, weights, sizes),
        )  # fmt: skip
    with recorded(model) as calls:
        model.predict(make_batch([1]))
    assert len(sampled) == 2
    for k, (points, weights) in enumerate(sampled):
        found = sampling_points(calls, f"decoder.layers.{k}.cross_attention", 7)
        torch.testing.assert_close(found, (points[0, 7], weights[0, 7]))


def test_a_map_lies_over_the_part_of_the_image_that_it_is_of() -> None:
    image = np.zeros((100, 150, 3), np.uint8)
    values = np.zeros((4, 5))
    values[1, 2] = 1  # rows 32..63, columns 64..95 of the padded 128 x 160
    drawn = heat(image, values, (128, 160)).astype(int)
    assert drawn.shape == (100, 150, 3)
    bright = (drawn.sum(2) > drawn.sum(2).min() + 100).nonzero()
    assert [axis.min() for axis in bright] == [32, 64]
    assert [axis.max() for axis in bright] == [63, 95]


def test_the_page_needs_no_other_file(tmp_path, capsys) -> None:
    Image.fromarray(textured(80, 110)).save(tmp_path / "a<b.png")
    path = weights(KINDS["retinanet"][0], tmp_path)
    arguments = [str(path), str(tmp_path / "a<b.png"), "--device", "cpu"]
    assert main([*arguments, "--score", "0.01", "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "a&lt;b.png" in page
    assert not re.search(r"(src|href)=\"(?!data:)|https?:", page)
    assert page.count("<img") == len(list((tmp_path / "out").glob("*.jpg")))
    assert main([*arguments, "--score", "1", "--output", str(tmp_path / "none")]) == 0
    assert "no object was followed" in capsys.readouterr().out
    assert main([str(path), str(tmp_path / "missing.png"), "--output", str(tmp_path / "out")]) == 2
