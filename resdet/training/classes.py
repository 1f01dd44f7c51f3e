"""What a run of a classifier has in the place of a detector's: its data, and the sheet of its predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from resdet.class_names import few
from resdet.config import Config, DataConfig
from resdet.data.class_dataset import read_picture
from resdet.data.class_folder import class_summary, missing_classes, read_class_folder, split_folder
from resdet.data.coco import Annotations
from resdet.data.collate import to_device
from resdet.data.dataset import DetectionDataset
from resdet.data.sources import Split
from resdet.errors import UserError
from resdet.models.detector import Detector
from resdet.runtime.console import console
from resdet.visualize import contact_sheet, save_image

SHEET = 16  # pictures


def read_classes(data: DataConfig, splits: list[Split]) -> tuple[Annotations, Annotations | None]:
    """The pictures of train, and of val if it is in `splits`; prints their numbers. Raises one `UserError`."""
    train = read_class_folder(split_folder(data, "train"))
    if len(train.class_names) == 1:
        raise UserError(
            f"{train.source}: holds one class alone, {train.class_names[0]}: there is nothing to tell it from"
        )
    console.print(f"train: {train.source}: {class_summary(train)}", markup=False)
    if "val" not in splits:
        return train, None
    folder = split_folder(data, "val")
    if folder.resolve() == train.source.resolve():
        raise UserError(f"{folder}: is the folder of the training pictures, too: data.val.images must be another")
    return train, read_val_classes(folder, train.class_names)


def read_val_classes(folder: Path, class_names: list[str]) -> Annotations:
    """The pictures of a validation folder in the labels of `class_names`; prints their number. Raises `UserError`."""
    val = read_class_folder(folder, class_names)
    console.print(f"val: {val.source}: {class_summary(val)}", markup=False)
    if missing := missing_classes(val):
        console.print(
            f"warning: {val.source}: no picture of {len(missing)} of {len(class_names)} classes, whose accuracy cannot be "
            f"measured: {few(missing)}",
            markup=False,
        )
    return val


def class_sheet(model: Detector, dataset: DetectionDataset, config: Config) -> Path:
    """Pictures spread over the validation set, each with its class and the predicted one, in OUTPUT/predictions.jpg."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(SHEET, len(dataset))).astype(int)).tolist()
    names, infos = dataset.annotations.class_names, dataset.annotations.images
    loaded = dataset.collate([sample for k in chosen if not isinstance(sample := dataset[k, 0], UserError)])
    was_training, device = model.training, next(model.parameters()).device
    found = model.eval().predict(to_device(loaded.batch, device))
    model.train(was_training)
    tiles = []
    for row, index in enumerate(loaded.indices):
        if index in loaded.problems:
            continue
        truth, label = names[int(infos[index].objects.labels[0])], names[int(found.labels[row, 0])]
        title = f"{label} {float(found.scores[row, 0]):.0%}" + ("" if label == truth else f" (is {truth})")
        tiles.append((_enlarged(read_picture(infos[index].file, 3)), title))
    path = config.output / "predictions.jpg"
    save_image(contact_sheet(tiles, tile=240), path)
    return path


def _enlarged(picture: Image.Image, side: int = 230) -> np.ndarray:
    factor = side / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
