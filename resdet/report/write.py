"""An evaluation -> the folder of its report: index.html, report.json, thresholds.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resdet.evaluation.coco import Evaluation, Metrics
from resdet.keypoints import COCO_NAMES
from resdet.report.gallery import BYTES, PICTURES, Pictures, Read, Suspect, chosen_images, suspects
from resdet.report.matches import Matches, match
from resdet.report.numbers import LIMITED, Numbers, numbers_of
from resdet.report.page import page
from resdet.writing import make_folder, write_json, write_text

PAGE = "index.html"
PUBLISHED = re.compile(r"\b(PQ|box|mask|keypoint)\b[^\d:;]*(?::[^\d;]*)?\b(\d\d\.\d)\b")
METRIC = {
    "PQ": "panoptic_PQ",
    "box": "bbox_AP",
    "mask": "segm_AP",
    "keypoint": "keypoints_AP",
}
COCO_CLASSES = 80


def write_report(
    folder: Path,
    evaluation: Evaluation,
    metrics: Metrics,
    entries: Sequence[dict[str, Any]],
    *,
    limit: int,
    title: str,
    read: Read | None = None,
    published: Mapping[str, float] | None = None,
    tables: str = "",
    others: Sequence[Sequence[dict[str, Any]]] = (),
    quick: bool = False,
    notes: Sequence[str] = (),
) -> Path:
    """Write the report of an evaluation; one that is in the folder already is replaced. -> the page

    metrics, entries, limit: as `Evaluation.score` gave them and was given. title: of the page. read: the pictures by image id.
    published: {"bbox_AP": 0.386, …} to compare with. tables: of the metrics of pixels. others: results of other checkpoints
    on the same images; an object that one of them finds is no likely annotation error. quick: without confidence intervals and
    boundary AP. notes: what else the page warns of. Raises `UserError`.
    """
    make_folder(folder)
    numbers = numbers_of(evaluation, metrics, entries, limit, quick=quick)
    threshold = numbers.curves[0].threshold if numbers.curves and numbers.curves[0] else 0.5
    pictures: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    of_pictures = ""
    warnings = [*notes]
    warnings += _warnings(evaluation, entries) if set(metrics) - {"semantic", "panoptic"} else []
    if numbers.matches is not None:
        kind = next(kind for kind in metrics if kind in LIMITED)
        found = evaluation.detections(entries, kind)
        areas = np.array([entry["area"] for entry in evaluation.truth["annotations"]], float)[
            numbers.matches.annotation
        ]
        likely = suspects(numbers.matches, areas, _unfound(evaluation, numbers.matches, others, kind, limit))
        pictures, positions, of_pictures = _pictures(evaluation, numbers, found, read, likely, threshold)
        listed = _suspects(evaluation, numbers.matches, found, read, likely, positions)
        unread = sum(picture["src"] is None for picture in pictures)
        if read and unread:
            warnings.append(
                f"{unread} of the {len(pictures)} pictures shown could not be read: their boxes are drawn on grey."
            )
        if not read:
            warnings.append("The pictures were not given, so boxes are drawn on grey: add --images FOLDER to see them.")
    subtitle = f"{len(evaluation.image_sizes)} pictures, {len(entries)} detections; ground truth: {evaluation.source}"
    text = page(
        numbers, title=title, subtitle=subtitle, published=published or {}, warnings=warnings, tables=tables, pictures=pictures,
        of_pictures=of_pictures, suspects=listed, threshold=threshold,
    )  # fmt: skip
    write_json(folder / "report.json", numbers.values, indent=1)
    if numbers.thresholds:
        write_json(folder / "thresholds.json", numbers.thresholds, indent=1)
    write_text(folder / PAGE, text)
    return folder / PAGE


def published_numbers(config: Path, evaluation: Evaluation) -> dict[str, float]:
    """What the header of a config says is published for its recipe, by metric; nothing where the data are not COCO's."""
    poses = evaluation.skeleton is not None and evaluation.skeleton.names == COCO_NAMES
    if not (poses or len(evaluation.category_names) == COCO_CLASSES) or not config.is_file():
        return {}
    header = " ".join(re.findall(r"^#(.*)", config.read_text(encoding="utf-8"), re.MULTILINE)[:8])
    _, said, rest = header.partition("; published")
    found = PUBLISHED.findall(rest) if said else []
    return {METRIC[name]: round(float(value) / 100, 3) for name, value in reversed(found)}  # the first of a kind counts


def _warnings(evaluation: Evaluation, entries: Sequence[dict[str, Any]]) -> list[str]:
    objects = [entry for entry in evaluation.truth["annotations"] if not entry["iscrowd"]]
    lines = []
    if not objects:
        lines.append("The ground truth has no objects: AP and the like cannot be measured; what is detected is shown.")
    if not entries:
        lines.append("There are no detections.")
    elif len(there := {entry["image_id"] for entry in entries}) < len(evaluation.image_sizes) / 2:
        lines.append(f"Only {len(there)} of the {len(evaluation.image_sizes)} pictures have detections.")
    return lines


def _unfound(
    evaluation: Evaluation, matches: Matches, others: Sequence[Sequence[dict[str, Any]]], kind: str, limit: int
) -> np.ndarray:
    """(G,) bool: the objects near which no other results have a detection either."""
    never = np.ones(len(matches.annotation), bool)
    for entries in others:
        other = match(evaluation, evaluation.detections(entries, kind), kind, limit)
        never &= other.object_iou < 0.1  # the objects are the same, in the same order
    return never


def _pictures(
    evaluation: Evaluation,
    numbers: Numbers,
    found: Sequence[dict[str, Any]],
    read: Read | None,
    likely: Sequence[Suspect],
    threshold: float,
) -> tuple[list[dict[str, Any]], dict[int, int], str]:
    """The pictures of the gallery, the position of each by image, and which of all they are."""
    assert numbers.matches is not None
    images = [image["id"] for image in evaluation.truth["images"]]
    chosen = chosen_images(numbers.matches, images, threshold, likely)
    maker = Pictures(evaluation, numbers.matches, found, read)
    pictures: list[dict[str, Any]] = []
    size = 0
    for image in chosen:
        entry = maker.entry(image)
        size += len(entry["src"] or "")
        if size > BYTES:
            break
        pictures.append(entry)
    if len(pictures) == len(images):
        text = f"All {len(images)} pictures, the worst first."
    else:
        text = (
            f"{len(pictures)} of {len(images)} pictures, the worst first: those with most errors, likely annotation errors and "
            "examples of mix-ups. `resdet browse` shows all."
        )
    assert len(pictures) <= PICTURES
    return pictures, {picture["id"]: k for k, picture in enumerate(pictures)}, text


def _suspects(
    evaluation: Evaluation,
    matches: Matches,
    found: Sequence[dict[str, Any]],
    read: Read | None,
    likely: Sequence[Suspect],
    positions: Mapping[int, int],
) -> list[dict[str, Any]]:
    """Those that are on a picture of the gallery, for the page."""
    names = list(evaluation.category_names.values())
    maker = Pictures(evaluation, matches, found, read)
    listed = []
    for suspect in likely:
        row = maker.place(suspect)
        if suspect.image not in positions or row < 0:
            continue
        if suspect.what == "unfound":
            text = f"{names[matches.object_category[suspect.row] - 1]}, not found"
        else:
            text = f"{names[matches.category[suspect.row] - 1]}, score {suspect.weight:.2f}"
        if suspect.what == "class":
            text += f", annotated as {names[matches.object_category[matches.partner[suspect.row]] - 1]}"
        listed.append({"what": suspect.what, "row": row, "picture": positions[suspect.image], "text": text})
    return listed
