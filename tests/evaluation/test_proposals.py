"""Average recall of proposals against pycocotools' own evaluation without classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resdet import cli
from resdet.evaluation.coco import Evaluation
from resdet.evaluation.proposals import METRICS
from resdet.training.best import best_metric


def made(folder: Path, images: int, objects: int, proposals: int) -> tuple[Path, list[dict]]:
    """Objects of three classes and all sizes, some crowds, and up to so many proposals an image, half of them near one."""
    rng = np.random.default_rng(0)
    annotations: list[dict] = []
    results = []
    for image in range(1, images + 1):
        boxes = np.column_stack([rng.uniform(0, 300, (objects, 2)), rng.choice([15, 60, 150], (objects, 2))])
        for k, (x, y, w, h) in enumerate(boxes.tolist()):
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": (3, 7, 9)[k % 3], "bbox": [x, y, w, h],
                "area": w * h * rng.uniform(0.5, 1), "iscrowd": int(k % 7 == 6),
            })  # fmt: skip
        for _ in range(int(rng.integers(proposals // 2, proposals + 1))):
            near = boxes[rng.integers(objects)] + rng.normal(0, 12, 4)
            x, y, w, h = (near if rng.random() < 0.5 else rng.uniform(5, 200, 4)).clip(1).tolist()
            results.append({"image_id": image, "category_id": 1, "bbox": [x, y, w, h], "score": float(rng.random())})
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 500, "width": 500} for i in range(1, images + 1)],
        "annotations": annotations, "categories": [{"id": i, "name": f"class {i}"} for i in (3, 7, 9)],
    }  # fmt: skip
    (folder / "gt.json").write_text(json.dumps(truth))
    return folder / "gt.json", results


@pytest.mark.parametrize("backend", ["pycocotools", "hotcoco"])
@pytest.mark.parametrize(("images", "proposals"), [(4, 40), (1, 1300)])
def test_the_recalls_are_pycocotools(backend: str, images: int, proposals: int, tmp_path) -> None:
    if backend == "hotcoco":
        pytest.importorskip("hotcoco")
    file, results = made(tmp_path, images, 12, proposals)
    coco = COCO(str(file))
    theirs = COCOeval(coco, coco.loadRes([{**entry, "category_id": 3} for entry in results]), "bbox")
    theirs.params.useCats, theirs.params.maxDets = 0, [1, 100, 1000]
    theirs.evaluate()
    theirs.accumulate()
    recall = theirs.eval["recall"]
    expected = [recall[:, 0, 0, 1].mean(), *(recall[:, 0, area, 2].mean() for area in range(4))]
    metrics, table = Evaluation(file).score(results, ["proposals"], backend)
    found = metrics["proposals"]
    assert tuple(found) == METRICS
    np.testing.assert_allclose([found[name] for name in METRICS], expected, rtol=0, atol=1e-12)
    assert 0.05 < found["AR100"] <= found["AR1000"] < 1
    assert (found["AR100"] < found["AR1000"]) is (proposals > 100)
    assert table.splitlines()[1].split() == list(METRICS)
    assert table.splitlines()[2].split() == [f"{100 * value:.1f}" for value in expected]


def test_a_results_file_is_scored_whatever_its_classes(tmp_path, capsys) -> None:
    file, results = made(tmp_path, 2, 12, 40)
    found = tmp_path / "found.json"
    found.write_text(json.dumps([{k: v for k, v in entry.items() if k != "category_id"} for entry in results]))
    files = ["--results", str(found), "--annotations", str(file), "--output", str(tmp_path / "eval")]
    assert cli.main(["eval", *files]) == 2
    assert cli.main(["eval", "--proposals", *files]) == 0
    metrics, table = Evaluation(file).score(results, ["proposals"])
    assert table in capsys.readouterr().out
    assert json.loads((tmp_path / "eval/metrics.json").read_text()) == metrics


def test_the_metric_that_chooses_the_best(tmp_path) -> None:
    from resdet.config import TrainConfig

    file, _ = made(tmp_path, 1, 5, 10)
    assert best_metric(TrainConfig(), Evaluation(file), {"proposals"}) == "proposals_AR1000"
    assert best_metric(TrainConfig(best_metric="proposals_ARs"), Evaluation(file), {"proposals"}) == "proposals_ARs"
    assert Evaluation(file).measurable("proposals", "AR1000")
