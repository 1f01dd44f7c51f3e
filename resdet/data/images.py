"""Picture files -> uint8 RGB arrays (H, W, 3), right side up, and their resizing."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from resdet.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
Resize = Literal["opencv", "pillow", "torch"]
Rounding = Literal["nearest", "floor"]

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


class Header(NamedTuple):
    """Of a file's stored pixels: size (H, W), and the EXIF orientation (1: upright)."""

    size: tuple[int, int]
    orientation: int

    @property
    def upright_size(self) -> tuple[int, int]:
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_header(data: bytes, name: str | Path) -> Header:
    """Size and orientation without decoding the pixels. Raises `UserError`."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(0x0112, 1)
            return Header((image.height, image.width), orientation if orientation in _UPRIGHT else 1)
    except UnidentifiedImageError:  # whose own text names an object in memory
        raise UserError(f"{name}: not a picture of a format that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: not a readable picture ({error})") from None


def decode_image(data: bytes, name: str | Path, orientation: int = 1, reduce: int = 1) -> np.ndarray:
    """Bytes of any common format (greyscale, 16-bit, CMYK, with alpha) -> (H, W, 3) uint8 RGB. Raises `UserError`.

    reduce: 2, 4 or 8 has a JPEG's decoder make no more than so small a part of each side, in a third of the time or less.
    """
    image = None
    if data:  # OpenCV asserts on an empty buffer
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        if reduce > 1 and data[:2] == b"\xff\xd8":
            flags |= {2: 16, 4: 32, 8: 64}[reduce]  # what IMREAD_REDUCED_* are without a colour
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise UserError(f"{name}: cannot be decoded as a picture; it may be truncated or of another type")
    if orientation != 1:
        image = np.ascontiguousarray(_UPRIGHT[orientation](image))
    return image


def read_image(path: str | Path) -> np.ndarray:
    """A picture file -> (H, W, 3) uint8 RGB, turned upright by its EXIF orientation. Raises `UserError`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_image(data, path, read_header(data, path).orientation)


def find_images(inputs: list[str | Path]) -> list[Path]:
    """Files and folders (searched recursively) -> picture files, sorted within each folder. Raises `UserError`."""
    found: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            inside = sorted(p for p in entry.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{entry}: no pictures in this folder ({', '.join(sorted(SUFFIXES))})")
            found += inside
        elif entry.is_file():
            found.append(entry)
        else:
            raise UserError(f"{entry}: no such file or folder")
    return found


def other_files(inputs: Sequence[str | Path]) -> Counter[str]:
    """What `find_images` leaves out of folders, counted by suffix."""
    inside = (path for folder in map(Path, inputs) if folder.is_dir() for path in folder.rglob("*"))
    return Counter(path.suffix for path in inside if path.suffix.lower() not in SUFFIXES and path.is_file())


def resized_size(
    size: tuple[int, int], min_size: int, max_size: int, rounding: Rounding = "nearest"
) -> tuple[int, int]:
    """(H, W) scaled so that the short side is `min_size`, unless the long side would pass `max_size`.

    "floor" is torchvision's rule, under which a short side may come out one pixel less than asked for.
    """
    scale = min(min_size / min(size), max_size / max(size))
    up = 0.5 if rounding == "nearest" else 0.0
    return max(1, int(size[0] * scale + up)), max(1, int(size[1] * scale + up))


def resize_image(image: np.ndarray, size: tuple[int, int], kernel: Resize = "opencv") -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3) uint8, or float32 in 0..255 for "torch", which does not round."""
    if kernel == "torch":
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    if image.shape[:2] == size:
        return image
    if kernel == "pillow":
        return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    resized: np.ndarray = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized
