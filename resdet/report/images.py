"""Where a report reads its pictures from: the id of an image -> (H, W, 3) uint8 RGB, None where it cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from resdet.class_names import few
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


def of_folder(evaluation: Evaluation, folder: Path) -> tuple[Read, str]:
    """Images by the file names of the ground truth, of 8 bits; and how many of them are missing, "" for none.

    Raises `UserError` if the folder is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such image folder")

    def path_of(identity: Any) -> Path:
        name = Path(evaluation.file_names[identity])
        return folder / name if (folder / name).is_file() else folder / name.name

    def read(identity: Any) -> np.ndarray | None:
        try:
            image = read_image(path_of(identity))
        except UserError:
            return None
        return image if image.dtype == np.uint8 else None

    missing = [path.name for identity in evaluation.image_sizes if not (path := path_of(identity)).is_file()]
    if not missing:
        return read, ""
    return read, f"{folder} lacks {len(missing)} of {len(evaluation.image_sizes)} pictures ({few(missing, 3)})"
