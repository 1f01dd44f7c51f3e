"""Datasets made from datasets: merged, sampled, with other classes. `Source` in, `Source` out; no file is touched."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resdet.data.formats.common import Source
from resdet.errors import UserError, listed


def merge(sources: Sequence[Source]) -> Source:
    """All images and objects of several sources, classes joined by name, in the order in which they first appear.

    Ids are counted anew from 1; file names are relative to the folder that holds all image folders.
    Raises `UserError` for an image file that is in two sources: its objects would be annotated twice.
    """
    root = Path(os.path.commonpath([source.images.resolve() for source in sources]))
    classes: dict[str, dict[str, Any]] = {}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    origins: dict[int, str] = {}
    taken: dict[str, Source] = {}
    problems: list[str] = []
    for source in sources:
        new_class = {}
        for category in source.content["categories"]:
            entry = classes.setdefault(str(category["name"]), {**category, "id": len(classes) + 1})
            new_class[category["id"]] = entry["id"]
        new_image = {}
        for image in source.content["images"]:
            name = Path(os.path.relpath(source.images.resolve() / image["file_name"], root)).as_posix()
            if name in taken:
                problems.append(f"{name} is in {taken[name].path} and in {source.path}: leave one of them out")
            taken[name] = source
            new_image[image["id"]] = len(images) + 1
            images.append({**image, "id": len(images) + 1, "file_name": name})
        for entry in source.content["annotations"]:
            changed = {"image_id": new_image[entry["image_id"]], "category_id": new_class[entry["category_id"]]}
            annotations.append({**entry, "id": len(annotations) + 1, **changed})
            origins[len(annotations)] = source.origins.get(entry["id"], f"{source.path}: annotation {entry['id']}")
    if problems:
        raise listed(f"{len(problems)} image(s) are in more than one dataset:", problems)
    content = {"images": images, "annotations": annotations, "categories": list(classes.values())}
    remarks: Counter[str] = sum((source.remarks for source in sources), Counter())
    return Source(root, root, content, origins, remarks, [p for source in sources for p in source.problems])


def sample(source: Source, count: int, seed: int) -> Source:
    """`count` images drawn at random, in their order. Raises `UserError` if there are fewer."""
    images = source.content["images"]
    if count > len(images):
        raise UserError(f"{source.path}: has {len(images)} images, fewer than the {count} asked for")
    chosen = sorted(np.random.default_rng(seed).permutation(len(images))[:count].tolist())
    return subset(source, {images[k]["id"] for k in chosen})


def remap(source: Source, names: Mapping[str, str | None]) -> Source:
    """Classes renamed, merged (two old names, one new) or dropped (None); those that `names` leaves out stay as they are.

    The new classes keep the order of the old ones. Raises `UserError` for a name that is no class, or if none is left.
    """
    classes = [str(category["name"]) for category in source.content["categories"]]
    if unknown := [name for name in names if name not in classes]:
        raise UserError(
            f"{source.path}: no class {', '.join(map(repr, unknown))}; the classes are {', '.join(classes)}"
        )
    new_names = [names.get(name, name) for name in classes]
    kept = list(dict.fromkeys(name for name in new_names if name is not None))
    if not kept:
        raise UserError(f"{source.path}: every class would be dropped")
    new_id = {
        category["id"]: None if name is None else kept.index(name) + 1
        for category, name in zip(source.content["categories"], new_names, strict=True)
    }
    annotations = [
        {**entry, "category_id": new_id[entry["category_id"]]}
        for entry in source.content["annotations"]
        if new_id[entry["category_id"]] is not None
    ]
    content = {
        **source.content,
        "categories": [{"id": k, "name": name} for k, name in enumerate(kept, 1)],
        "annotations": annotations,
    }
    remarks = source.remarks + Counter()
    if dropped := len(source.content["annotations"]) - len(annotations):
        remarks["objects of dropped classes (left out; they count as background)"] = dropped
    return Source(source.path, source.images, content, source.origins, remarks, source.problems)


def subset(source: Source, images: set[Any]) -> Source:
    """Some of a source's images, by id, with their objects and all categories."""
    content = {
        **source.content,
        "images": [entry for entry in source.content["images"] if entry["id"] in images],
        "annotations": [entry for entry in source.content["annotations"] if entry["image_id"] in images],
    }
    return Source(source.path, source.images, content, source.origins, source.remarks, source.problems)
