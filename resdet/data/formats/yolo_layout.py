"""YOLO's data.yaml, Darknet's obj.data or a list of class names -> the classes, and where images and labels lie."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from resdet.config import load_yaml
from resdet.data.formats.common import ALIASES, SPLITS, all_files, no_images, read_list, read_text, unread_images
from resdet.data.formats.names import NameIndex
from resdet.data.image_folder import folded
from resdet.data.images import images_among
from resdet.errors import UserError


class Layout(NamedTuple):
    """root: what entries are relative to first. entries: split -> folders, lists or images; the key "" for all of a data set
    that has no splits. keypoints: how many an object has, and 2 or 3 numbers for each; None for boxes and polygons."""

    file: Path
    root: Path
    classes: list[str]
    entries: dict[str, list[str]]
    keypoints: tuple[int, int] | None
    keypoint_names: list[str]


def read_layout(file: Path) -> Layout:
    """Raises `UserError`."""
    if file.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(file)
    if file.suffix.lower() == ".data":
        return _from_darknet(file)
    root = file.parent.parent if file.parent.name == "labels" else file.parent
    return Layout(file, root, _classes(_name_lines(file), file), _folders(root), None, [])


def _from_yaml(file: Path) -> Layout:
    try:
        values = load_yaml(read_text(file), as_text=True)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise (
            error if isinstance(error, UserError) else UserError(f"{file}: cannot be read as YAML ({error})")
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: must hold path, train, val and names")
    root = _below(file.parent, str(_given(values, "path") or "."))
    entries: dict[str, list[str]] = {}
    for split in SPLITS:
        if given := _given(values, split):
            entries[split] = [str(entry) for entry in given] if isinstance(given, list) else [str(given)]
    classes = _classes(_numbered(values.get("names")), file)
    count = _given(values, "nc")
    if count is not None and str(count).strip() != str(len(classes)):
        raise UserError(f"{file}: nc is {str(count)[:20]}, but names has {len(classes)} classes: correct one of them")
    shape = _given(values, "kpt_shape")
    if shape is None:
        return Layout(file, root, classes, entries, None, [])
    numbers = [int(v) for v in shape if re.fullmatch(r"\d{1,5}", str(v))] if isinstance(shape, list) else []
    if len(numbers) != 2 or len(shape) != 2 or not 0 < numbers[0] <= 10_000 or numbers[1] not in (2, 3):
        raise UserError(f"{file}: kpt_shape {str(shape)[:60]} must be [keypoints, 2] or [keypoints, 3]")
    return Layout(file, root, classes, entries, (numbers[0], numbers[1]), _keypoint_names(values, numbers[0], file))


def _below(folder: Path, path: str) -> Path:
    """`path:` where it is a folder, the yaml's own folder otherwise: it is often a path on another machine."""
    try:
        return folder / path if (folder / path).is_dir() else folder
    except (OSError, ValueError):  # no name that a file can have
        return folder


def _given(values: dict[str, Any], key: str) -> Any:
    """The value of a key; None where YAML's null is written."""
    value = values.get(key)
    return None if value in ("", "~", "null", "Null", "NULL") else value


def _numbered(names: Any) -> Any:
    """{"0": name, …} -> a list, where the keys count from 0; other things as they are."""
    if isinstance(names, dict) and set(names) == {str(k) for k in range(len(names))}:
        return [names[str(k)] for k in range(len(names))]
    return names


def _keypoint_names(values: dict[str, Any], count: int, file: Path) -> list[str]:
    """kpt_names, a list or {class: list}; numbers from one without it."""
    names = _given(values, "kpt_names")
    if isinstance(names, dict) and names:
        lists = list(names.values())
        if any(other != lists[0] for other in lists):
            raise UserError(
                f"{file}: kpt_names differ between classes; the classes of one data set share their keypoints"
            )
        names = lists[0]
    if names is None:
        return [str(k + 1) for k in range(count)]
    if not isinstance(names, list) or len(names) != count:
        raise UserError(f"{file}: kpt_names must list the {count} keypoints of kpt_shape")
    return [str(name) for name in names]


def _classes(names: Any, file: Path) -> list[str]:
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: names must be a list of class names, or numbers from 0 with their names")
    if unnamed := [k for k, name in enumerate(names) if not isinstance(name, str) or not name.strip()]:
        raise UserError(f"{file}: names: class {unnamed[0]} has no name ({str(names[unnamed[0]])[:40]!r})")
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise UserError(f"{file}: a class name appears twice in names: {doubled[0]!r}")
    return list(names)


def _name_lines(file: Path) -> list[str]:
    """The lines of a list of class names; an empty one before the last counts as a class, as its number does."""
    return [line.strip() for line in read_text(file).rstrip().splitlines()]


def _from_darknet(file: Path) -> Layout:
    """Lines "train = data/train.txt", "names = data/obj.names": paths relative to some folder above."""
    values = {k.strip(): v.strip() for line in read_list(file) for k, eq, v in [line.partition("=")] if eq}
    names = next((c for c in _above(file.parent, values.get("names", "")) if c.is_file()), None)
    if names is None:
        raise UserError(f"{file}: names: {values.get('names')!r} is not there (the file of class names)")
    entries = {split: [values[split]] for split in SPLITS if values.get(split)}
    return Layout(file, file.parent, _classes(_name_lines(names), names), entries, None, [])


def _above(folder: Path, entry: str) -> list[Path]:
    """The places that a path of Darknet's may mean: without its first folders, which were another machine's."""
    parts = Path(entry).parts
    return [folder / entry, *(folder.joinpath(*parts[k:]) for k in range(1, len(parts)))]


def _folders(root: Path) -> dict[str, list[str]]:
    """Without a data.yaml: a folder or list for each split, if there are such; otherwise all images."""
    found: dict[str, list[str]] = {}
    for split in SPLITS:
        for place in (root / "images" / split, root / split / "images", root / split, root / f"{split}.txt"):
            if place.exists():
                found[split] = [place.relative_to(root).as_posix()]
                break
    return found or {"": ["images" if (root / "images").is_dir() else "."]}


class Images(NamedTuple):
    """files: of a split. folders: those taken as a whole, in which labels without an image are reported."""

    files: list[Path]
    folders: list[Path]


def split_images(
    layout: Layout, split: str | None, problems: list[str], remarks: Counter[str]
) -> tuple[Images, str | None]:
    """The images of a split (None: "train"), and its name as it stands in the file. Raises `UserError`."""
    names = ALIASES.get(split or "train", (split,))
    name = next((n for n in names if n in layout.entries), None)
    if name is None and "" in layout.entries and split in (None, "train", "val"):
        name = ""
    if name is None:
        has = ", ".join(key for key in layout.entries if key) or "none"
        raise UserError(f"{layout.file}: names no split {split!r} (it has: {has})")
    files: dict[Path, None] = {}
    folders: list[Path] = []
    for entry in layout.entries[name]:
        place = _place(layout, entry, remarks)
        if place.is_dir():
            folders.append(place)
            inside = all_files(place)
            problems += unread_images(inside)
            files |= dict.fromkeys(images_among(inside))
            if not images_among(inside) and not unread_images(inside):
                raise no_images(place, inside)
        elif images_among([place]):
            files[place] = None
        else:
            files |= dict.fromkeys(_listed(place, layout.root, problems, remarks))
    return Images(list(files), folders), name or None


def _place(layout: Layout, entry: str, remarks: Counter[str]) -> Path:
    """Where an entry lies: below `path:` or the yaml's folder; without a leading "../", too, as Roboflow writes it; of an
    absolute path of another machine its longest end of two parts or more."""
    places = [layout.root / entry, layout.file.parent / entry]
    inner = re.sub(r"^(\.\./)+", "", entry.replace("\\", "/"))
    places += [layout.root / inner, layout.file.parent / inner]
    places += _above(layout.file.parent, entry) if layout.file.suffix.lower() == ".data" else []
    found = _existing(places)
    if (
        not found
        and re.match(r"/|[A-Za-z]:/", inner)
        and (found := _existing(_above(layout.file.parent, inner)[:-1])[:1])
    ):
        remarks[f"paths of {layout.file.name} that are another machine's (found by their end)"] += 1
    if not found:
        raise UserError(f"{layout.file}: {places[0]} is neither a folder of images nor a list of them")
    if len(found) > 1 and inner != entry:
        raise UserError(
            f"{layout.file}: {entry!r} may be {found[0]} or {found[1]}: write the path that is meant, without '../'"
        )
    return found[0]


def _existing(places: list[Path]) -> list[Path]:
    """Those that are there, each once."""
    try:
        return list({os.path.realpath(place): place for place in reversed(places) if place.exists()}.values())[::-1]
    except (OSError, ValueError):  # no name that a file can have
        return []


def _listed(listing: Path, root: Path, problems: list[str], remarks: Counter[str]) -> list[Path]:
    """The images that a text file names, one a line: as absolute paths, or relative to the list or to the data set's folder."""
    files: list[Path] = []
    index: NameIndex | None = None
    for line in read_list(listing):
        try:
            near = next((p for p in (listing.parent / line, root / line) if p.is_file()), None)
        except (OSError, ValueError):
            near = None
        if near is not None:
            files.append(near)
            continue
        index = index or NameIndex(p.relative_to(root).as_posix() for p in images_among(all_files(root)))
        try:
            files.append(root / index.find(line, remarks))
        except UserError as error:
            problems.append(f"{listing}: {error}")
    return files


def label_files(images: Images, problems: list[str], remarks: Counter[str]) -> dict[Path, Path]:
    """Image -> its label file, for those that have one; labels without an image are counted, ambiguous ones are problems."""
    result: dict[Path, Path] = {}
    used: set[Path] = set()
    by_folder: dict[Path, list[Path]] = {}
    for file in images.files:
        by_folder.setdefault(file.parent, []).append(file)
    for folder, files in by_folder.items():
        texts = _texts(label_folder(folder)) | (_texts(folder) if folder != label_folder(folder) else {})
        exact = {text.stem: text for text in reversed(texts)}
        near: dict[str, list[Path]] = {}
        for text in texts:
            near.setdefault(folded(text.stem), []).append(text)
        stems = Counter(file.stem for file in files)
        for file in files:
            label = exact.get(file.stem)
            others = [t for t in near.get(folded(file.stem), []) if t.stem not in stems] if label is None else []
            if len(others) == 1 and sum(folded(f.stem) == folded(file.stem) for f in files) == 1:
                label = others[0]
                remarks["label files whose name differs in case or Unicode form from their image's"] += 1
            elif others:
                problems.append(f"{file}: its label file may be {' or '.join(map(str, others[:3]))}")
            if label is not None:
                result[file] = label
                used.add(label)
        for stem, count in stems.items():
            if count > 1 and stem in exact:
                same = [str(file) for file in files if file.stem == stem]
                problems.append(f"{exact[stem]}: may be the label file of {' or '.join(same)}: rename one of them")
    spare = {
        t for folder in images.folders for t in all_files(label_folder(folder)) if t.suffix.lower() == ".txt"
    } - used
    spare -= {text for text in spare if text.stem.lower() in NO_LABELS}
    if spare:
        remarks[f"label files without an image (left out; the first: {min(spare)})"] = len(spare)
    return result


NO_LABELS = {"classes", "labels", "readme", "readme.roboflow", "readme.dataset", *SPLITS}


def _texts(folder: Path) -> dict[Path, None]:
    """The label files of a folder, in order."""
    if not folder.is_dir():
        return {}
    return dict.fromkeys(
        sorted(p for p in folder.iterdir() if p.suffix.lower() == ".txt" and not p.name.startswith("."))
    )


def label_folder(folder: Path) -> Path:
    """…/images/… -> …/labels/…: the last folder called images counts; the folder itself without one."""
    parts = list(folder.parts)
    for k in range(len(parts) - 1, -1, -1):
        if parts[k] == "images":
            return Path(*parts[:k], "labels", *parts[k + 1 :])
    return folder
