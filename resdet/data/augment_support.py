"""Which transforms of albumentations work on images that are not 8-bit RGB."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from resdet.errors import listed

SIDE = 512  # of the images that transforms are tried on


def refuse_unsupported(transforms: Sequence[Any], channels: int, floating: bool) -> None:
    """Raises one `UserError` that names every transform that cannot take images with `channels`, or float32 ones in 0..1.

    Each is tried, since albumentations does not say. One that fails on 8-bit RGB, too, is reported elsewhere.
    """
    if channels == 3 and not floating:
        return
    dtype = np.float32 if floating else np.uint8
    single = [t for t in transforms if not hasattr(t, "transforms")]
    unable = [t for t in single if not _works(t, channels, dtype) and _works(t, 3, np.uint8)]
    if unable:
        kind = f"{channels} channel(s){' of more than 8 bits' if floating else ''}"
        names = list(dict.fromkeys(type(t).__name__ for t in unable))
        raise listed(f"data.train.augmentations: these do not work on images of {kind}; leave them out:", names)


def _works(transform: Any, channels: int, dtype: type) -> bool:
    image: np.ndarray = np.full((SIDE, SIDE, channels), 0.5 if dtype is np.float32 else 127, dtype)
    alone = copy.deepcopy(transform)
    alone.p = 1.0
    try:
        after = alone(image=image)["image"]
    except Exception:  # each of them raises something else
        return False
    return isinstance(after, np.ndarray) and after.dtype == dtype and after.shape[2:] == image.shape[2:]
