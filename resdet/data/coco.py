"""COCO JSON -> `Annotations`: checked, in our conventions. The only place where COCO's XYWH comes in.

Format: https://cocodataset.org/#format-data. Segmentations are lists of polygons, uncompressed or compressed RLE.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from resdet.data.image_folder import ImageFolder
from resdet.data.images import MAX_PIXELS
from resdet.data.index import ImageList, Segmentation, pack
from resdet.data.json_files import no_collection, read_json
from resdet.data.keypoints import dense_keypoints, parse_keypoints, read_skeleton
from resdet.data.known import check_known, known_table, says_known
from resdet.data.label_maps import LabelFiles, LabelMaps
from resdet.data.normalise import normalise
from resdet.data.rules import (
    Id,
    check_flags,
    check_ids,
    id_kind,
    is_id,
    is_name,
    leads_out,
    parse_box,
    parse_segmentation,
    read_categories,
    size_of,
    title_of,
)
from resdet.errors import UserError, listed
from resdet.keypoints import Skeleton


@dataclass
class Annotations:
    """A dataset split. `category_ids[label]` is the JSON's id of a label, None where labels are a model's and the JSON does
    not list that class (`relabel.for_classes`); `skipped` counts what does not train, by reason;
    `content` is COCO's structure, kept where it is evaluated against; `skeleton` and `label_maps` are None without such;
    `parts` and `read_image` as in `Source`."""

    source: Path
    images: ImageList
    class_names: list[str]
    category_ids: Sequence[Id | None]
    skipped: Counter[str] = field(default_factory=Counter)
    content: dict[str, Any] | None = None
    skeleton: Skeleton | None = None
    parts: list[int] = field(default_factory=list)
    read_image: Callable[[int], np.ndarray] | None = None
    label_maps: LabelMaps | None = None

    def summary(self) -> str:
        """One line for people: the number of images, objects and classes, and what was skipped."""
        skipped = "".join(f"; {count} {reason}" for reason, count in sorted(self.skipped.items()))
        if isinstance(self.label_maps, LabelFiles) and not self.label_maps.source.things:
            maps = self.label_maps.source
            return f"{len(self.images)} images, {len(maps.files)} label maps, {len(maps.classes)} classes of pixels{skipped}"
        empty = int((self.images.counts == 0).sum())
        line = f"{len(self.images)} images, {len(self.images.labels)} objects, {len(self.class_names)} classes"
        line += f", {empty} images without objects (kept as negatives)" if empty else ""
        return line + skipped


def read_coco_json(path: Path) -> dict[str, Any]:
    """A COCO annotation file as a dict with its three lists. Raises `UserError`."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object with images, annotations and categories, not a list")
    problems = [
        f'"{key}" is missing or is not a list of objects'
        for key in ("images", "annotations", "categories")
        if not isinstance(content.get(key), list) or not all(isinstance(entry, dict) for entry in content[key])
    ]
    if problems:
        raise listed(f"{path}: not a COCO annotation file:", problems)
    if any("segments_info" in entry for entry in content["annotations"][:1]):
        raise UserError(
            f"{path}: COCO's panoptic annotations, whose masks are PNGs: read them with data.format=coco_panoptic, or make "
            "COCO's JSON of objects with `resdet data convert`"
        )
    return content


def read_coco(annotations: Path, images: Path) -> Annotations:
    """Read and check a COCO file whose images are in the folder `images`. Raises `UserError`."""
    content = read_coco_json(annotations)
    if not images.is_dir():
        raise UserError(f"{images}: no such image folder (the images of {annotations})")
    plain = normalise(content, images)
    if plain.problems:
        raise listed(f"{annotations}: {len(plain.problems)} problem(s):", plain.problems)
    read = parse_coco(plain.content, images, annotations, plain.origins)
    read.skipped.update(plain.readings.summary())
    return read


@no_collection()
def parse_coco(
    content: dict[str, Any],
    images: Path,
    annotations: Path,
    origins: dict[int, str] | None = None,
    *,
    are_files: bool = True,
) -> Annotations:
    """Check COCO's structure, in plain form (`normalise`). Raises one `UserError` that lists every problem.

    annotations: what messages name; origins: annotation id -> what they call it, where it came from another format. are_files:
    whether the images must be there.
    Crowds, boxes without area inside the image and polygons of fewer than three points are skipped and counted.
    """
    problems: list[str] = []
    categories = read_categories(content["categories"], problems)
    records = _images(content["images"], images, problems, are_files)
    kind = id_kind(content["images"])
    known = {entry["id"] for entry in content["images"] if is_id(entry.get("id"), kind)}
    number_of = {identity: number for number, identity in enumerate(records)}
    label_kind = id_kind(content["categories"])
    label_of = {identity: label for label, identity in enumerate(categories)}
    skipped: Counter[str] = Counter()
    skeleton, posed = read_skeleton(content["categories"], problems)
    poses: list[list[float] | None] = []
    owners: list[int] = []
    labels: list[int] = []
    corners: list[float] = []
    masks: list[Segmentation] = []
    crowds: list[tuple[int, Segmentation]] = []
    for i, entry in enumerate(content["annotations"]):
        wrong: list[str] = []
        image_id, category = entry.get("image_id"), entry.get("category_id")
        if not (
            type(image_id) is kind and image_id in records and type(category) is label_kind and category in label_of
        ):
            image_id, category = check_ids(entry, known, categories, wrong)
        if image_id in records and category is not None:
            size = records[image_id][1]
            check_flags(entry, wrong)
            box = parse_box(entry.get("bbox"), size, wrong)
            outline = parse_segmentation(entry.get("segmentation"), size, wrong, skipped)
            if entry.get("iscrowd"):
                skipped["crowd regions (no target of training)"] += 1
                if region := outline or ([_rectangle(*box)] if box else None):
                    crowds.append((number_of[image_id], region))
            elif box is None:
                pass  # a problem already
            elif box[2] <= box[0] or box[3] <= box[1]:
                skipped["boxes without area inside their image"] += 1
            else:
                owners.append(number_of[image_id])
                labels.append(label_of[category])
                corners += box
                masks.append(outline)
                if skeleton:
                    given = entry.get("keypoints") if category in posed else None
                    poses.append(parse_keypoints(given, skeleton.names, size, wrong, skipped))
        if wrong:
            what = title_of(entry, i, origins or {})
            problems += [f"{what}: {text}" for text in wrong]
    partly = says_known(content["images"])
    if partly:
        for entry in content["images"]:
            check_known(entry, categories, problems)
    if problems:
        raise listed(f"{annotations}: {len(problems)} problem(s):", problems)
    if not records:
        raise UserError(f'{annotations}: "images" is empty')
    annotated: dict[Any, set[Any]] = {}
    for entry in content["annotations"] if partly else ():
        annotated.setdefault(entry["image_id"], set()).add(entry["category_id"])
    listing = pack(
        images, list(records), [name for name, _ in records.values()], [size for _, size in records.values()],
        owners, np.array(corners, np.float32).reshape(-1, 4), labels, masks,
        dense_keypoints(poses, len(skeleton.names)) if skeleton else None,
        known_table(content["images"], annotated, label_of) if partly else None, crowds,
    )  # fmt: skip
    return Annotations(annotations, listing, list(categories.values()), list(categories), skipped, skeleton=skeleton)


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _images(
    entries: list[dict[str, Any]], folder: Path, problems: list[str], are_files: bool
) -> dict[Any, tuple[str, tuple[int, int]]]:
    """{id: (file name as it is given, (height, width))} of the images that are as they should be."""
    records: dict[Any, tuple[str, tuple[int, int]]] = {}
    kind, present = id_kind(entries), ImageFolder(folder)
    for i, entry in enumerate(entries):
        identity, name = entry.get("id"), entry.get("file_name")
        height, width = entry.get("height"), entry.get("width")
        if not is_id(identity, kind) or identity in records:
            problems.append(f"image number {i} ({name}): id {identity!r} is used twice or is not an integer")
            continue
        if not is_name(name):
            problems.append(f"image {identity}: file_name {name!r} is not a file name")
            continue
        size = size_of(entry)
        if size is None:
            problems.append(
                f"image {identity} ({name}): height {height!r} and width {width!r} must be positive integers of at "
                f"most {MAX_PIXELS} pixels in all"
            )
            continue
        if leads_out(name):
            problems.append(f"image {identity}: file_name {name!r} is outside the image folder {folder}")
            continue
        if are_files and name not in present:
            problems.append(f"image {identity}: {folder / name} does not exist")
            continue
        records[identity] = (name, size)
    return records
