"""Subsets, splits and class changes of datasets. `Source` in, `Source` out; no file is touched."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from resdet.data.formats.common import Source
from resdet.data.known import KEYS, KNOWN, check_known, known_ids
from resdet.data.rules import Id, id_kind, is_id, read_categories
from resdet.errors import UserError, listed


def sample(source: Source, count: int, seed: int) -> Source:
    """`count` images drawn at random, in their original order. Raises `UserError` if there are fewer."""
    images = source.content["images"]
    if count > len(images):
        raise UserError(f"{source.path}: has {len(images)} images, fewer than the {count} asked for")
    chosen = sorted(np.random.default_rng(seed).permutation(len(images))[:count].tolist())
    return subset(source, {images[k]["id"] for k in chosen})


def remap(source: Source, names: Mapping[str, str | None]) -> Source:
    """Classes renamed, merged (two old names, one new) or dropped (None); those that `names` leaves out stay as they are.

    The new classes keep the order of the old ones, and what else the first old one has, such as its keypoints. An image knows
    a merged class if it knows all of its old ones. Raises `UserError` for a name that is no class, for ids that are not listed
    or not unique, or if no class is left.
    """
    given = unique_names(source)
    if unknown := [name for name in names if name not in given.values()]:
        raise UserError(
            f"{source.path}: no class {', '.join(map(repr, unknown))}; the classes are {', '.join(given.values())}"
        )
    new_names = {identity: names.get(name, name) for identity, name in given.items()}
    kept = list(dict.fromkeys(name for name in new_names.values() if name is not None))
    if not kept:
        raise UserError(f"{source.path}: every class would be dropped")
    number = {name: k for k, name in enumerate(kept, 1)}
    new_id = {identity: None if name is None else number[name] for identity, name in new_names.items()}
    problems: list[str] = []
    annotated: dict[Any, set[Any]] = {}
    for k, entry in enumerate(source.content["annotations"]):
        category = entry.get("category_id")
        if not isinstance(category, int | str) or category not in new_id:
            problems.append(f"annotation {entry.get('id', f'number {k}')}: category_id {category!r} is not listed")
        annotated.setdefault(_id(entry.get("image_id")), set()).add(_id(category))
    for image in source.content["images"]:
        check_known(image, new_id, problems)
    if problems:
        raise listed(f"{source.path}: {len(problems)} problem(s):", problems)
    annotations = [
        {**entry, "category_id": new_id[entry["category_id"]]}
        for entry in source.content["annotations"]
        if new_id[entry["category_id"]] is not None
    ]
    images = [
        _with_known(image, annotated.get(_id(image.get("id")), set()), new_id) for image in source.content["images"]
    ]
    first = {new_names[c["id"]]: c for c in reversed(source.content["categories"])}
    categories = [{**first[name], "id": k, "name": name} for name, k in number.items()]
    content = {**source.content, "images": images, "categories": categories, "annotations": annotations}
    remarks = source.remarks + Counter()
    if dropped := len(source.content["annotations"]) - len(annotations):
        remarks["objects of dropped classes (left out; they count as background)"] = dropped
    return replace(source, content=content, remarks=remarks)


def _with_known(image: dict[str, Any], annotated: set[Any], new_id: Mapping[Any, int | None]) -> dict[str, Any]:
    """An entry of "images" whose list of known classes, if it has one, holds the new ids."""
    known = known_ids(image, annotated)
    if known is None:
        return image
    lacks = {new for old, new in new_id.items() if old not in known}
    rest = {key: value for key, value in image.items() if key not in KEYS}
    return {**rest, KNOWN: sorted({new for new in new_id.values() if new is not None} - lacks)}


def unique_names(source: Source) -> dict[Any, str]:
    """Category id -> class name. Raises `UserError` for ids or names that are not unique."""
    problems: list[str] = []
    names = read_categories(source.content["categories"], problems)
    names = {c["id"]: names[c["id"]] for c in source.content["categories"] if not problems}
    problems += [
        f"{count} categories are called {name!r}: give each a name of its own"
        for name, count in Counter(names.values()).items()
        if count > 1
    ]
    if problems:
        raise listed(f"{source.path}: {len(problems)} problem(s):", problems)
    return names


def image_ids(source: Source, count: int | None = None) -> set[Id]:
    """Of the first `count` images."""
    kind = id_kind(source.content["images"])
    return {entry["id"] for entry in source.content["images"][:count] if is_id(entry.get("id"), kind)}


def _id(value: Any) -> Id | None:
    return value if is_id(value) or is_id(value, str) else None


def subset(source: Source, images: set[Id]) -> Source:
    """Some of a source's images, their objects, all categories, and annotations of no image, which are still reported."""
    left_out = image_ids(source) - images
    content = {
        **source.content,
        "images": [entry for entry in source.content["images"] if _id(entry.get("id")) not in left_out],
        "annotations": [e for e in source.content["annotations"] if _id(e.get("image_id")) not in left_out],
    }
    return replace(source, content=content)


def held_out(source: Source, share: float, pattern: str | None, seed: int) -> set[Id]:
    """Image ids for validation: about `share` of every class, rarest first (iterative stratification, Sechidis et al. 2011).

    pattern: a regular expression on file names; images that match equally (its first group, or all of the match) stay
    together, such as the frames of one video.
    """
    groups: dict[str, list[Id]] = {}
    unmatched: list[str] = []
    kind_of_id = id_kind(source.content["images"])
    for entry in source.content["images"]:
        if not is_id(entry.get("id"), kind_of_id):
            continue  # reported in every split
        name = str(entry.get("file_name"))
        match = re.search(pattern, name) if pattern else None
        unmatched += [name] if pattern and not match else []
        groups.setdefault(match[1] if match and match.groups() else match[0] if match else name, []).append(entry["id"])
    images = sum(map(len, groups.values()))
    if pattern and unmatched and len(unmatched) == images:
        raise UserError(
            f"data.group (--group) {pattern!r} matches none of the {images} file names, such as {unmatched[0]!r}"
        )
    if pattern and len(groups) == 1 and images > 1:
        raise UserError(
            f"data.group (--group) {pattern!r} puts all {images} images into one group ({next(iter(groups))!r})"
        )
    if unmatched:
        source.remarks["images whose names the group's pattern does not match (each counts as a group of its own)"] = (
            len(unmatched)
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
            # A group may overshoot by half its size, so that the count ends up nearest to the target.
            if held[kind] + contents[group][kind] / 2 <= share * totals[kind]:
                held += contents[group]
                result.update(groups[group])
            del waiting[group]
    return result
