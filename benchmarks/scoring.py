"""How long the evaluation of made-up detections takes, as many as val2017 has."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from resdet.evaluation.coco import Evaluation


def evaluation_times(images: int = 5000, objects: int = 36_000) -> dict[str, float]:
    """Box and mask AP of made-up detections, 100 an image, by each backend that is installed."""
    chance = np.random.default_rng(0)
    truth, results = _made_up(chance, images, objects)
    evaluation = Evaluation(Path("made up"), content=truth)
    times: dict[str, float] = {}
    numbers = []
    for backend in [b for b in ("hotcoco", "pycocotools")]:
        began = time.perf_counter()
        numbers.append(evaluation.score(results, backend=backend)[0])
        times[backend] = time.perf_counter() - began
    if len(numbers) == 2:
        pairs = [(numbers[0][k][n], numbers[1][k][n]) for k in numbers[0] for n in numbers[0][k]]
        times["largest difference of 24 numbers"] = max(abs((a or 0) - (b or 0)) for a, b in pairs)
    return times


def _made_up(chance: np.random.Generator, images: int, objects: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from pycocotools import mask as coco_mask

    height, width, classes = 480, 640, 80
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": height, "width": width} for i in range(images)],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(classes)],
        "annotations": [],
    }

    def entry(image: int, box: np.ndarray, label: int) -> dict[str, Any]:
        x, y, w, h = (float(v) for v in box)
        outline = [[x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]]
        (rle,) = coco_mask.frPyObjects(outline, height, width)
        mask = {"size": [height, width], "counts": rle["counts"].decode()}
        return {"image_id": image, "category_id": int(label), "bbox": [x, y, w, h], "segmentation": mask}

    owners = chance.integers(0, images, objects)
    corners = chance.random((objects, 2)) * [width * 0.7, height * 0.7]
    sides = chance.random((objects, 2)) ** 2 * [width * 0.3, height * 0.3] + 4
    boxes, labels = np.concatenate([corners, sides], 1), chance.integers(0, classes, objects)
    for k in range(objects):
        area = float(boxes[k, 2] * boxes[k, 3] / 2)
        made = entry(int(owners[k]), boxes[k], labels[k])
        truth["annotations"].append({**made, "id": k + 1, "iscrowd": int(chance.random() < 0.01), "area": area})
    by_image: dict[int, list[int]] = {}
    for k, owner in enumerate(owners.tolist()):
        by_image.setdefault(owner, []).append(k)
    results = []
    for image in range(images):
        own = by_image.get(image, [])
        for n in range(100):
            if own and n < 3 * len(own):
                k = own[n % len(own)]
                box = boxes[k] + chance.normal(0, 3, 4)
                label = labels[k] if chance.random() < 0.8 else chance.integers(classes)
            else:
                box = np.r_[chance.random(2) * [width * 0.7, height * 0.7], chance.random(2) * 100 + 4]
                label = chance.integers(classes)
            box = np.r_[box[:2], np.maximum(box[2:], 1)]
            results.append({**entry(image, box, int(label)), "score": float(chance.random())})
    return truth, results
