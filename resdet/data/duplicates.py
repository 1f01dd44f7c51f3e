"""Near-duplicate images, found by a perceptual hash: resized, brightened or recompressed copies of one image.

The hash (dHash, Krawetz 2013) tells at 16 x 16 places whether the image gets brighter to the right: 256 bits, of which copies
differ in a few, unrelated images in about half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from resdet.data.images import read_image
from resdet.errors import UserError

SIDE = 16
ALIKE = 16  # of 256 bits; unrelated images differ in some 128, with a standard deviation of about 20
BLOCK = 2048


class Pair(NamedTuple):
    """Two images that look alike, as rows of the two lists, and in how many bits they differ."""

    first: int
    second: int
    distance: int


def image_hash(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (32,) uint8, 256 bits; all zero for an image of one colour."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1])


def hash_files(files: Iterable[Path], tick: Callable[[], None] = lambda: None) -> tuple[np.ndarray, list[str]]:
    """Hashes (N, 32) uint8, and what is wrong with the files that cannot be read, whose hashes are zero."""

    def one(file: Path) -> np.ndarray | str:
        try:
            return image_hash(read_image(file))
        except UserError as error:
            return str(error)
        finally:
            tick()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, files))
    rows = [np.zeros(SIDE * SIDE // 8, np.uint8) if isinstance(entry, str) else entry for entry in found]
    return np.array(rows, np.uint8).reshape(-1, SIDE * SIDE // 8), [entry for entry in found if isinstance(entry, str)]


def near_duplicates(first: np.ndarray, second: np.ndarray | None = None, limit: int = ALIKE) -> list[Pair]:
    """Pairs (N, 32) x (M, 32) of hashes that differ in at most `limit` bits; of `first` with itself without `second`.

    Images of one colour, whose hash is zero, are never alike.
    """
    other = first if second is None else second
    pairs: list[Pair] = []
    right, plain = _signs(other), ~other.any(axis=1)
    for start in range(0, len(first), BLOCK):
        rows = first[start : start + BLOCK]
        distance = (SIDE * SIDE - _signs(rows) @ right.T) / 2
        distance[~rows.any(axis=1)] = np.inf
        distance[:, plain] = np.inf
        for i, j in zip(*np.nonzero(distance <= limit), strict=True):
            if second is not None or start + i < j:
                pairs.append(Pair(start + int(i), int(j), int(distance[i, j])))
    return pairs


def _signs(hashes: np.ndarray) -> np.ndarray:
    """(N, 32) uint8 -> (N, 256) float32 of 1 and -1, whose products count equal bits minus unequal ones."""
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
