"""Detections -> COCO numbers. hotcoco computes them where it is installed (the extra "fast"), else pycocotools, to the same
last digit; this file feeds them and shields them from their traps.

Lin et al. 2014 (arXiv:1405.0312); https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from resdet.data.coco import Annotations, read_coco_json
from resdet.data.keypoints import read_skeleton
from resdet.data.known import check_known, known_ids, says_known
from resdet.data.normalise import normalise
from resdet.data.outlines import area_of
from resdet.data.readings import Readings
from resdet.data.rules import (
    check_flags,
    check_ids,
    id_kind,
    is_id,
    is_size,
    parse_box,
    parse_segmentation,
    read_categories,
    title_of,
)
from resdet.errors import listed
from resdet.evaluation import keypoints, proposals
from resdet.evaluation.backends import accumulated
from resdet.evaluation.tables import COCO_LIMIT, STANDARD_AP, measured_mean, metrics_table, numbers_table
from resdet.structures import Output

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
AREAS = {
    "all": (0, 1e10),
    "s": (0, 32**2),
    "m": (32**2, 96**2),
    "l": (96**2, 1e10),
}  # in square pixels, both ends inside
Kind = Literal["bbox", "segm", "keypoints", "proposals"]
Metrics = dict[str, dict[str, float | None]]
ANY_SIZE = (10**9, 10**9)  # of an image whose size is not given, where only boxes are scored


class Crowding(NamedTuple):
    """images: how many have more objects of one class than a limit; most: objects of one class in one image; best_ap: the box
    AP, in 0..1, of perfect detections under that limit."""

    images: int
    most: int
    best_ap: float


class Evaluation:
    """Ground truth of a split, to score detections against.

    image_ids: only these count (None: all). content: what the file `annotations` holds, where it has been read, or stems
    from another format. sigmas: of each keypoint, for OKS (None: COCO's, or `OTHER_SIGMA`).
    Raises `UserError` for a file that is no COCO annotation file.
    """

    def __init__(
        self,
        annotations: Path,
        image_ids: Collection[int] | None = None,
        content: dict[str, Any] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        self.source, self.readings = annotations, Readings()
        problems: list[str] = []
        origins: dict[int, str] = {}
        if content is None:
            content, self.readings, problems, origins = normalise(read_coco_json(annotations))
        kind = id_kind(content["images"])
        known = {entry["id"]: entry for entry in content["images"] if is_id(entry.get("id"), kind)}
        if len(known) < len(content["images"]):
            problems.append(f"{len(content['images']) - len(known)} images have no id, or one that is used twice")
        chosen = known if image_ids is None else {identity: known[identity] for identity in image_ids}
        size_of = {identity: (entry.get("height"), entry.get("width")) for identity, entry in chosen.items()}
        self.category_names = read_categories(content["categories"], problems)
        self.has_masks = any(entry.get("segmentation") for entry in content["annotations"])
        self.without_mask = 0
        self._counted: dict[Any, set[Any]] = {}  # by image: of these categories alone
        self.skeleton, posed = read_skeleton(content["categories"], problems)
        self.sigmas = keypoints.sigmas_of(self.skeleton, sigmas, annotations)
        entries: list[dict[str, Any]] = []
        for i, entry in enumerate(content["annotations"]):
            wrong: list[str] = []
            image_id, category = check_ids(entry, known, self.category_names, wrong)
            if image_id in size_of and category is not None:
                size = size_of[image_id]
                if not is_size(*size) and not self.has_masks:
                    size = ANY_SIZE
                if is_size(*size) or size is ANY_SIZE:
                    check_flags(entry, wrong)
                    usable = parse_box(entry.get("bbox"), size, wrong) is not None
                    outline = parse_segmentation(entry.get("segmentation"), size, wrong, Counter())
                    pose = {}
                    if self.skeleton:
                        given = entry.get("keypoints") if category in posed else None
                        pose = keypoints.truth_of(given, len(self.skeleton.names), wrong)
                    if usable:
                        entries.append(
                            self._completed({**entry, "segmentation": outline, **pose}, len(entries) + 1, size)
                        )
                else:
                    wrong.append(
                        f"height {size[0]!r} and width {size[1]!r} of image {image_id} are no size of an image"
                    )
            problems += [f"{title_of(entry, i, origins)}: {text}" for text in wrong]
        if says_known(content["images"]):
            usable_images = [i for i in chosen.values() if check_known(i, self.category_names, problems)]
            self._leave_out_unknown(usable_images, entries)
        if problems:
            raise listed(f"{annotations}: {len(problems)} problem(s):", problems)
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

    def _leave_out_unknown(self, images: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
        """As LVIS's evaluation: no detection counts of a class that its image does not know (`data/known.py`). Where such a
        class has objects, only those that match none are left out: a crowd region that fills the image takes them."""
        annotated: dict[Any, set[Any]] = {}
        for entry in entries:
            annotated.setdefault(entry["image_id"], set()).add(entry["category_id"])
        for image in images:
            here = annotated.get(image["id"], set())
            known = known_ids(image, here)
            if known is None:
                continue
            self._counted[image["id"]] = known | here
            pose = keypoints.truth_of(None, len(self.skeleton.names), []) if self.skeleton else {}
            height, width = (
                (image["height"], image["width"]) if is_size(image.get("height"), image.get("width")) else ANY_SIZE
            )
            for category in sorted(here - known):
                entries.append({
                    "id": len(entries) + 1, "image_id": image["id"], "category_id": category, "iscrowd": 1,
                    "bbox": [0, 0, width, height], "area": width * height,
                    "segmentation": [[0, 0, width, 0, width, height, 0, height]], **pose,
                })  # fmt: skip

    def _numbered(self, entry: dict[str, Any]) -> dict[str, Any]:
        used = ["id", "iscrowd", "score", "bbox", "area", "segmentation"]
        used += ["keypoints", "num_keypoints"] if self.skeleton else []
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
                entry["area"] = area_of({"bbox": entry["bbox"]}, size)
        elif entry.get("area") is None:
            entry["area"] = area_of(entry, size)
        return entry

    def kinds(self, outputs: Collection[Output]) -> tuple[Kind, ...]:
        """What detections with these results can be scored for."""
        if "proposals" in outputs:
            return ("proposals",)
        kinds: list[Kind] = ["bbox"]
        kinds += ["segm"] if "masks" in outputs and self.has_masks else []
        kinds += ["keypoints"] if "keypoints" in outputs and self.skeleton else []
        return tuple(kinds)

    def measurable(self, kind: Kind, name: str) -> bool:
        """Whether there is an object that the metric `name` of its kind could be measured on."""
        low, high = AREAS.get(name[-1], AREAS["all"])
        possible = {"segm": self.has_masks, "keypoints": self.skeleton is not None}.get(kind, True)
        return possible and any(
            not entry["iscrowd"] and (kind != "keypoints" or entry["num_keypoints"]) and low <= entry["area"] <= high
            for entry in self.truth["annotations"]
        )

    def crowding(self, limit: int) -> Crowding:
        """What counting no more than `limit` detections per image and class costs."""
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
        backend: Literal["hotcoco", "pycocotools"] | None = None,
        limit: int = COCO_LIMIT,
    ) -> tuple[Metrics, str]:
        """COCO results -> {"bbox": {"AP": …, 11 more}, …} in 0..1 (None: nothing to measure), and tables.

        limit: detections per image and class that count, the highest scores first; 100, as COCO has it, or more. With more,
               "AR{limit}" and "AP_max100", the AP at 100, are among the metrics. For keypoints always 20, COCO's, and for
               proposals, whose classes do not matter, 100 and 1000.
        backend: None for the fastest that is installed.
        """
        assert limit >= COCO_LIMIT
        backend = backend or ("hotcoco" if find_spec("hotcoco") else "pycocotools")
        limits = sorted({1, 10, COCO_LIMIT, limit})
        metrics: Metrics = {}
        tables = []
        for kind in kinds:
            found = {**self.truth, "annotations": self._detections(results, kind)}
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
            tables.append(metrics_table(kind, metrics[kind], self._per_class(precision), counted))
        return metrics, "\n".join(tables)

    def _detections(self, results: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
        entries = []
        for number, entry in enumerate(results, 1):
            if kind == "proposals":
                entry = {**entry, "category_id": next(iter(self._class))}
            counted = None if kind == "proposals" else self._counted.get(entry["image_id"])
            if counted is not None and entry["category_id"] not in counted:
                continue
            plain = {**entry, "id": number, "iscrowd": 0}
            if kind == "keypoints":
                entries.append(self._numbered(plain | keypoints.detection_of(entry)))
                continue
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
            entries.append(self._numbered(plain) | shape)
        return entries

    def _per_class(self, every: np.ndarray) -> list[tuple[str, int, float | None, float | None]]:
        """(name, objects, AP, AP50) of each class, from the precision array (T, R, K, A, M)."""
        rows = []
        counts: Counter[int] = Counter()
        for entry in self.truth["annotations"]:
            counts[entry["category_id"]] += not entry["iscrowd"]
        for k, name in enumerate(self.category_names.values()):
            precision = every[:, :, k, 0, -1]
            means = [measured_mean(p) for p in (precision, precision[0])]
            rows.append((name, counts[k + 1], means[0], means[1]))
        return rows


def evaluation_of(annotations: Annotations, sigmas: Sequence[float] | None = None) -> Evaluation:
    """The ground truth of a split that has been read for it."""
    return Evaluation(annotations.source, annotations.images.arrays["ids"].tolist(), annotations.content, sigmas)


def _summary(precision: np.ndarray, recall: np.ndarray, limits: list[int]) -> dict[str, float | None]:
    """The numbers of `accumulated`, as COCO's summary has them, at the last of `limits`."""
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
