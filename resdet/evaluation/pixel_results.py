"""Results files of pixels -> their metrics: COCO's panoptic JSON with its PNGs, and folders of label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resdet.class_names import few, match_classes
from resdet.config import DataConfig, SplitConfig
from resdet.data.coco import Annotations, parse_coco
from resdet.data.formats.label_maps import NAMES_FILE, read_names
from resdet.data.formats.panoptic import check_panoptic, panoptic_labels, read_panoptic_json
from resdet.data.json_files import read_json
from resdet.data.label_maps import LabelFile, LabelFiles, Value, as_labels, read_values
from resdet.data.relabel import as_label_maps
from resdet.data.rules import class_name, size_of
from resdet.data.sources import read_source
from resdet.errors import UserError, listed
from resdet.evaluation.panoptic import PanopticScore, TrueSegment
from resdet.evaluation.semantic import SemanticScore
from resdet.structures import UNLABELLED

Tick = Callable[[int], object]  # called with how many images there are, before each of them


class Scored(NamedTuple):
    """metrics: by kind. images: how many were scored. notes: for people, what was left out."""

    metrics: dict[str, dict[str, float | None]]
    table: str
    images: int
    notes: list[str]


def is_panoptic(results: Path) -> bool:
    """Whether a results file is COCO's panoptic JSON rather than a list of detections. Raises `UserError` if a file that may be
    one cannot be read."""
    try:
        with results.open("rb") as file:
            start = file.read(1024).lstrip()
    except OSError:
        return False  # reported by who reads it
    content = read_json(results) if start.startswith(b"{") else None
    entries = content.get("annotations") if isinstance(content, dict) else None
    return isinstance(entries, list) and all(isinstance(e, dict) and "segments_info" in e for e in entries)


# ---- segments ---------------------------------------------------------------------------------------------------------


def score_segments(results: Path, annotations: Path, tick: Tick) -> Scored:
    """results, annotations: COCO's panoptic JSON, each with the folder of PNGs beside it that has its name.

    Images are matched by file name and categories by name where the results list them, else by id. Raises one `UserError` for
    all that is wrong: images without a result, PNGs of another size, ids that only the PNG or only the JSON has.
    """
    truth = read_panoptic_json(annotations)
    labels = panoptic_labels(truth, annotations)
    given = read_json(results)
    found = {"images": truth["images"], "categories": truth["categories"], **given}
    check_panoptic(found, results)
    if not results.with_suffix("").is_dir():
        raise UserError(
            f"{results.with_suffix('')}: no such folder (the PNGs of {results}, in a folder of its name beside it)"
        )
    names = [str(class_name(entry)) for entry in found["categories"]]
    numbers = match_classes(names, labels.categories, str(results), str(annotations))
    name_of = {entry["id"]: name for entry, name in zip(found["categories"], names, strict=True)}
    category_of = {identity: -1 if k is None else k for identity, k in zip(name_of, numbers, strict=True)}
    image_of = _images(found["images"], truth["images"], results, annotations)
    entries = {image_of[entry["image_id"]]: entry for entry in found["annotations"]}
    if missing := [i for i in labels.files if i not in entries]:
        lost = set(missing)
        examples = [str(entry.get("file_name", entry["id"])) for entry in truth["images"] if entry["id"] in lost]
        raise UserError(
            f"{results}: has no annotation of {len(missing)} of the {len(labels.files)} images of {annotations}, such as "
            f"{few(examples)}: predict these, too (an image without a segment has an empty segments_info)"
        )
    problems: list[str] = []
    sizes = {entry["id"]: size_of(entry) for entry in truth["images"]}
    score = PanopticScore([k < labels.things for k in range(len(labels.categories))])
    for image, file in labels.files.items():
        tick(len(labels.files))
        size = sizes[image]
        segments = {s["id"]: category_of[s["category_id"]] for s in entries[image]["segments_info"]}
        png = LabelFile(results.with_suffix("") / entries[image]["file_name"], [], ids=True)
        problems += [
            f"{png.file}: segment {s['id']} is of {name_of[s['category_id']]!r}, which {annotations} does not list"
            for s in entries[image]["segments_info"]
            if category_of[s["category_id"]] < 0
        ]
        try:
            if size is None:
                raise UserError(f"{annotations}: image {image} has no height and width")
            ids, true_ids = read_values(png, size), read_values(file, size)
        except UserError as error:
            problems.append(str(error))
            continue
        there = set(np.unique(ids).tolist()) - {0}
        problems += [
            f"{png.file}: has the id {k}, which its segments_info does not list" for k in sorted(there - set(segments))
        ]
        problems += [
            f"{png.file}: has no pixel of segment {k}, which its segments_info lists"
            for k in sorted(set(segments) - there)
        ]
        true_segments = {value.value: TrueSegment(value.category, value.crowd) for value in file.values}
        score.add(ids, segments, true_ids, true_segments)
    if problems:
        raise listed(f"{results}: {len(problems)} problem(s) against {annotations}:", problems)
    strangers = len(entries) - len(labels.files)
    notes = [f"{strangers} images of {results} have no annotation, and are not scored"] if strangers else []
    return Scored({"panoptic": score.metrics()}, score.table(labels.categories), len(labels.files), notes)


def _images(found: list[Any], truth: list[Any], results: Path, annotations: Path) -> dict[Any, Any]:
    """The truth's id of each image that the results list, by their id; theirs itself, in a tuple, for one it does not have."""
    by_name: dict[str, list[Any]] = {}
    for entry in truth:
        for name in {str(entry.get("file_name")), Path(str(entry.get("file_name"))).name}:
            by_name.setdefault(name, []).append(entry["id"])
    result: dict[Any, Any] = {}
    ids = {entry["id"] for entry in truth}
    for entry in found:
        name = entry.get("file_name")
        candidates = by_name.get(str(name), by_name.get(Path(str(name)).name, []))
        if name is None:
            candidates = [entry["id"]] if entry["id"] in ids else []
        if len(candidates) > 1:
            raise UserError(f"{results}: the image {name!r} may be several of {annotations}: give its whole path there")
        result[entry["id"]] = candidates[0] if candidates else (entry["id"],)
    twice = [identity for identity, count in Counter(result.values()).items() if count > 1]
    if twice:
        raise UserError(f"{results}: lists two images that are image {twice[0]} of {annotations}: keep one")
    return result


# ---- label maps -------------------------------------------------------------------------------------------------------


def score_label_maps(results: Path, annotations: Path, split: str | None, tick: Tick) -> Scored:
    """results: a folder with a PNG of each image's name, whose numbers are those of its `classes.txt`, or without that file
    those of the annotations. annotations: a dataset with label maps, or with masks to draw them from; of COCO's panoptic JSON
    all things are one class. split: of the dataset, by its own name.

    Raises one `UserError` for all that is wrong: images without a PNG, PNGs of another size, numbers that are no class.
    """
    truth = _truth(annotations, split)
    maps = truth.label_maps
    assert maps
    files = _files(results, truth)
    values = _values(results, truth)
    score = SemanticScore(len(maps.names))
    problems: list[str] = []
    for info, file in zip(truth.images, files, strict=True):
        tick(len(files))
        given = LabelFile(file, values)
        try:
            score.add(as_labels(given, read_values(given, info.size)), maps.read(info))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise listed(f"{results}: {len(problems)} problem(s) against {annotations}:", problems)
    return Scored({"semantic": score.metrics()}, score.table(maps.names), len(files), [])


def _truth(place: Path, split: str | None) -> Annotations:
    given = SplitConfig(split=split, annotations=None if place.is_dir() else place)
    data = DataConfig(root=place if place.is_dir() else None)
    source = read_source(data, given, "val").whole()
    read = parse_coco(source.content, source.images, source.path, source.origins)
    read.label_maps = LabelFiles(source.labels) if source.labels else None
    return as_label_maps(read)


def _files(results: Path, truth: Annotations) -> list[Path]:
    """The PNG of each image: in the image's folder below `results`, or in `results` itself. Raises `UserError`."""
    names = [
        info.file.relative_to(truth.images.folder) if info.file.is_relative_to(truth.images.folder) else info.file
        for info in truth.images
    ]
    stems = Counter(name.stem for name in names)
    found = []
    missing = []
    for name in names:
        places = [results / name.with_suffix(".png")]
        places += [results / f"{name.stem}.png"] if stems[name.stem] == 1 else []
        file = next((place for place in places if place.is_file()), None)
        found.append(file or places[-1])
        missing += [] if file else [str(places[-1])]
    if missing:
        raise UserError(
            f"{results}: has no label map of {len(missing)} of the {len(names)} images of {truth.source}, such as {missing[0]}"
        )
    return found


def _values(results: Path, truth: Annotations) -> list[Value]:
    """What the numbers in the results mean. Raises `UserError` for classes that the annotations do not have."""
    maps = truth.label_maps
    assert maps
    listing = results / NAMES_FILE
    if not listing.is_file():
        own = maps.source if isinstance(maps, LabelFiles) else None
        if own is None or own.categories:  # drawn, or of segments: labels as they are
            return [Value(k, k) for k in range(len(maps.names))]
        return [*next(iter(own.files.values())).values] if own.files else []
    names = read_names(listing)
    labels = match_classes(names, maps.names, str(listing), str(truth.source))
    if all(label is None for label in labels):
        raise UserError(f"{listing} and {truth.source} have no class in common: {few(names)}; {few(maps.names)}")
    return [Value(k, UNLABELLED if label is None else label) for k, label in enumerate(labels)]
