"""What the writers of all formats share: the images copied along, each with its objects."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resdet.data.formats.common import Source
from resdet.errors import UserError

Objects = list[dict[str, Any]]
CROWDS = "crowd regions (left out: the format cannot mark them)"
NO_AREA = "boxes without area inside their image (left out)"
KEYPOINTS = "objects whose keypoints were left out"


def copied(
    source: Source, folder: Path, lost: Counter[str], *, flat: bool = False, crowds: bool = False
) -> Iterator[tuple[dict[str, Any], Objects, str]]:
    """(image, its objects, its name below `folder`), the file copied there. flat: without the folders it lies in. crowds: crowd
    regions are among the objects. What is left out is counted in `lost`. Raises `UserError` for two of one name, also where
    an earlier conversion has put another one there."""
    size_of = {image["id"]: image for image in source.content["images"]}
    objects: dict[Any, Objects] = {identity: [] for identity in size_of}
    for entry in source.content["annotations"]:
        if entry.get("iscrowd") and not crowds:
            lost[CROWDS] += 1
        elif min(box_inside(entry, size_of[entry["image_id"]])[2:]) <= 0:
            lost[NO_AREA] += 1
        else:
            objects[entry["image_id"]].append(entry)
            lost[KEYPOINTS] += any(entry.get("keypoints") or ())
    stems: dict[str, str] = {}
    files = [Path(image["file_name"]) for image in source.content["images"]]
    flat = flat or any(map(Path.is_absolute, files))
    base = os.path.commonpath([file.parent for file in files]) if not flat else ""
    for image, given in zip(source.content["images"], files, strict=True):
        stem = given.stem if flat else given.relative_to(base).with_suffix("").as_posix()
        if stem in stems:
            raise UserError(f"{stems[stem]} and {image['file_name']} would both become {stem}: rename one of them")
        stems[stem] = image["file_name"]
        file, target = source.images / image["file_name"], folder / f"{stem}{Path(image['file_name']).suffix}"
        if target.is_file() and file.is_file() and not filecmp.cmp(file, target, shallow=False):
            raise UserError(f"{target}: is there already, and is another image than {file}: choose an empty folder")
    for image, stem in zip(source.content["images"], stems, strict=True):
        name = f"{stem}{Path(image['file_name']).suffix}"
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source.images / image["file_name"], target)
        except shutil.SameFileError:
            raise UserError(f"{target}: is the source image itself; choose another folder") from None
        except OSError as error:
            raise UserError(
                f"{source.images / image['file_name']}: cannot be copied to {target} ({error.strerror})"
            ) from None
        yield image, objects[image["id"]], name


def box_inside(entry: dict[str, Any], image: dict[str, Any]) -> tuple[float, float, float, float]:
    """XYWH of the part of a box that lies in its image."""
    x, y, w, h = entry["bbox"]
    left, top = max(x, 0), max(y, 0)
    return left, top, min(x + w, image["width"]) - left, min(y + h, image["height"]) - top
