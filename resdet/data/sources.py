"""Which annotations a config means, in which format, and which images of them belong to a split -> `Source`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resdet.config import DataConfig, DataFormat, SplitConfig, data_root
from resdet.data.formats.coco import find_annotations, image_folder, named_annotations, read_coco_files
from resdet.data.formats.common import Reader, Source, read_list
from resdet.data.formats.detect import FINDERS, Detected, detect, is_empty, unknown
from resdet.data.formats.labelme import read_labelme
from resdet.data.formats.names import NameIndex
from resdet.data.formats.voc import read_voc
from resdet.data.formats.yolo import read_yolo
from resdet.data.rules import Id, id_kind, is_id
from resdet.errors import UserError

Split = Literal["train", "val"]


def open_split(config: DataConfig, split: Split, *, tolerant: bool = False) -> Source:
    """The annotations of a split. Raises `UserError`, also for `Source.problems` unless `tolerant`, for who reports them."""
    given = config.train if split == "train" or config.val_fraction else config.val
    source = read_source(config, given, split)
    source = source if tolerant else source.whole()
    if config.val_fraction:
        held_out = _held_out(source, config.val_fraction, config.group, config.split_seed)
        for name, part in (("val", held_out), ("train", _ids(source) - held_out)):
            if not part and _ids(source):
                raise UserError(
                    f"data.val_fraction={config.val_fraction:g} of the {len(_ids(source))} images of {source.path} leaves none "
                    f"for {name}: use another share, or a validation set of its own (data.val)"
                )
        source = subset(source, held_out if split == "val" else _ids(source) - held_out)
    chosen = config.train if split == "train" else config.val
    source = _listed(source, chosen.files) if chosen.files else source
    if config.limit is None:
        return source
    return subset(source, _ids(source, config.limit))


def read_source(config: DataConfig, given: SplitConfig, split: Split) -> Source:
    """All that the config names for a split, whatever the format."""
    found, images = detected(config, given), given.images
    key = f"data.{'train' if config.val_fraction else split}"
    refuse_what_has_no_effect(found.format, given, key)
    if found.format == "coco":
        images, annotations = coco_paths(config, split)
        found = found._replace(path=annotations)
    # Where a split is made, it is made of all of a VOC folder or of YOLO's "train".
    source = read_whole(config, found, images, given.split or (None if config.val_fraction else split))
    if given.split and source.split is None:
        raise UserError(f"{source.path}: has no splits, so {key}.split={given.split} means nothing here")
    return source


def refuse_what_has_no_effect(kind: DataFormat, given: SplitConfig, key: str) -> None:
    """Raises `UserError` for keys of `data.train` or `data.val` (`key`) that this format does not use."""
    if kind == "labelme" and given.split is not None:
        raise UserError(
            f"{key}.split={given.split}: labelme's files have no named splits; set {key}.annotations=FOLDER"
        )
    if kind == "yolo" and given.images is not None:
        raise UserError(f"{key}.images={given.images} has no effect: YOLO's data.yaml names the image folders")
    if kind == "coco" and None not in (given.split, given.annotations):
        raise UserError(
            f"{key}.split={given.split} has no effect beside {key}.annotations={given.annotations}: one file is one split"
        )


def read_whole(config: DataConfig, found: Detected, images: Path | None, split: str | None) -> Source:
    """A data set of a known format, or one split of it by the data set's own name."""
    readers: dict[DataFormat, Reader] = {
        "coco": read_coco_files,
        "voc": partial(read_voc, origin=config.voc_origin),
        "yolo": read_yolo,
        "labelme": read_labelme,
    }
    source = readers[found.format](found.path, images, split)
    part = f", the split {source.split}" if source.split else ""
    source.notes.insert(0, f"read as {found.format}{part}: {found.reason}")
    return source


def detected(config: DataConfig, given: SplitConfig) -> Detected:
    """`data.format`, or what the files look like, and the file or folder to read. Raises `UserError`."""
    root = data_root(config)
    place = given.annotations or (given.images if given.images and not config.root else root)
    if config.format != "auto":
        return _of_format(config.format, place)
    found = detect(place)
    if found and found.format == "coco":
        return Detected("coco", place, found.reason)
    if found:
        return found
    if place.is_file() or not is_empty(place):
        raise unknown(place)
    return Detected("coco", place, "nothing is there")


def find_format(config: DataConfig, given: SplitConfig) -> DataFormat:
    """`data.format`, or what the files look like."""
    return detected(config, given).format


def _of_format(kind: DataFormat, place: Path) -> Detected:
    """What the reader of a given format takes."""
    reason = "data.format says so"
    found = FINDERS[kind](place) if place.is_dir() and kind == "yolo" else None
    if found:
        return found._replace(reason=reason)
    return Detected(kind, place / "data.yaml" if kind == "yolo" and not place.is_file() else place, reason)


def coco_paths(config: DataConfig, split: Split) -> tuple[Path, Path]:
    """(image folder, annotation file) of a split in COCO's format: as given, or as they are found below `data.root`.

    Raises `UserError` for a split of a name that is not there.
    """
    part: Split = "train" if config.val_fraction else split
    given: SplitConfig = config.train if part == "train" else config.val
    root = given.annotations or data_root(config)
    if root.is_file() or root.suffix:
        annotations, root = root, data_root(config) if config.root else root.parent
    elif given.split is not None:
        annotations = named_annotations(root, given.split, f"data.{part}")
    else:
        annotations = find_annotations(root, part)
    return given.images or image_folder(annotations, root), annotations


def subset(source: Source, images: set[Id]) -> Source:
    """Some of a source's images, with their objects, all categories, and what belongs to no image: its error is not lost."""
    left_out = _ids(source) - images
    content = {
        **source.content,
        "images": [entry for entry in source.content["images"] if _id(entry.get("id")) not in left_out],
        "annotations": [e for e in source.content["annotations"] if _id(e.get("image_id")) not in left_out],
    }
    return replace(source, content=content)


def _ids(source: Source, count: int | None = None) -> set[Id]:
    """Of the first `count` images."""
    kind = id_kind(source.content["images"])
    return {entry["id"] for entry in source.content["images"][:count] if is_id(entry.get("id"), kind)}


def _id(value: Any) -> Id | None:
    return value if is_id(value) or is_id(value, str) else None


def _listed(source: Source, listing: Path) -> Source:
    """The images that a list file names: by path, file name or stem, one a line. Raises `UserError` for unknown ones."""
    by_name: dict[str, Id] = {}
    for entry in source.content["images"]:
        by_name.setdefault(Path(str(entry.get("file_name"))).as_posix(), entry.get("id"))
    index = NameIndex(by_name)
    wanted = read_list(listing)
    chosen: set[Id] = set()
    unknown: list[str] = []
    for line in wanted:
        try:
            chosen.add(by_name[index.find(line, source.remarks)])
        except UserError as error:
            unknown.append(f"{line!r}" if " may be " not in str(error) else str(error))
    if unknown:
        raise UserError(
            f"{listing}: {len(unknown)} of {len(wanted)} lines name no image of {source.path}, the first: {unknown[0]}"
        )
    return subset(source, chosen)


def _held_out(source: Source, share: float, pattern: str | None, seed: int) -> set[Id]:
    """Image ids for validation: about `share` of every class, rarest first (iterative stratification, Sechidis et al. 2011).

    pattern: a regular expression on file names; images that match equally (its first group, or all of the match) stay
    together, such as the frames of one video.
    """
    groups: dict[str, list[Id]] = {}
    unmatched: list[str] = []
    kind_of_id = id_kind(source.content["images"])
    for entry in source.content["images"]:
        if not is_id(entry.get("id"), kind_of_id):
            continue  # an error of every split
        name = str(entry.get("file_name"))
        match = re.search(pattern, name) if pattern else None
        unmatched += [name] if pattern and not match else []
        groups.setdefault(match[1] if match and match.groups() else match[0] if match else name, []).append(entry["id"])
    images = sum(map(len, groups.values()))
    if pattern and unmatched and len(unmatched) == images:
        raise UserError(f"data.group={pattern!r} matches none of the {images} file names, such as {unmatched[0]!r}")
    if pattern and len(groups) == 1 and images > 1:
        raise UserError(f"data.group={pattern!r} puts all {images} images into one group ({next(iter(groups))!r})")
    if unmatched:
        source.remarks["images whose names data.group does not match (each counts as a group of its own)"] = len(
            unmatched
        )
    group_of = {image: group for group, members in groups.items() for image in members}
    contents: dict[str, Counter[Any]] = {group: Counter({None: len(members)}) for group, members in groups.items()}
    for entry in source.content["annotations"]:
        if _id(entry.get("image_id")) in group_of:
            contents[group_of[entry["image_id"]]][_id(entry.get("category_id"))] += 1
    totals: Counter[Any] = sum(contents.values(), Counter())
    held: Counter[Any] = Counter()
    result: set[Id] = set()
    order = [sorted(groups)[k] for k in np.random.default_rng(seed).permutation(len(groups))]
    waiting = dict.fromkeys(order)
    for kind in sorted(totals, key=lambda k: (k is None, totals[k])):  # rarest class first, then what has no object
        for group in [g for g in waiting if kind in contents[g]]:
            # Half of what a group brings may overshoot: it goes where the count ends up nearer to its aim.
            if held[kind] + contents[group][kind] / 2 <= share * totals[kind]:
                held += contents[group]
                result.update(groups[group])
            del waiting[group]
    return result
