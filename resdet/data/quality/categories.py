"""What is wrong with the categories of a split, and with those of two splits together -> `Finding`s."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from resdet.class_names import few, find_matches
from resdet.data.formats.common import Source
from resdet.data.quality.report import Finding, Findings
from resdet.data.rules import IDS, class_name, id_kind, is_id, read_categories

# Neighbours among the ids of COCO's 80 categories (cocodataset.org, instances_val2017.json) that are not consecutive.
COCO_GAPS = {(11, 13), (25, 27), (28, 31), (44, 46), (65, 67), (67, 70), (70, 72), (82, 84)}


def examine_categories(source: Source, found: Findings) -> dict[Any, str]:
    """What is wrong with the categories of a split. -> {id: name} of those that are as they should be"""
    categories: dict[Any, str] = {}
    kind = id_kind(source.content["categories"])
    if not source.content["categories"]:
        found.add("empty", f"{source.path}: categories")
    for entry in source.content["categories"]:
        identity, name = entry.get("id"), class_name(entry)
        if not is_id(identity, kind) or identity in categories:
            found.add("category-id", f"{name}: {identity!r}")
            continue
        if not name:
            found.add("category-unnamed", f"{source.path}: category {identity!r}: name {entry['name']!r:.40}")
        elif name in categories.values():
            found.add(
                "category-name", f"{name}: ids {next(k for k in categories if categories[k] == name)} and {identity}"
            )
        categories[identity] = name
    for before, after in pairwise(sorted(categories)) if kind is int else ():
        if after > before + 1 and (before, after) not in COCO_GAPS:
            text = f"none between {before} ({categories[before]}) and {after} ({categories[after]})"
            found.add("category-gap", text)
    return categories


def compare(train: Source, val: Source) -> list[Finding]:
    """What only shows in comparing two splits, whose categories are matched by name (`class_names`)."""
    found = Findings("both")
    categories = [read_categories(source.content["categories"], []) for source in (train, val)]
    names = [list(by_id.values()) for by_id in categories]
    if "" in names[0] + names[1]:
        return []  # without a name nothing can be matched; they are reported by themselves
    labels, ambiguous = find_matches(names[1], names[0])
    for name, options in ambiguous:
        found.add("categories-ambiguous", f"{name!r} of val could be {' or '.join(map(repr, options))} of train")
    only_train = [name for label, name in enumerate(names[0]) if label not in labels]
    only_val = [name for name, label in zip(names[1], labels, strict=True) if label is None]
    if len(only_train) == len(names[0]) and not ambiguous:
        found.add("categories-disjoint", f"train has {few(names[0])}; val has {few(names[1])}")
    elif only_train or only_val:
        found.add("categories-differ", f"only in train: {only_train}, only in val: {only_val}")
    used = [[a.get("category_id") for a in source.content["annotations"]] for source in (train, val)]
    counts = [Counter(i for i in ids if type(i) in IDS) for ids in used]
    train_ids = list(categories[0])
    for (identity, name), label in zip(categories[1].items(), labels, strict=True):
        if counts[1][identity] and (label is None or not counts[0][train_ids[label]]):
            found.add("class-unseen", f"{name}: {counts[1][identity]} in val")
    return list(found.by_code.values())
