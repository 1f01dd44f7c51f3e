"""COCO's structure as tools actually write it -> the form of COCO's own files, and a count of what was interpreted.

What has one obvious meaning is read as that: "7" and 7.0 as the id 7, [x, y, …] as one polygon, "images/a.jpg" as the
a.jpg in the image folder. Training, evaluation, results files, `check` and `--fix` all start here, so they accept the same.
`readings.py` lists the ways. What has no obvious meaning, or several, is left as it is: `rules.py` reports it.
"""

from __future__ import annotations

import operator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from resdet.data.image_folder import ImageFolder
from resdet.data.images import read_header
from resdet.data.json_files import no_collection
from resdet.data.known import KEYS
from resdet.data.outlines import box_of, is_plain_outline, plain_outline
from resdet.data.readings import Readings
from resdet.data.rules import (
    NUMBERS,
    Id,
    id_kind,
    is_box,
    is_id,
    is_number,
    is_size,
    ordered_box,
    plain_int,
    plain_number,
    unquoted,
)
from resdet.errors import UserError

Entry = dict[str, Any]


class Normalised(NamedTuple):
    """problems: what is ambiguous, each naming both entries, which are left as they are.
    origins: what messages call the objects that were numbered anew, by their new id."""

    content: Entry
    readings: Readings
    problems: list[str]
    origins: dict[int, str]


class Ids:
    """The ids of the images or categories, found by value: a reference "7" or 7.0 is the id 7.

    Ids that are all text, of which one at least is no number, stay text. `entries` are those given, with their ids in
    plain form.
    """

    def __init__(self, entries: list[Entry], what: str, readings: Readings, problems: list[str]) -> None:
        self.entries = entries
        given = [entry.get("id") for entry in entries]
        self.kind = id_kind(entries)
        self.known: set[Any] = {value for value in given if is_id(value, self.kind)}
        if self.kind is str or all(type(value) is int for value in given):
            return
        first: dict[int, int] = {}  # number: the entry that has it
        twice: set[int] = set()
        for k, value in enumerate(given):
            number = plain_int(value)
            if number is None or (other := first.setdefault(number, k)) == k or repr(given[other]) == repr(value):
                continue
            names = [f"{_title(entries[j])} ({given[j]!r})" for j in (other, k)]
            problems.append(f"{what} ids of {names[0]} and {names[1]} are the same number: give each its own id")
            twice.add(number)
        self.known -= twice
        self.entries = []
        for entry, value in zip(entries, given, strict=True):
            number = plain_int(value)
            if type(value) is not int and number is not None and number not in twice:
                readings.note("ids-as-text", f"{what} {_title(entry)}: id {value!r}, the number {number}")
                entry = {**entry, "id": number}
                self.known.add(number)
            self.entries.append(entry)

    def find(self, value: Any) -> Id | None:
        """The id that a reference means; None for one that is not listed."""
        if type(value) is self.kind:
            return value if value in self.known else None
        number = plain_int(value)
        other = number if self.kind is int else None if number is None else str(number)
        return other if other in self.known else None


@no_collection()
def normalise(content: Entry, folder: Path | None = None) -> Normalised:
    """COCO's structure, of which the three lists are known to hold objects, in plain form; `content` is left alone.

    folder: where the image files are; None where only annotations count, so that names and sizes stay as they are.
    """
    readings = Readings()
    problems: list[str] = []
    images = Ids(content["images"], "image", readings, problems)
    categories = Ids(content["categories"], "category", readings, problems)
    if folder is not None:
        images.entries = _named(images.entries, ImageFolder(folder), readings, problems)
    images.entries = [_with_known(entry, categories, readings) for entry in _sized(images.entries, folder, readings)]
    size_of = {e["id"]: (e.get("height"), e.get("width")) for e in images.entries if is_id(e.get("id"), images.kind)}
    annotations = normalise_objects(content["annotations"], images, categories, size_of, readings, "annotation")
    annotations, origins = _numbered(annotations, readings)
    plain = {"images": images.entries, "annotations": annotations, "categories": categories.entries}
    return Normalised({**content, **plain}, readings, problems, origins)


def normalise_objects(
    entries: list[Entry], images: Ids, categories: Ids, size_of: dict[Any, Any], readings: Readings, what: str
) -> list[Entry]:
    """Annotations or detections in plain form. size_of: (H, W) of each image; what: their name in messages."""
    plain = list(entries)
    for number, entry in enumerate(entries):
        if not _is_plain(entry, images.kind, categories.kind, size_of):
            label = f"{what} {str(entry.get('id', f'number {number}'))[:40]}"
            plain[number] = _plain_object(entry, images, categories, size_of, readings, label)
    return plain


def _is_plain(entry: Entry, image_kind: type, category_kind: type, size_of: dict[Any, Any]) -> bool:
    """Whether there is nothing to do, as for nearly all entries: the fast path."""
    get = entry.get
    box, crowd, area = get("bbox"), get("iscrowd"), get("area")
    return (
        type(get("image_id")) is image_kind
        and type(get("category_id")) is category_kind
        and type(box) is list
        and len(box) == 4
        and NUMBERS.issuperset(map(type, box))
        and box[2] >= 0 <= box[3]
        and (crowd is None or type(crowd) is int)
        and (area is None or (type(area) in NUMBERS and area >= 0))
        and is_plain_outline(get("segmentation"), size_of.get(get("image_id")))
        and type(get("score", 0.0)) in NUMBERS
    )


def _plain_object(
    entry: Entry, images: Ids, categories: Ids, size_of: dict[Any, Any], readings: Readings, label: str
) -> Entry:
    new = dict(entry)
    for key, ids in (("image_id", images), ("category_id", categories)):
        value = entry.get(key)
        found = ids.find(value)
        if found is not None and type(value) is not type(found):
            new[key] = found
            readings.note("ids-as-text", f"{label}: {key} {value!r}, the id is {found!r}")
    for key in ("score", "area"):
        _number(new, key, readings, label)
    if new.get("area") is not None and not (is_number(new["area"]) and new["area"] >= 0):
        readings.note("area-invalid", f"{label}: area {str(new.pop('area'))[:40]}")
    if (crowd := _FLAGS.get(_flag(entry.get("iscrowd")))) is not None and type(entry["iscrowd"]) is not int:
        new["iscrowd"] = crowd
        readings.note("crowd-as-text", f"{label}: iscrowd {entry['iscrowd']!r}, which is {crowd}")
    box = unquoted(entry.get("bbox"))
    numbers = [plain_number(v) for v in box] if isinstance(box, list | tuple) and len(box) == 4 else []
    if is_box(numbers) and numbers != entry.get("bbox"):
        readings.note("numbers-as-text", f"{label}: bbox {str(box)[:60]}")
        new["bbox"] = numbers
    if is_box(new.get("bbox")) and min(new["bbox"][2:]) < 0:
        readings.note("box-swapped", f"{label}: bbox {new['bbox']}, read as {ordered_box(new['bbox'])}")
        new["bbox"] = ordered_box(new["bbox"])
    size = size_of.get(new.get("image_id")) if is_id(new.get("image_id"), images.kind) else None
    known = size if size and is_size(*size) else None
    outline = plain_outline(entry.get("segmentation"), known, new.get("bbox"))
    if outline.codes:
        new["segmentation"] = outline.value
        for code in outline.codes:
            readings.note(code, f"{label}: segmentation {str(entry['segmentation'])[:60]}")
    if box in (None, []) and "score" not in entry and (around := box_of(new.get("segmentation"), known)):
        new["bbox"] = around
        readings.note("box-missing", label)
    return new


def _numbered(entries: list[Entry], readings: Readings) -> tuple[list[Entry], dict[int, str]]:
    """With an id of its own for each, and what messages call those whose id is new."""
    given = [entry.get("id") for entry in entries]
    if all(type(value) is int for value in given) and len(set(given)) == len(given):
        return entries, {}
    whole = [plain_int(value) if isinstance(value, float) else value for value in given]
    usable = [value if is_id(value) or is_id(value, str) else None for value in whole]
    fresh = count(1 + max((value for value in usable if type(value) is int), default=0))
    plain, origins, taken = list(entries), dict[int, str](), set[Any]()
    for number, value in enumerate(usable):
        if value is None or value in taken:
            value = next(fresh)
            origins[value] = f"annotation {str(given[number])[:40]} (number {number} of the list)"
            readings.note("object-id", f"{origins[value]}: is now {value}")
        elif value is not given[number]:
            readings.note("ids-as-text", f"annotation {given[number]!r}: the id is {value}")
        taken.add(value)
        plain[number] = {**entries[number], "id": value}
    return plain, origins


def _named(entries: list[Entry], folder: ImageFolder, readings: Readings, problems: list[str]) -> list[Entry]:
    """With the names of the files in the folder."""
    names = [entry.get("file_name") for entry in entries]
    found = [folder.find(name) if isinstance(name, str) else None for name in names]
    if all(map(operator.is_, names, found)):
        return entries
    first: dict[str, str] = {}  # file in the folder: the first name that means it
    ambiguous: set[str] = set()
    for name, file in zip(names, found, strict=True):
        if name is not None and file is not None and (other := first.setdefault(file, name)) != name:
            problems.append(
                f"images {other!r} and {name!r} would both be {folder.path / file}: give them different names"
            )
            ambiguous.add(file)
    plain = list(entries)
    for k, (name, file) in enumerate(zip(names, found, strict=True)):
        if file is not None and file != name and file not in ambiguous:
            plain[k] = {**entries[k], "file_name": file}
            readings.note("name-with-path", f"{name} is {file}")
    return plain


def _sized(entries: list[Entry], folder: Path | None, readings: Readings) -> list[Entry]:
    """With the sizes of the files where height and width say none."""
    plain = list(entries)
    for k, entry in enumerate(entries):
        if is_size(entry.get("height"), entry.get("width")):
            continue
        sides = plain_int(entry.get("height")), plain_int(entry.get("width"))
        if is_size(*sides):
            readings.note(
                "numbers-as-text", f"image {_title(entry)}: height {entry['height']!r}, width {entry['width']!r}"
            )
        elif folder is not None and (size := _size_of_file(folder, entry.get("file_name"))):
            sides = size
            readings.note("size-missing", f"image {_title(entry)} is {size[0]} x {size[1]} (H x W)")
        else:
            continue
        plain[k] = {**entry, "height": sides[0], "width": sides[1]}
    return plain


def _with_known(entry: Entry, categories: Ids, readings: Readings) -> Entry:
    """With the ids of the categories in the lists of known classes (`known.py`)."""
    new = entry
    for key in KEYS:
        given = entry.get(key)
        if not isinstance(given, list) or all(type(value) is categories.kind for value in given):
            continue
        found = [categories.find(value) for value in given]
        plain = [value if identity is None else identity for value, identity in zip(given, found, strict=True)]
        if repr(plain) != repr(given):
            new = {**new, key: plain}
            readings.note("ids-as-text", f"image {_title(entry)}: {key} {str(given)[:60]}")
    return new


def _size_of_file(folder: Path, name: Any) -> tuple[int, int] | None:
    """(H, W), upright; None for a file that cannot be read, or lies elsewhere."""
    if not isinstance(name, str) or not name or "\0" in name or ".." in Path(name).parts:
        return None
    try:
        size = read_header((folder / name).read_bytes(), folder / name).upright_size
    except (OSError, UserError):
        return None
    return size if is_size(*size) else None


def _number(entry: Entry, key: str, readings: Readings, label: str) -> None:
    value = entry.get(key)
    if isinstance(value, str) and (number := plain_number(value)) is not None:
        entry[key] = number
        readings.note("numbers-as-text", f"{label}: {key} {value!r}")


_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "0.0": 0, "1.0": 1, "no": 0, "yes": 1}


def _flag(value: Any) -> str:
    return str(value).strip().lower() if isinstance(value, str | bool | float | int) else ""


def _title(entry: Entry) -> str:
    return str(entry.get("file_name") or entry.get("name") or entry.get("id"))[:80]
