"""Detections -> COCO numbers. hotcoco computes them where it is installed (the extra "fast"), else pycocotools, to the same
last digit; this file feeds them and shields them from their traps.

Lin et al. 2014 (arXiv:1405.0312); https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from resdet.data.coco import (
    Annotations,
    check_flags,
    check_ids,
    is_box,
    is_id,
    is_number,
    is_size,
    parse_box,
    parse_segmentation,
    read_categories,
    read_coco_json,
    read_json,
)
from resdet.errors import UserError, listed

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
Metrics = dict[str, dict[str, float | None]]


class Evaluation:
    """Ground truth of a split, to score detections against.

    image_ids: only these count (None: all). content: what the file `annotations` holds, where it has been read, or stems
    from another format. Raises `UserError` for a file that is no COCO annotation file.
    """

    def __init__(
        self, annotations: Path, image_ids: Collection[int] | None = None, content: dict[str, Any] | None = None
    ) -> None:
        content = content or read_coco_json(annotations)
        problems: list[str] = []
        known = {entry["id"]: entry for entry in content["images"] if is_id(entry.get("id"))}
        if len(known) < len(content["images"]):
            problems.append(f"{len(content['images']) - len(known)} images have no id, or one that is used twice")
        chosen = known if image_ids is None else {identity: known[identity] for identity in image_ids}
        size_of = {identity: (entry.get("height"), entry.get("width")) for identity, entry in chosen.items()}
        self.source = annotations
        self.category_names = read_categories(content["categories"], problems)
        self.without_mask = 0
        entries: list[dict[str, Any]] = []
        for i, entry in enumerate(content["annotations"]):
            wrong: list[str] = []
            image_id, category = check_ids(entry, known, self.category_names, wrong)
            if image_id in size_of and category is not None:
                size = size_of[image_id]
                if is_size(*size):
                    check_flags(entry, wrong)
                    usable = parse_box(entry.get("bbox"), size, wrong) is not None
                    outline = parse_segmentation(entry.get("segmentation"), size, wrong, Counter())
                    if usable:
                        entries.append(self._completed({**entry, "segmentation": outline}, len(entries) + 1, size))
                else:
                    problems.append(
                        f"image {image_id}: height {size[0]!r} and width {size[1]!r} are no size of a picture"
                    )
            problems += [f"annotation {entry.get('id', f'number {i}')}: {text}" for text in wrong]
        if problems:
            raise listed(f"{annotations}: {len(problems)} problem(s):", problems)
        self.has_masks = any(entry.get("segmentation") for entry in content["annotations"])
        self.image_sizes = size_of
        # The backends see numbers of our own and nothing that they do not use: pycocotools takes an annotation with id 0 for
        # no match at all, hotcoco refuses negative ids and odd values in fields that no score depends on.
        self._number = {identity: number for number, identity in enumerate(sorted(size_of), 1)}
        self._class = {identity: number for number, identity in enumerate(self.category_names, 1)}
        images = [
            {"id": self._number[identity], **({"height": size[0], "width": size[1]} if is_size(*size) else {})}
            for identity, size in size_of.items()
        ]
        categories = [{"id": self._class[identity], "name": name} for identity, name in self.category_names.items()]
        self.truth = {
            "images": images,
            "annotations": [self._numbered(entry) for entry in entries],
            "categories": categories,
        }

    def _numbered(self, entry: dict[str, Any]) -> dict[str, Any]:
        used = ("id", "iscrowd", "score", "bbox", "area", "segmentation")
        ids = {"image_id": self._number[entry["image_id"]], "category_id": self._class[entry["category_id"]]}
        return ids | {key: entry[key] for key in used if key in entry}

    def _completed(self, entry: dict[str, Any], identity: int, size: tuple[int, int]) -> dict[str, Any]:
        """What pycocotools needs and custom files often lack: id, iscrowd, area, and an outline to fall back on."""
        entry = {**entry, "iscrowd": entry.get("iscrowd") or 0, "id": identity}
        if not entry.get("segmentation"):
            self.without_mask += 1
            x1, y1, x2, y2 = parse_box(entry["bbox"], size, []) or (0, 0, 0, 0)
            entry["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            if entry.get("area") is None:
                entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        if entry.get("area") is None:
            rle = entry["segmentation"]
            if not isinstance(rle, dict) or isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, *size)
            entry["area"] = float(coco_mask.area(coco_mask.merge(rle) if isinstance(rle, list) else rle))
        return entry

    def score(
        self,
        results: Sequence[dict[str, Any]],
        kinds: Sequence[str] = ("bbox", "segm"),
        backend: Literal["hotcoco", "pycocotools"] | None = None,
    ) -> tuple[Metrics, str]:
        """COCO results entries -> {"bbox": {"AP": …, 11 more}, "segm": …} in 0..1 (None: nothing to measure), and tables.

        backend: None for the fastest that is installed.
        """
        backend = backend or ("hotcoco" if find_spec("hotcoco") else "pycocotools")
        metrics: Metrics = {}
        tables = []
        for kind in kinds:
            evaluator = _evaluated(
                self.truth, {**self.truth, "annotations": self._detections(results, kind)}, kind, backend
            )
            values = [None if v == -1 else float(v) for v in evaluator.stats]
            metrics[kind] = dict(zip(METRICS, values, strict=True))
            tables.append(metrics_table(kind, metrics[kind], self._per_class(evaluator)))
        return metrics, "\n".join(tables)

    def _detections(self, results: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
        entries = []
        for number, entry in enumerate(results, 1):
            rle = entry.get("segmentation")
            if isinstance(rle, list):
                rle = coco_mask.merge(coco_mask.frPyObjects(rle, *self.image_sizes[entry["image_id"]]))
            elif rle and isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, *rle["size"])
            box = entry.get("bbox") or coco_mask.toBbox(rle).tolist()
            if kind == "segm":  # sizes go by the mask's area, also where the entry carries a box
                shape = {"bbox": box, "segmentation": rle, "area": float(coco_mask.area(rle))}
            else:
                shape = {"bbox": box, "area": box[2] * box[3]}
            entries.append(self._numbered({**entry, "id": number, "iscrowd": 0}) | shape)
        return entries

    def _per_class(self, evaluator: Any) -> list[tuple[str, int, float | None, float | None]]:
        """(name, objects, AP, AP50) of each class, from the precision array (T, R, K, A, M)."""
        rows = []
        counts: Counter[int] = Counter()
        for entry in self.truth["annotations"]:
            counts[entry["category_id"]] += not entry["iscrowd"]
        every = np.asarray(evaluator.eval["precision"])
        for k, name in enumerate(self.category_names.values()):
            precision = every[:, :, k, 0, -1]
            means = [float(p[p > -1].mean()) if (p > -1).any() else None for p in (precision, precision[0])]
            rows.append((name, counts[k + 1], means[0], means[1]))
        return rows


def evaluation_of(annotations: Annotations) -> Evaluation:
    """The ground truth of a split that has been read for it."""
    return Evaluation(annotations.source, annotations.images.arrays["ids"].tolist(), annotations.content)


def read_results(path: Path, evaluation: Evaluation) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """A COCO results JSON -> its entries and what they can be scored for. Raises one `UserError` that lists all mistakes."""
    results = read_json(path)
    if not isinstance(results, list) or not all(isinstance(entry, dict) for entry in results):
        raise UserError(
            f"{path}: a COCO results file is a list of detections [{{image_id, category_id, bbox, score}}, …]"
        )
    problems: list[str] = []
    for i, entry in enumerate(results):
        problems += [f"entry {i}: {text}" for text in _check_result(entry, evaluation)]
    masks = sum("segmentation" in entry for entry in results)
    if 0 < masks < len(results):
        problems.append(f"{masks} of {len(results)} entries have a segmentation: all must, or none")
    if problems:
        raise listed(f"{path}: {len(problems)} problem(s) against {evaluation.source}:", problems)
    return results, ("bbox", "segm") if masks and evaluation.has_masks else ("bbox",)


def _check_result(entry: dict[str, Any], evaluation: Evaluation) -> list[str]:
    """What is wrong with a detection."""
    wrong: list[str] = []
    image_id, _ = check_ids(entry, evaluation.image_sizes, evaluation.category_names, wrong)
    if image_id is None:
        return wrong
    if not is_number(entry.get("score")):
        wrong.append(f"score {entry.get('score')!r} is not a number")
    box, rle = entry.get("bbox"), entry.get("segmentation")
    if box is None and rle is None:
        wrong.append("has neither bbox nor segmentation")
    if box is not None and not is_box(box):
        wrong.append(f"bbox {str(box)[:60]} is not [x, y, width, height]")
    before = len(wrong)
    usable = parse_segmentation(rle, evaluation.image_sizes[image_id], wrong, Counter())
    if "segmentation" in entry and usable is None and len(wrong) == before:
        wrong.append("its segmentation is empty")
    return wrong


def metrics_table(
    kind: str, metrics: dict[str, float | None], classes: list[tuple[str, int, float | None, float | None]]
) -> str:
    """The 12 numbers and the per-class table as plain text, in percent."""

    def percent(value: float | None) -> str:
        return "    -" if value is None else f"{100 * value:5.1f}"

    names = "  ".join(f"{name:>5}" for name in METRICS)
    values = "  ".join(percent(metrics[name]) for name in METRICS)
    seen = [row for row in classes if row[1]]
    width = max([len(name) for name, *_ in seen] + [5])
    columns = 1 if len(seen) <= 10 else 3
    cells = [f"{name:<{width}} {count:>6} {percent(ap)} {percent(ap50)}" for name, count, ap, ap50 in seen]
    rows = math.ceil(len(cells) / columns)
    head = " | ".join([f"{'class':<{width}} {'count':>6} {'AP':>5} {'AP50':>5}"] * min(columns, max(len(cells), 1)))
    lines = [" | ".join(cells[r::rows]) for r in range(rows)]
    absent = len(classes) - len(seen)
    if absent:
        lines.append(f"({absent} classes without objects here are left out)")
    title = {"bbox": "box", "segm": "mask"}[kind]
    return "\n".join([f"COCO {title} AP, percent", names, values, "", head, *lines, ""])


def _evaluated(truth: dict[str, Any], found: dict[str, Any], kind: str, backend: str) -> Any:
    """The backend's evaluator, with its numbers in `stats` and its precision array in `eval`."""
    with contextlib.redirect_stdout(io.StringIO()):
        if backend == "hotcoco":
            import hotcoco

            evaluator = hotcoco.COCOeval(hotcoco.COCO(truth), hotcoco.COCO(found), kind)
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            both = COCO(), COCO()
            for coco, content in zip(both, (truth, found), strict=True):
                coco.dataset = content
                coco.createIndex()
            evaluator = COCOeval(*both, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator
