"""Which annotations a config means, in which format, and which images of them belong to a split -> `Source`."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resdet.config import DataConfig, SplitConfig, data_root, split_paths
from resdet.data.coco import is_id, read_coco_json
from resdet.data.file_names import REMARK, take_variants
from resdet.data.formats.common import Source, read_list
from resdet.data.formats.labelme import read_labelme
from resdet.data.formats.voc import read_voc
from resdet.data.formats.yolo import read_yolo
from resdet.data.root_category import without_root
from resdet.errors import UserError

Split = Literal["train", "val"]
Format = Literal["coco", "voc", "yolo", "labelme"]


def open_split(config: DataConfig, split: Split, *, tolerant: bool = False) -> Source:
    """The annotations of a split. Raises `UserError`, also for `Source.problems` unless `tolerant`, for who reports them."""
    given = config.train if split == "train" or config.split else config.val
    source = read_source(config, given, split)
    source = source if tolerant else source.whole()
    if config.split:
        held_out = _held_out(source, config.split, config.group, config.split_seed)
        for name, part in (("val", held_out), ("train", _ids(source) - held_out)):
            if not part and _ids(source):
                raise UserError(
                    f"data.split={config.split:g} of the {len(_ids(source))} images of {source.path} leaves none for {name}: "
                    "use another share, or a validation set of its own (data.val)"
                )
        source = subset(source, held_out if split == "val" else _ids(source) - held_out)
    chosen = config.train if split == "train" else config.val
    source = _listed(source, chosen.files) if chosen.files else source
    if config.limit is None:
        return source
    return subset(source, _ids(source, config.limit))


def read_source(config: DataConfig, given: SplitConfig, split: Split) -> Source:
    """All that the config names for a split, whatever the format."""
    kind = find_format(config, given)
    root = data_root(config)
    refuse_what_has_no_effect(kind, given, "train" if config.split else split)
    if kind == "voc":
        named = given.split or (split if not config.split and (root / "ImageSets").is_dir() else None)
        return read_voc(given.annotations or given.images or root, named)
    if kind == "yolo":
        return read_yolo(given.annotations or _data_yaml(root), given.split or ("train" if config.split else split))
    if kind == "labelme":
        return read_labelme(given.annotations or given.images or root)
    images, annotations = split_paths(config, "train" if config.split else split)
    content, remarks = without_root(read_coco_json(annotations))
    if not images.is_dir():
        raise UserError(f"{images}: no such image folder (the pictures of {annotations})")
    content["images"], taken, problems = take_variants(content["images"], images)
    counted = Counter(remarks) + Counter({REMARK: taken})
    return Source(annotations, images, content, remarks=counted, problems=problems)


def refuse_what_has_no_effect(kind: Format, given: SplitConfig, split: Split) -> None:
    """Raises `UserError` for keys of `data.train` or `data.val` that this format does not use."""
    key = f"data.{split}"
    if kind == "labelme" and given.split is not None:
        raise UserError(
            f"{key}.split={given.split}: labelme's files have no named splits; set {key}.annotations=FOLDER"
        )
    if kind == "yolo" and given.images is not None:
        raise UserError(f"{key}.images={given.images} has no effect: YOLO's data.yaml names the image folders")
    if kind == "voc" and None not in (given.images, given.annotations) and given.images != given.annotations:
        raise UserError(
            f"{key}.images={given.images} has no effect: Pascal VOC's images lie in {given.annotations}/JPEGImages"
        )


def find_format(config: DataConfig, given: SplitConfig) -> Format:
    """`data.format`, or what the files look like."""
    if config.format != "auto":
        return config.format
    root, named = data_root(config), given.annotations
    if named and named.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    folder = named if named and named.is_dir() else given.images if given.images and not named else root
    if named and not named.is_dir():
        return "coco"
    if (folder / "Annotations").is_dir() or any(folder.glob("*.xml")):
        return "voc"
    if folder == root and _data_yaml(root).is_file():
        return "yolo"
    if not (folder / "annotations").is_dir() and any(is_labelme(path) for path in _first(folder, "*.json")):
        return "labelme"
    return "coco"


def subset(source: Source, images: set[int]) -> Source:
    """Some of a source's images, with their objects, all categories, and what belongs to no image: its error is not lost."""
    left_out = _ids(source) - images
    content = {
        **source.content,
        "images": [entry for entry in source.content["images"] if _id(entry.get("id")) not in left_out],
        "annotations": [e for e in source.content["annotations"] if _id(e.get("image_id")) not in left_out],
    }
    return Source(source.path, source.images, content, source.origins, source.remarks, source.problems)


def _ids(source: Source, count: int | None = None) -> set[int]:
    """Of the first `count` images."""
    return {entry["id"] for entry in source.content["images"][:count] if is_id(entry.get("id"))}


def _id(value: Any) -> int | None:
    return value if is_id(value) else None


def _data_yaml(root: Path) -> Path:
    return next(
        (root / name for name in ("data.yaml", "data.yml", "dataset.yaml") if (root / name).is_file()),
        root / "data.yaml",
    )


def _first(folder: Path, pattern: str, count: int = 3) -> list[Path]:
    return sorted(folder.rglob(pattern))[:count] if folder.is_dir() else []


def is_labelme(path: Path) -> bool:
    """Whether a file is labelme's JSON of a picture."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "shapes" in content


def _listed(source: Source, listing: Path) -> Source:
    """The images that a list file names: by path, file name or stem, one a line. Raises `UserError` for unknown ones."""
    by_name: dict[str, int] = {}
    for entry in source.content["images"]:
        file = Path(str(entry.get("file_name")))
        by_name |= dict.fromkeys((file.as_posix(), file.name, file.stem), entry.get("id"))
    wanted = read_list(listing)
    unknown = [line for line in wanted if line not in by_name and Path(line).name not in by_name]
    if unknown:
        raise UserError(
            f"{listing}: {len(unknown)} of {len(wanted)} lines name no image of {source.path}, the first: {unknown[0]!r}"
        )
    return subset(source, {by_name[line] if line in by_name else by_name[Path(line).name] for line in wanted})


def _held_out(source: Source, share: float, pattern: str | None, seed: int) -> set[int]:
    """Image ids for validation: about `share` of every class, rarest first (iterative stratification, Sechidis et al. 2011).

    pattern: a regular expression on file names; images that match equally (its first group, or all of the match) stay
    together, such as the frames of one video.
    """
    groups: dict[str, list[int]] = {}
    unmatched: list[str] = []
    for entry in source.content["images"]:
        if not is_id(entry.get("id")):
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
    result: set[int] = set()
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
