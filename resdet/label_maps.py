"""Pure functions on label maps, (H, W) uint8: the class of each pixel."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STRIDE = 4  # of a semantic head's logits
NUMBERS_AT_ONCE = 2**22  # logits per strip: 16 MiB


def label_map(logits: Tensor, size: tuple[int, int], original: tuple[int, int]) -> np.ndarray:
    """The most likely class of each pixel of an image in its original size.

    logits (K, h, w) float32, at a quarter of the network's padded input; size: (H, W) of the resized image without
    padding; original: (H, W) of the image itself. Like detectron2: bilinear to the input's size, crop, bilinear to the image's
    size, argmax; here in strips of rows, to bound the memory of the full-size logits.
    """
    k, h, _ = logits.shape
    rows = _resized(torch.eye(h, device=logits.device), size[0], original[0]).T  # (H, h), sparse
    result = np.empty(original, np.uint8)
    step = max(1, NUMBERS_AT_ONCE // (k * original[1]))
    for top in range(0, original[0], step):
        strip = rows[top : top + step]
        used = strip.any(0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        columns = torch.einsum("yh,khw->kyw", strip[:, first:last], logits[:, first:last])
        strip_logits = _resized(columns, size[1], original[1])
        result[top : top + step] = strip_logits.argmax(0).to(torch.uint8).cpu().numpy()
    return result


def _resized(x: Tensor, length: int, original: int) -> Tensor:
    """(…, n) -> (…, original): upsampled by STRIDE, cropped to `length`, resized; all linear."""
    flat = x.reshape(1, -1, x.shape[-1])
    enlarged = F.interpolate(flat, scale_factor=float(STRIDE), mode="linear", align_corners=False)[..., :length]
    resized = F.interpolate(enlarged, size=original, mode="linear", align_corners=False)
    return resized.reshape(*x.shape[:-1], original)
