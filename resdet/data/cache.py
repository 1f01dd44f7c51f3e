"""The binary index of a large annotation file, cached so that the next start maps it instead of parsing gigabytes of JSON."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Literal

from resdet.config import DataConfig, of_source
from resdet.data.coco import Annotations
from resdet.data.index import ImageList
from resdet.data.kept import cache_folder
from resdet.data.sources import coco_paths, find_format
from resdet.keypoints import Skeleton

LARGE = 64 * 2**20  # bytes of JSON; smaller files are read in seconds
VERSION = 5  # of the arrays' layout, and of how annotations are read


def cache_path(data: DataConfig, split: Literal["train", "val"]) -> Path | None:
    """Where the index of a split is cached; None if it is not: a small file, another format, part of a file.

    The name changes with the file's content (by size and time of change) and place.
    """
    given = data.train if split == "train" else data.val
    if isinstance(given, list) or getattr(given, "known_classes", None):
        return None
    data = of_source(data, given)
    if data.val_fraction or given.files or data.limit or find_format(data, given) != "coco":
        return None
    images, annotations = coco_paths(data, given, split)
    try:
        state = annotations.stat()
    except OSError:
        return None
    if state.st_size < LARGE:
        return None
    text = f"{VERSION} {annotations.resolve()} {state.st_size} {state.st_mtime_ns} {images.resolve()}"
    return cache_folder() / "index" / f"{annotations.stem}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def load_index(path: Path | None) -> Annotations | None:
    """The annotations kept at `path`, memory-mapped; None if there are none, or none that can be read."""
    if path is None or not (path / "note.json").is_file():
        return None
    try:
        images, note = ImageList.load(path)
        edges = [(a, b) for a, b in note["keypoint_edges"]]
        skeleton = Skeleton(note["keypoint_names"], edges) if note["keypoint_names"] else None
        return Annotations(
            Path(note["source"]), images, note["class_names"], note["category_ids"], Counter(note["skipped"]),
            skeleton=skeleton,
        )  # fmt: skip
    except (OSError, ValueError, KeyError):  # damaged, or of another version: it is only a cache
        return None


def keep_index(annotations: Annotations, path: Path | None) -> Annotations:
    """The same annotations, mapped from a file at `path`; unchanged where they are not kept or cannot be."""
    if path is None:
        return annotations
    note = {
        "source": str(annotations.source),
        "class_names": annotations.class_names,
        "category_ids": annotations.category_ids,
        "skipped": dict(annotations.skipped),
        "keypoint_names": annotations.skeleton.names if annotations.skeleton else [],
        "keypoint_edges": annotations.skeleton.edges if annotations.skeleton else [],
    }
    try:
        annotations.images.save(path, note)
    except OSError:  # a full or read-only home: continue from memory
        return annotations
    return load_index(path) or annotations
