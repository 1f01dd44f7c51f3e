"""Detections -> COCO metrics: Lin et al. 2014 (arXiv:1405.0312), https://cocodataset.org/#detection-eval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from resdet.data.coco import Annotations
from resdet.evaluation import keypoints, proposals
from resdet.evaluation.backends import accumulated
from resdet.evaluation.tables import COCO_LIMIT, STANDARD_AP, measured_mean, metrics_table, numbers_table
from resdet.evaluation.truth import GroundTruth
from resdet.structures import Output

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
AREAS = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}  # square pixels, inclusive
Kind = Literal["bbox", "segm", "keypoints", "proposals"]
Metrics = dict[str, dict[str, float | None]]


class Crowding(NamedTuple):
    """images: how many have more objects of one class than the limit. most: the maximum number of objects of one class in an
    image. best_ap: the box AP, in 0..1, of perfect detections under the limit."""

    images: int
    most: int
    best_ap: float


class Evaluation(GroundTruth):
    """Scores detections against the ground truth of a split, by hotcoco: the numbers of pycocotools, its oracle in the
    tests, to the last digit in a twentieth of the time.

    class_ap: the AP of each class with objects, {"bbox": {"cat": 0.5}}, of the last `score`.
    """

    class_ap: dict[str, dict[str, float | None]]

    def kinds(self, outputs: Collection[Output]) -> tuple[Kind, ...]:
        """The evaluations that are possible for detections with these results."""
        if "proposals" in outputs:
            return ("proposals",)
        if set(outputs) == {"semantic"}:  # see `PixelEvaluation`
            return ()
        kinds: list[Kind] = ["bbox"]
        kinds += ["segm"] if "masks" in outputs and self.has_masks else []
        kinds += ["keypoints"] if "keypoints" in outputs and self.skeleton else []
        return tuple(kinds)

    def measurable(self, kind: str, name: str) -> bool:
        """Whether there are objects to measure the metric `name` of a kind on."""
        low, high = AREAS.get(name[-1], AREAS["all"])
        possible = {"segm": self.has_masks, "keypoints": self.skeleton is not None}.get(kind, True)
        return possible and any(
            not entry["iscrowd"] and (kind != "keypoints" or entry["num_keypoints"]) and low <= entry["area"] <= high
            for entry in self.truth["annotations"]
        )

    def crowding(self, limit: int) -> Crowding:
        """How counting at most `limit` detections per image and class limits the AP."""
        objects = Counter(
            (entry["category_id"], entry["image_id"]) for entry in self.truth["annotations"] if not entry["iscrowd"]
        )
        crowded = {image for (_, image), count in objects.items() if count > limit}
        total: Counter[int] = Counter()
        reachable: Counter[int] = Counter()
        for (category, _), count in objects.items():
            total[category] += count
            reachable[category] += min(count, limit)
        recalls = np.linspace(0, 1, 101)
        best = [float((recalls <= reachable[category] / total[category]).mean()) for category in total]
        return Crowding(len(crowded), max(objects.values(), default=0), float(np.mean(best)) if best else 1.0)

    def score(
        self,
        results: Sequence[dict[str, Any]],
        kinds: Sequence[str] = ("bbox", "segm"),
        backend: Literal["hotcoco", "pycocotools"] = "hotcoco",
        limit: int = COCO_LIMIT,
    ) -> tuple[Metrics, str]:
        """COCO results -> {"bbox": {"AP": …, 11 more}, …} in 0..1 (None: nothing to measure), and tables.

        limit: how many detections per image and class count, by score: COCO's 100, or more, which adds the metrics
               "AR{limit}" and "AP_max100", the AP at 100. For keypoints always COCO's 20; for proposals, regardless of class,
               100 and 1000.
        """
        assert limit >= COCO_LIMIT
        limits = sorted({1, 10, COCO_LIMIT, limit})
        metrics: Metrics = {}
        tables = []
        self.class_ap = {}
        for kind in kinds:
            found = {**self.truth, "annotations": self.detections(results, kind)}
            if kind == "proposals":
                _, recall = accumulated(self.truth, found, "bbox", backend, proposals.LIMITS, by_class=False)
                metrics[kind] = proposals.summary(recall)
                tables.append(numbers_table("proposals: average recall, percent", metrics[kind]))
                continue
            if kind == "keypoints":
                precision, recall = accumulated(self.truth, found, kind, backend, [keypoints.LIMIT], self.sigmas)
                metrics[kind] = keypoints.summary(precision, recall)
            else:
                precision, recall = accumulated(self.truth, found, kind, backend, limits)
                metrics[kind] = _summary(precision, recall, limits)
            counted = keypoints.LIMIT if kind == "keypoints" else limit
            classes = self.per_class(precision, kind)
            self.class_ap[kind] = {name: ap for name, objects, ap, _ in classes if objects}
            tables.append(metrics_table(kind, metrics[kind], classes, counted))
        return metrics, "\n".join(tables)

    def detections(self, results: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
        """COCO results as a kind of evaluation scores them, with the ids of `truth`, and numbered 1, 2, … as in `results`."""
        entries = []
        for number, entry in enumerate(results, 1):
            if kind == "proposals":
                entry = {**entry, "category_id": next(iter(self.category_names))}
            counted = None if kind == "proposals" else self.counted_categories.get(entry["image_id"])
            if counted is not None and entry["category_id"] not in counted:
                continue
            plain = {**entry, "id": number, "iscrowd": 0}
            if kind == "keypoints":
                entries.append(self.numbered(plain | keypoints.detection_of(entry)))
                continue
            rle = entry.get("segmentation")
            if isinstance(rle, list):
                rle = coco_mask.merge(coco_mask.frPyObjects(rle, *self.image_sizes[entry["image_id"]]))
            elif rle and isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, *rle["size"])
            box = entry.get("bbox") or coco_mask.toBbox(rle).tolist()
            if kind == "segm":  # the mask's area counts, even if the entry has a box
                shape = {"bbox": box, "segmentation": rle, "area": float(coco_mask.area(rle))}
            else:
                shape = {"bbox": box, "area": box[2] * box[3]}
            entries.append(self.numbered(plain) | shape)
        return entries

    def per_class(self, precisions: np.ndarray, kind: str) -> list[tuple[str, int, float | None, float | None]]:
        """(name, objects that count, AP, AP50) of each class, from precisions (T, R, K, A, M), see `accumulated`."""
        rows = []
        counts: Counter[int] = Counter()
        for entry in self.truth["annotations"]:
            counts[entry["category_id"]] += not entry["iscrowd"] and (
                kind != "keypoints" or bool(entry["num_keypoints"])
            )
        for k, name in enumerate(self.category_names.values()):
            precision = precisions[:, :, k, 0, -1]
            means = [measured_mean(p) for p in (precision, precision[0])]
            rows.append((name, counts[k + 1], means[0], means[1]))
        return rows


def evaluation_of(annotations: Annotations, sigmas: Sequence[float] | None = None) -> Evaluation:
    """The evaluation of a split that has been read."""
    return Evaluation(annotations.source, annotations.images.arrays["ids"].tolist(), annotations.content, sigmas)


def _summary(precision: np.ndarray, recall: np.ndarray, limits: list[int]) -> dict[str, float | None]:
    """COCO's summary metrics at the last of `limits`, from `accumulated`."""
    mean = measured_mean
    average = {
        "AP": mean(precision[..., 0, -1]),
        "AP50": mean(precision[0, ..., 0, -1]),
        "AP75": mean(precision[5, ..., 0, -1]),
    }
    average |= {f"AP{name}": mean(precision[..., k, -1]) for k, name in enumerate("sml", 1)}
    average |= {f"AR{limit}": mean(recall[..., 0, m]) for m, limit in enumerate(limits)}
    average |= {f"AR{name}": mean(recall[..., k, -1]) for k, name in enumerate("sml", 1)}
    if limits[-1] > COCO_LIMIT:
        average[STANDARD_AP] = mean(precision[..., 0, limits.index(COCO_LIMIT)])
    return average
