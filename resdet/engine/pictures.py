"""`tools/visualize.py`: single pictures and a contact sheet of annotations, predictions, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from resdet.config import Config
from resdet.data.dataset import DetectionDataset, read_annotated
from resdet.data.images import find_images, read_image
from resdet.engine.auto import as_trained
from resdet.engine.log import console
from resdet.engine.setup import make_synthetic, missing_data, read_split
from resdet.errors import UserError
from resdet.predict import Predictor
from resdet.structures import MASK_UNKNOWN, Instances
from resdet.visualize import ColorBy, annotated_instances, contact_sheet, draw, save_image

SHEET = 36  # pictures on a contact sheet at most


def draw_split(
    config: Config, split: Literal["train", "val"], count: int, output: Path, color_by: ColorBy,
    weights: Path | None = None, score: float = 0.5,
) -> None:  # fmt: skip
    """Annotations of `count` pictures spread over a split; with `weights`, predictions beside them."""
    make_synthetic(config)
    problems = missing_data(config, [split])
    if problems:
        raise UserError("\n\n".join(problems))
    annotations = read_split(config, split)
    predictor = Predictor(config, weights, score_threshold=score) if weights else None
    chosen = np.unique(np.linspace(0, len(annotations.images) - 1, min(count, len(annotations.images))).astype(int))
    names = annotations.class_names
    tiles = []
    for index in chosen:
        info = annotations.images[index]
        image = read_annotated(info)
        truth = annotated_instances(info.objects, info.size)
        drawn = draw(image, truth, names, color_by=color_by, scores=False)
        tiles.append((drawn, f"{info.file.name}: {len(truth)} objects"))
        if predictor:
            (found,) = predictor([image])
            predicted = draw(image, found, predictor.class_names, color_by=color_by)
            tiles.append((predicted, f"predicted: {len(found)} of score {score:.0%} or more"))
            drawn = np.concatenate([drawn, predicted], axis=1)
        save_image(drawn, output / f"{info.file.stem}.jpg")
    _write_sheet(tiles, output, len(chosen), columns=4 if predictor else None)


def draw_augmented(config: Config, count: int, output: Path, color_by: ColorBy, versions: int = 3) -> None:
    """What training really sees: `count` pictures, plain and then `versions` times augmented, resized and flipped.

    Boxes and masks come out of the training samples themselves, masks through the crops that become targets.
    """
    make_synthetic(config)
    problems = missing_data(config, ["train"])
    if problems:
        raise UserError("\n\n".join(problems))
    annotations = read_split(config, "train")
    config = as_trained(config, annotations)
    data = DetectionDataset(annotations, config.data, config.model.input, train=True, masks=True, seed=config.seed)
    chosen = np.unique(np.linspace(0, len(data) - 1, min(count, len(data), SHEET // (versions + 1))).astype(int))
    tiles = []
    for index in map(int, chosen):
        info = annotations.images[index]
        truth = annotated_instances(info.objects, info.size)
        plain = draw(read_annotated(info), truth, annotations.class_names, color_by=color_by, scores=False)
        tiles.append((plain, info.file.name))
        for epoch in range(versions):
            sample = data[index, epoch]
            if isinstance(sample, UserError):
                raise sample
            known = None if sample.masks is None else np.where(sample.masks == MASK_UNKNOWN, 0, sample.masks)
            objects = Instances(
                sample.boxes, np.ones(len(sample.labels), np.float32), sample.labels, sample.image.shape[:2],
                None if known is None else known.astype(np.float32),
            )  # fmt: skip
            pixels = np.clip(np.round(sample.image), 0, 255).astype(np.uint8)
            tile = draw(pixels, objects, annotations.class_names, color_by=color_by, scores=False)
            height, width = sample.image.shape[:2]
            tiles.append((tile, f"epoch {epoch}: {width} x {height}, {len(sample.labels)} objects"))
    _write_sheet(tiles, output, len(chosen), columns=versions + 1)


def draw_predictions(
    config: Config, weights: Path, inputs: Sequence[str], output: Path, score: float, color_by: ColorBy
) -> None:
    """Predictions on files and folders of pictures. A file that is no picture is named and passed over."""
    files = find_images(list(inputs))
    predictor = Predictor(config, weights, score_threshold=score)
    tiles: list[tuple[np.ndarray, str]] = []
    failed: list[str] = []
    used: set[str] = set()
    for file in files:
        try:
            image = read_image(file)
        except UserError as error:
            failed.append(str(error))
            continue
        (found,) = predictor([image])
        drawn = draw(image, found, predictor.class_names, color_by=color_by)
        name = next(n for n in (file.stem, *(f"{file.stem}_{k}" for k in range(2, len(files) + 2))) if n not in used)
        used.add(name)  # pictures of equal name in different folders do not overwrite each other
        save_image(drawn, output / f"{name}.jpg")
        if len(tiles) < SHEET:
            tiles.append((drawn, f"{file.name}: {len(found)}"))
    for problem in failed:
        console.print(f"passed over: {problem}")
    if not tiles:
        raise UserError(f"none of the {len(files)} files could be read as a picture")
    _write_sheet(tiles, output, len(files) - len(failed))


def _write_sheet(tiles: list[tuple[np.ndarray, str]], output: Path, count: int, columns: int | None = None) -> None:
    save_image(contact_sheet(tiles[:SHEET], columns), output / "sheet.jpg")
    console.print(f"{count} picture(s) in {output}; overview: {output / 'sheet.jpg'}")
