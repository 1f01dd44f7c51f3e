"""Each number of the report against its definition, on cases worked out by hand, and against other tools."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from resdet.evaluation.backends import accumulated, hotcoco_evaluator
from resdet.evaluation.coco import Evaluation
from resdet.report.boundary import boundary, boundary_ap
from resdet.report.curves import SCORES, calibration, confusion, curve
from resdet.report.gallery import outline, suspects, worst_first
from resdet.report.groups import grouped
from resdet.report.intervals import intervals
from resdet.report.matches import (
    BOTH,
    CLASS,
    FOUND,
    IGNORED,
    MISSED,
    NEARLY,
    NOTHING,
    PLACE,
    RIGHT,
    TWICE,
    match,
)
from resdet.report.tide import lost

A, B = 3, 7  # category ids of the file


def truth(*objects: tuple, images: int = 1, side: int = 200) -> Evaluation:
    """objects: (image, category, x, y, w, h[, crowd])."""
    entries = [
        {"id": k, "image_id": i, "category_id": c, "bbox": [x, y, w, h], "area": w * h, "iscrowd": int(bool(crowd))}
        for k, (i, c, x, y, w, h, *crowd) in enumerate(objects, 1)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": side, "width": side} for i in range(1, images + 1)],
        "categories": [{"id": A, "name": "a"}, {"id": B, "name": "b"}],
        "annotations": entries,
    }
    return Evaluation(Path("made up"), content=content)


def results(*found: tuple) -> list[dict]:
    """found: (image, category, x, y, w, h, score)."""
    return [{"image_id": i, "category_id": c, "bbox": [x, y, w, h], "score": s} for i, c, x, y, w, h, s in found]


def matched(evaluation: Evaluation, entries: list[dict], kind: str = "bbox"):
    return match(evaluation, evaluation.detections(entries, kind), kind, 100)


EVERY_KIND = (
    truth(
        (1, A, 0, 0, 10, 10), (1, B, 20, 0, 10, 10), (1, A, 40, 0, 10, 10), (1, A, 60, 0, 10, 10), (1, A, 150, 150, 40, 40, 1)
    ),
    results(
        (1, A, 0, 0, 10, 10, 0.9), (1, A, 0, 0, 10, 9, 0.8), (1, A, 20, 0, 10, 10, 0.7), (1, A, 40, 0, 10, 4, 0.6),
        (1, B, 0, 0, 10, 3, 0.5), (1, A, 100, 100, 10, 10, 0.4), (1, A, 155, 155, 10, 10, 0.95),
    ),
)  # fmt: skip


def test_every_kind_of_error() -> None:
    m = matched(*EVERY_KIND)
    assert m.score.tolist() == [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert m.kind.tolist() == [IGNORED, RIGHT, TWICE, CLASS, PLACE, BOTH, NOTHING]
    assert m.partner.tolist() == [-1, 0, 0, 1, 2, 0, -1]
    assert m.iou[1:6] == pytest.approx([1, 0.9, 1, 0.4, 0.3])
    assert m.object_kind.tolist() == [FOUND, NEARLY, NEARLY, MISSED]
    assert m.object_partner.tolist() == [1, 3, 4, -1]


def test_what_each_error_costs() -> None:
    """Class a: one of three objects is found, at precision 1: 34 of the 101 recalls. Class b: its object is not."""
    of = lost(matched(*EVERY_KIND))
    assert {name: value["count"] for name, value in of.items()} == {
        "Cls": 1, "Loc": 1, "Both": 1, "Dupe": 1, "Bkg": 1, "Miss": 1, "FP": 5, "FN": 3,
    }  # fmt: skip
    gains = {name: value["gain"] for name, value in of.items()}
    assert gains["Cls"] == pytest.approx(1 / 2)  # b: 1
    assert gains["Loc"] == pytest.approx(33 * 0.5 / 101 / 2)  # a: half precision up to recall 2/3
    assert gains["Miss"] == pytest.approx((51 - 34) / 101 / 2)  # a: one of two
    assert gains["FN"] == pytest.approx(1 / 2 - 17 / 101)  # a: 1; b has no object left, but a false detection
    assert gains["Both"] == gains["Dupe"] == gains["Bkg"] == gains["FP"] == pytest.approx(0, abs=1e-12)


def test_a_class_that_is_missed_altogether_leaves_the_mean() -> None:
    """As in the authors' code; hotcoco keeps it at 0."""
    of = lost(matched(truth((1, A, 0, 0, 10, 10), (1, B, 20, 0, 10, 10)), results((1, A, 0, 0, 10, 10, 0.9))))
    assert of["Miss"] == {"count": 1, "gain": pytest.approx(0.5)}


def made_up(seed: int, images: int = 12) -> tuple[Evaluation, list[dict]]:
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(1, 7)):
            box, category = np.r_[rng.uniform(0, 150, 2), rng.uniform(8, 110, 2)], (A, B)[rng.integers(2)]
            objects.append((image, category, *box.tolist()))
            for _ in range(rng.integers(0, 4)):
                moved = np.maximum(box + rng.normal(0, 6, 4), 3)
                label = category if rng.random() < 0.75 else (A, B)[rng.integers(2)]
                found.append((image, label, *moved.tolist(), float(rng.random())))
    return truth(*objects, images=images), results(*found)


def hotcocos(evaluation: Evaluation, entries: list[dict], limits: tuple = (1, 10, 100)):
    content = {**evaluation.truth, "annotations": evaluation.detections(entries, "bbox")}
    evaluator = hotcoco_evaluator(evaluation.truth, content, "bbox", list(limits))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.run()
    return evaluator


@pytest.mark.parametrize("seed", range(6))
def test_hotcoco_says_the_same(seed: int) -> None:
    evaluation, entries = made_up(seed)
    m, theirs = matched(evaluation, entries), hotcocos(evaluation, entries).tide_errors()
    of = lost(m)
    assert {name: value["count"] for name, value in of.items() if name in theirs["counts"]} == theirs["counts"]
    for name, gain in theirs["delta_ap"].items():
        assert of[name]["gain"] == pytest.approx(max(gain, 0.0), abs=1e-4), name
    content = {**evaluation.truth, "annotations": evaluation.detections(entries, "bbox")}
    precision, recall = accumulated(evaluation.truth, content, "bbox", "pycocotools", [100])
    for k in range(2):
        found = curve(m, k + 1)
        np.testing.assert_allclose(found.precision, precision[0, ::2, k, 0, 0], atol=1e-12)
        share = (m.kind[m.category == k + 1] == RIGHT).sum() / (m.object_category == k + 1).sum()
        assert share == pytest.approx(recall[0, k, 0, 0])
    sizes = grouped(evaluation, content["annotations"], "bbox", 100)["size"]
    metrics, _ = evaluation.score(entries, ["bbox"])
    assert [g.ap for g in sizes] == [metrics["bbox"][name] for name in ("APs", "APm", "APl")]


def test_curves_and_the_best_threshold() -> None:
    """Of two objects one is found at 0.9, the other at 0.3, below two false detections at 0.5."""
    evaluation = truth((1, A, 0, 0, 10, 10), (1, A, 20, 0, 10, 10))
    found = (
        (1, A, 0, 0, 10, 10, 0.9),
        (1, A, 100, 0, 9, 9, 0.5),
        (1, A, 120, 0, 9, 9, 0.5),
        (1, A, 20, 0, 10, 10, 0.3),
    )
    c = curve(matched(evaluation, results(*found)), 1)
    assert (c.threshold, c.best) == (0.9, pytest.approx(2 / 3))  # as good as 0.3, and surer
    assert c.precision[[0, 25, 26, 50]] == pytest.approx([1, 1, 0.5, 0.5])
    at = dict(zip(np.round(SCORES, 2).tolist(), c.f1.tolist(), strict=True))
    assert [at[s] for s in (0.3, 0.32, 0.5, 0.52, 0.9, 0.92)] == pytest.approx([2 / 3, 0.4, 0.4, 2 / 3, 2 / 3, 0])
    assert curve(matched(evaluation, results(*found)), 2) is None  # no object
    nothing = curve(matched(evaluation, []), 1)
    assert (nothing.best, nothing.precision.max()) == (0, 0)


def test_confusion_with_background() -> None:
    """The third object is mixed up by two detections, of which the better counts; what lies on a crowd region does not."""
    evaluation = truth((1, A, 0, 0, 10, 10), (1, B, 20, 0, 10, 10), (1, A, 40, 0, 10, 10), (1, A, 150, 150, 40, 40, 1))
    found = results(
        (1, A, 0, 0, 10, 10, 0.9), (1, B, 20, 0, 10, 10, 0.3), (1, B, 40, 0, 10, 10, 0.8), (1, B, 40, 0, 10, 9, 0.7),
        (1, A, 100, 0, 10, 10, 0.6), (1, A, 155, 155, 9, 9, 0.9),
    )  # fmt: skip
    m = matched(evaluation, found)
    a, b = (list(evaluation.category_names).index(k) for k in (A, B))
    assert (a, b) == (0, 1)
    assert confusion(m, 2, 0.5).tolist() == [[1, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert confusion(m, 2, 0.0).tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 0]]
    plain = truth((1, A, 0, 0, 10, 10), (1, B, 20, 0, 10, 10), (1, A, 40, 0, 10, 10))
    theirs = hotcocos(plain, found[:5]).confusion_matrix(iou_thr=0.5, min_score=0.5)["matrix"]
    assert confusion(matched(plain, found[:5]), 2, 0.5).tolist() == theirs.tolist()


def test_calibration_error() -> None:
    """Half of the detections at 0.95 are right, none at 0.15: (0.45 + 0.15) / 2."""
    evaluation = truth((1, A, 0, 0, 10, 10))
    found = ((1, A, 0, 0, 10, 10, 0.95), *((1, A, 50, 20 * k, 9, 9, s) for k, s in enumerate((0.95, 0.15, 0.15))))
    of = calibration(matched(evaluation, results(*found)))
    assert (of["ece"], of["mce"]) == (pytest.approx(0.3), pytest.approx(0.45))
    assert [(b["low"], b["count"], b["right"]) for b in of["bins"] if b["count"]] == [(0.1, 2, 0), (0.9, 2, 0.5)]
    assert calibration(matched(evaluation, [])) == {"bins": [], "ece": None, "mce": None}


def test_groups_by_place_and_company() -> None:
    """One object is found, whole and alone; a false detection of a higher score is at the border."""
    evaluation = truth(
        (1, A, 50, 50, 20, 20), (1, A, 0, 100, 20, 20), (2, A, 50, 50, 20, 20), (2, A, 55, 50, 20, 20), images=2
    )
    found = results((1, A, 50, 50, 20, 20, 0.5), (1, A, 180, 0, 20, 20, 0.9))
    groups = grouped(evaluation, evaluation.detections(found, "bbox"), "bbox", 100)
    values = {name: [(g.objects, g.ap) for g in of] for name, of in groups.items()}
    assert values["place at the border"] == [(3, pytest.approx(34 / 101)), (1, 0)]
    assert values["crowding"] == [(2, pytest.approx(51 * 0.5 / 101)), (2, 0)]
    assert values["number of objects in the picture"][:2] == [(0, None), (4, pytest.approx(26 * 0.5 / 101))]


@pytest.mark.slow
def test_intervals_are_those_of_a_bootstrap() -> None:
    """Against drawing pictures with replacement, each drawn one a picture of its own."""
    evaluation, entries = made_up(3, images=20)
    low, high = intervals(evaluation, evaluation.detections(entries, "bbox"), "bbox", [1, 10, 100])["AP50"]
    rng, values = np.random.default_rng(0), []
    truths = {}
    for entry in evaluation.truth["annotations"]:
        truths.setdefault(entry["image_id"], []).append(entry)
    ids = {1: A, 2: B}
    for _ in range(120):
        drawn = rng.integers(1, 21, 20)
        objects = [(k, ids[e["category_id"]], *e["bbox"]) for k, i in enumerate(drawn, 1) for e in truths.get(i, [])]
        again = [{**e, "image_id": k} for k, i in enumerate(drawn, 1) for e in entries if e["image_id"] == i]
        values.append(truth(*objects, images=20).score(again, ["bbox"])[0]["bbox"]["AP50"])
    assert [low, high] == pytest.approx(np.percentile(values, [2.5, 97.5]).tolist(), abs=0.035)
    few = made_up(3, images=3)
    assert intervals(few[0], few[0].detections(few[1], "bbox"), "bbox", [100]) == {}


def square(x: int, y: int, side: int, image: int = 100) -> dict:
    mask = np.zeros((image, image), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return dict(coco_mask.encode(np.asfortranarray(mask)))


def test_boundary_of_a_mask() -> None:
    """2 % of the diagonal of 100 x 100 are 3 pixels; the picture's border is a contour as well."""
    assert coco_mask.area(boundary(square(40, 40, 20))) == 20 * 20 - 14 * 14
    assert coco_mask.area(boundary(square(0, 0, 100))) == 100 * 100 - 94 * 94
    assert coco_mask.area(boundary(square(40, 40, 4))) == 16


def test_boundary_ap_is_harder_than_mask_ap() -> None:
    """A square of 40, 2 pixels off: IoU 0.905, and 468 - 2 * 76 of the boundary's pixels are common, at most."""
    corner = [[30, 30, 70, 30, 70, 70, 30, 70]]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 100, "width": 100}], "categories": [{"id": A, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": A, "bbox": [30, 30, 40, 40], "area": 1600, "iscrowd": 0,
                         "segmentation": corner}],
    }  # fmt: skip
    evaluation = Evaluation(Path("made up"), content=content)
    entry = {"image_id": 1, "category_id": A, "score": 0.9}
    for place, mask_ap, edge_ap in ((30, 1.0, 1.0), (32, 0.9, 0.0)):
        found = [{**entry, "bbox": [place, 30, 40, 40], "segmentation": square(place, 30, 40)}]
        of = boundary_ap(evaluation, evaluation.detections(found, "segm"), 100)
        ring, moved = coco_mask.decode(boundary(square(30, 30, 40))), coco_mask.decode(boundary(square(place, 30, 40)))
        iou = (ring & moved).sum() / (ring | moved).sum()
        edge_ap = float((np.linspace(0.5, 0.95, 10) <= iou).mean())
        assert (of["mask_AP"], of["boundary_AP"]) == (pytest.approx(mask_ap), pytest.approx(edge_ap)), place
        assert of["images"] == 1


def test_likely_annotation_errors_and_the_worst_pictures() -> None:
    evaluation = truth((1, A, 0, 0, 10, 10), (1, B, 50, 0, 30, 30), (2, A, 0, 0, 10, 10), images=3)
    found = results((1, A, 50, 0, 30, 30, 0.9), (2, A, 0, 0, 10, 10, 0.8), (3, B, 5, 5, 20, 20, 0.7))
    m = matched(evaluation, found)
    areas = np.array([100.0, 900.0, 100.0])
    assert [(s.what, s.row, s.image) for s in suspects(m, areas)] == [
        ("missing", 2, 3),
        ("class", 0, 1),
        ("unfound", 0, 1),
    ]
    assert [s.what for s in suspects(m, areas, np.array([False, True, True]))] == ["missing", "class"]
    assert worst_first(m, [1, 2, 3], 0.5) == [1, 3, 2]
    assert worst_first(m, [1, 2, 3], 0.85) == [
        1,
        2,
        3,
    ]  # the object of 2 is missed now, the false detection of 3 is gone


def test_the_outline_of_a_mask() -> None:
    """Through the centres of its outermost pixels."""
    assert outline(square(40, 30, 20), (100, 100)) == "M40.5 30.5L40.5 49.5L59.5 49.5L59.5 30.5Z"
    assert outline(square(0, 0, 0), (100, 100)) == ""
    assert outline([[10, 10, 20, 10, 20, 20, 10, 20]], (100, 100)) == "M10.5 10.5L10.5 19.5L19.5 19.5L19.5 10.5Z"
