"""Image files -> arrays (H, W, C) of the stored dtype, upright, RGB first.

8-bit files become uint8. `pixels.py` scales deeper ones.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError  # of NumPy's headers
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from resdet.data.stand_ins import stand_in
from resdet.data.tiff import (
    PHOTOMETRIC_RGB,
    decode_with_tifffile,
    grey_pages,
    is_tiff,
    read_layout,
    without_orientation,
)
from resdet.errors import UserError

MAX_PIXELS = 2**28  # of one image; its bitmap takes as many bytes
MAX_CHANNELS = 512  # OpenCV's
ARRAY = ".npy"
# Image files other than NumPy arrays.
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".gif", ".jp2", ".ppm", ".pgm", ".pbm"
}  # fmt: skip

# EXIF orientation -> how the stored pixels are brought upright.
_UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[:, ::-1],
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: x.transpose(1, 0, 2)[::-1],
}
_PNG, _NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette is RGB
_REDUCED = {1: 0, 2: 16, 4: 32, 8: 64}  # what IMREAD_REDUCED_* are without a colour
_pillow_limit = threading.Lock()


class Header(NamedTuple):
    """Of a file's stored pixels: size (H, W), the EXIF orientation (1: upright), dtype and channels.

    bands: the channels are not grey, RGB or alpha, so none may be dropped or mixed.
    pages: how many pages of equal size a TIFF has. animated: whether it has more frames than the first, which is decoded.
    """

    size: tuple[int, int]
    orientation: int = 1
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    channels: int = 3
    bands: bool = False
    pages: int = 1
    animated: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        return self.size[::-1] if self.orientation >= 5 else self.size

    @property
    def own_channels(self) -> int:
        """That it has by itself: the grey pages of a TIFF are channels."""
        return self.pages if self.channels == 1 else self.channels

    def misfit(self, channels: int) -> str:
        """Why `decode_image` cannot turn it into `channels`; "" if it can. No page is dropped, and no channel but alpha."""
        have, wants = self.own_channels, f"the model takes {channels} channel{'s' * (channels > 1)}"
        if self.pages > 1 and self.channels > 1:
            return f"has {self.pages} pages of {self.channels} channels, {wants}: save the annotated page alone"
        if have == channels or (channels in (1, 3) and have <= 4 and not self.bands and self.pages == 1):
            return ""
        what, other = ("pages", "save the annotated page alone") if self.pages > 1 else ("channels", "convert it")
        return f"has {have} {what}, {wants}: set model.input.channels={have}, or {other}"

    def stacked(self, channels: int) -> bool:
        """Whether the pages of the file are the requested channels."""
        return self.channels == 1 and self.pages == channels > 1


# ---- headers ---------------------------------------------------------------------------------------------------------


def read_header(data: bytes, name: str | Path) -> Header:
    """What can be read without decoding the pixels. Raises `UserError`."""
    try:
        header = _array_header(data) if data.startswith(_NPY) else _image_header(data)
    except UnidentifiedImageError:  # whose own message names an object in memory
        known = "not an image in a supported format (JPEG, PNG, BMP, TIFF, WebP, NumPy's .npy)"
        raise UserError(f"{name}: {(stand_in(data, name) or known) if data else 'is empty (0 bytes)'}") from None
    except (OSError, SyntaxError, ValueError, TokenError) as error:
        raise UserError(f"{name}: not a readable image ({error})") from None
    height, width = header.size
    if height * width > MAX_PIXELS:
        raise UserError(
            f"{name}: {height} x {width} (H x W) are {height * width:,} pixels, the limit is {MAX_PIXELS:,}: "
            "cut the image into tiles or scale it down"
        )
    return header


def _image_header(data: bytes) -> Header:
    if is_tiff(data):  # of which Pillow reads only some
        layout = read_layout(data)
        bands = not layout.ordinary and layout.samples > 1 and layout.photometric != PHOTOMETRIC_RGB
        return Header(layout.size, _known(layout.orientation), layout.dtype, layout.channels, bands, layout.pages)
    with open_pillow(data) as image:
        dtype: np.dtype[Any] = np.dtype(np.uint8)
        channels = {"1": 1, "L": 1, "LA": 2, "RGBA": 4}.get(image.mode, 3)
        if image.mode.startswith("I") or image.mode == "F":
            dtype, channels = np.dtype(np.float32 if image.mode == "F" else np.uint16), 1
        if data.startswith(_PNG):  # of which Pillow shows no more than 8 bits of each colour
            dtype = np.dtype(np.uint16 if data[24:25] == b"\x10" else np.uint8)
            channels = _PNG_CHANNELS.get(data[25], 3)
            image.info.setdefault("exif", _png_exif(data))
        # Not PngImageFile's, which decodes all pixels in search of a chunk behind them.
        orientation = _known(Image.Image.getexif(image).get(0x0112, 1))
        animated = image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False)
        return Header((image.height, image.width), orientation, dtype, channels, animated=animated)


def _png_exif(data: bytes) -> bytes | None:
    """The eXIf chunk of a PNG, which may come after the pixels."""
    start = len(_PNG)
    while start + 8 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] == b"eXIf":
            return data[start + 8 : end]
        start = end + 4  # behind its checksum
    return None


def open_pillow(data: bytes) -> Image.Image:
    """`Image.open` without Pillow's own limit, which is below MAX_PIXELS and a global that belongs to the whole process."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def grey_step(data: bytes) -> int:
    """What Pillow and OpenCV multiply the numbers in a grey PNG of less than 8 bits by, so that they reach 255; 1 for any other
    file. Pillow leaves those of a single bit as they are."""
    few_bits = data.startswith(_PNG) and data[25] == 0 and data[24] < 8
    return 255 // (2 ** data[24] - 1) if few_bits else 1


def _known(orientation: int) -> int:
    return orientation if orientation in _UPRIGHT else 1


def _array_header(data: bytes) -> Header:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    shape = (*shape, 1) if len(shape) == 2 else shape
    if len(shape) != 3 or min(shape) <= 0 or shape[2] > MAX_CHANNELS:
        raise ValueError(f"an array of {shape}, expected (H, W) or (H, W, C)")
    if dtype.kind not in "uif":
        raise ValueError(f"an array of {dtype}, expected integers or floating point")
    if len(data) < file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError("its data are truncated")
    return Header(shape[:2], 1, dtype.newbyteorder("="), shape[2], bands=shape[2] > 1)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def decode_image(
    data: bytes, name: str | Path, header: Header, channels: int = 3, reduce: int = 1, upright: bool = True
) -> np.ndarray:
    """A file's bytes -> (H, W, channels) of the stored dtype, RGB first. Raises `UserError`.

    Grey is replicated to 3 channels, RGB converted to grey, unrequested alpha dropped, CMYK and palettes converted to RGB;
    otherwise the number of channels must agree. The grey pages of a TIFF are its channels.
    reduce: 2, 4 or 8: decode a JPEG at this fraction of its size, in a third of the time or less.
    """
    if why := header.misfit(channels):
        raise UserError(f"{name}: {why}")
    if is_tiff(data) and header.orientation != 1:
        data = without_orientation(data)
    ordinary = header.dtype == np.uint8 and not header.bands and not data.startswith(_NPY)
    if ordinary and channels in (1, 3) and not header.stacked(channels):
        image = _decode_8_bit(data, channels, reduce)
    else:
        image = _decode_stored(data, name, header, header.stacked(channels))
    if image is None:
        raise UserError(f"{name}: cannot be decoded as an image; it may be truncated or of an unsupported type")
    image = _with_channels(image, channels)
    if upright and header.orientation != 1:
        image = np.ascontiguousarray(_UPRIGHT[header.orientation](image))
    return image


def read_image(path: str | Path, channels: int = 3) -> np.ndarray:
    """An image file -> (H, W, channels) of its dtype, turned upright by its EXIF orientation. Raises `UserError`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_image(data, path, read_header(data, path), channels)


def _decode_8_bit(data: bytes, channels: int, reduce: int) -> np.ndarray | None:
    flags = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
    flags |= cv2.IMREAD_IGNORE_ORIENTATION
    if data[:2] == b"\xff\xd8":
        flags |= _REDUCED[reduce]
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return image if image is None or image.ndim == 3 else image[..., None]


def _decode_stored(data: bytes, name: str | Path, header: Header, stack: bool) -> np.ndarray | None:
    """(H, W, C) as stored in the file; None for truncated data."""
    if data.startswith(_NPY):
        array = np.load(io.BytesIO(data), allow_pickle=False)
        array = array if array.ndim == 3 else array[..., None]
        return np.ascontiguousarray(array, header.dtype)
    buffer = np.frombuffer(data, np.uint8)
    wanted = (*header.size, header.pages if stack else header.channels)
    layout = read_layout(data) if is_tiff(data) else None
    image: np.ndarray | None = None
    if stack and header.dtype == np.uint8:
        image = grey_pages(data, name)
    elif stack:
        ok, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED)
        image = np.dstack([page for page in pages if page.shape == header.size]) if ok else None
    elif not stack and not (layout and (layout.planar or header.channels > 4)):
        image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        if image is not None:
            image = image[..., None] if image.ndim == 2 else image
            image = image[..., [2, 1, 0, 3][: image.shape[2]]] if image.shape[2] >= 3 else image
            image = (
                image[..., [0, 3]] if image.shape[2] == 4 and header.channels == 2 else image
            )  # grey, thrice, and alpha
    if layout and (image is None or image.shape != wanted or image.dtype != header.dtype):
        return decode_with_tifffile(data, name, layout, stack)
    return image


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey or RGB, with or without alpha, as either of both without; others have the number of channels already."""
    have = image.shape[2]
    colours = image[..., : have if have == channels else 1 if have <= 2 else 3]
    if channels in (have, colours.shape[2]):
        return np.ascontiguousarray(colours)
    if channels == 3:
        return np.repeat(colours, 3, axis=2)
    grey = colours.astype(np.float64) @ (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV and Pillow have it
    return (np.rint(grey) if image.dtype.kind in "ui" else grey).astype(image.dtype)[..., None]


def images_among(paths: Iterable[Path]) -> list[Path]:
    """The image files of some, sorted. An array beside an image of the same name is taken for another tool's cache of it."""
    files = sorted(p for p in paths if p.suffix.lower() in SUFFIXES or p.suffix.lower() == ARRAY)
    stems = {p.with_suffix("") for p in files if p.suffix.lower() != ARRAY}
    return [p for p in files if p.suffix.lower() != ARRAY or p.with_suffix("") not in stems]
