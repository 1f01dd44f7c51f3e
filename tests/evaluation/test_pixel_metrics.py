"""Metrics of label maps and of segments: by hand, by erosions one at a time, and on COCO's panoptic examples."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import SHARED
from resdet.evaluation.panoptic import PanopticScore, TrueSegment
from resdet.evaluation.semantic import SemanticScore, boundary, boundary_width
from resdet.structures import UNLABELLED


def test_label_maps_by_hand() -> None:
    truth = np.array([[0, 0, 0, 1], [1, 1, UNLABELLED, UNLABELLED]], np.uint8)
    found = np.array([[0, 0, 1, 1], [1, 2, 2, 0]], np.uint8)
    score, first, second = (SemanticScore(4) for _ in range(3))
    score.add(found, truth)
    first.add(found[:1], truth[:1])
    second.add(found[1:], truth[1:])
    first.merge(second)
    assert np.array_equal(first.confusion, score.confusion)
    metrics = score.metrics()
    assert metrics["mIoU"] == pytest.approx((2 / 3 + 2 / 4) / 2)  # class 2 is never true, class 3 nowhere
    assert metrics["fwIoU"] == pytest.approx((3 * 2 / 3 + 3 * 2 / 4) / 6)
    assert metrics["pAcc"] == pytest.approx(4 / 6)
    assert metrics["mAcc"] == pytest.approx(2 / 3)
    assert metrics["bIoU"] == pytest.approx(metrics["mIoU"])  # in so small an image all is boundary
    assert " 66.7  66.7" in score.table(["sky", "sea", "land", "air"])
    assert "land" not in score.table(["sky", "sea", "land", "air"])
    assert set(SemanticScore(3).metrics().values()) == {None}


def test_boundaries_are_what_erosions_take_away() -> None:
    rng = np.random.default_rng(0)
    mask = cv2.GaussianBlur(rng.random((60, 80)).astype(np.float32), (0, 0), 6) > 0.5
    eroded = np.pad(mask, 1).astype(np.uint8)
    for _ in range(3):
        eroded = cv2.erode(eroded, np.ones((3, 3), np.uint8))
    assert np.array_equal(boundary(mask, 3), mask & (eroded[1:-1, 1:-1] == 0))
    assert boundary_width((480, 640)) == 16
    assert boundary_width((5, 5)) == 1
    # A square of side 40 that is one pixel off: the two rings' overlap, by counting.
    truth, found = np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8)
    truth[50:90, 50:90], found[50:90, 51:91] = 1, 1
    score = SemanticScore(2)
    score.add(found, truth)
    d = boundary_width(truth.shape)
    ring = 40 * 40 - (40 - 2 * d) ** 2
    shared = 40 * 39 - 2 * (40 - 2 * d) ** 2 + (40 - 2 * d) * (40 - 2 * d - 1)
    assert score.boundary[1].tolist() == [shared, 2 * ring - shared]


def test_segments_by_hand() -> None:
    """Things 0 and 1, stuff 2. A match of IoU 8/10, a missed and an extra segment, void and crowds that excuse others."""
    true_ids = np.zeros((10, 10), int)
    true_ids[0, :9], true_ids[1], true_ids[2], true_ids[3:6] = 1, 2, 3, 4
    truth = {1: TrueSegment(0), 2: TrueSegment(1), 3: TrueSegment(0, crowd=True), 4: TrueSegment(2)}
    ids = np.zeros((10, 10), int)
    ids[0, 1:], ids[1, :5], ids[2, :6], ids[3:6], ids[6] = 10, 20, 30, 40, 50
    categories = {
        10: 0,
        20: 1,
        30: 0,
        40: 2,
        50: 1,
    }  # 10 has a void pixel, 20 is half of 2, 30 in the crowd, 50 in void
    score = PanopticScore([True, True, False])
    score.add(ids, categories, true_ids, truth)
    assert score.matched.tolist() == [1, 0, 1]
    assert score.missed.tolist() == [0, 1, 0]
    assert score.extra.tolist() == [0, 1, 0]
    metrics = score.metrics()
    assert metrics["PQth"] == pytest.approx((8 / 9 + 0) / 2)
    assert (metrics["PQst"], metrics["SQst"], metrics["RQst"]) == (1, 1, 1)
    assert metrics["PQ"] == pytest.approx((8 / 9 + 0 + 1) / 3)
    assert metrics["SQ"] == pytest.approx((8 / 9 + 0 + 1) / 3)
    assert metrics["RQ"] == pytest.approx(2 / 3)
    both = PanopticScore([True, True, False])
    both.merge(score)
    both.merge(score)
    assert both.metrics() == metrics
    assert " 88.9  88.9 100.0" in score.table(["cat", "dog", "sky"])
    assert PanopticScore([True]).metrics()["PQ"] is None


@pytest.fixture
def coco_panoptic() -> list[tuple[np.ndarray, dict]]:
    """(ids, annotation) of each of COCO's two examples, and the categories in order."""
    folder = Path(SHARED) / "coco_panoptic"
    if not folder.is_dir():
        pytest.skip(f"needs COCO's panoptic examples in {folder}")
    content = json.loads((folder / "panoptic_examples.json").read_text())
    number = {category["id"]: k for k, category in enumerate(content["categories"])}
    found = []
    for entry in content["annotations"]:
        png = np.asarray(Image.open(folder / "panoptic_examples" / entry["file_name"])).astype(int)
        truth = {s["id"]: TrueSegment(number[s["category_id"]], bool(s["iscrowd"])) for s in entry["segments_info"]}
        found.append((png @ [1, 256, 65536], truth))
    return found, [bool(category["isthing"]) for category in content["categories"]]


def test_cocos_examples_against_themselves_and_spoiled(coco_panoptic) -> None:
    images, is_thing = coco_panoptic
    same, spoiled = PanopticScore(is_thing), PanopticScore(is_thing)
    lost, total = [], np.zeros(len(is_thing), int)
    for ids, truth in images:
        categories = {i: segment.category for i, segment in truth.items() if not segment.crowd}
        for category in categories.values():
            total[category] += 1
        same.add(ids, categories, ids, truth)
        first = next(iter(categories))  # goes by another id and is missed; one more of its class is extra
        changed = np.where(ids == first, 0, ids)
        lost.append(categories.pop(first))
        spoiled.add(changed, categories, ids, truth)
    perfect = same.metrics()
    assert {name: value for name, value in perfect.items() if value is not None} == dict.fromkeys(perfect, 1.0)
    assert np.array_equal(same.matched, total)
    expected = []
    for category in np.flatnonzero(total):
        missed = lost.count(category)
        expected.append((total[category] - missed) / (total[category] - missed + 0.5 * missed))
    assert spoiled.metrics()["PQ"] == pytest.approx(np.mean(expected))
    assert spoiled.metrics()["RQ"] == pytest.approx(np.mean(expected))
    assert spoiled.missed.sum() == 2
    assert spoiled.extra.sum() == 0
