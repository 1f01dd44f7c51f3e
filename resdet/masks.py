"""Pure functions on masks: ground truth cropped to its box, training targets, pasting, COCO run lengths.

A mask lives in a box's frame as a small square. Moving it between two axis-aligned frames is separable:
`rows @ mask @ columns.T`, with one small matrix an axis. Every function here is that product with other matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

Rle = dict[str, object]


# ---- ground truth: polygon or bitmap -> (M, M) crop of its own box ---------------------------------------------------


def crop_polygons(polygons: Sequence[Sequence[float]], box: np.ndarray, size: int) -> np.ndarray:
    """Rasterise polygons (each [x1, y1, x2, y2, …], at least three points) inside `box` -> (size, size) uint8.

    The polygon is scaled into the box's frame first, so the crop's resolution does not depend on the picture's.
    """
    origin, scale = box[:2], size / np.maximum(box[2:] - box[:2], 1e-6)
    far = 100 * size  # points so far off change nothing inside, and pycocotools walks along every pixel of an edge
    scaled = [((np.reshape(p, (-1, 2)) - origin) * scale).clip(-far, far).ravel().tolist() for p in polygons]
    crop: np.ndarray = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(scaled, size, size)))
    return crop


def crop_bitmap(bitmap: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Crop a full-size bitmap (H, W) of 0 and 1 to `box` -> (size, size) uint8, bilinear, thresholded at one half."""
    x1, y1 = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
    x2, y2 = np.ceil(box[2:]).astype(int) + 1
    inside = bitmap[y1:y2, x1:x2].astype(np.float32)
    steps = (np.arange(size) + 0.5) / size
    columns = _bilinear(box[0] + steps * (box[2] - box[0]) - x1 - 0.5, inside.shape[1], clamp=True)
    rows = _bilinear(box[1] + steps * (box[3] - box[1]) - y1 - 0.5, inside.shape[0], clamp=True)
    crop: np.ndarray = (rows @ inside @ columns.T >= 0.5).astype(np.uint8)
    return crop


def rle_covers(counts: object, pixels: int) -> bool:
    """Whether COCO run lengths, compressed or a list, are whole and cover exactly so many pixels.

    pycocotools believes what it is given: others make it loop for ever or write past its memory.
    """
    if isinstance(counts, list):
        return all(type(c) is int and 0 <= c <= pixels for c in counts) and sum(counts) == pixels
    if not isinstance(counts, str | bytes):
        return False
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    chars = np.frombuffer(text, np.uint8).astype(np.int64) - 48  # five bits each, and whether more follow
    if not len(chars) or chars.min() < 0 or chars.max() > 63 or chars[-1] & 32:
        return False
    last = np.flatnonzero((chars & 32) == 0)
    first = np.r_[0, last[:-1] + 1]
    lengths = last - first + 1
    if lengths.max() > 8:
        return False
    place = np.arange(len(chars)) - np.repeat(first, lengths)
    runs = np.add.reduceat((chars & 31) << (5 * place), first)
    runs -= np.where(chars[last] & 16, np.int64(1) << (5 * lengths), 0)  # signed, and from the third on
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])  # differences to the last but one
    return bool(runs.min() >= 0 and runs.sum() == pixels)


def decode_rle(segmentation: Rle, height: int, width: int) -> np.ndarray:
    """COCO RLE, compressed or not -> (height, width) uint8."""
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    bitmap: np.ndarray = coco_mask.decode(segmentation)
    return bitmap


# ---- training targets ------------------------------------------------------------------------------------------------


def targets_in_rois(masks: Tensor, gt_boxes: Tensor, rois: Tensor, size: int) -> Tensor:
    """The share of each RoI bin that the object covers: (P, M, M), (P, 4), (P, 4) -> (P, size, size) in 0..1.

    An exact integral over each bin of the M x M crop, zero outside the ground-truth box.
    """
    side = masks.shape[-1]
    columns = _overlap(rois[:, 0], rois[:, 2], gt_boxes[:, 0], gt_boxes[:, 2], size, side)
    rows = _overlap(rois[:, 1], rois[:, 3], gt_boxes[:, 1], gt_boxes[:, 3], size, side)
    return rows @ masks.to(rows.dtype) @ columns.transpose(1, 2)


def _overlap(start: Tensor, end: Tensor, gt_start: Tensor, gt_end: Tensor, bins: int, side: int) -> Tensor:
    """(P, bins, side): the share of RoI bin i that lies in crop cell j, along one axis."""
    edges = torch.linspace(0, 1, bins + 1, device=start.device, dtype=start.dtype)
    edges = start[:, None] + (end - start)[:, None] * edges  # (P, bins + 1) in pixels
    scale = side / (gt_end - gt_start).clamp(min=1e-6)
    edges = (edges - gt_start[:, None]) * scale[:, None]  # in crop cells
    low, high = edges[:, :-1, None], edges[:, 1:, None]
    cells = torch.arange(side, device=start.device, dtype=start.dtype)
    inside = (torch.minimum(high, cells + 1) - torch.maximum(low, cells)).clamp(min=0)
    return inside / (high - low).clamp(min=1e-6)


# ---- predictions: (m, m) probabilities in a box -> pixels or run lengths ---------------------------------------------


def paste_in_box(
    probs: np.ndarray, box: np.ndarray, image_size: tuple[int, int], style: str = "resdet"
) -> tuple[tuple[int, int], np.ndarray]:
    """Paste (m, m) probabilities -> ((y, x) of the top left pixel, (h, w) bool), only the part near the box.

    "resdet": a pixel's centre is looked up in the box, bilinear, zero outside, on from 0.5 (detectron2's and
    mmdetection's rule). "torchvision": the box grows by a padding pixel of the mask and is cut to whole pixels, edges
    are repeated, on above 0.5.
    """
    (y, rows), (x, columns) = _paste_matrices(box, image_size, probs.shape[0], style)
    soft = rows @ probs.astype(np.float32) @ columns.T
    return (y, x), (soft > 0.5 if style == "torchvision" else soft >= 0.5)


def encode_in_box(probs: np.ndarray, box: np.ndarray, image_size: tuple[int, int], style: str = "resdet") -> Rle:
    """Paste and run-length encode; the same as encoding the pasted bitmap, without ever making it."""
    (y, rows), (x, columns) = _paste_matrices(box, image_size, probs.shape[0], style)
    half = rows @ probs.astype(np.float32)  # (h, m)
    block = max(1, 2**20 // max(1, len(rows)))  # columns at a time: a million pixels
    starts: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    for first in range(0, len(columns), block):
        soft = columns[first : first + block] @ half.T  # (block, h): column-major, as COCO's runs are
        on = np.zeros((len(soft), len(rows) + 2), dtype=np.int8)
        on[:, 1:-1] = soft > 0.5 if style == "torchvision" else soft >= 0.5
        change = np.diff(on, axis=1)
        for sign, found in ((1, starts), (-1, ends)):
            column, row = np.nonzero(change == sign)
            found.append((x + first + column) * image_size[0] + y + row)
    return _encode_runs(
        np.concatenate(starts or [np.zeros(0, int)]), np.concatenate(ends or [np.zeros(0, int)]), image_size
    )


def encode_bitmap(bitmap: np.ndarray) -> Rle:
    """(H, W) bool -> COCO RLE with its counts as str, ready for JSON."""
    rle: Rle = coco_mask.encode(np.asfortranarray(bitmap, dtype=np.uint8))
    return _printable(rle)


def _encode_runs(starts: np.ndarray, ends: np.ndarray, image_size: tuple[int, int]) -> Rle:
    """Runs of ones as [start, end) in column-major order -> COCO RLE."""
    # A run that reaches the picture's bottom goes on at the top of the next column.
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.r_[True, apart][: len(starts)]], ends[np.r_[apart, True][: len(ends)]]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(np.r_[0, edges, image_size[0] * image_size[1]])
    if len(edges) and counts[-1] == 0:
        counts = counts[:-1]
    return _printable(coco_mask.frPyObjects({"size": list(image_size), "counts": counts.tolist()}, *image_size))


def _printable(rle: Rle) -> Rle:
    counts = rle["counts"]
    assert isinstance(counts, bytes)
    return {"size": [int(side) for side in rle["size"]], "counts": counts.decode("ascii")}  # type: ignore[attr-defined]


def _paste_matrices(
    box: np.ndarray, image_size: tuple[int, int], side: int, style: str
) -> tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]:
    """For y and x: the first pixel and the matrix (pixels, side) that resamples the mask onto pixels."""
    box = box.astype(np.float64)
    axes = []
    for low, high, length in ((box[1], box[3], image_size[0]), (box[0], box[2], image_size[1])):
        if style == "torchvision":
            center, half = (low + high) * 0.5, (high - low) * 0.5 * (side + 2) / side
            first, last = int(center - half), int(center + half)  # truncated towards zero, as the original does
            count = max(last - first + 1, 1)
            begin = min(max(first, 0), length)
            pixels = np.arange(begin, max(begin, min(last + 1, length)))
            padded = _bilinear((pixels - first + 0.5) * (side + 2) / count - 0.5, side + 2, clamp=True)
            axes.append((begin, padded[:, 1:-1]))  # the padding is zero, so its columns drop out
        else:
            begin = min(max(int(np.floor(low)) - 1, 0), length)
            pixels = np.arange(begin, max(begin, min(int(np.ceil(high)) + 1, length)))
            # Across a box without extent mmdetection, which keeps such boxes, repeats the middle of the mask.
            share = (pixels + 0.5 - low) / (high - low) if high > low else np.full(len(pixels), 0.5)
            where = share * side - 0.5
            axes.append((begin, _bilinear(where, side, clamp=False)))
    return axes[0], axes[1]


def _bilinear(where: np.ndarray, size: int, *, clamp: bool) -> np.ndarray:
    """(len(where), size) weights of linear interpolation at `where` (0 is the first sample's centre).

    Past the ends: the end sample repeated (`clamp`) or fading to zero.
    """
    if clamp:
        where = where.clip(0, size - 1)
    weights: np.ndarray = (1 - np.abs(where[:, None] - np.arange(size))).clip(min=0).astype(np.float32)
    return weights
