"""Images of any channels, resized by one of three libraries' bilinear kernels."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

Resize = Literal["opencv", "pillow", "torch"]
Rounding = Literal["nearest", "floor"]


def resized_size(
    size: tuple[int, int], min_size: int, max_size: int, rounding: Rounding = "nearest", keep_ratio: bool = True
) -> tuple[int, int]:
    """(H, W) scaled so that the short side is `min_size`, unless the long side would pass `max_size`.

    "floor" is torchvision's rule, under which a short side may come out one pixel less than asked for.
    keep_ratio: False makes a square of side `min_size` of every image.
    """
    if not keep_ratio:
        return min_size, min_size
    scale = min(min_size / min(size), max_size / max(size))
    up = 0.5 if rounding == "nearest" else 0.0
    return max(1, int(size[0] * scale + up)), max(1, int(size[1] * scale + up))


def resize_image(image: np.ndarray, size: tuple[int, int], kernel: Resize = "opencv") -> np.ndarray:
    """(H, W, C) uint8 or float32 -> (*size, C) of the same dtype, or float32 for "torch", which does not round."""
    if kernel == "torch":
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    if image.shape[:2] == size:
        return image
    if kernel == "pillow":
        if image.dtype == np.uint8 and image.shape[2] == 3:
            return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        bands = (Image.fromarray(image[..., c]) for c in range(image.shape[2]))
        return np.dstack([np.asarray(band.resize(size[::-1], Image.Resampling.BILINEAR)) for band in bands])
    resized: np.ndarray = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized if resized.ndim == 3 else resized[..., None]
