"""What is wrong with keypoints: the entries of a split and its categories -> findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from resdet.data.keypoints import keypoint_problem, outside, read_skeleton
from resdet.data.quality.report import Entry, Findings
from resdet.data.rules import Id, size_of


def check_keypoints(
    categories: Sequence[Entry],
    entries: Sequence[Entry],
    images: dict[Id, Entry],
    found: Findings,
    name_of: Callable[[Entry, int], str],
) -> None:
    """Look at what the categories list and what each annotation has. name_of: what messages call an annotation."""
    problems: list[str] = []
    skeleton, posed = read_skeleton(categories, problems)
    for problem in problems:
        found.add("skeleton", problem)
    if not skeleton and not problems and any(entry.get("keypoints") for entry in categories):
        found.add(
            "keypoints-differ", "; ".join(f"{e.get('name')}: {e.get('keypoints') or 'none'}"[:80] for e in categories)
        )
    for i, entry in enumerate(entries):
        value = entry.get("keypoints")
        if not value:
            continue
        what = name_of(entry, i)
        if entry["category_id"] not in posed:
            if skeleton or not problems:
                found.add("keypoints-unlisted", what, id(entry))
        elif skeleton and (wrong := keypoint_problem(value, len(skeleton.names))):
            found.add("keypoints-malformed", f"{what}: {wrong}", id(entry))
        elif skeleton:
            _check_values(skeleton.names, entry, images, found, what)


def _check_values(names: Sequence[str], entry: Entry, images: dict[Id, Entry], found: Findings, what: str) -> None:
    value, size = entry["keypoints"], size_of(images[entry["image_id"]])
    if size and (away := outside(value, size)):
        x, y = value[3 * away[0] : 3 * away[0] + 2]
        text = f"{what}: {names[away[0]]} at ({x:g}, {y:g}) in {size[0]} x {size[1]} (H x W)"
        found.add("keypoints-outside", text, id(entry))
    labelled, given = sum(v > 0 for v in value[2::3]), entry.get("num_keypoints")
    if given is not None and given != labelled:
        found.add("keypoints-number", f"{what}: num_keypoints {given!r}, {labelled} are labelled", id(entry))
