from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import fuzzing
from conftest import SHARED
from resdet.commands.eval import main as eval_command
from resdet.data.coco import read_coco
from resdet.data.dataset import crop_masks
from resdet.errors import UserError
from resdet.evaluation.coco import METRICS, Evaluation
from resdet.evaluation.results import read_results
from resdet.inference.predictor import to_coco
from resdet.structures import Instances


def truth_as_detections(file: Path, images: Path, side: int = 448) -> list[dict]:
    """Annotations through our own structures and back out, as a model's predictions would go."""
    read = read_coco(file, images)
    entries = []
    for info in read.images:
        boxes = info.objects.boxes
        crops = crop_masks(info.objects, side).astype(np.float32)
        scores = np.linspace(1, 0.5, len(boxes)).astype(np.float32)
        entries += to_coco(
            Instances(boxes, scores, info.objects.labels, info.size, crops), info.image_id, read.category_ids
        )
    return entries


def test_ground_truth_scores_one(shapes_root) -> None:
    file = shapes_root / "annotations" / "instances_train2017.json"
    evaluation = Evaluation(file)
    content = json.loads(file.read_text())
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9,
         "segmentation": a["segmentation"]}
        for a in content["annotations"] if not a["iscrowd"]
    ]  # fmt: skip
    metrics, tables = evaluation.score(perfect)
    for kind in ("bbox", "segm"):
        assert metrics[kind]["AP"] == pytest.approx(1, abs=1e-12)
        assert metrics[kind]["AR100"] == pytest.approx(1, abs=1e-12)
    assert "COCO box AP" in tables
    assert "triangle" in tables


def test_ground_truth_through_our_structures_scores_one(shapes_root) -> None:
    """Every conversion between COCO and our conventions, both ways."""
    file = shapes_root / "annotations" / "instances_train2017.json"
    metrics, _ = Evaluation(file).score(truth_as_detections(file, shapes_root / "train2017"))
    assert metrics["bbox"]["AP"] == pytest.approx(1, abs=1e-12)
    assert metrics["segm"]["AP50"] == pytest.approx(1, abs=1e-12)
    assert metrics["segm"]["AP"] > 0.95  # outlines are resampled twice


@pytest.mark.slow
def test_real_ground_truth_scores_one(coco_open) -> None:
    file = coco_open / "annotations" / "instances_val2017.json"
    metrics, _ = Evaluation(file).score(truth_as_detections(file, coco_open / "val2017", side=224))
    assert metrics["bbox"]["AP"] > 0.999  # a few boxes reach over their picture's edge and are cut
    assert metrics["segm"]["AP50"] > 0.999


def made_up(rng: np.random.Generator) -> tuple[dict, list[dict]]:
    """Ground truth with crowds, empty images and areas of every range, detections with ties, copies and strays."""
    height, width = 60, 80
    content: dict = {
        "images": [{"id": i, "height": height, "width": width} for i in range(1, 2 + rng.integers(6))],
        "categories": [{"id": k, "name": f"c{k}"} for k in (1, 3, 7)], "annotations": [],
    }  # fmt: skip

    def thing() -> dict:
        w, h = rng.integers(1, 60), rng.integers(1, 50)
        x, y = rng.integers(0, width - w), rng.integers(0, height - h)
        bitmap = np.zeros((height, width), np.uint8, order="F")
        bitmap[y : y + h, x : x + w] = rng.random((h, w)) < 0.8
        rle = coco_mask.encode(bitmap)
        return {
            "category_id": int(rng.choice([1, 3, 7])), "bbox": [float(v) for v in (x, y, w, h)],
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
        }  # fmt: skip

    results = []
    for image in content["images"]:
        own = [thing() for _ in range(rng.integers(6))]
        for entry in own:
            area = float(coco_mask.area(entry["segmentation"])) * float(rng.choice([1, 5, 40]))
            crowd = int(rng.random() < 0.15)
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {**entry, "id": number, "image_id": image["id"], "area": area, "iscrowd": crowd}
            )
        for _ in range(rng.integers(12)):
            entry = dict(own[rng.integers(len(own))]) if own and rng.random() < 0.6 else thing()
            if rng.random() < 0.5:
                entry["bbox"] = [max(v + float(rng.integers(-2, 3)), 1.0) for v in entry["bbox"]]
            results.append({**entry, "image_id": image["id"], "score": float(rng.integers(8)) / 8})
    return content, results


@pytest.mark.parametrize("seed", range(30))
def test_both_backends_give_the_same_numbers(seed: int, tmp_path) -> None:
    content, results = made_up(np.random.default_rng(seed))
    (tmp_path / "gt.json").write_text(json.dumps(content))
    evaluation = Evaluation(tmp_path / "gt.json")
    (fast, table), (reference, expected) = (evaluation.score(results, backend=b) for b in ("hotcoco", "pycocotools"))
    for kind, metrics in reference.items():
        for name, value in metrics.items():
            assert fast[kind][name] == (value if value is None else pytest.approx(value, rel=0, abs=1e-12)), (
                kind,
                name,
            )
    assert table == expected


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_cocos_own_fixture(kind: str, tmp_path) -> None:
    folder = SHARED / "cocoapi_fake"
    if not folder.is_dir():
        pytest.skip(f"needs COCO's evaluation fixture in {folder}")
    results, truth = folder / f"instances_val2014_fake{kind}100_results.json", folder / "instances_val2014_100.json"
    assert eval_command(["--results", str(results), "--annotations", str(truth), "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    expected = json.loads((folder / "EXPECTED.json").read_text())
    assert tuple(expected["order"]) == METRICS
    np.testing.assert_allclose(list(found[kind].values()), expected[kind], rtol=0, atol=1e-12)
    assert ("segm" in found) is (kind == "segm")


def write_truth(folder: Path, **annotation: object) -> Path:
    entry = {"id": 0, "image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20], **annotation}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 50, "width": 60}],
        "categories": [{"id": 5, "name": "thing"}, {"id": 6, "name": "other"}],
        "annotations": [entry, {**entry, "bbox": [35, 20, 10, 20], "id": 1}],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


HIT = {"image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20], "score": 0.9}
MISS = {**HIT, "bbox": [35, 20, 10, 20]}


def test_custom_files_without_area_crowd_flag_or_with_id_zero(tmp_path) -> None:
    """pycocotools takes an annotation with id 0 for unmatched, and needs fields that custom files lack."""
    metrics, _ = Evaluation(write_truth(tmp_path)).score([HIT, MISS], ["bbox"])
    assert metrics["bbox"]["AP"] == pytest.approx(1, abs=1e-12)
    assert metrics["bbox"]["APl"] is None  # nothing to measure


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_scores_depend_on_no_id_and_on_no_other_field(backend, tmp_path) -> None:
    """Negative ids, a null area, and fields that only other tasks use: hotcoco alone refuses them."""
    (tmp_path / "a.json").write_text(json.dumps(fuzzing.COCO))
    expected = Evaluation(tmp_path / "a.json").score(fuzzing.RESULTS, backend=backend)
    content = json.loads(json.dumps(fuzzing.COCO))
    for image in content["images"]:
        image |= {"id": image["id"] - 5, "license": ["x"], "coco_url": 3}
    for entry in content["annotations"]:
        entry |= {"image_id": entry["image_id"] - 5, "keypoints": "none", "area": entry.get("area")}
    for category in content["categories"]:
        category |= {"supercategory": 7, "skeleton": True}
    (tmp_path / "b.json").write_text(json.dumps(content))
    results = [{**entry, "image_id": entry["image_id"] - 5, "area": "x"} for entry in fuzzing.RESULTS]
    assert expected[0]["bbox"]["AP"] == pytest.approx(0.5)
    assert Evaluation(tmp_path / "b.json").score(results, backend=backend) == expected


def test_a_model_that_finds_nothing_scores_zero(tmp_path) -> None:
    truth = write_truth(tmp_path, segmentation=[[10, 10, 30, 10, 30, 30, 10, 30]])
    metrics, _ = Evaluation(truth).score([])
    assert metrics["bbox"]["AP"] == metrics["segm"]["AR100"] == 0


def test_mask_ap_by_size_goes_by_mask_area(tmp_path) -> None:
    """A thin mask in a large box is small; pycocotools takes the box where an entry carries one."""
    thin = [[0, 0, 60, 0, 60, 2, 0, 2]]
    truth = write_truth(tmp_path, segmentation=thin, bbox=[0, 0, 60, 50], area=120)
    entry = {"image_id": 1, "category_id": 5, "score": 0.9, "segmentation": thin}
    for carried in ({}, {"bbox": [0, 0, 60, 50]}):
        metrics, _ = Evaluation(truth).score([{**entry, **carried}], ["segm"])
        assert metrics["segm"]["APs"] > 0.4
        assert metrics["segm"]["APm"] is None


def test_limits_to_chosen_images(shapes_root) -> None:
    file = shapes_root / "annotations" / "instances_train2017.json"
    evaluation = Evaluation(file, image_ids=[1, 2])
    assert set(evaluation.image_sizes) == {1, 2}
    assert {a["image_id"] for a in evaluation.truth["annotations"]} <= {1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [1]}, "entry 1: image_id"),
        ({"category_id": 9}, "entry 1: category_id 9 is not among"),
        ({"score": "high"}, "entry 1: score 'high' is not a number"),
        ({"score": float("nan")}, "score nan is not a number"),
        ({"bbox": [1, 2]}, "is not .x, y, width, height."),
        ({"bbox": None}, "neither bbox nor segmentation"),
        ({"segmentation": {"size": [3, 3], "counts": "a"}}, "RLE of size"),
    ],
)
def test_mistakes_in_results_are_listed(tmp_path, change: dict, message: str) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps([HIT, {**HIT, **change}]))
    with pytest.raises(UserError, match=message):
        read_results(results, Evaluation(write_truth(tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": None}, "bbox None is not"),
        ({"image_id": [1]}, r"image_id \[1\] is not among"),
        ({"category_id": "7"}, "category_id '7' is not among"),
        ({"segmentation": 3}, "neither polygons"),
    ],
)
def test_mistakes_in_the_ground_truth_are_listed(tmp_path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Evaluation(write_truth(tmp_path, **change))


def test_results_of_other_images_are_left_out_and_counted(tmp_path) -> None:
    evaluation, results = Evaluation(write_truth(tmp_path)), tmp_path / "results.json"
    results.write_text(json.dumps([{**HIT, "image_id": 9, "bbox": None}, HIT, {**HIT, "image_id": "x9"}]))
    found = read_results(results, evaluation)
    assert [entry["image_id"] for entry in found.entries] == [HIT["image_id"]]
    assert "2 of 3 detections" in found.left_out
    assert "(image_id 9, x9)" in found.left_out
    results.write_text(json.dumps([HIT]))
    assert read_results(results, evaluation).left_out == ""
    results.write_text(json.dumps([{**HIT, "image_id": 9}]))
    with pytest.raises(UserError, match=r"results of other images \(image_id 9\)"):
        read_results(results, evaluation)


def test_results_of_another_kind(tmp_path) -> None:
    evaluation = Evaluation(write_truth(tmp_path))
    for text in ("{}", "[1]", "[", ""):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match=r"results\.json"):
            read_results(tmp_path / "results.json", evaluation)
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "no.json", evaluation)


def crowded(rng: np.random.Generator, counts: list[tuple[int, int]]) -> tuple[dict, list[dict]]:
    """Images with (n, m) boxes of the classes 1 and 2 on a grid, and detections of most of them, some shifted."""
    content: dict = {
        "images": [{"id": i, "height": 800, "width": 800} for i in range(len(counts))],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], "annotations": [],
    }  # fmt: skip
    results = []
    for image, classes in enumerate(counts):
        for category, count in enumerate(classes, 1):
            for k in range(count):
                x, y, side = 40.0 * (k % 20), 40.0 * (k // 20), float(rng.choice([20, 36]))
                box = [x, y, side, side]
                number = len(content["annotations"]) + 1
                content["annotations"].append(
                    {
                        "id": number,
                        "image_id": image,
                        "category_id": category,
                        "bbox": box,
                        "area": side**2,
                        "iscrowd": 0,
                    }
                )
                if rng.random() < 0.9:
                    shifted = [x + float(rng.integers(0, 8)), *box[1:]]
                    results.append(
                        {"image_id": image, "category_id": category, "bbox": shifted, "score": float(rng.random())}
                    )
    return content, results


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_a_higher_limit_of_detections_is_pycocotools_own(backend, tmp_path) -> None:
    content, results = crowded(np.random.default_rng(0), [(300, 5), (120, 0), (3, 150)])
    (tmp_path / "gt.json").write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "gt.json"))
        reference = COCOeval(truth, truth.loadRes(results), "bbox")
        reference.params.maxDets = [10, 100, 250]
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    stats, precision = reference.stats, reference.eval["precision"][..., 0, 2]
    metrics, table = Evaluation(tmp_path / "gt.json").score(results, ["bbox"], backend, limit=250)
    found = metrics["bbox"]
    pairs = {
        "AP": precision[precision > -1].mean(), "AP_max100": stats[0], "AP50": stats[1], "AP75": stats[2], "APs": stats[3],
        "APm": stats[4], "AR10": stats[6], "AR100": stats[7], "AR250": stats[8], "ARs": stats[9], "ARm": stats[10],
    }  # fmt: skip
    for name, value in pairs.items():
        assert found[name] == pytest.approx(value, rel=0, abs=1e-12), name
    assert found["AP"] > found["AP_max100"]
    assert f"250 detections per image and class (AP at COCO's limit of 100: {100 * found['AP_max100']:.1f})" in table
    standard, table = Evaluation(tmp_path / "gt.json").score(results, ["bbox"], backend)
    assert tuple(standard["bbox"]) == METRICS
    assert standard["bbox"]["AP"] == found["AP_max100"]
    assert "COCO box AP, percent, 100 detections per image and class" in table


def test_what_the_limit_costs_is_told_for_a_results_file(tmp_path, capsys) -> None:
    """Of 300 perfect detections 100 count, which is a recall of a third: 34 of 101 thresholds."""
    content, _ = crowded(np.random.default_rng(0), [(300, 0), (5, 90)])
    perfect = [{**entry, "score": 0.9} for entry in content["annotations"]]
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "dt.json").write_text(json.dumps(perfect))
    arguments = ["--results", str(tmp_path / "dt.json"), "--annotations", str(tmp_path / "gt.json")]
    assert eval_command([*arguments, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    reached = json.loads((tmp_path / "out/metrics.json").read_text())["bbox"]["AP"]
    assert Evaluation(tmp_path / "gt.json").crowding(100) == (1, 300, pytest.approx(reached, abs=1e-12))
    assert "1 of 2 images have more than 100 objects of one class, up to 300" in said
    assert f"cannot exceed {100 * reached:.1f} %; with all detections counted it is 100.0 %" in said


def test_what_can_be_measured(tmp_path) -> None:
    evaluation = Evaluation(write_truth(tmp_path))  # boxes of 400 and 200 square pixels, without masks
    for name in ("AP", "AP50", "APs", "AR100", "ARs"):
        assert evaluation.measurable("bbox", name)
        assert not evaluation.measurable("segm", name)
    assert not evaluation.measurable("bbox", "APm")
    assert not Evaluation(write_truth(tmp_path, iscrowd=1)).measurable("bbox", "AP")
