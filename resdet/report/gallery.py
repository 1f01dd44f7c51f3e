"""Matches -> the pictures of the gallery: which, how large, and what is drawn on them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from resdet.evaluation.coco import Evaluation
from resdet.html import data_uri
from resdet.report.matches import (
    BOTH,
    CLASS,
    FOUND,
    IGNORED,
    MISSED,
    NEARLY,
    NOTHING,
    PLACE,
    RIGHT,
    TWICE,
    Matches,
    compressed,
)

Read = Callable[[Any], np.ndarray | None]  # an image's id -> (H, W, 3) uint8 RGB; None if it cannot be read
PICTURES = 200  # in a page
SIDE = 512  # of a thumbnail, its longer one
BYTES = 13 * 2**20  # of all thumbnails, in base64
DRAWN = 100  # detections of a picture, of the highest scores
OUTLINED = 40  # masks of a picture
SUSPECTS, FEW = 40, 3  # likely annotation errors of each kind, and of them in a picture
SURE, SAME_PLACE = 0.5, 0.8  # score and IoU of a detection that contradicts the annotations


class Suspect(NamedTuple):
    """A likely annotation error. what: "missing", an object that is not annotated; "class", an annotation of another class;
    "unfound", an annotation that nothing finds. row: of the detection, or of the object for "unfound"."""

    what: str
    row: int
    image: int
    weight: float


def suspects(matches: Matches, areas: np.ndarray, unfound: np.ndarray | None = None) -> list[Suspect]:
    """Likely annotation errors, the likeliest of each kind first, at most `SUSPECTS` of each and `FEW` of them in a picture.

    areas (G,): of the objects: a large one that nothing finds is likelier an error. unfound (G,) bool: objects that no other
    checkpoint finds either; by default all.
    """
    m = matches
    sure = m.score >= min(SURE, float(np.quantile(m.score, 0.9)) if len(m.score) else SURE)
    result = []
    for what, rows in (
        ("missing", np.flatnonzero(sure & (m.kind == NOTHING))),
        ("class", np.flatnonzero(sure & (m.kind == CLASS) & (m.iou >= SAME_PLACE))),
    ):
        best = _few_each(rows[np.argsort(-m.score[rows], kind="stable")], m.image)
        result += [Suspect(what, int(k), int(m.image[k]), float(m.score[k])) for k in best]
    never = (m.object_kind == MISSED) & (m.object_iou < 0.1) & (True if unfound is None else unfound)
    lonely = np.flatnonzero(never)
    best = _few_each(lonely[np.argsort(-areas[lonely], kind="stable")], m.object_image)
    return result + [Suspect("unfound", int(g), int(m.object_image[g]), 1.0 - float(m.object_iou[g])) for g in best]


def _few_each(rows: np.ndarray, images: np.ndarray) -> list[int]:
    """The first `SUSPECTS` of the rows, at most `FEW` of each image. images: of all rows."""
    counts: Counter[int] = Counter()
    kept = []
    for row in rows.tolist():
        counts[images[row]] += 1
        if counts[images[row]] <= FEW:
            kept.append(row)
    return kept[:SUSPECTS]


def worst_first(matches: Matches, images: Sequence[int], threshold: float) -> list[int]:
    """The ids of all images: first those with most errors, the scores of false detections and missed objects added up."""
    m = matches
    wrong = m.counted & (m.kind != RIGHT) & (m.score >= threshold)
    missed = (m.object_kind != FOUND) | (_partner_scores(m) < threshold)
    position = {image: k for k, image in enumerate(images)}
    weights = np.zeros(len(images))
    np.add.at(weights, [position[i] for i in m.image[wrong].tolist()], m.score[wrong])
    np.add.at(weights, [position[i] for i in m.object_image[missed].tolist()], 1.0)
    return [images[k] for k in np.argsort(-weights, kind="stable")]


def _partner_scores(m: Matches) -> np.ndarray:
    """(G,) the scores of the detections that find the objects; 0 without."""
    return np.where(m.object_partner >= 0, np.append(m.score, 0.0)[m.object_partner], 0.0)


def chosen_images(matches: Matches, images: Sequence[int], threshold: float, found: Sequence[Suspect]) -> list[int]:
    """At most `PICTURES` ids: the worst, those with likely annotation errors, and examples of each mix-up of classes."""
    ordered = worst_first(matches, images, threshold)
    if len(ordered) <= PICTURES:
        return ordered
    m = matches
    mixed: dict[tuple[int, int], list[int]] = {}
    for k in np.flatnonzero((m.kind == CLASS) & (m.score >= threshold)):
        mixed.setdefault((int(m.object_category[m.partner[k]]), int(m.category[k])), []).append(int(m.image[k]))
    pairs = sorted(mixed.values(), key=len, reverse=True)[:20]
    wanted = [suspect.image for suspect in found] + [image for pair in pairs for image in pair[:2]]
    extra = list(dict.fromkeys(wanted))[: PICTURES // 2]
    kept = set(list(dict.fromkeys(extra + ordered))[:PICTURES])
    return [image for image in ordered if image in kept]


class Pictures:
    """Makes the entries of the gallery from the matches of an evaluation.

    found: `Evaluation.detections` of the kind that the matches are of. read: None where there are no images.
    """

    def __init__(
        self, evaluation: Evaluation, matches: Matches, found: Sequence[dict[str, Any]], read: Read | None
    ) -> None:
        self.evaluation, self.matches, self.found, self.read = evaluation, matches, found, read
        identities = sorted(evaluation.image_sizes)
        self.identity = dict(enumerate(identities, 1))  # of a file's image, by the id in `truth`
        self.rows = _rows(matches.image)
        self.object_rows = _rows(matches.object_image)

    def entry(self, image: int, side: int = SIDE) -> dict[str, Any]:
        """A picture for the page: {"name", "w", "h", "src", "d": detections, "g": objects}; see `static/draw.js`."""
        identity = self.identity[image]
        height, width = self.evaluation.image_sizes[identity]
        pixels = self.read(identity) if self.read else None
        if height is None or width is None:
            height, width = pixels.shape[:2] if pixels is not None else self._extent(image)
        rows, objects = self.rows.get(image, [])[:DRAWN], self.object_rows.get(image, [])
        m, truth = self.matches, self.evaluation.truth["annotations"]
        local, local_object = ({row: k for k, row in enumerate(chosen)} for chosen in (rows, objects))
        size = (height, width)
        return {
            "name": self.evaluation.file_names[identity], "w": width, "h": height, "id": image,
            "src": None if pixels is None else thumbnail(pixels, side),
            "d": [
                [*_box(self.found[m.entry[k]]), int(m.category[k]), round(float(m.score[k]), 4), int(m.kind[k]),
                 local_object.get(int(m.partner[k]), -1), round(float(m.iou[k]), 2),
                 self._outline(self.found[m.entry[k]], size, n)]
                for n, k in enumerate(rows)
            ],
            "g": [
                [*_box(truth[m.annotation[g]]), int(m.object_category[g]), int(m.object_kind[g]),
                 local.get(int(m.object_partner[g]), -1), round(float(m.object_iou[g]), 2),
                 self._outline(truth[m.annotation[g]], size, n) if self.evaluation.has_masks else ""]
                for n, g in enumerate(objects)
            ],
        }  # fmt: skip

    def place(self, suspect: Suspect) -> int:
        """The position of a suspect among the detections, or the objects, of its picture; -1 if it is not drawn."""
        rows = (self.object_rows if suspect.what == "unfound" else self.rows).get(suspect.image, [])
        number = rows.index(suspect.row) if suspect.row in rows else -1
        return number if suspect.what == "unfound" or number < DRAWN else -1

    def _outline(self, entry: dict[str, Any], size: tuple[int, int], number: int) -> str:
        if number >= OUTLINED or not entry.get("segmentation"):
            return ""
        return outline(entry["segmentation"], size)

    def _extent(self, image: int) -> tuple[int, int]:
        """(H, W) that holds all boxes of an image whose size nothing tells."""
        m, truth = self.matches, self.evaluation.truth["annotations"]
        boxes = [self.found[m.entry[k]]["bbox"] for k in self.rows.get(image, [])]
        boxes += [truth[m.annotation[g]]["bbox"] for g in self.object_rows.get(image, [])]
        right, bottom = (max([b[a] + b[a + 2] for b in boxes], default=100.0) for a in (0, 1))
        return int(np.ceil(bottom)) + 1, int(np.ceil(right)) + 1


def thumbnail(pixels: np.ndarray, side: int) -> str:
    """(H, W, 3) uint8 RGB -> a JPEG of at most `side` pixels as a data URI."""
    return data_uri(jpeg(pixels, side))


def jpeg(pixels: np.ndarray, side: int, quality: int = 75) -> bytes:
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def outline(segmentation: Any, size: tuple[int, int]) -> str:
    """The contours of a mask of an image of `size` (H, W), simplified, as the path of an SVG."""
    rle = compressed(segmentation, size)
    x, y, w, h = (int(v) for v in coco_mask.toBbox(rle))
    mask = np.ascontiguousarray(coco_mask.decode(rle)[y : y + h, x : x + w])
    if not mask.size:
        return ""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    tolerance = max(0.5, max(size) / 500)
    path = ""
    for contour in contours:
        points = cv2.approxPolyDP(contour, tolerance, True).reshape(-1, 2)
        if len(points) > 2:
            path += "M" + "L".join(f"{x + 0.5:g} {y + 0.5:g}" for x, y in points.tolist()) + "Z"
    return path


def _box(entry: dict[str, Any]) -> list[float]:
    return [round(float(v), 1) for v in entry["bbox"]]


def _rows(images: np.ndarray) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for k, image in enumerate(images.tolist()):
        rows.setdefault(image, []).append(k)
    return rows


# What the pages call the kinds, in the order of their numbers.
DETECTION_KINDS = {
    RIGHT: "right", IGNORED: "on a crowd region", CLASS: "wrong class", PLACE: "poorly placed", BOTH: "wrong class and place",
    TWICE: "second detection", NOTHING: "nothing there",
}  # fmt: skip
OBJECT_KINDS = {FOUND: "found", NEARLY: "nearly found", MISSED: "missed"}
