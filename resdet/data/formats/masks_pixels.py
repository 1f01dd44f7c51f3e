"""A label map, or the mask of one object -> the pixels of each object, cropped to it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from resdet.data.formats.masks_layout import Map
from resdet.data.images import decode_image, grey_step, open_pillow, read_header
from resdet.errors import UserError

JPEG = b"\xff\xd8"


class Pixels(NamedTuple):
    """Of an object: its number, crop (h, w) bool, and the crop's top left pixel (y, x)."""

    number: int
    crop: np.ndarray
    corner: tuple[int, int]

    def pieces(self) -> int:
        """How many parts there are that do not touch, even at a corner."""
        return cv2.connectedComponents(self.crop.astype(np.uint8))[0] - 1


def is_map(file: Path) -> bool:
    """Whether a file may be a label map or a mask: grey or a palette, not a JPEG."""
    try:
        data = file.read_bytes()
        header = read_header(data, file)
        if data.startswith(JPEG):
            return False
        return is_palette(data) or is_grey(decode_image(data, file, header, header.channels))
    except (OSError, UserError):
        return False


def is_grey(pixels: np.ndarray) -> bool:
    """Whether the colours of (H, W, C) are equal, alpha aside."""
    colours = pixels[..., : 3 if pixels.shape[2] > 2 else 1]
    return bool((colours == colours[..., :1]).all())


def is_palette(data: bytes) -> bool:
    """Whether an image's pixels are indices of colours."""
    try:
        with open_pillow(data) as image:
            return image.mode == "P"
    except (OSError, SyntaxError, ValueError):  # such as a TIFF of bands
        return False


def read_map(entry: Map, size: tuple[int, int]) -> tuple[list[Pixels], bool]:
    """The objects, by number, and whether it is a palette image, whose indices are the numbers.

    Raises `UserError`, also for a map of another size than its image's (H, W).
    """
    file = entry.file
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    header = read_header(data, file)
    if header.upright_size != size:
        (h, w), (height, width) = header.upright_size, size
        raise UserError(
            f"{file}: is {h} x {w} (H x W), but its image {entry.image} is {height} x {width}: it is the map of another image, "
            "or one of them was resized"
        )
    if header.pages > 1:
        raise UserError(f"{file}: has {header.pages} pages: save the plane of its image alone")
    if data.startswith(JPEG):
        raise UserError(f"{file}: is a JPEG, which changes pixels: save label maps and masks as PNG or TIFF")
    if entry.of_one:
        on = decode_image(data, file, header, 3 if header.channels <= 4 else header.channels).max(axis=2) > 0
        return [Pixels(1, on, (0, 0))], False
    if palette := is_palette(data):
        numbers = _indices(data, file)
    else:
        pixels = decode_image(data, file, header, header.channels)
        if not is_grey(pixels):
            raise UserError(
                f"{file}: is a colour image, not a label map: save one number an object as 8- or 16-bit grey (PNG or TIFF)"
            )
        numbers = _whole(pixels[..., 0], file)
    objects = objects_of(numbers)
    if [each.number for each in objects] == [255] and objects[0].pieces() > 1:
        raise UserError(
            f"{file}: is black and white in several pieces, so which pixels are one object is not said: give each object a "
            "number of its own (scipy.ndimage.label numbers separate pieces)"
        )
    step = grey_step(data)
    return [each._replace(number=each.number // step) for each in objects], palette


def objects_of(numbers: np.ndarray) -> list[Pixels]:
    """(H, W) of integers, 0 for background -> the pixels of each number, in ascending order."""
    h, w = numbers.shape
    starts_here = np.ones((h, w), bool)  # a run of equal numbers along a row
    starts_here[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    starts = np.flatnonzero(starts_here)
    ends = np.append(starts[1:], h * w)
    values = numbers.ravel()[starts]
    order = np.argsort(values, kind="stable")
    order = order[values[order] != 0]
    if not len(order):
        return []
    values = values[order]
    rows, left = np.divmod(starts[order], w)
    right = left + (ends - starts)[order]
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    bounds = (np.minimum.reduceat(rows, first), np.maximum.reduceat(rows, first) + 1,
              np.minimum.reduceat(left, first), np.maximum.reduceat(right, first))  # fmt: skip
    return [
        Pixels(int(value), numbers[y1:y2, x1:x2] == value, (int(y1), int(x1)))
        for value, y1, y2, x1, x2 in zip(values[first], *bounds, strict=True)
    ]


def _indices(data: bytes, file: Path) -> np.ndarray:
    """(H, W) of a palette image. Raises `UserError`."""
    try:
        with open_pillow(data) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file}: cannot be decoded as an image ({error})") from None


def _whole(numbers: np.ndarray, file: Path) -> np.ndarray:
    """Raises `UserError` for fractions and for negative numbers."""
    if numbers.dtype.kind == "f":
        if not (np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**31)).all():
            raise UserError(f"{file}: has fractions, where a label map has one whole number an object")
        numbers = numbers.astype(np.int64)
    if numbers.min() < 0:
        raise UserError(f"{file}: has the number {numbers.min()}, where background is 0 and objects are 1, 2, …")
    return numbers
