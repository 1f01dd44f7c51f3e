from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import resdet
import tiny
from pictures import textured
from resdet.checkpoints.checkpoint import Checkpoint, save_checkpoint
from resdet.errors import UserError
from resdet.inference.predictor import Predictor, to_coco
from resdet.models.build import build_model
from resdet.structures import Instances


@pytest.fixture
def predictor(shapes_root, tmp_path) -> Predictor:
    config = tiny.config(shapes_root, tmp_path)
    torch.manual_seed(1)
    model = build_model(config.model)
    torch.nn.init.normal_(model.heads["box"].classifier.weight, std=0.3)
    torch.nn.init.normal_(model.heads["mask"].logits.weight, std=0.5)
    save_checkpoint(Checkpoint(model.state_dict(), list("abcd"), [1, 4, 7, 10]), tmp_path / "w.pt")
    return Predictor(config, tmp_path / "w.pt", score_threshold=0.05, max_detections=7)


def test_results_come_in_order_in_each_pictures_frame(predictor, tmp_path) -> None:
    pictures = [textured(120, 90, 1), textured(64, 200, 2), textured(300, 260, 3), textured(120, 90, 4)]
    Image.fromarray(pictures[2]).save(tmp_path / "c.png")
    found = predictor([pictures[0], pictures[1], tmp_path / "c.png", pictures[3]])
    assert len(found) == 4
    for instances, picture in zip(found, pictures, strict=True):
        height, width = picture.shape[:2]
        n = len(instances)
        assert 0 < n <= 7
        assert instances.image_size == (height, width)
        assert instances.boxes.shape == (n, 4)
        assert instances.boxes.dtype == instances.scores.dtype == np.float32
        assert instances.masks.shape == (n, height, width)
        assert instances.masks.dtype == bool
        assert (instances.boxes >= 0).all()
        assert (instances.boxes[:, [0, 2]] <= width + 1e-3).all()
        assert (instances.boxes[:, [1, 3]] <= height + 1e-3).all()
        assert set(instances.labels.tolist()) <= {0, 1, 2, 3}
        assert (np.diff(instances.scores) <= 0).all()
        (alone,) = predictor([picture])
        np.testing.assert_allclose(instances.boxes, alone.boxes, atol=1e-2)
        for mask, rle in zip(instances.masks, instances.rle(), strict=True):
            assert np.array_equal(coco_mask.decode(rle), mask)
    assert max(i.boxes[:, 2].max() for i in found) > 96  # beyond the network's own frame
    assert predictor.class_names == list("abcd")
    assert predictor.category_ids == [1, 4, 7, 10]


def test_arguments(predictor, shapes_root, tmp_path) -> None:
    strict = Predictor(tiny.config(shapes_root, tmp_path), tmp_path / "w.pt", score_threshold=0.999)
    (none,) = strict([textured(80, 80)])
    assert len(none) == 0
    assert none.masks.shape == (0, 80, 80)
    assert none.rle() == []
    assert none.boxes.shape == (0, 4)
    assert predictor([]) == []
    rough = Predictor(tiny.config_file(shapes_root, tmp_path), tmp_path / "w.pt", amp="bf16", score_threshold=0.05)
    assert rough([textured(80, 80)])[0].scores.dtype == np.float32


@pytest.mark.slow
def test_compiled_prediction_is_the_same(predictor, shapes_root, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes minutes
    arguments = {"score_threshold": 0.05, "max_detections": 7}
    compiled = Predictor(tiny.config(shapes_root, tmp_path), tmp_path / "w.pt", compile=True, **arguments)
    (found,), (expected,) = compiled([textured(80, 80)]), predictor([textured(80, 80)])
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
    np.testing.assert_allclose(found.mask_probs, expected.mask_probs, atol=1e-3)


def test_mistakes_are_named(predictor, shapes_root, tmp_path) -> None:
    with pytest.raises(UserError, match=r"image 1: expected .* \(H, W, 3\) uint8 RGB, got \(5, 5\) uint8"):
        predictor([textured(80, 80), np.zeros((5, 5), np.uint8)])
    with pytest.raises(UserError, match=r"nowhere\.jpg"):
        predictor([tmp_path / "nowhere.jpg"])
    with pytest.raises(UserError, match="expected a list of images"):
        predictor(textured(80, 80))
    config = tiny.config(shapes_root, tmp_path)
    config.model.fpn.channels = 32
    with pytest.raises(UserError, match=r"fpn.*the file has .*, the config builds"):
        Predictor(config, tmp_path / "w.pt")
    with pytest.raises(UserError, match="CUDA device"):
        Predictor(tiny.config(shapes_root, tmp_path), tmp_path / "w.pt", device="cuda:7")
    with pytest.raises(UserError, match="is not a device"):
        Predictor(tiny.config(shapes_root, tmp_path), tmp_path / "w.pt", device="gpu")


@pytest.mark.slow
def test_run_lengths_of_a_12_megapixel_picture_take_little_memory() -> None:
    import tracemalloc

    n = 20
    boxes = np.tile(np.array([[100, 50, 3900, 2950]], np.float32), (n, 1))
    probs = np.random.default_rng(0).random((n, 28, 28)).astype(np.float32)
    instances = Instances(boxes, np.ones(n, np.float32), np.zeros(n, np.int64), (3000, 4000), probs)
    tracemalloc.start()
    rles = instances.rle()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rles) == n
    assert rles[0]["size"] == [3000, 4000]
    assert peak < 60e6  # the bitmaps would be 240 MB


def test_coco_entries(predictor) -> None:
    (found,) = predictor([textured(120, 90, 1)])
    entries = to_coco(found, 42, predictor.category_ids)
    assert len(entries) == len(found)
    first, box = entries[0], found.boxes[0]
    assert first["image_id"] == 42
    assert first["category_id"] == predictor.category_ids[found.labels[0]]
    np.testing.assert_allclose(first["bbox"], [box[0], box[1], box[2] - box[0], box[3] - box[1]], rtol=1e-6)
    assert isinstance(first["segmentation"]["counts"], str)
    assert all(type(v) is float for v in first["bbox"])


def test_above_keeps_the_better_ones(predictor) -> None:
    (found,) = predictor([textured(120, 90, 1)])
    cut = float(found.scores[len(found) // 2])
    better = found.above(cut)
    assert 0 < len(better) < len(found) or (found.scores >= cut).all()
    assert (better.scores >= cut).all()
    assert len(better.mask_probs) == len(better)


def test_python_api_is_lazy_and_complete() -> None:
    assert set(resdet.__all__) >= {"load_config", "build_model", "train", "Predictor", "Instances", "UserError"}
    for name in resdet.__all__:
        assert getattr(resdet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        resdet.nonsense  # noqa: B018
