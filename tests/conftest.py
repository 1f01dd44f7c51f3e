from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def coco_open() -> Path:
    """Real COCO pictures, where they lie beside the project."""
    folder = SHARED / "coco_open"
    if not folder.is_dir():
        pytest.skip(f"needs the real COCO pictures in {folder}")
    return folder


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A made-up picture with structure at all scales: sums of noise, resized."""
    import cv2

    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for scale in (4, 16, 64):
        noise = rng.normal(size=(height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 25
    return np.clip(picture + 128, 0, 255).astype(np.uint8)
