"""A folder of pictures in folders of their classes, as ImageNet is kept -> `Annotations`.

ROOT/train/CLASS/….jpg, ROOT/val/CLASS/….jpg; classes are numbered in the order of their sorted names, as in torchvision's
`ImageFolder`. A picture is one object that fills it; no file is opened.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resdet.class_names import few
from resdet.config import DataConfig, TrainSplitConfig, data_root
from resdet.data.coco import Annotations
from resdet.data.images import images_among
from resdet.data.index import pack
from resdet.data.sources import Split
from resdet.errors import UserError, listed

UNKNOWN_SIZE = (1, 1)  # of pictures that are not opened


def split_folder(data: DataConfig, split: Split) -> Path:
    """The folder of a split: `data.SPLIT.images`, or data.root/SPLIT."""
    given = data.train if split == "train" else data.val
    assert isinstance(given, TrainSplitConfig) or split == "val"
    assert not isinstance(given, list)
    return given.images or (given.root or data_root(data)) / split


def read_class_folder(folder: Path, class_names: Sequence[str] | None = None) -> Annotations:
    """The pictures of `folder`. class_names: of the training set, whose labels its classes get.

    Other files, and pictures in no class, are counted in `skipped`. Raises `UserError`: no such folder, no classes in it, a
    class without a picture in a training set, a class that the training set does not have.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder: it holds a folder of pictures for each class (data.root=FOLDER of train/CLASS/*.jpg "
            "and val/CLASS/*.jpg, or data.train.images and data.val.images)"
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    loose = len(images_among(path for path in folder.iterdir() if path.is_file()))
    if not names:
        hint = f": sort its {loose} pictures into folders named for their classes" if loose else ""
        raise UserError(f"{folder}: holds no folders, of which each is a class{hint}")
    skipped, files = (
        Counter({"pictures outside of the classes' folders": loose} if loose else {}),
        dict[str, list[str]](),
    )
    for name in names:
        paths = [Path(place) / file for place, _, found in os.walk(folder / name, followlinks=True) for file in found]
        pictures = images_among(paths)
        files[name] = [str(path.relative_to(folder)) for path in pictures]
        if others := len(paths) - len(pictures):
            skipped["files that are no pictures"] += others
    if class_names is None:
        class_names = names
        if empty := [name for name in names if not files[name]]:
            raise listed(f"{folder}: {len(empty)} of {len(names)} classes have no picture: remove or fill", empty)
    elif unknown := [name for name in names if name not in set(class_names)]:
        raise listed(
            f"{folder}: {len(unknown)} of {len(names)} classes are not in the training set, which has {few(class_names)}:",
            unknown,
        )
    label = {name: number for number, name in enumerate(class_names)}
    paths_of = [(file, label[name]) for name in names for file in files[name]]
    if not paths_of:
        raise UserError(f"{folder}: none of its {len(names)} classes has a picture")
    count = len(paths_of)
    images = pack(
        folder,
        ids=[file for file, _ in paths_of],
        names=[file for file, _ in paths_of],
        sizes=[UNKNOWN_SIZE] * count,
        owners=range(count),
        boxes=np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1)),
        labels=[number for _, number in paths_of],
        masks=[None] * count,
    )
    return Annotations(folder, images, list(class_names), list(range(1, len(class_names) + 1)), skipped)


def missing_classes(annotations: Annotations) -> list[str]:
    """The classes without a picture."""
    there = set(np.unique(annotations.images.labels).tolist())
    return [name for label, name in enumerate(annotations.class_names) if label not in there]


def class_summary(annotations: Annotations) -> str:
    """One line for people: the number of pictures and classes, the largest and the smallest class, what was skipped."""
    counts = np.bincount(annotations.images.labels, minlength=len(annotations.class_names))
    line = f"{counts.sum()} pictures of {len(counts)} classes, {counts.min()} to {counts.max()} of each"
    return line + "".join(f"; {count} {reason}" for reason, count in sorted(annotations.skipped.items()))
