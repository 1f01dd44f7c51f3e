"""An image in any form that users pass -> an array of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps

from resdet.data.images import decode_image, read_header, read_image
from resdet.errors import UserError

AnyImage = str | Path | bytes | BinaryIO | Image.Image | np.ndarray


def read_pixels(image: Any, number: int, channels: int = 3, *, deep: bool = False) -> np.ndarray:
    """-> (H, W, channels) in the image's own dtype, rotated as EXIF says, RGB first.

    number: names an image without a path in errors. deep: whether arrays may have another dtype than uint8.
    Raises `UserError`.
    """
    if isinstance(image, str | Path):
        return read_image(image, channels)
    name = f"image {number}"
    if isinstance(image, Image.Image):
        return _from_pillow(image, name, channels)
    if hasattr(image, "read"):
        image = image.read()
    if isinstance(image, bytes | bytearray | memoryview):
        data = bytes(image)
        return decode_image(data, name, read_header(data, name), channels)
    kind = "uint8" if not deep else "integer or floating-point"
    order = {1: " grey", 3: " RGB"}.get(channels, "")
    expected = f"expected a path, a file's bytes, a Pillow image or (H, W, {channels}) {kind}{order}"
    if image is None:
        raise UserError(f"{name}: {expected}, got None (a file that cv2.imread could not read?)")
    if isinstance(image, torch.Tensor):
        shape = tuple(image.shape)
        raise UserError(f"{name}: {expected}, got a tensor of {shape}: pass tensor.permute(1, 2, 0).cpu().numpy()")
    if not isinstance(image, np.ndarray):
        raise UserError(f"{name}: {expected}, got a {type(image).__name__}")
    array = image[..., None] if image.ndim == 2 and channels == 1 else image
    valid_shape = array.ndim == 3 and array.shape[2] == channels and 0 not in array.shape
    if not valid_shape or (array.dtype != np.uint8 and (not deep or array.dtype.kind not in "uif")):
        fix = ": scale it to 0..255 and round" if image.dtype.kind == "f" and not deep else ""
        raise UserError(f"{name}: {expected}, got {image.shape} {image.dtype}{fix}")
    return np.ascontiguousarray(array)


def _from_pillow(image: Image.Image, name: str, channels: int) -> np.ndarray:
    """A Pillow image, read like a file."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    elif channels in (1, 3):
        pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    else:
        pixels = np.array(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if channels == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] != channels:
        raise UserError(f"{name}: a Pillow image of mode {image.mode}, the model takes {channels} channels")
    return pixels
