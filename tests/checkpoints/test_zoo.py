"""Detections that detectron2 itself made, with a checkpoint in its own layout."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from conftest import SHARED
from resdet.predict import Predictor

ZOO = SHARED.parent / "zoo"


@pytest.mark.slow
def test_the_same_detections_as_detectron2(tmp_path) -> None:
    """Every box and score agrees. Masks differ in up to a few dozen pixels each, probably from rounding, for these
    weights are random and their masks noise; the bounds on them are what was seen, with a little room."""
    if not ZOO.is_dir():
        pytest.skip(f"needs the fixtures in {ZOO}")
    fixture = ZOO / "detectron2_mask_rcnn_R_50_FPN_3x.json"
    file = tmp_path / "model.pkl"
    subprocess.run([sys.executable, str(ZOO / "make_checkpoint.py"), str(fixture), str(file)], check=True, cwd=ZOO)
    predictor = Predictor.from_checkpoint(file, device="cpu")
    total, overlaps = 0, []
    for image in json.loads(fixture.read_text())["images"][:3]:
        (found,) = predictor([SHARED / image["file"]])
        assert len(found) == len(image["scores"])
        rles = found.rle()
        for box, score, label, rle in zip(
            image["boxes"], image["scores"], image["classes"], image["masks"], strict=True
        ):
            gap = np.abs(found.boxes - np.array(box, np.float32)).max(1) + 1e6 * (found.labels != label)
            k = int(gap.argmin())
            assert gap[k] < 0.1
            assert abs(found.scores[k] - score) < 1e-3
            if coco_mask.area(rle) or coco_mask.area(rles[k]):
                overlaps.append(coco_mask.iou([rles[k]], [rle], [0])[0, 0])
            total += 1
    assert total > 140
    assert np.mean(overlaps) > 0.998
    assert np.mean(np.array(overlaps) > 0.99) > 0.95
