"""Boxes, masks and keypoints follow a `Geometry`: an image's objects -> those still in view, where they are after augmentation.

Another kind of annotation moves by the same `Geometry`: by `points` where that is a matrix, by `source` in dense warps.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from resdet.data.convex import clip_polygon, clipped_box, contains, distances
from resdet.data.geometry import Geometry, in_window, source_of
from resdet.data.index import Objects, Segmentation
from resdet.data.patch import Patch, patch_of, patch_of_rle
from resdet.masks import encode_bitmap
from resdet.structures import UNLABELLED

BLOCK = 32  # pixels, the side of the blocks by which a dense map is searched
LARGE = 2**20  # pixels from which a bitmap is kept as run lengths: warps may spread one object over the whole image
Moved = tuple[np.ndarray, Segmentation | Patch]  # box (4,) and mask


def move_objects(objects: Objects, geometry: Geometry, swap: np.ndarray | None = None) -> Objects:
    """Objects of which less than a pixel in width or height stays in view are dropped, others are clipped.

    A box without a mask becomes the box around its moved corners; one with a mask stays tight around the mask, or as it
    was annotated where it is in view as a whole and its sides stay parallel to the axes. Keypoints out of view become
    unlabelled; swap (K,): for each keypoint the one it becomes where the image is mirrored.
    """
    keypoints = objects.keypoints
    if geometry.source is None:
        moved = _by_matrix(objects, geometry)
        keypoints = None if keypoints is None else _move_keypoints(keypoints, geometry)
    else:
        blocks = _Blocks(geometry.source)
        moved = [blocks.move(objects, g, geometry.before) for g in range(len(objects.labels))]
        keypoints = None if keypoints is None else blocks.move_keypoints(keypoints)
    kept = [g for g, found in enumerate(moved) if found is not None]
    boxes = np.array([found[0] for found in moved if found is not None], np.float32).reshape(-1, 4)
    if keypoints is not None:
        keypoints = keypoints[kept]
        if swap is not None and geometry.mirrors:
            keypoints = keypoints[:, swap]
    label_map = None if objects.label_map is None else _move_labels(objects.label_map, geometry)
    masks = [found[1] for found in moved if found is not None]
    return Objects(boxes, objects.labels[kept], masks, keypoints, label_map)


def _move_labels(labels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Each pixel takes the label of the pixel that its centre came from; UNLABELLED where it came from nowhere."""
    source = geometry.source
    if source is None:
        source = source_of(geometry.matrix, geometry.window, geometry.after)
    moved = np.full(source.shape[:2], UNLABELLED, np.uint8)
    known = (source >= 0).all(2)
    x, y = np.floor(source[known]).astype(int).T
    moved[known] = labels[y.clip(max=labels.shape[0] - 1), x.clip(max=labels.shape[1] - 1)]
    return moved


# ---- by a matrix: outlines as points, bitmaps inside their box ------------------------------------------------------


def _by_matrix(objects: Objects, geometry: Geometry) -> list[Moved | None]:
    boxes = objects.boxes.astype(np.float64)
    corners = geometry.points(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)).reshape(-1, 4, 2)
    around = np.concatenate([corners.min(1), corners.max(1)], 1)
    if len(geometry.window) > 2:
        depth = distances(corners.reshape(-1, 2), geometry.window).min(0).reshape(-1, 4)
        whole = (depth > -0.01).all(1)
    else:
        whole = np.zeros(len(boxes), bool)
    moved: list[Moved | None] = []
    for g, segmentation in enumerate(objects.segmentations):
        exact = around[g] if whole[g] and (segmentation is None or geometry.keeps_axes) else None
        if not segmentation:
            box = exact if exact is not None else clipped_box([corners[g]], geometry.window)
            found: Moved | None = None if box is None else (box, None)
        elif isinstance(segmentation, list):
            found = _move_polygons([np.reshape(p, (-1, 2)) for p in segmentation], exact, geometry)
        else:
            patch = segmentation if isinstance(segmentation, Patch) else patch_of_rle(segmentation)
            found = _move_patch(patch, exact, geometry)
        if found is not None:
            found = _in_view(found, bool(whole[g]), geometry.after)
        moved.append(found)
    return moved


def _in_view(found: Moved, whole: bool, size: tuple[int, int]) -> Moved | None:
    box = found[0].clip(0, [size[1], size[0]] * 2)
    wide, high = box[2:] - box[:2]
    return (box, found[1]) if wide > 0 and high > 0 and (whole or min(wide, high) >= 1) else None


def _move_polygons(polygons: Sequence[np.ndarray], exact: np.ndarray | None, geometry: Geometry) -> Moved | None:
    points = geometry.points(np.concatenate(polygons))
    rings = np.split(points, np.cumsum([len(p) for p in polygons])[:-1])
    if contains(geometry.window, points):
        box = np.concatenate([points.min(0), points.max(0)])
    else:
        found = clipped_box(rings, geometry.window)
        if found is None:
            return None
        box = found
        rings = [clip_polygon(ring, geometry.window) for ring in rings]
    outlines = [ring.ravel().tolist() for ring in rings if len(ring)]
    return (box if exact is None else exact, outlines) if outlines else None


def _move_patch(patch: Patch, exact: np.ndarray | None, geometry: Geometry) -> Moved | None:
    height, width = patch.bitmap.shape
    if not height:
        return None
    x1, y1, x2, y2 = patch.x, patch.y, patch.x + width, patch.y + height
    bounds = clipped_box([geometry.points(np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]))], geometry.window)
    if bounds is None:
        return None
    (left, top), (right, bottom) = np.floor(bounds[:2] + 1e-6).astype(int), np.ceil(bounds[2:] - 1e-6).astype(int)
    to_patch = np.array([[1, 0, x1 + 0.5], [0, 1, y1 + 0.5], [0, 0, 1]])
    to_result = np.array([[1, 0, -left - 0.5], [0, 1, -top - 0.5], [0, 0, 1]])
    matrix = to_result @ geometry.matrix @ to_patch  # between centres, as OpenCV has it
    size = (max(int(right - left), 1), max(int(bottom - top), 1))
    bitmap = (cv2.warpPerspective(patch.bitmap * 255, matrix, size) > 127).astype(np.uint8)
    if not geometry.whole_window:
        xs, ys = np.arange(size[0]) + left + 0.5, np.arange(size[1]) + top + 0.5
        bitmap &= in_window(np.stack(np.meshgrid(xs, ys), 2), geometry.window)
    result = Patch(int(left), int(top), bitmap)
    box = result.box()
    return None if box is None else (box if exact is None else exact, result)


def _move_keypoints(keypoints: np.ndarray, geometry: Geometry) -> np.ndarray:
    points = geometry.points(keypoints[..., :2].reshape(-1, 2).astype(np.float64))
    inside = in_window(points, geometry.window) if len(geometry.window) > 2 else np.zeros(len(points), bool)
    return _labelled(keypoints, points, inside)


def _labelled(keypoints: np.ndarray, points: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The keypoints (G, K, 3) at their new places (G * K, 2), all zero where they are not `inside` or never were labelled."""
    moved = np.concatenate([points.reshape(*keypoints.shape[:2], 2), keypoints[..., 2:]], 2)
    seen = inside.reshape(keypoints.shape[:2]) & (keypoints[..., 2] > 0)
    return np.where(seen[..., None], moved, 0).astype(np.float32)


# ---- by a dense map: every pixel looks up where it came from, only near the object -----------------------------------


class _Blocks:
    """A map of sources, in blocks of whose contents the bounds are known: finds where an object went."""

    def __init__(self, source: np.ndarray) -> None:
        self.size = source.shape[:2]
        height, width = (-(-side // BLOCK) * BLOCK for side in self.size)
        padded = np.full((height, width, 2), -1, np.float32)
        padded[: self.size[0], : self.size[1]] = source
        tiles = padded.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK, 2).transpose(0, 2, 4, 1, 3)
        self.blocks = tiles.reshape(*tiles.shape[:3], BLOCK * BLOCK)  # (rows, columns, XY, pixels)
        self.low = np.stack([np.where(row < 0, np.inf, row).min(2) for row in self.blocks])  # (rows, columns, XY)
        self.high = self.blocks.max(3)

    def move(self, objects: Objects, g: int, before: tuple[int, int]) -> Moved | None:
        segmentation, box = objects.segmentations[g], objects.boxes[g].astype(np.float64)
        patch = patch_of(segmentation, box, before) if segmentation else None
        found = self._look_up(box, patch)
        tight = None if found is None else found.box()
        if found is None or tight is None:
            return None
        return tight, None if segmentation is None else self._compact(found, tight)

    def move_keypoints(self, keypoints: np.ndarray) -> np.ndarray:
        """Each goes to the centre of the pixel that came from nearest to it, unless that is more than a pixel off."""
        points = keypoints[..., :2].reshape(-1, 2).astype(np.float64)
        inside = np.zeros(len(points), bool)
        for k in np.flatnonzero(keypoints[..., 2].ravel() > 0):
            rows, columns = np.nonzero(((self.low <= points[k] + 1) & (self.high >= points[k] - 1)).all(2))
            if not len(rows):
                continue
            apart = ((self.blocks[rows, columns] - points[k][:, None]) ** 2).sum(1)  # (blocks, pixels)
            block, pixel = divmod(int(apart.argmin()), BLOCK * BLOCK)
            inside[k] = apart[block, pixel] <= 1
            points[k] = columns[block] * BLOCK + pixel % BLOCK + 0.5, rows[block] * BLOCK + pixel // BLOCK + 0.5
        return _labelled(keypoints, points, inside)

    def _look_up(self, box: np.ndarray, patch: Patch | None) -> Patch | None:
        """The pixels that came from inside the patch, or inside the box where there is none."""
        if patch is None:
            x1, y1, x2, y2 = box
        else:
            x1, y1, x2, y2 = patch.x, patch.y, patch.x + patch.bitmap.shape[1], patch.y + patch.bitmap.shape[0]
        near = (self.low < [x2, y2]).all(2) & (self.high >= [x1, y1]).all(2)
        rows, columns = np.nonzero(near)
        if not len(rows):
            return None
        x, y = self.blocks[rows, columns].swapaxes(0, 1)  # (K, pixels) each
        inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        if patch is not None:
            inside[inside] = patch.bitmap[
                np.floor(y[inside]).astype(int) - patch.y, np.floor(x[inside]).astype(int) - patch.x
            ]
        hit = inside.any(1)
        rows, columns, inside = rows[hit], columns[hit], inside[hit]
        if not len(rows):
            return None
        top, left = rows.min(), columns.min()
        tiles = np.zeros((rows.max() - top + 1, columns.max() - left + 1, BLOCK, BLOCK), np.uint8)
        tiles[rows - top, columns - left] = inside.reshape(-1, BLOCK, BLOCK)
        bitmap = tiles.swapaxes(1, 2).reshape(tiles.shape[0] * BLOCK, tiles.shape[1] * BLOCK)
        return Patch(int(left) * BLOCK, int(top) * BLOCK, bitmap)

    def _compact(self, patch: Patch, box: np.ndarray) -> Segmentation | Patch:
        x1, y1, x2, y2 = box.astype(int)
        bitmap = patch.bitmap[y1 - patch.y : y2 - patch.y, x1 - patch.x : x2 - patch.x]
        if bitmap.size < LARGE:
            return Patch(int(x1), int(y1), bitmap.copy())
        whole = np.zeros(self.size, bool)
        whole[y1:y2, x1:x2] = bitmap
        return encode_bitmap(whole)
