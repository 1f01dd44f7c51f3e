"""COCO's JSON as COCO, Roboflow and other tools lay it out: which file is a split's, and where its images lie."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from resdet.class_names import few
from resdet.data.coco import read_coco_json
from resdet.data.formats.common import ALIASES, Source, usual_name
from resdet.data.formats.glimpse import HEAD, head_of, json_kind
from resdet.data.image_folder import VARIANT, take_variants
from resdet.data.normalise import normalise
from resdet.data.root_category import without_root
from resdet.data.stand_ins import stand_in
from resdet.errors import UserError


def read_coco_files(path: Path, images: Path | None, split: str | None) -> Source:
    """A JSON file; `split` is what it is called. Raises `UserError`."""
    content = read_coco_json(path)
    content["images"] = with_names(content["images"])
    folder = images or image_folder(path, path.parent)
    if not folder.is_dir():
        what = stand_in(head_of(folder), folder) or "no such image folder"
        raise UserError(f"{folder}: {what} (the images of {path})")
    content["images"], taken, problems = take_variants(content["images"], folder)
    plain = normalise(content, folder)
    content, left_out = without_root(plain.content)
    remarks = Counter(left_out) + Counter({VARIANT: taken})
    problems += plain.problems
    origins = {identity: f"{path}: {text}" for identity, text in plain.origins.items()}
    return Source(path, folder, content, origins, remarks, problems, split=split, readings=plain.readings)


def with_names(images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of "images" with the file names that LVIS leaves to the address of COCO's image: folder and file."""
    return [
        {**entry, "file_name": _of_address(entry["coco_url"])}
        if "file_name" not in entry and isinstance(entry.get("coco_url"), str)
        else entry
        for entry in images
    ]


def _of_address(url: str) -> str:
    return "/".join(url.rsplit("/", 2)[-2:])


def named_annotations(root: Path, name: str, key: str) -> Path:
    """The JSON file of a split by the data set's own name for it; `key` is of the config. Raises `UserError`."""
    there = _by_split(root)
    if name in there:
        return there[name]
    found = find_annotations(root, name)
    if not found.is_file():
        others = [f"{path.relative_to(root)}" for path in sorted(root.glob("*.json")) if json_kind(path) == "coco"]
        hint = (
            f"; name a file with {key}.annotations, such as {few(others)}, and set {key}.split=null" if others else ""
        )
        raise UserError(
            f"{key}.split={name}: {root} has no such split (it has: {', '.join(sorted(there)) or 'none'}){hint}"
        )
    return found


def _by_split(root: Path) -> dict[str, Path]:
    """The JSON files of COCO's and Roboflow's layouts by the names of their splits."""
    there = {path.parent.name: path for path in sorted(root.glob("*/_annotations.coco.json"))}
    there |= {p.stem.removeprefix("instances_"): p for p in sorted((root / "annotations").glob("instances_*.json"))}
    return there | {p.stem: p for p in sorted((root / "annotations").glob("person_keypoints_*.json"))}


def coco_splits(root: Path) -> dict[str, Path]:
    """The splits below `root` by name, each with its file."""
    found = _by_split(root)
    for name in ("train", "val", "test"):
        with contextlib.suppress(UserError):  # several files may be meant
            file = find_annotations(root, name)
            if file.is_file() and file not in found.values():
                found[name] = file
    return found


def find_annotations(root: Path, split: str) -> Path:
    """The JSON file of a split below `root`, or the only one there is; where there is none, COCO's own name for it.

    Raises `UserError` for several, or where all there are belong to other splits.
    """
    names = ALIASES.get(split, (split,))
    usual = root / "annotations" / f"instances_{split}2017.json"
    places = [root / name / "_annotations.coco.json" for name in names]
    places += [usual, *(root / "annotations" / f"instances_{name}.json" for name in names)]
    for place in places:
        if place.is_file():
            return place
    folders = [root, root / "annotations", *(root / name for name in names)]
    there = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    there = [path for path in there if json_kind(path) == "coco"]
    ours = [path for path in there if {path.parent.name.lower(), *_words(path.stem)} & set(names)]
    if len(ours) > 1:
        raise UserError(
            f"{root}: {' and '.join(str(path.relative_to(root)) for path in ours[:4])} may both be the annotations of {split}: "
            "name one with data.train.annotations=… and data.val.annotations=…"
        )
    if not ours and len(there) == 1 and not names_split(there[0]) and split in ALIASES:
        return there[0]
    if there and not ours and split in ALIASES:
        found = few([str(path.relative_to(root)) for path in there])
        other = ", or use data.val_fraction=0.2 to hold out a split" * (split == "val")
        raise UserError(
            f"{root}: has no annotations of {split}, but {found}: name the file with data.{split}.annotations=…{other}"
        )
    return ours[0] if ours else usual


def image_folder(annotations: Path, root: Path, usual: Path | None = None) -> Path:
    """Where the images of a JSON file lie: a folder near it, by name, or the one that has the first image it lists.

    usual: the data set's own folder for such images, where it has one.
    """
    match = re.fullmatch(r"(?:instances|person_keypoints)_(\w+)", annotations.stem)
    if match and (annotations.parent.parent / match[1]).is_dir():
        return annotations.parent.parent / match[1]
    if annotations.name == "_annotations.coco.json":
        return annotations.parent
    near = [annotations.parent, root, annotations.parent.parent]
    folders = [p for folder in near for p in (folder, folder / "images", folder / annotations.stem)]
    folders += [
        folder / name for folder in near for word in _words(annotations.stem) for name in (word, f"images/{word}")
    ]
    folders = [usual, *folders] if usual and usual.is_dir() else folders
    names = _first_names(annotations)
    found = next((folder for folder in folders if any(_is_file(folder, name) for name in names)), None)
    if found:
        return found
    if usual and usual.is_dir():
        return usual
    return (
        annotations.parent.parent / match[1]
        if match and annotations.parent.name == "annotations"
        else annotations.parent
    )


def names_split(path: Path) -> bool:
    """Whether a word of the file's name is that of a split."""
    return any(usual_name(word) for word in _words(path.stem))


def _words(stem: str) -> list[str]:
    return re.sub(r"20\d\d", "", stem.lower()).replace("-", "_").replace(".", "_").split("_")


def _first_names(path: Path, count: int = 5) -> list[str]:
    """The first file names in a JSON file, as they stand there."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD).decode("utf-8", "replace")
    except OSError:
        return []
    names = re.findall(r'"file_name"\s*:\s*"([^"\\]+)"', head)
    return (names or [_of_address(url) for url in re.findall(r'"coco_url"\s*:\s*"([^"\\]+)"', head)])[:count]


def _is_file(folder: Path, name: str) -> bool:
    try:
        return (folder / name).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False
