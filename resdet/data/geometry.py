"""Where an augmentation's geometric transforms moved the pixels of an image, independent of its annotations.

In: the transforms that ran, with the parameters they drew. Out: a `Geometry`, which transforms each
kind of annotation (see `move.py`). Coordinates are continuous: (0, 0) is the image's corner, a pixel's centre lies at + 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from resdet.data.convex import clip_polygon, contains, oriented, rectangle

_CENTRE = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])


@dataclass(frozen=True)
class Step:
    """A geometric transform that ran: its drawn parameters, and the size (H, W) of the image it was given."""

    transform: Any
    params: dict[str, Any]
    size: tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """before, after: the image's size (H, W).

    matrix (3, 3): a homography from before to after, in homogeneous XY; where `source` is given, only its beginning.
    window (V, 2): the convex polygon, in the image after, of what was always in view; fewer than 3 points: nothing.
    source (H, W, 2) float32, for dense warps only: where in the image before each pixel came from, -1 from nowhere.
    """

    before: tuple[int, int]
    after: tuple[int, int]
    matrix: np.ndarray
    window: np.ndarray
    source: np.ndarray | None = None

    @property
    def keeps_axes(self) -> bool:
        """Whether axis-aligned boxes stay axis-aligned."""
        (a, b), (c, d) = self.matrix[:2, :2]
        return bool((b == c == 0 or a == d == 0) and not self.matrix[2, :2].any())

    @property
    def mirrors(self) -> bool:
        """Whether left and right are swapped."""
        if self.source is None:
            middle = self.window.mean(0) if len(self.window) else np.zeros(2)
            depth = np.linalg.inv(self.matrix)[2] @ [*middle, 1]  # of a homography, below zero behind the camera
            return bool(np.linalg.det(self.matrix) * depth < 0)
        known = np.all(self.source >= 0, axis=2)
        known = known[:-1, :-1] & known[1:, :-1] & known[:-1, 1:]
        along_x = (self.source[:-1, 1:] - self.source[:-1, :-1])[known]
        along_y = (self.source[1:, :-1] - self.source[:-1, :-1])[known]
        turns = along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]
        return bool(len(turns) and np.median(np.sign(turns)) < 0)

    @property
    def whole_window(self) -> bool:
        return contains(self.window, rectangle(self.after))

    def points(self, xy: np.ndarray) -> np.ndarray:
        """(N, 2) of the image before -> (N, 2) float64, by the matrix; not clipped."""
        assert self.source is None
        return _project(self.matrix, xy)


def trace(steps: Sequence[Step], before: tuple[int, int], after: tuple[int, int]) -> Geometry:
    """The geometry of all `steps` together, from an image of size `before` to one of size `after`."""
    matrix, window = np.eye(3), rectangle(before)
    source = None
    sizes = [step.size for step in steps[1:]] + [after]
    for step, new in zip(steps, sizes, strict=True):
        step_matrix = None if source is not None else _matrix(step, new)
        if step_matrix is None:
            if source is None:
                source = source_of(matrix, window, step.size)
                source += 1  # transforms fill with 0
            source = step.transform.apply_to_mask(np.ascontiguousarray(source), **step.params)
        else:
            matrix = step_matrix @ matrix
            if len(window):
                window = clip_polygon(oriented(_project(step_matrix, window)), rectangle(new))
    if source is not None:
        source -= 1
    return Geometry(before, after, matrix, window, source)


def _project(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    moved = np.column_stack([xy, np.ones(len(xy))]) @ matrix.T
    projected: np.ndarray = moved[:, :2] / moved[:, 2:]
    return projected


def source_of(matrix: np.ndarray, window: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 2) float32: by the inverse of `matrix`, where each pixel's centre lay; -1 outside the window."""
    height, width = size
    source = np.full((height, width, 2), -1, np.float32)
    if not len(window):
        return source
    xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
    a = np.linalg.inv(matrix)
    whole = contains(window, rectangle(size))
    for top in range(0, height, 256):  # float64 only of some rows at a time
        rows = slice(top, top + 256)
        x, y = (a[k, 0] * xs + (a[k, 1] * ys[rows, None] + a[k, 2]) for k in range(2))
        if a[2, :2].any():
            w = a[2, 0] * xs + (a[2, 1] * ys[rows, None] + a[2, 2])
            x, y = x / w, y / w
        source[rows, :, 0], source[rows, :, 1] = x, y
        if not whole:
            grid = np.stack(np.broadcast_arrays(xs, ys[rows, None]), axis=2)
            source[rows][~in_window(grid, window)] = -1
    return source


def in_window(points: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(…, 2) -> (…): whether a point lies in the convex `window` (V, 2)."""
    inside = np.ones(points.shape[:-1], bool)
    for (x1, y1), (x2, y2) in zip(window, np.roll(window, -1, 0), strict=True):
        inside &= (x2 - x1) * (points[..., 1] - y1) - (y2 - y1) * (points[..., 0] - x1) >= -1e-6
    return inside


def _matrix(step: Step, new: tuple[int, int]) -> np.ndarray | None:
    """The homography of one transform, whose image is of size `new`; None for dense warps and mirrored borders."""
    matrix = _homography(step, new)
    border = getattr(step.transform, "border_mode", cv2.BORDER_CONSTANT)
    if matrix is None or border == cv2.BORDER_CONSTANT:
        return matrix
    # Other borders repeat or mirror the image, objects included, outside of its area.
    covered = contains(oriented(_project(matrix, rectangle(step.size))), rectangle(new))
    return matrix if covered else None


def _homography(step: Step, new: tuple[int, int]) -> np.ndarray | None:
    import albumentations as A

    transform, params, old = step.transform, step.params, step.size
    if isinstance(transform, A.HorizontalFlip | A.VerticalFlip | A.Transpose | A.RandomRotate90 | A.D4):
        return _from_keypoints(transform, params, old)
    if isinstance(transform, A.Affine | A.Rotate):
        crop = (params["x_min"], params["y_min"]) if getattr(transform, "crop_border", False) else (0, 0)
        uncropped = _between_centres(params["matrix"])
        return np.asarray(_shift(-crop[0], -crop[1]) @ uncropped)
    if isinstance(transform, A.Perspective):
        scale: np.ndarray = np.eye(3)
        if transform.keep_size:
            scale = np.diag([old[1] / params["max_width"], old[0] / params["max_height"], 1])
        return _between_centres(scale @ params["matrix"])
    corners = _crop(transform, params, old)
    if corners is None:
        return None
    x1, y1, x2, y2 = corners
    matrix: np.ndarray = np.diag([new[1] / (x2 - x1), new[0] / (y2 - y1), 1.0]) @ _shift(-x1, -y1)
    return matrix


def _crop(transform: Any, params: dict[str, Any], old: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """What is cut out, or added, before it is resized: XYXY in the image before; None if the transform does otherwise."""
    import albumentations as A
    from albumentations.augmentations.crops.transforms import BaseCrop, _BaseRandomSizedCrop
    from albumentations.augmentations.geometric.resize import MaxSizeTransform

    height, width = old
    if isinstance(transform, A.Resize | A.RandomScale | MaxSizeTransform):
        return 0, 0, width, height
    if isinstance(transform, A.Pad):
        left, top = params["pad_left"], params["pad_top"]
        return -left, -top, width + params["pad_right"], height + params["pad_bottom"]
    if isinstance(transform, BaseCrop | _BaseRandomSizedCrop):
        pad = params.get("pad_params") or {"pad_left": 0, "pad_top": 0}
        x1, y1, x2, y2 = params["crop_coords"]
        return x1 - pad["pad_left"], y1 - pad["pad_top"], x2 - pad["pad_left"], y2 - pad["pad_top"]
    if isinstance(transform, A.CropAndPad):
        x1, y1, x2, y2 = params["crop_params"] or (0, 0, width, height)
        top, bottom, left, right = params["pad_params"] or (0, 0, 0, 0)
        return x1 - left, y1 - top, x2 + right, y2 + bottom
    return None


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _between_centres(matrix: np.ndarray) -> np.ndarray:
    """OpenCV's matrices put the first pixel's centre at (0, 0)."""
    moved: np.ndarray = _CENTRE @ np.asarray(matrix, np.float64) @ np.linalg.inv(_CENTRE)
    return moved


def _from_keypoints(transform: Any, params: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The affine matrix by which a transform moves the pixels' centres."""
    height, width = size
    centres = np.array([[0, 0], [width, 0], [0, height]], np.float64)
    keypoints = np.column_stack([centres, np.zeros((3, 3))])
    moved = transform.apply_to_keypoints(keypoints, **params)[:, :2].astype(np.float64)
    x, y = (moved[1] - moved[0]) / width, (moved[2] - moved[0]) / height
    matrix = np.array([[x[0], y[0], moved[0, 0]], [x[1], y[1], moved[0, 1]], [0, 0, 1]])
    return _between_centres(matrix)
