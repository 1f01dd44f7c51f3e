"""COCO's panoptic annotations (https://cocodataset.org/#format-data, 4): a JSON, and beside it a folder of the same name with a
PNG for each image, whose pixels are ids R + 256 G + 65536 B -> COCO's structure of the things, and label maps.

The label maps' classes are all things as label 0 (if there are categories of things), then the stuff in the order of its ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resdet.data.formats.coco import image_folder, names_split
from resdet.data.formats.common import ALIASES, Source, usual_name
from resdet.data.formats.glimpse import files_in, json_kind
from resdet.data.json_files import read_json
from resdet.data.kept import Kept
from resdet.data.label_maps import LabelFile, LabelSource, Value, read_values, refuse_many
from resdet.data.rules import class_name, is_id, size_of
from resdet.errors import UserError, listed
from resdet.masks import encode_crop
from resdet.panoptic import ALL_THINGS, THINGS

Entry = dict[str, Any]


class _Read(NamedTuple):
    """Of a PNG: (segment, bbox XYWH, RLE) of each thing, and what is wrong."""

    things: list[tuple[Entry, list[float], Any]]
    problems: list[str]


def panoptic_files(root: Path) -> list[Path]:
    """The JSON files of this format in a folder or in its `annotations`."""
    places = (root, root / "annotations")
    return [path for place in places for path in files_in(place, ".json") if json_kind(path) == "coco_panoptic"]


def panoptic_splits(root: Path) -> dict[str, Path]:
    """By the split's own name, as train2017."""
    return {path.stem.removeprefix("panoptic_"): path for path in panoptic_files(root)}


def read_panoptic(path: Path, images: Path | None = None, split: str | None = None) -> Source:
    """path: the JSON, or a folder in which `split` is found. Raises `UserError`."""
    if path.is_dir():
        path, split = _of_split(path, split)
    content = read_panoptic_json(path)
    folder = images or image_folder(path, path.parent, _usual(path))
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such image folder (the images of {path}): name it with data.train.images or data.val.images"
        )
    labels = panoptic_labels(content, path)
    things = [entry for entry in content["categories"] if entry["isthing"]]
    categories = [{"id": e["id"], "name": class_name(e)} for e in things or _stuff(content)]
    source = Source(
        path, folder, {"images": content["images"], "annotations": [], "categories": categories}, split=split
    )
    source.labels, files = labels, labels.files
    sizes = {entry["id"]: size_of(entry) for entry in content["images"]}
    kept = Kept("coco_panoptic", path, [path, *(file.file for file in files.values())])
    objects = kept.load()
    if objects is None:
        objects = _objects(content["annotations"], files, sizes, {entry["id"] for entry in things}, source.problems)
        if not source.problems:
            kept.keep(objects)
    else:
        source.notes.append("its PNGs are as they were when they were read before")
    for k, (segment, entry) in enumerate(objects, 1):
        source.content["annotations"].append({"id": k, **entry})
        source.origins[k] = f"{files[entry['image_id']].file}: segment {segment}"
    if without := len(content["images"]) - len(files):
        source.remarks["images without a panoptic annotation (not labelled)"] = without
    return source


def read_panoptic_json(path: Path) -> dict[str, Any]:
    """What the JSON holds, checked (`check_panoptic`). Raises `UserError`, also where its folder of PNGs is not there."""
    content: dict[str, Any] = read_json(path)
    check_panoptic(content, path)
    if not path.with_suffix("").is_dir():
        raise UserError(
            f"{path.with_suffix('')}: no such folder (the PNGs of {path}, in a folder of its name beside it)"
        )
    return content


def panoptic_labels(content: dict[str, Any], path: Path) -> LabelSource:
    """The label maps of the JSON's images that have an annotation. Raises `UserError` for more classes than these hold."""
    things = [entry for entry in content["categories"] if entry["isthing"]]
    stuff = _stuff(content)
    number = {entry["id"]: k for k, entry in enumerate([*things, *stuff])}
    label = {e["id"]: THINGS for e in things} | {e["id"]: k for k, e in enumerate(stuff, 1 if things else 0)}
    files: dict[int | str, LabelFile] = {}
    for entry in content["annotations"]:
        values = [
            Value(s["id"], label[s["category_id"]], number[s["category_id"]], bool(s.get("iscrowd")))
            for s in entry["segments_info"]
        ]
        files[entry["image_id"]] = LabelFile(path.with_suffix("") / entry["file_name"], values, ids=True)
    names = [str(class_name(entry)) for entry in [*things, *stuff]]
    classes = [*([(0, ALL_THINGS)] if things else []), *((entry["id"], str(class_name(entry))) for entry in stuff)]
    refuse_many([name for _, name in classes], path)
    return LabelSource(classes, files, names, len(things))


def _stuff(content: dict[str, Any]) -> list[Entry]:
    return sorted((entry for entry in content["categories"] if not entry["isthing"]), key=lambda entry: entry["id"])


def _objects(
    annotations: list[Entry],
    files: Mapping[int | str, LabelFile],
    sizes: dict[int, tuple[int, int] | None],
    is_thing: set[int],
    problems: list[str],
) -> list[tuple[int, Entry]]:
    """Of each thing in the PNGs its segment's id and COCO's entry, without an id; what is wrong is added to `problems`."""
    found: list[tuple[int, Entry]] = []
    jobs = [(entry, files[entry["image_id"]], sizes[entry["image_id"]], is_thing) for entry in annotations]
    with ThreadPoolExecutor(4) as pool:
        for entry, read in zip(annotations, pool.map(_read, jobs), strict=True):
            problems += read.problems
            for segment, bbox, rle in read.things:
                found.append((segment["id"], {
                    "image_id": entry["image_id"], "category_id": segment["category_id"], "bbox": bbox, "segmentation": rle,
                    "iscrowd": int(bool(segment.get("iscrowd"))),
                }))  # fmt: skip
    return found


def _of_split(root: Path, split: str | None) -> tuple[Path, str]:
    there = panoptic_splits(root)
    wanted = split or "train"
    found = [name for name in there if wanted in (name, usual_name(name))]
    if wanted in ALIASES and len(there) == 1 and not names_split(*there.values()):
        found = list(there)
    if len(found) != 1:
        raise UserError(
            f"{root}: {'several' if found else 'no'} panoptic annotations of {wanted} (there are: "
            f"{', '.join(sorted(there)) or 'none'}): name the file with data.train.annotations or data.val.annotations"
        )
    return there[found[0]], found[0]


def _usual(path: Path) -> Path | None:
    """COCO's own folder of a split's images."""
    return path.parent.parent / path.stem.removeprefix("panoptic_")


def _read(job: tuple[Entry, LabelFile, tuple[int, int] | None, set[int]]) -> _Read:
    entry, file, size, is_thing = job
    if size is None:
        return _Read([], [])  # reported with the images
    try:
        ids = read_values(file, size)
    except UserError as error:
        return _Read([], [str(error)])
    there = set(np.unique(ids).tolist())
    listed_ids = {segment["id"] for segment in entry["segments_info"]}
    problems = [
        f"{file.file}: has no pixel of segment {identity}, which its segments_info lists: remove the segment, or draw it"
        for identity in sorted(listed_ids - there)
    ]
    problems += [
        f"{file.file}: has the id {identity}, which its segments_info does not list: add the segment, or write 0 there"
        for identity in sorted(there - listed_ids - {0})
    ]
    wanted = [s for s in entry["segments_info"] if s["category_id"] in is_thing and s["id"] in there]
    return _Read(list(_things(ids, wanted)), problems)


def _things(ids: np.ndarray, segments: list[Entry]) -> Iterator[tuple[Entry, list[float], Any]]:
    size = (ids.shape[0], ids.shape[1])
    for segment in segments:
        mask = ids == segment["id"]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        y, x, y2, x2 = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        yield segment, [float(x), float(y), float(x2 - x), float(y2 - y)], encode_crop(mask[y:y2, x:x2], (y, x), size)


def check_panoptic(content: Any, path: Path) -> None:
    """Raises one `UserError` for all that is not of this format's structure."""
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(e, dict) for e in content[key]) for key in keys
    ):
        raise UserError(f"{path}: must be a JSON object with the lists images, annotations and categories")
    if content["annotations"] and not any("segments_info" in entry for entry in content["annotations"]):
        raise UserError(f"{path}: is not COCO's panoptic JSON: its annotations have no segments_info")
    problems: list[str] = []
    categories = [entry.get("id") for entry in content["categories"]]
    images = [entry.get("id") for entry in content["images"]]
    for kind, given in (("category", categories), ("image", images)):
        problems += [f"{kind} id {i!r} is not an integer" for i in given if not is_id(i, int)]
        whole = Counter(i for i in given if is_id(i, int))
        problems += [f"{kind} id {i} is used twice" for i, count in whole.items() if count > 1]
    for entry in content["categories"]:
        if not class_name(entry) or entry.get("isthing") not in (0, 1):
            problems.append(f"category {entry.get('id')!r}: needs a name, and isthing, 0 or 1")
    if not content["categories"]:
        problems.append("lists no categories")
    known_images = {i for i in images if is_id(i, int)}
    known_categories = {i for i in categories if is_id(i, int)}
    seen = set()
    for k, entry in enumerate(content["annotations"]):
        image = entry.get("image_id")
        what = f"annotation of image {image!r}"
        if not is_id(image, int) or image not in known_images or image in seen:
            problems.append(f"annotation number {k}: image_id {image!r} is not listed, or has another annotation")
            continue
        seen.add(image)
        name, segments = entry.get("file_name"), entry.get("segments_info")
        if not isinstance(name, str) or Path(name).name != name:
            problems.append(f"{what}: file_name {name!r} is not the name of a PNG")
        if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
            problems.append(f"{what}: segments_info is not a list of objects")
            continue
        ids = [s.get("id") for s in segments]
        for segment in segments:
            identity, category = segment.get("id"), segment.get("category_id")
            if not is_id(identity, int) or not 0 < identity < 2**24 or ids.count(identity) > 1:
                problems.append(
                    f"{what}: segment id {identity!r} is not a number from 1 to {2**24 - 1}, or is used twice"
                )
            if not is_id(category, int) or category not in known_categories:
                problems.append(f"{what}: segment {identity!r}: category_id {category!r} is not listed")
    if problems:
        raise listed(f"{path}: {len(problems)} problem(s):", problems)
