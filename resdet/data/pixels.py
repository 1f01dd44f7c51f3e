"""Pixel values of any depth -> the network's unit, 0..255: which value range that is, and how such images are displayed.

8-bit values are in that unit already and stay uint8. Others become float32, value by value: (x - low) * 255 / (high - low),
clipped to 0..255. There is one range for a whole dataset, and it belongs to a model like its weights. It is never found from
a single image, where the same temperature or tissue would be bright in one image and dark in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resdet.config.data import RangeRule
from resdet.data.images import decode_image, read_header
from resdet.errors import UserError, listed

PixelRange = tuple[float, float]
SAMPLED = 100  # images from which a range is found
ENOUGH = 100_000  # pixels of each
ALWAYS_8_BIT = {".jpg", ".jpeg", ".bmp", ".webp"}


def to_unit(image: np.ndarray, pixel_range: PixelRange | None, name: str | Path) -> np.ndarray:
    """(H, W, C) -> the same in 0..255: uint8 untouched, or with a range, float32 throughout. NaN becomes 0.

    Raises `UserError` for more than 8 bits without a range, and for an image without a finite value.
    """
    if image.dtype == np.uint8:
        return image if pixel_range is None else image.astype(np.float32)
    if is_void(image):
        raise UserError(f"{name}: all its pixels are NaN or infinite: write it again, or leave it out")
    if pixel_range is None:
        raise UserError(
            f"{name}: has {image.dtype} pixels, and their value range is not known: set "
            "data.pixel_range=[low, high], or use a checkpoint trained on such images, which stores it"
        )
    low, high = pixel_range
    exact = np.float32 if image.dtype.itemsize <= 2 or image.dtype == np.float32 else np.float64
    x = np.subtract(image, exact(low), dtype=exact)
    x *= exact(255 / (high - low))
    np.clip(x, 0, 255, out=x)
    np.nan_to_num(x, copy=False, nan=0.0)
    unit: np.ndarray = x.astype(np.float32, copy=False)
    return unit


def is_void(image: np.ndarray) -> bool:
    """Whether it has no finite value."""
    return image.dtype.kind == "f" and not np.isfinite(image.flat[0]) and not np.isfinite(image).any()


def for_display(image: np.ndarray) -> np.ndarray:
    """(H, W, C) in 0..255 -> (H, W, 3) uint8: the first three channels, or the first as grey where there are one or two."""
    shown = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    return shown if shown.dtype == np.uint8 else np.rint(np.clip(shown, 0, 255)).astype(np.uint8)


class Depth(NamedTuple):
    """Of some images of a set: how many were looked at; of which dtypes and numbers of channels they are; which have channels
    that the model does not take, or no finite value; and of those with more than 8 bits how many there are, the lowest and
    highest value, how many hold values that are not finite, and the range of values by each rule."""

    sampled: int
    dtypes: tuple[str, ...]
    channels: tuple[int, ...]
    misfits: tuple[str, ...]
    void: tuple[str, ...] = ()
    deep: int = 0
    lowest: float = 0.0
    highest: float = 0.0
    not_finite: int = 0
    percentiles: PixelRange = (0.0, 0.0)  # 1 and 99, of all pixels together
    widest: PixelRange = (
        0.0,
        0.0,
    )  # of each image's percentiles 0.1 and 99.9: hot pixels are out, small objects are not

    def __str__(self) -> str:
        text = f"{self.sampled} sampled images: {', '.join(self.dtypes) or 'unreadable'}"
        text += f", {' or '.join(map(str, self.channels))} channel(s)" if self.channels else ""
        text += f", {len(self.void)} without a finite value" if self.void else ""
        if not self.deep:
            return text
        text += f"; {self.deep} with more than 8 bits, values from {self.lowest:g} to {self.highest:g}"
        return text + (f", {self.not_finite} with NaN or infinite ones" if self.not_finite else "")


def sample_of(count: int) -> list[int]:
    """At most `SAMPLED` indices spread over `count` images."""
    return [int(k) for k in np.unique(np.linspace(0, count - 1, min(SAMPLED, count)).astype(int))]


def measure_depth(files: Sequence[Path], channels: int) -> Depth:
    """Look at images of a set for a model with `channels`. Unreadable files are skipped: other checks report them."""
    dtypes: dict[str, None] = {}
    counts: dict[int, None] = {}
    misfits: list[str] = []
    void: list[str] = []
    values: list[np.ndarray] = []
    not_finite = 0
    for file in files:
        if file.suffix.lower() in ALWAYS_8_BIT and channels in (1, 3):
            dtypes["uint8"] = None
            continue
        try:
            data = file.read_bytes()
            header = read_header(data, file)
            dtypes[str(header.dtype)] = counts[header.own_channels] = None
            if why := header.misfit(channels):
                misfits.append(f"{file}: {why}")
            elif header.dtype != np.uint8:
                pixels = decode_image(data, file, header, channels).reshape(-1, channels)
                if is_void(pixels):
                    void.append(str(file))
                some = pixels[:: max(1, len(pixels) // ENOUGH)].ravel().astype(np.float64)
                finite = some[np.isfinite(some)]
                not_finite += len(finite) < len(some)
                values += [finite] if len(finite) else []
        except (OSError, UserError):
            continue
    looked_at = (len(files), tuple(dtypes), tuple(counts), tuple(misfits), tuple(void))
    if not values:
        return Depth(*looked_at)
    ends = np.array([np.percentile(v, (0.1, 99.9)) for v in values])
    pooled = np.concatenate(values)
    low, high = np.percentile(pooled, (1, 99)).tolist()
    return Depth(
        *looked_at, len(values), float(pooled.min()), float(pooled.max()), not_finite,
        (low, high), (float(ends[:, 0].min()), float(ends[:, 1].max())),
    )  # fmt: skip


def find_range(rule: RangeRule, depth: Depth) -> PixelRange:
    """The range by a rule: "auto" is `Depth.widest`, "percentile" `Depth.percentiles`, "dtype" all that an integer type holds,
    or 0 to 1 for floating point. Raises `UserError`."""
    if rule == "dtype":
        deep = [name for name in depth.dtypes if name != "uint8"]
        if len(deep) > 1:
            raise UserError(
                f"data.pixel_range=dtype: the images have several dtypes, {', '.join(deep)}: set [low, high]"
            )
        dtype = np.dtype(deep[0])
        return (0.0, 1.0) if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    low, high = depth.widest if rule == "auto" else depth.percentiles
    if not low < high:
        raise UserError(
            f"data.pixel_range={rule}: the sampled pixels are all {low:g} to {high:g}: set data.pixel_range=[low, high]"
        )
    return low, high


def decide_range(
    given: RangeRule | PixelRange, depth: Depth, known: PixelRange | None
) -> tuple[PixelRange | None, str]:
    """-> the range for a set, None for one of 8 bits, and one line that says why ("" if there is nothing to say).

    given: `data.pixel_range`. known: of the weights that a training starts from, which "auto" keeps.
    Raises `UserError` for a setting without effect, for channels that the model does not take, and for images of NaN.
    """
    for files, what in (
        (depth.misfits, "do not have model.input.channels channels"),
        (depth.void, "have no finite pixel (all are NaN or infinite); write them again, or leave them out"),
    ):
        if files:
            raise listed(f"{len(files)} of {depth.sampled} sampled images {what}:", list(files), limit=5)
    if not depth.deep:
        if given == "auto":
            return None, ""
        raise UserError(
            f"data.pixel_range={given} has no effect ({depth}: 8-bit values stay as they are): leave it out"
        )
    if isinstance(given, tuple):
        found, why = given, "as set"
    elif given == "auto" and known:
        found, why = known, "from the checkpoint"
    else:
        found, why = find_range(given, depth), f"by data.pixel_range={given}"
    line = f"data.pixel_range = [{found[0]:g}, {found[1]:g}] becomes 0..255 in all images, {why} ({depth})"
    mixed = "uint8" in depth.dtypes
    return found, line + ("; warning: the 8-bit images among them are not scaled" if mixed else "")
