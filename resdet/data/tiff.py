"""TIFF: the tags of its pages -> `Layout`, and the pixels of layouts that OpenCV refuses or decodes wrongly.

TIFF 6.0 (Adobe 1992) and BigTIFF.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from resdet.errors import UserError

MAX_PAGES = 4096
# Tag numbers.
SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, PLANAR, EXTRA, FORMAT = (
    254, 256, 257, 258, 262, 274, 277, 284, 338, 339
)  # fmt: skip
NO_IMAGE = 0b101  # bits of SUBFILE: a reduced copy, a transparency mask
PHOTOMETRIC_GREY, PHOTOMETRIC_RGB = (0, 1), 2
_KINDS = {1: "u", 2: "i", 3: "f"}  # SampleFormat
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}  # field types that hold integers


class Layout(NamedTuple):
    """Of the first page: size (H, W), samples a pixel, each an unsigned ("u") or signed ("i") integer or a floating-point
    number ("f") of so many bits; planar: band after band; orientation as in EXIF.
    alpha: of two samples, whether the second is one. pages: how many share that size, without reduced copies and masks.
    """

    size: tuple[int, int]
    samples: int
    kind: str
    bits: int
    photometric: int
    planar: bool
    orientation: int
    alpha: bool
    pages: int

    @property
    def ordinary(self) -> bool:
        """Whether it is at most 8-bit grey, palette, RGB, CMYK or YCbCr, perhaps with alpha: what any reader reads."""
        colours = self.photometric not in PHOTOMETRIC_GREY or self.samples == 1 or (self.samples == 2 and self.alpha)
        return self.kind == "u" and self.bits <= 8 and self.samples <= 4 and colours

    @property
    def channels(self) -> int:
        """That it has once decoded: palette, CMYK and YCbCr become RGB."""
        if self.ordinary and self.photometric not in (*PHOTOMETRIC_GREY, PHOTOMETRIC_RGB):
            return 3
        return self.samples

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """That a sample is decoded to: 12 bits become 16."""
        size = next((size for size in (1, 2, 4, 8) if self.bits <= 8 * size), 8)
        return np.dtype(f"{self.kind}{max(size, 2 if self.kind == 'f' else 1)}")


def is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_layout(data: bytes) -> Layout:
    """Raises `ValueError` for a file whose tags cannot be read."""
    try:
        pages = list(_pages(data))
    except struct.error:
        raise ValueError("its tags are cut off") from None
    if not pages or not all(pages[0].get(tag) for tag in (WIDTH, HEIGHT)):
        raise ValueError("it has no page with a width and a height")
    first = pages[0]

    def number(tag: int, default: int) -> int:
        return first.get(tag, [default])[0]

    size = (number(HEIGHT, 0), number(WIDTH, 0))
    alike = [p for p in pages if _size(p) == size and not p.get(SUBFILE, [0])[0] & NO_IMAGE]
    samples = number(SAMPLES, 1)
    return Layout(
        size, samples, _KINDS.get(number(FORMAT, 1), "u"), max(first.get(BITS, [1])), number(PHOTOMETRIC, 1),
        number(PLANAR, 1) == 2 and samples > 1, number(ORIENTATION, 1), number(EXTRA, 0) in (1, 2), max(1, len(alike)),
    )  # fmt: skip


def without_orientation(data: bytes) -> bytes:
    """The same file, marked as upright: OpenCV rotates some TIFFs even when asked not to."""
    patched = bytearray(data)
    for _ in _pages(data, patched):
        pass
    return bytes(patched)


def decode_with_tifffile(data: bytes, name: str | Path, layout: Layout, stack: bool) -> np.ndarray:
    """The first page, or with `stack` all pages as channels -> (H, W, C) of the stored dtype. Raises `UserError`."""
    try:
        import tifffile
    except ImportError:
        what = f"{layout.samples} band(s) of {layout.bits}-bit {_NAMES[layout.kind]}"
        raise UserError(f"{name}: a TIFF with {what} needs the extra: pip install 'resdet[tiff]'") from None
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = list(file.pages)
            alike = [page for page in pages if page.shape == pages[0].shape and not page.subfiletype & NO_IMAGE]
            taken = alike if stack else pages[:1]
            arrays = [_channels_last(page.asarray(), layout) for page in taken]
    except Exception as error:  # whatever its decoders of a dozen compressions raise
        raise UserError(f"{name}: its TIFF data cannot be decoded ({error})") from None
    return np.concatenate(arrays, axis=2)


def grey_pages(data: bytes, name: str | Path) -> np.ndarray:
    """The pages of an 8-bit TIFF as channels, by Pillow, since OpenCV turns them into BGR. Raises `UserError`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pages = [np.asarray(page.convert("L")) for page in ImageSequence.Iterator(image)]
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: cannot be decoded as an image ({error})") from None
    return np.dstack([page for page in pages if page.shape == pages[0].shape])


_NAMES = {"u": "unsigned integers", "i": "signed integers", "f": "floating point"}


def _channels_last(array: np.ndarray, layout: Layout) -> np.ndarray:
    if array.ndim == 3 and layout.planar:
        array = np.moveaxis(array, 0, -1)
    array = array if array.ndim == 3 else array[..., None]
    if array.shape != (*layout.size, layout.samples):
        raise ValueError(f"an array of {array.shape}, its tags say {(*layout.size, layout.samples)}")
    return array


def _size(page: dict[int, list[int]]) -> tuple[int, int]:
    return page.get(HEIGHT, [0])[0], page.get(WIDTH, [0])[0]


def _pages(data: bytes, upright: bytearray | None = None) -> Iterator[dict[int, list[int]]]:
    """{tag: values} of each page, of the tags that hold a few integers. upright: a copy of the data, to become so."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count_code, offset_code, entry_size = ("Q", "Q", 20) if big else ("H", "I", 12)
    width = struct.calcsize(order + offset_code)
    (offset,) = struct.unpack_from(order + offset_code, data, 8 if big else 4)
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < MAX_PAGES:
        seen.add(offset)
        (count,) = struct.unpack_from(order + count_code, data, offset)
        start = offset + struct.calcsize(order + count_code)
        page = {}
        for entry in range(start, start + count * entry_size, entry_size):
            tag, kind, length = struct.unpack_from(f"{order}HH{offset_code}", data, entry)
            code = _CODES.get(kind)
            if code is None or not 0 < length <= 64:
                continue
            place = entry + 4 + width
            if struct.calcsize(code) * length > width:
                (place,) = struct.unpack_from(order + offset_code, data, place)
            if tag == ORIENTATION and upright is not None:
                struct.pack_into(f"{order}{code}", upright, place, 1)
            page[tag] = list(struct.unpack_from(f"{order}{length}{code}", data, place))
        yield page
        (offset,) = struct.unpack_from(order + offset_code, data, start + count * entry_size)
