"""Predicted label maps and panoptic segments -> files: PNGs of classes, and COCO's panoptic format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from resdet.config import semantic_section
from resdet.panoptic import Panoptic, encode_ids
from resdet.writing import atomic_write, write_json

if TYPE_CHECKING:
    from resdet.inference.predictor import Predictor


class PanopticFiles:
    """`add` each image, then `write`: FOLDER/panoptic.json, and FOLDER/panoptic/NAME.png with ids as R + 256 G + 65536 B.

    things: (id, name) by label. stuff: (id, name) by label of the label maps, from label 1 on.
    """

    def __init__(self, folder: Path, things: Sequence[tuple[int, str]], stuff: Sequence[tuple[int, str]]) -> None:
        self.folder, self.things, self.stuff = folder, things, stuff
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, stem: str, panoptic: Panoptic) -> None:
        """Write the PNG of an image, whose own file name is `file_name`, as NAME = `stem`. Raises `UserError`."""
        number = len(self.images) + 1
        height, width = panoptic.ids.shape
        self.images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        segments = []
        for segment in panoptic.segments:
            category = self.things[segment.label] if segment.thing else self.stuff[segment.label - 1]
            rows, columns = (np.flatnonzero((panoptic.ids == segment.id).any(axis)) for axis in (1, 0))
            x, y = int(columns[0]), int(rows[0])
            segments.append({
                "id": segment.id, "category_id": category[0], "area": segment.area, "iscrowd": 0,
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                **({} if segment.score is None else {"score": segment.score}),
            })  # fmt: skip
        self.annotations.append({"image_id": number, "file_name": f"{stem}.png", "segments_info": segments})
        write_png(encode_ids(panoptic.ids), self.folder / "panoptic" / f"{stem}.png")

    def write(self) -> Path:
        """The JSON's path. Raises `UserError`."""
        categories = [{"id": k, "name": name, "isthing": 1} for k, name in self.things]
        categories += [{"id": k, "name": name, "isthing": 0} for k, name in self.stuff]
        path = self.folder / "panoptic.json"
        write_json(path, {"images": self.images, "annotations": self.annotations, "categories": categories})
        return path


def write_png(pixels: np.ndarray, path: Path) -> None:
    """(H, W) or (H, W, 3) uint8. Raises `UserError`."""
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def panoptic_files(predictor: Predictor, output: Path) -> PanopticFiles | None:
    """Where the segments of a model with masks and label maps go in `output`; None for any other model."""
    section = semantic_section(predictor.model_config)
    if not section or "masks" not in predictor.model.outputs:
        return None
    things, stuff = ids_apart(
        predictor.category_ids, section.category_ids, len(predictor.class_names), len(predictor.label_names) - 1
    )
    return PanopticFiles(
        output,
        list(zip(things, predictor.class_names, strict=True)),
        list(zip(stuff, predictor.label_names[1:], strict=True)),
    )


def ids_apart(
    things: Sequence[object], stuff: Sequence[object], count: int, stuff_count: int
) -> tuple[list[int], list[int]]:
    """The categories' ids as given, where there is a different whole number for each of `count` things or `stuff_count` kinds
    of stuff; otherwise numbers from 1, and for stuff after the things."""
    own = _integers(things, count) or list(range(1, count + 1))
    others = _integers(stuff, stuff_count)
    if not others or not set(own).isdisjoint(others):
        others = list(range(max(own) + 1, max(own) + 1 + stuff_count))
    return own, others


def _integers(ids: Sequence[object], count: int) -> list[int]:
    found = [identity for identity in ids if isinstance(identity, int)]
    return found if len(set(found)) == len(ids) == count else []
