"""A generated instance-segmentation dataset in COCO's format: something real to train on before any download.

Textured backgrounds, four classes of shapes that overlap and hide each other, crowds, images without objects.
The same `SyntheticConfig` gives the same files anywhere.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from resdet.config import SyntheticConfig
from resdet.errors import UserError
from resdet.masks import encode_bitmap

CLASSES = ("disk", "box", "triangle", "star")
CATEGORY_IDS = (10, 11, 13, 14)  # neither from 0 nor from 1 on, and with one of COCO's gaps
NOTE = "synthetic.json"  # in the root of what was generated: the spec


def ensure_shapes(root: Path, spec: SyntheticConfig) -> bool:
    """Write the dataset into `root`, unless it is there or `root` holds anything else. True if written.

    It is generated beside `root` and moved into place whole, so an interrupted generation leaves nothing incomplete. Images of
    another spec are replaced. Raises `UserError` if other files lie among those, or if nothing can be written there.
    """
    root = root.resolve()
    there = _generated(root)
    empty = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    if there == spec or not (there or empty):
        return False
    files = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    if there and (others := sorted(files - _files(there))):
        raise UserError(
            f"{root}: was generated with other settings of data.synthetic, and now holds {len(others)} other file(s) "
            f"({others[0]}): move them away, or choose another data.root"
        )
    partial = root.with_name(f".{root.name}.{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for split, count, offset in (("train", spec.num_train, 0), ("val", spec.num_val, spec.num_train)):
            write_split(partial, split, count, offset, spec)
        (partial / NOTE).write_text(json.dumps(spec.model_dump()))
        if there:
            shutil.rmtree(root)
        partial.rename(root)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if _generated(root) == spec:  # another run was faster
            return False
        raise UserError(f"{root}: cannot be written ({error.strerror}); choose another data.root") from None
    return True


def _generated(root: Path) -> SyntheticConfig | None:
    """By which spec `root` was generated; None if it was not."""
    try:
        return SyntheticConfig.model_validate_json((root / NOTE).read_text())
    except (OSError, ValueError):
        return None


def _files(spec: SyntheticConfig) -> set[str]:
    """What belongs to a generated dataset, by path relative to its root."""
    images = {
        f"{'train' if k < spec.num_train else 'val'}2017/{k:06d}.jpg" for k in range(spec.num_train + spec.num_val)
    }
    return images | {NOTE, *(f"annotations/instances_{split}2017.json" for split in ("train", "val"))}


def write_split(root: Path, split: str, count: int, offset: int, spec: SyntheticConfig) -> None:
    """Images `offset` to `offset + count` of the endless sequence, with their annotation file."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(offset, offset + count):
        image, objects = draw_scene(np.random.default_rng([spec.seed, number]), spec.size)
        name = f"{number:06d}.jpg"
        cv2.imwrite(str(folder / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        height, width = image.shape[:2]
        images.append({"id": number + 1, "file_name": name, "height": height, "width": width})
        for entry in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, **entry})
    categories = [{"id": identity, "name": name} for identity, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """-> image (H, W, 3) uint8 RGB and its COCO annotations; later objects lie on top of earlier ones."""
    height, width = (size, int(size * 1.25)) if rng.random() < 0.5 else (int(size * 1.25), size)
    image = texture(rng, height, width, contrast=30)
    count = 0 if rng.random() < 0.05 else int(rng.integers(2, 7))
    placed: list[tuple[int, np.ndarray, np.ndarray, bool]] = []  # class, outline, visible bitmap, crowd
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        radius = size * rng.uniform(0.08, 0.24)
        center = rng.uniform([radius, radius], [width - radius, height - radius])
        outline = np.round(shape_outline(CLASSES[label], rng) * radius + center, 2)  # as the JSON will have it
        bitmap = _rasterise([outline], height, width)
        if any((old & ~bitmap).sum() < 0.4 * old.sum() for _, _, old, _ in placed):
            continue  # nothing may be hidden almost entirely
        placed = [(k, o, old & ~bitmap, crowd) for k, o, old, crowd in placed]
        placed.append((label, outline, bitmap, False))
        _paint(image, [outline], rng)
    if rng.random() < 0.08:
        _add_crowd(image, placed, rng, size)
    return image, [_annotation(*entry) for entry in placed]


def shape_outline(name: str, rng: np.random.Generator) -> np.ndarray:
    """A polygon (N, 2) within the unit circle, turned and stretched at random."""
    stretch = rng.uniform(0.65, 1.0)
    angles: np.ndarray
    radii: np.ndarray
    if name == "disk":
        angles, radii = np.linspace(0, 2 * np.pi, 40, endpoint=False), np.ones(40)
    elif name == "box":
        angles, radii = np.pi / 4 + np.pi / 2 * np.arange(4), np.ones(4)
    elif name == "triangle":
        angles, radii = 2 * np.pi / 3 * np.arange(3), np.ones(3)
    else:
        angles, radii, stretch = np.pi / 5 * np.arange(10), np.where(np.arange(10) % 2, 0.42, 1.0), 1.0
    points = np.stack([np.cos(angles) * radii, np.sin(angles) * radii * stretch], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    turned: np.ndarray = points @ rotation.T
    return turned


def texture(rng: np.random.Generator, height: int, width: int, contrast: float) -> np.ndarray:
    """Noise of a random grain, sometimes with stripes, around a random colour: (height, width, 3) uint8."""
    grain = int(rng.choice([2, 6, 20, 60]))
    noise = rng.normal(size=(height // grain + 2, width // grain + 2, 3)).astype(np.float32)
    surface = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * contrast * 0.5
    if rng.random() < 0.4:
        y, x = np.mgrid[:height, :width]
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
        stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        surface += stripes[..., None] * contrast * rng.uniform(0.3, 1.0, 3)
    painted: np.ndarray = np.clip(surface + rng.uniform(40, 215, 3), 0, 255).astype(np.uint8)
    return painted


def _paint(image: np.ndarray, outlines: list[np.ndarray], rng: np.random.Generator) -> None:
    """Fill outlines with a texture of their own and a thin dark or bright rim."""
    height, width = image.shape[:2]
    alpha = np.zeros((height * 4, width * 4), np.uint8)
    cv2.fillPoly(alpha, [np.round(o * 4).astype(np.int32) for o in outlines], 255)
    soft = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)[..., None] / 255.0
    fill = texture(rng, height, width, contrast=15)
    image[:] = np.round(image * (1 - soft) + fill * soft)
    rim = (0, 0, 0) if rng.random() < 0.5 else (255, 255, 255)
    cv2.polylines(image, [np.round(o * 16).astype(np.int32) for o in outlines], True, rim, 1, cv2.LINE_AA, shift=4)


def _add_crowd(
    image: np.ndarray, placed: list[tuple[int, np.ndarray, np.ndarray, bool]], rng: np.random.Generator, size: int
) -> None:
    """A dozen small shapes of one class in a heap, annotated together as a crowd, where there is room."""
    height, width = image.shape[:2]
    label, reach = int(rng.integers(len(CLASSES))), size * 0.16
    middle = rng.uniform([reach, reach], [width - reach, height - reach])
    outlines = [
        shape_outline(CLASSES[label], rng) * size * 0.035 + middle + rng.uniform(-reach, reach, 2) * 0.75
        for _ in range(12)
    ]
    bitmap = _rasterise(outlines, height, width)
    if not any((old & bitmap).any() for _, _, old, _ in placed):
        _paint(image, outlines, rng)
        placed.append((label, np.concatenate(outlines), bitmap, True))


def _rasterise(outlines: list[np.ndarray], height: int, width: int) -> np.ndarray:
    rles = coco_mask.frPyObjects([o.ravel().tolist() for o in outlines], height, width)
    bitmap: np.ndarray = coco_mask.decode(coco_mask.merge(rles)).astype(bool)
    return bitmap


def _annotation(label: int, outline: np.ndarray, visible: np.ndarray, crowd: bool) -> dict[str, Any]:
    """Whole shapes as polygons, partly hidden ones as compressed RLE, crowds as uncompressed RLE."""
    height, width = visible.shape
    rle = encode_bitmap(visible)
    segmentation: Any = rle
    if crowd:
        flat = np.r_[False, visible.T.ravel(), False]  # COCO's runs go down the columns
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        segmentation = {"size": [height, width], "counts": np.diff(np.r_[0, edges, visible.size]).tolist()}
    elif (visible == _rasterise([outline], height, width)).all():
        segmentation = [outline.ravel().tolist()]
    return {
        "category_id": CATEGORY_IDS[label],
        "bbox": [float(v) for v in coco_mask.toBbox(rle)],
        "area": float(coco_mask.area(rle)),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }
