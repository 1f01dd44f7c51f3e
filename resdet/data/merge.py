"""Several sources -> one `Source`, whose images state which of its classes their own source annotates (`known.py`)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from resdet.class_names import few, find_matches, match_classes
from resdet.data.formats.common import Source
from resdet.data.known import KEYS, KNOWN, NEGATIVE, check_known
from resdet.data.label_maps import LabelFile
from resdet.data.readings import Reading, Readings
from resdet.data.rules import Id, check_ids, class_name, id_kind, is_id, is_name, leads_out
from resdet.errors import UserError, listed

Entry = dict[str, Any]


def merge(sources: Sequence[Source], known: Sequence[Collection[str] | None] | None = None) -> Source:
    """All images and objects of several sources, classes joined by name, in the order in which they first appear.

    known: of each source the names of the classes that its annotations are complete for, of which only these are taken;
    None for those that it lists. Images get "known_category_ids" where these are not all classes of the result.
    Ids are renumbered from 1; file names are relative to the folder that holds all image folders.
    Raises `UserError` for ids that are not unique or not listed, for a class that no source lists, and for an image file that
    is in two sources: objects annotated in one would be background in the other.
    """
    known = known or [None] * len(sources)
    wanted = [None if names is None else list(dict.fromkeys(names)) for names in known]
    sources = [s if names is None else restrict(s, names) for s, names in zip(sources, wanted, strict=True)]
    merged = _Merged([source.images.resolve() for source in sources])
    new_ids = [merged.add_classes(source) for source in sources]
    for number, (source, ids) in enumerate(zip(sources, new_ids, strict=True)):
        merged.add(source, number, ids)
    merged.note_known(sources, [
        list(ids.values()) if names is None else merged.ids_of(names, source)
        for source, names, ids in zip(sources, wanted, new_ids, strict=True)
    ])  # fmt: skip
    if merged.problems:
        raise listed(f"{len(merged.problems)} problem(s) of joined datasets:", merged.problems)
    return merged.source(sources)


def restrict(source: Source, names: Sequence[str]) -> Source:
    """The source without the categories that are not among `names`, and without their objects, which are counted.

    Raises `UserError` for a name that could be several of the categories.
    """
    listed_names = [class_name(entry) for entry in source.content["categories"]]
    labels = match_classes(names, listed_names, "known_classes", str(source.path))
    categories = [entry for label, entry in enumerate(source.content["categories"]) if label in labels]
    kept = {entry.get("id") for entry in categories}
    left_out = {entry.get("id") for entry in source.content["categories"]} - kept
    objects = [e for e in source.content["annotations"] if e.get("category_id") not in left_out]
    images = source.content["images"]
    if any(key in image for image in images for key in KEYS):
        images = [
            image | {key: [i for i in image[key] if i in kept] for key in KEYS if isinstance(image.get(key), list)}
            for image in images
        ]
    remarks = source.remarks + Counter(
        {"objects of classes outside known_classes (left out)": len(source.content["annotations"]) - len(objects)}
    )
    content = {**source.content, "images": images, "annotations": objects, "categories": categories}
    return replace(source, content=content, remarks=remarks)


class _Merged:
    """What has been joined so far."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.root = Path(os.path.commonpath(folders))
        self.classes: list[Entry] = []  # class k has the id k + 1
        self.images: list[Entry] = []
        self.annotations: list[Entry] = []
        self.origins: dict[int, str] = {}
        self.owner_of: dict[str, tuple[int, Path]] = {}  # by file name: number and path of the source
        self.label_files: dict[Id, LabelFile] = {}  # by the image's id here
        self.notes: list[str] = []
        self.problems: list[str] = []

    @property
    def names(self) -> list[str]:
        return [str(entry["name"]) for entry in self.classes]

    def add_classes(self, source: Source) -> dict[Any, int]:
        """-> {the source's category id: the id here}"""
        kind = id_kind(source.content["categories"])
        given = [entry for entry in source.content["categories"] if is_id(entry.get("id"), kind)]
        given.sort(key=lambda entry: entry["id"])
        names = [class_name(entry) for entry in given]
        nameless = [entry["id"] for entry, name in zip(given, names, strict=True) if not name]
        self.problems += [f"{source.path}: category {identity!r} has no name: give it one" for identity in nameless]
        labels, ambiguous = find_matches(names, self.names)
        self.problems += [
            f"{source.path}: class {name!r} could be {' or '.join(map(repr, options))} of the sources before it: rename it"
            for name, options in ambiguous
        ]
        ids = {}
        for entry, name, label in zip(given, names, labels, strict=True):
            if label is None:
                label = len(self.classes)
                self.classes.append({"id": label + 1, "name": name})
            elif self.names[label] != name:
                self.notes.append(
                    f"{source.path}: class {name!r} is joined with {self.names[label]!r}, which is spelled differently"
                )
            self.classes[label] = {**entry, **self.classes[label]}
            ids[entry["id"]] = label + 1
        return ids

    def add(self, source: Source, number: int, new_class: dict[Any, int]) -> None:
        """Add the images and objects of source `number`."""
        prefix = os.path.relpath(source.images.resolve(), self.root)
        kind = id_kind(source.content["images"])
        new_image: dict[Any, int] = {}
        for k, image in enumerate(source.content["images"]):
            identity, name = image.get("id"), image.get("file_name")
            if not is_id(identity, kind) or identity in new_image:
                self.problems.append(
                    f"{source.path}: image number {k} ({name}): id {identity!r} is used twice or is not an integer"
                )
                continue
            if is_name(name) and not leads_out(name):
                name = os.path.normpath(os.path.join(prefix, name))
                other, path = self.owner_of.setdefault(name, (number, source.path))
                if other != number:
                    self.problems.append(f"{name} is in {path} and in {source.path}: remove one of them")
            new_image[identity] = len(self.images) + 1
            if source.labels and identity in source.labels.files:
                self.label_files[len(self.images) + 1] = source.labels.files[identity]
            lists = {}
            if any(key in image for key in KEYS) and check_known(image, new_class, self.problems):
                lists = {key: [new_class[i] for i in image[key]] for key in KEYS if key in image}
            self.images.append({**image, **lists, "id": len(self.images) + 1, "file_name": name})
        for k, entry in enumerate(source.content["annotations"]):
            wrong: list[str] = []
            image_id, category = check_ids(entry, new_image, new_class, wrong)
            origin = source.origins.get(entry.get("id", 0)) if isinstance(entry.get("id", 0), int) else None
            origin = origin or f"{source.path}: annotation {entry.get('id', f'number {k}')}"
            self.problems += [f"{origin}: {text}" for text in wrong]
            if not wrong:
                changed = {"image_id": new_image[image_id], "category_id": new_class[category]}
                self.annotations.append({**entry, "id": len(self.annotations) + 1, **changed})
                self.origins[len(self.annotations)] = origin

    def ids_of(self, names: Sequence[str], source: Source) -> list[int]:
        """Of classes by name, which another source may list."""
        labels, ambiguous = find_matches(names, self.names)
        several = {name: " or ".join(map(repr, options)) for name, options in ambiguous}
        self.problems += [
            f"{source.path}: known_classes has {name!r}, "
            + (f"which could be {several[name]}" if name in several else f"which no source lists ({few(self.names)})")
            for name, label in zip(names, labels, strict=True)
            if label is None
        ]
        return [label + 1 for label in labels if label is not None]

    def note_known(self, sources: Sequence[Source], known: Sequence[list[int]]) -> None:
        """Write into the images which classes are known in them, unless they state it themselves."""
        start = 0
        for source, ids in zip(sources, known, strict=True):
            end = start + len(source.content["images"])
            ids = sorted(set(ids))
            if len(ids) < len(self.classes):
                for image in self.images[start:end]:
                    if NEGATIVE not in image:
                        image.setdefault(KNOWN, ids)
                named = few([self.names[k - 1] for k in ids])
                self.notes.append(f"{source.path}: supervises {len(ids)} of {len(self.classes)} classes: {named}")
            start = end

    def source(self, sources: Sequence[Source]) -> Source:
        labels = [(source.path, source.labels) for source in sources if source.labels]
        for path, other in labels[1:]:
            if (other.classes, other.categories) != (labels[0][1].classes, labels[0][1].categories):
                raise UserError(f"{labels[0][0]} and {path}: joined label maps need the same classes in both")
        readings = Readings()
        for code, reading in (item for source in sources for item in source.readings.items()):
            before = readings.setdefault(code, Reading())
            before.count += reading.count
            before.examples = (before.examples + reading.examples)[:5]
        notes = [f"{source.path}: {note}" for source in sources for note in source.notes]
        return Source(
            self.root if len(sources) > 1 else sources[0].path, self.root,
            {"images": self.images, "annotations": self.annotations, "categories": self.classes},
            self.origins,
            remarks=sum((source.remarks for source in sources), Counter()),
            problems=[problem for source in sources for problem in source.problems],
            notes=notes + self.notes,
            readings=readings,
            labels=labels[0][1]._replace(files=self.label_files) if labels else None,
            parts=[len(source.content["images"]) for source in sources],
        )  # fmt: skip
