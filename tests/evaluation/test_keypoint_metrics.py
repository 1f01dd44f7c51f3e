"""OKS against pycocotools' own evaluation of the same files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation
from resdet.evaluation.keypoints import METRICS
from resdet.evaluation.results import read_results
from resdet.keypoints import COCO_NAMES


def made(folder: Path, names: list[str], boxes: bool) -> tuple[Path, Path]:
    """Ground truth of two classes in 12 images, and detections more or less near it."""
    rng = np.random.default_rng(0)
    count = len(names)
    annotations, results = [], []
    for k in range(60):
        x, y, w, h = *rng.uniform(0, 200, 2), *rng.uniform(20, 200, 2)
        points = np.column_stack([x + rng.random(count) * w, y + rng.random(count) * h, rng.integers(0, 3, count)])
        points[:, 2] *= k % 7 > 0  # some have no labelled keypoints
        points[points[:, 2] == 0] = 0
        common = {"image_id": k % 12, "category_id": 1 + k % 2}
        annotations.append({
            **common, "id": k + 1, "bbox": [x, y, w, h], "area": w * h * 0.6, "iscrowd": int(k % 11 == 0),
            "keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum()),
        })  # fmt: skip
        for _ in range(int(rng.integers(0, 4))):
            found = points + rng.normal(0, rng.choice([0.5, 3, 15]), points.shape)
            found[:, 2] = 1
            entry = {**common, "score": float(rng.random()), "keypoints": found.ravel().tolist()}
            results.append(entry | ({"bbox": [x, y, w, h]} if boxes else {}))
    categories = [{"id": i, "name": f"class {i}", "keypoints": names, "skeleton": []} for i in (1, 2)]
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 400, "width": 400} for i in range(12)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "gt.json").write_text(json.dumps(truth))
    (folder / "dt.json").write_text(json.dumps(results))
    return folder / "gt.json", folder / "dt.json"


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("sigmas", [None, [0.02, 0.1, 0.05]])
def test_the_ten_numbers_are_pycocotools(
    tmp_path, backend: str, boxes: bool, sigmas: list[float] | None, capsys
) -> None:
    if backend == "hotcoco":
        pytest.importorskip("hotcoco")
    names = ["a", "b", "c"] if sigmas else COCO_NAMES
    truth, detections = made(tmp_path, names, boxes)
    coco = COCO(str(truth))
    theirs = COCOeval(coco, coco.loadRes(str(detections)), "keypoints")
    if sigmas:
        theirs.params.kpt_oks_sigmas = np.array(sigmas)
    theirs.evaluate()
    theirs.accumulate()
    theirs.summarize()
    evaluation = Evaluation(truth, sigmas=sigmas)
    entries, kinds, *_ = read_results(detections, evaluation)
    assert kinds == (("bbox", "keypoints") if boxes else ("keypoints",))
    metrics, table = evaluation.score(entries, kinds, backend)
    found = metrics["keypoints"]
    assert tuple(found) == METRICS
    np.testing.assert_allclose([found[name] for name in METRICS], theirs.stats, rtol=0, atol=1e-12)
    assert 0.05 < found["AP"] < 0.9
    assert "COCO keypoint AP, percent, 20 detections" in table


def test_default_sigmas_and_wrong_ones(tmp_path) -> None:
    truth, detections = made(tmp_path, ["a", "b", "c"], True)
    assert Evaluation(truth).sigmas == [0.05] * 3
    with pytest.raises(UserError, match=r"keypoint_sigmas has 2 numbers, but .*gt.json lists 3 keypoints"):
        Evaluation(truth, sigmas=[0.1, 0.1])
    entries = json.loads(detections.read_text())
    entries[3]["keypoints"].pop()
    del entries[5]["keypoints"]
    detections.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"(?s)entry 3: keypoints .* is not a list of 9 numbers.*have keypoints: all"):
        read_results(detections, Evaluation(truth))


def test_what_can_be_measured(tmp_path) -> None:
    truth, detections = made(tmp_path, ["a", "b", "c"], True)
    assert Evaluation(truth).measurable("keypoints", "AP")
    content = json.loads(truth.read_text())
    for entry in content["annotations"]:
        entry["keypoints"] = [0] * 9
    truth.write_text(json.dumps(content))
    assert not Evaluation(truth).measurable("keypoints", "AP")
    for category in content["categories"]:
        del category["keypoints"]
    truth.write_text(json.dumps(content))
    bare = [{k: v for k, v in entry.items() if k != "bbox"} for entry in json.loads(detections.read_text())]
    detections.write_text(json.dumps(bare))
    with pytest.raises(UserError, match="nothing but keypoints, of which the categories list none"):
        read_results(detections, Evaluation(truth))
    for category in content["categories"]:
        category["keypoints"] = ["a", "b", "c"]
    truth.write_text(json.dumps(content))
    assert Evaluation(truth).kinds({"boxes", "masks", "keypoints"}) == ("bbox", "keypoints")
