"""COCO results files: a list of detections [{image_id, category_id, bbox, score, segmentation}, …], read and written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from resdet.class_names import few
from resdet.data.json_files import read_json
from resdet.data.normalise import Ids, normalise_objects
from resdet.data.readings import Readings
from resdet.data.rules import check_ids, is_box, is_number, is_numbers, is_size, parse_segmentation
from resdet.errors import UserError, listed
from resdet.evaluation.coco import Evaluation, Kind, Metrics
from resdet.evaluation.tables import COCO_LIMIT
from resdet.evaluation.truth import ANY_SIZE
from resdet.structures import Output
from resdet.writing import write_json


class Results(NamedTuple):
    """The detections of a results file, normalised; the evaluations they allow; how unusual values were read; and what was
    left out ("" if nothing)."""

    entries: list[dict[str, Any]]
    kinds: tuple[Kind, ...]
    readings: Readings
    left_out: str


def read_results(path: Path, evaluation: Evaluation, *, proposals: bool = False) -> Results:
    """Read a COCO results JSON. Raises one `UserError` that lists all problems.

    Detections on images that the ground truth does not list are left out; if all are, that is an error.
    proposals: the entries are boxes whatever their category_id, which they need not have.
    """
    given = read_json(path)
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise UserError(
            f"{path}: a COCO results file is a list of detections [{{image_id, category_id, bbox, score}}, …]"
        )
    if proposals:
        given = [{**entry, "category_id": next(iter(evaluation.category_names))} for entry in given]
    readings = Readings()
    images = Ids([{"id": identity} for identity in evaluation.image_sizes], "image", readings, [])
    categories = Ids([{"id": identity} for identity in evaluation.category_names], "category", readings, [])
    results = normalise_objects(given, images, categories, evaluation.image_sizes, readings, "entry")
    numbered = [(i, entry) for i, entry in enumerate(results) if not _is_elsewhere(entry, evaluation)]
    left_out = _left_out(path, results, evaluation)
    problems = [f"entry {i}: {text}" for i, entry in numbered for text in _check_result(entry, evaluation)]
    results = [entry for _, entry in numbered]
    masks = sum("segmentation" in entry for entry in results)
    if 0 < masks < len(results):
        problems.append(f"{masks} of {len(results)} entries have a segmentation: all must, or none")
    poses = sum("keypoints" in entry for entry in results)
    if 0 < poses < len(results):
        problems.append(f"{poses} of {len(results)} entries have keypoints: all must, or none")
    bare = poses and not any("bbox" in entry or "segmentation" in entry for entry in results)
    if bare and proposals:
        problems.append("the entries have no boxes")
    elif bare and not evaluation.skeleton:
        problems.append("the entries have nothing but keypoints, of which the categories list none")
    if problems:
        raise listed(f"{path}: {len(problems)} problem(s) against {evaluation.source}:", problems)
    outputs: dict[Output, int] = {"proposals": 1} if proposals else {"masks": masks, "keypoints": poses}
    kinds = evaluation.kinds([name for name, count in outputs.items() if count])
    if bare:
        kinds = tuple(kind for kind in kinds if kind == "keypoints")
    return Results(results, kinds, readings, left_out)


def _is_elsewhere(entry: dict[str, Any], evaluation: Evaluation) -> bool:
    """Whether a detection is on an image that the ground truth does not list."""
    identity = entry.get("image_id")
    return isinstance(identity, int | str) and type(identity) is not bool and identity not in evaluation.image_sizes


def _left_out(path: Path, results: list[dict[str, Any]], evaluation: Evaluation) -> str:
    """Which detections are on images that the ground truth does not list; "" for none. Raises `UserError` if all are."""
    elsewhere = [str(entry["image_id"]) for entry in results if _is_elsewhere(entry, evaluation)]
    if not elsewhere:
        return ""
    theirs = f"image_id {few(list(dict.fromkeys(elsewhere)), 3)}"
    if len(elsewhere) == len(results):
        ours = few([str(identity) for identity in evaluation.image_sizes], 3) if evaluation.image_sizes else "none"
        raise UserError(
            f"{path}: these are results of other images ({theirs}) than those of {evaluation.source} ({ours}): "
            "give the annotations that they were made for"
        )
    return (
        f"{path}: {len(elsewhere)} of {len(results)} detections are on images that {evaluation.source} does not list "
        f"({theirs}): they are left out, the others are scored"
    )


def _check_result(entry: dict[str, Any], evaluation: Evaluation) -> list[str]:
    """The problems of a detection."""
    wrong: list[str] = []
    image_id, _ = check_ids(entry, evaluation.image_sizes, evaluation.category_names, wrong)
    if image_id is None:
        return wrong
    if not is_number(entry.get("score")):
        wrong.append(f"score {entry.get('score')!r} is not a number")
    box, rle = entry.get("bbox"), entry.get("segmentation")
    if box is None and rle is None and "keypoints" not in entry:
        wrong.append("has neither bbox nor segmentation nor keypoints")
    if "keypoints" in entry and evaluation.skeleton:
        count = 3 * len(evaluation.skeleton.names)
        if not is_numbers(entry["keypoints"]) or len(entry["keypoints"]) != count:
            wrong.append(f"keypoints {str(entry['keypoints'])[:60]} is not a list of {count} numbers x, y, score, …")
    if box is not None and not is_box(box):
        wrong.append(f"bbox {str(box)[:60]} is not [x, y, width, height]")
    before, size = len(wrong), evaluation.image_sizes[image_id]
    usable = parse_segmentation(rle, size if is_size(*size) else ANY_SIZE, wrong, Counter())
    if "segmentation" in entry and usable is None and len(wrong) == before:
        wrong.append("its segmentation is empty")
    return wrong


def write_evaluation(folder: Path, metrics: Metrics, entries: list[dict[str, Any]]) -> None:
    """Write metrics.json and detections.json, or predictions.json of a classifier. Raises `UserError`."""
    write_json(folder / "metrics.json", metrics, indent=2)
    write_json(folder / f"{'predictions' if 'classes' in metrics else 'detections'}.json", entries)


def crowding_note(evaluation: Evaluation, entries: list[dict[str, Any]]) -> str:
    """How COCO's limit of detections per image bounds the AP on this ground truth; "" if it does not."""
    crowding = evaluation.crowding(COCO_LIMIT)
    if not crowding.images:
        return ""
    given = max(Counter((e["image_id"], e["category_id"]) for e in entries).values(), default=0)
    whole, _ = evaluation.score(entries, ["bbox"], limit=max(COCO_LIMIT, given))
    return (
        f"{crowding.images} of {len(evaluation.image_sizes)} images have more than {COCO_LIMIT} objects of one class, up to "
        f"{crowding.most}: COCO's AP counts {COCO_LIMIT} detections per image and class, so box AP cannot exceed "
        f"{100 * crowding.best_ap:.1f} %; with all detections counted it is {100 * (whole['bbox']['AP'] or 0.0):.1f} %"
    )
