"""The pictures of a split as the gallery takes them: with their objects, and on demand a model's predictions."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np

from resdet.data.coco import Annotations
from resdet.data.dataset import read_annotated
from resdet.data.index import ImageInfo
from resdet.data.patch import Patch
from resdet.data.pixels import PixelRange, for_display
from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation
from resdet.inference.postprocess import to_coco
from resdet.inference.predictor import Predictor
from resdet.report.gallery import Pictures, jpeg, outline
from resdet.report.matches import match

KEPT = 400  # thumbnails in memory
LIMIT = 100  # detections of each class and image


class Browsed:
    """A split to look at. Pictures are read when asked for, by several threads.

    channels, pixel_range: how image files are read, as for `read_annotated`. predictor: for predictions, else None; the
    annotations are in its label space.
    """

    def __init__(
        self, annotations: Annotations, channels: int, pixel_range: PixelRange | None, predictor: Predictor | None
    ) -> None:
        self.annotations, self.predictor = annotations, predictor
        self.channels, self.pixel_range = channels, pixel_range
        self._predicting = threading.Lock()
        self.thumbnail = lru_cache(KEPT)(self._thumbnail)
        self.predicted = lru_cache(KEPT)(self._predicted)

    def entry(self, index: int) -> dict[str, Any]:
        """A picture with its objects, in the form of `gallery.Pictures.entry`."""
        info = self.annotations.images[index]
        objects = [
            [*_xywh(box), int(label) + 1, 0, -1, 1.0, _path(mask, info.size)]
            for box, label, mask in zip(
                info.objects.boxes.tolist(), info.objects.labels, info.objects.segmentations, strict=True
            )
        ]
        return {
            "name": info.file.name, "w": info.size[1], "h": info.size[0], "id": index, "src": f"/thumbnail/{index}",
            "large": f"/picture/{index}", "d": [], "g": objects,
        }  # fmt: skip

    def _thumbnail(self, index: int, side: int) -> bytes:
        """A JPEG of at most `side` pixels. Raises `UserError`."""
        info = self.annotations.images[index]
        short = max(info.size) / side
        reduce = max((k for k in (1, 2, 4, 8) if k <= short), default=1)
        return jpeg(for_display(self._read(index, info, reduce)), side)

    def _read(self, index: int, info: ImageInfo, reduce: int = 1) -> np.ndarray:
        if self.annotations.read_image:
            return self.annotations.read_image(index)
        return read_annotated(info, self.channels, self.pixel_range, reduce)

    def _predicted(self, index: int) -> dict[str, Any]:
        """The picture with predictions, each with what became of it. Raises `UserError`."""
        assert self.predictor
        info, names = self.annotations.images[index], self.annotations.class_names
        pixels = self._read(index, info)
        with self._predicting:
            (found,) = self.predictor.predict_units([pixels])
        labels = list(range(1, len(names) + 1))
        entries = [{**entry, "image_id": 1} for entry in to_coco(found, 1, labels)]
        evaluation = Evaluation(self.annotations.source, content=_content(info, names))
        detections = evaluation.detections(entries, "bbox")
        matches = match(evaluation, detections, "bbox", LIMIT)
        entry = Pictures(evaluation, matches, detections, None).entry(1)
        return entry | {key: value for key, value in self.entry(index).items() if key not in ("d", "g")}


def _content(info: ImageInfo, names: list[str]) -> dict[str, Any]:
    """COCO's structure of one image."""
    height, width = info.size
    annotations = [
        {"id": k, "image_id": 1, "category_id": int(label) + 1, "bbox": _xywh(box), "iscrowd": 0,
         **({"segmentation": mask} if mask and not isinstance(mask, Patch) else {})}
        for k, (box, label, mask) in enumerate(
            zip(info.objects.boxes.tolist(), info.objects.labels, info.objects.segmentations, strict=True), 1)
    ]  # fmt: skip
    return {
        "images": [{"id": 1, "file_name": info.file.name, "height": height, "width": width}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def _xywh(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [round(v, 1) for v in (x1, y1, x2 - x1, y2 - y1)]


def _path(mask: Any, size: tuple[int, int]) -> str:
    """Polygons as they are, other masks by their contours, as the path of an SVG."""
    if not mask or isinstance(mask, Patch):
        return ""
    if not isinstance(mask, list):
        try:
            return outline(mask, size)
        except (ValueError, UserError):
            return ""
    parts = []
    for polygon in mask:
        points = zip(polygon[0::2], polygon[1::2], strict=True)
        parts.append("M" + "L".join(f"{x:.5g} {y:.5g}" for x, y in points) + "Z")
    return "".join(parts)
