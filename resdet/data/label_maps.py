"""The label maps of a split: read from files, or drawn from the objects of each image; -> (H, W) uint8, see `structures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from PIL import Image

from resdet.data.images import grey_step, open_pillow
from resdet.data.index import ImageInfo
from resdet.data.patch import Patch, patch_of
from resdet.data.rules import Id
from resdet.errors import UserError
from resdet.panoptic import ALL_THINGS
from resdet.structures import UNLABELLED

BACKGROUND = "background"
INDEX_MODES = ("1", "L", "P", "I;16", "I;16B", "I")  # of PNGs whose numbers are classes
NONE = -1  # of a value's category: stuff of label maps without segments


class Value(NamedTuple):
    """What a value in a file means: its label; of a panoptic segment also its category, by its number among things and then
    stuff, and whether it is a crowd."""

    value: int
    label: int
    category: int = NONE
    crowd: bool = False


class LabelFile(NamedTuple):
    """values: all that may occur, except UNLABELLED (of ids: except 0). ids: a PNG of ids, R + 256 G + 65536 B, not classes."""

    file: Path
    values: Sequence[Value]
    ids: bool = False


class LabelSource(NamedTuple):
    """classes: (id in the annotations, name) by label. files: by image id; images that have none are not labelled.
    categories: names of things, then of stuff, and how many are things; empty without panoptic segments."""

    classes: list[tuple[int, str]]
    files: Mapping[Id, LabelFile]
    categories: list[str]
    things: int = 0


class LabelMaps(Protocol):
    """names: by label; ids: of the labels in the annotations."""

    @property
    def names(self) -> list[str]: ...
    @property
    def ids(self) -> list[int]: ...
    def read(self, info: ImageInfo) -> np.ndarray:
        """The label map of an image, of its annotated size. Raises `UserError`."""


@dataclass(frozen=True)
class LabelFiles:
    """Label maps from files."""

    source: LabelSource

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.source.classes]

    @property
    def ids(self) -> list[int]:
        return [identity for identity, _ in self.source.classes]

    def read(self, info: ImageInfo) -> np.ndarray:
        found = self.source.files.get(info.image_id)
        if found is None:
            return np.full(info.size, UNLABELLED, np.uint8)
        return as_labels(found, read_values(found, info.size))


@dataclass(frozen=True)
class DrawnLabels:
    """Label maps from the objects' masks, large ones first: label_of (K,) uint8 by class; `background` everywhere else.

    Pixels of a crowd region without any object, and in the box of an object without a mask, are not labelled.
    """

    names: list[str]
    label_of: np.ndarray
    background: int

    @property
    def ids(self) -> list[int]:
        return list(range(len(self.names)))

    def read(self, info: ImageInfo) -> np.ndarray:
        labels = np.full(info.size, self.background, np.uint8)
        for outline in info.crowds:
            _paint(labels, patch_of(outline, np.zeros(4), info.size), UNLABELLED)
        boxes = info.objects.boxes
        order = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable")
        for g in order.tolist():
            segmentation = info.objects.segmentations[g]
            if segmentation is None:
                x1, y1 = np.floor(boxes[g, :2]).astype(int)
                x2, y2 = np.ceil(boxes[g, 2:]).astype(int)
                labels[y1:y2, x1:x2] = UNLABELLED
                continue
            patch = patch_of(segmentation, boxes[g].astype(np.float64), info.size)
            _paint(labels, patch, int(self.label_of[info.objects.labels[g]]))
        return labels


def _paint(labels: np.ndarray, patch: Patch, label: int) -> None:
    h, w = patch.bitmap.shape
    labels[patch.y : patch.y + h, patch.x : patch.x + w][patch.bitmap > 0] = label


def of_classes(class_names: Sequence[str]) -> DrawnLabels:
    """Each class of objects, and the background as label 0."""
    return DrawnLabels([BACKGROUND, *class_names], np.arange(1, len(class_names) + 1).astype(np.uint8), 0)


def of_things(class_names: Sequence[str]) -> DrawnLabels:
    """Beside instances: all objects as label 0, and the background as the only stuff."""
    return DrawnLabels([ALL_THINGS, BACKGROUND], np.zeros(len(class_names), np.uint8), 1)


def refuse_many(names: Sequence[str], source: Path) -> None:
    """Raises `UserError` for more classes of pixels than label maps have numbers."""
    if len(names) > UNLABELLED:
        raise UserError(
            f"{source}: has {len(names)} classes of pixels, {names[0]} included, but label maps hold at most {UNLABELLED}: "
            "join or drop some"
        )


# ---- files ------------------------------------------------------------------------------------------------------------


def read_values(found: LabelFile, size: tuple[int, int]) -> np.ndarray:
    """The numbers in a PNG: (H, W) int64, classes or ids. Raises `UserError` unless it is such a PNG of the image's size."""
    try:
        data = found.file.read_bytes()
        with open_pillow(data) as image:
            check_mode(image, found)
            pixels = np.asarray(image).astype(np.int64) // (grey_step(data) if image.mode == "L" else 1)
    except UserError:
        raise
    except OSError as error:
        reason = error.strerror or "not a readable image"
        raise UserError(f"{found.file}: the label map cannot be read ({reason})") from None
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{found.file}: the label map cannot be read ({error})") from None
    if pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        raise UserError(
            f"{found.file}: the label map is {height} x {width} (H x W), its image {size[0]} x {size[1]}: "
            "write it at the image's size"
        )
    values: np.ndarray = pixels @ [1, 256, 65536] if found.ids else pixels
    return values


def check_mode(image: Image.Image, found: LabelFile) -> None:
    """Raises `UserError` for PNGs that do not hold what they should: class numbers, or ids as RGB."""
    if found.ids and image.mode != "RGB":
        kind = "a palette" if image.mode == "P" else f"mode {image.mode}"
        raise UserError(
            f"{found.file}: panoptic PNGs hold ids as R + 256 G + 65536 B, this one has {kind}: write it as 8-bit RGB"
        )
    if not found.ids and image.mode not in INDEX_MODES:
        raise UserError(
            f"{found.file}: is a colour image ({image.mode}), but label maps hold one number a pixel, its class: write class "
            "numbers as 8-bit grey or palette indices"
        )


def as_labels(found: LabelFile, values: np.ndarray) -> np.ndarray:
    """Numbers in a file -> labels, (H, W) uint8. Raises `UserError` for numbers that mean nothing."""
    label_of = {entry.value: entry.label for entry in found.values}
    label_of.setdefault(0 if found.ids else UNLABELLED, UNLABELLED)
    known = np.array(sorted(label_of))
    at = np.searchsorted(known[:-1], values)  # of each value, or of one that is not known
    if (known[at] != values).any():
        unknown = np.setdiff1d(values, known).tolist()
        if found.ids:
            raise UserError(
                f"{found.file}: has the id {unknown[0]}, which is not in its segments_info ({len(unknown)} such ids): add it, "
                "or write 0 where there is no segment"
            )
        most = max(entry.value for entry in found.values)
        raise UserError(
            f"{found.file}: has the value {unknown[0]}, but the classes are numbered 0 to {most}: name it in the list of "
            f"classes, or write {UNLABELLED} where there is none"
        )
    labels: np.ndarray = np.array([label_of[value] for value in known.tolist()], np.uint8)[at]
    return labels


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 -> `size` (H, W): the label of the nearest pixel."""
    resized: np.ndarray = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized
