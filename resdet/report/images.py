"""Where a report reads its pictures from: the id of an image -> (H, W, 3) uint8 RGB, None where it cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from resdet.data.dataset import DetectionDataset
from resdet.data.images import read_image
from resdet.data.pixels import for_display
from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation
from resdet.report.gallery import Read


def of_dataset(dataset: DetectionDataset) -> Read:
    index = {identity: k for k, identity in enumerate(dataset.annotations.images.arrays["ids"].tolist())}

    def read(identity: Any) -> np.ndarray | None:
        try:
            return for_display(dataset.read(index[identity]))
        except UserError:
            return None

    return read


def of_folder(evaluation: Evaluation, folder: Path) -> Read:
    """Images by the file names of the ground truth, of 8 bits. Raises `UserError` if the folder is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder")

    def read(identity: Any) -> np.ndarray | None:
        name = Path(evaluation.file_names[identity])
        try:
            image = read_image(folder / name if (folder / name).is_file() else folder / name.name)
        except UserError:
            return None
        return image if image.dtype == np.uint8 else None

    return read
