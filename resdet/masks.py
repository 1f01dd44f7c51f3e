"""Pure functions on masks: ground truth cropped to its box, training targets, pasting, COCO run-length encoding.

A mask is a small square in the frame of a box. Resampling it from one axis-aligned frame to another is separable:
`rows @ mask @ columns.T`, with one small matrix per axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

Rle = dict[str, object]
PIXELS_AT_ONCE = 2**26  # of `paste_bitmaps`: their probabilities take 256 MiB
Placed = tuple[int, np.ndarray]  # along an axis: the first pixel, and the matrix (pixels, m) that resamples a mask


# ---- ground truth: polygon or bitmap -> (M, M) crop of its own box ---------------------------------------------------


def crop_polygons(polygons: Sequence[Sequence[float]], box: np.ndarray, size: int) -> np.ndarray:
    """Rasterise polygons (each [x1, y1, x2, y2, …], at least three points) inside `box` -> (size, size) uint8.

    The polygon is scaled into the box's frame first, so the crop's resolution does not depend on the image's.
    """
    origin, scale = box[:2], size / np.maximum(box[2:] - box[:2], 1e-6)
    far = 100 * size  # moving distant points here changes nothing inside; pycocotools visits every pixel along an edge
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
    """Whether COCO run lengths, compressed or a list, are valid and cover exactly `pixels` pixels.

    pycocotools does not check them: invalid ones make it loop forever or write out of bounds.
    """
    if isinstance(counts, list):
        return all(type(c) is int and 0 <= c <= pixels for c in counts) and sum(counts) == pixels
    if not isinstance(counts, str | bytes):
        return False
    runs = _decompress(counts)
    return runs is not None and bool(runs.min() >= 0 and runs.sum() == pixels)


def rle_runs(counts: object) -> np.ndarray:
    """Valid COCO run lengths, compressed or a list -> (N,) int64: of zeros, of ones, of zeros, …"""
    runs = np.array(counts, np.int64) if isinstance(counts, list) else _decompress(counts)  # type: ignore[arg-type]
    assert runs is not None
    return runs


def _decompress(counts: str | bytes) -> np.ndarray | None:
    """COCO's compressed run lengths -> (N,) int64; None if they are invalid."""
    text = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    chars = np.frombuffer(text, np.uint8).astype(np.int64) - 48  # five bits each, and a flag that more follow
    if not len(chars) or chars.min() < 0 or chars.max() > 63 or chars[-1] & 32:
        return None
    last = np.flatnonzero((chars & 32) == 0)
    first = np.r_[0, last[:-1] + 1]
    lengths = last - first + 1
    if lengths.max() > 8:
        return None
    place = np.arange(len(chars)) - np.repeat(first, lengths)
    runs: np.ndarray = np.add.reduceat((chars & 31) << (5 * place), first)
    runs -= np.where(chars[last] & 16, np.int64(1) << (5 * lengths), 0)  # signed
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])  # stored as differences to the last but one
    return runs


def decode_rle(segmentation: Rle, height: int, width: int) -> np.ndarray:
    """COCO RLE, compressed or not -> (height, width) uint8."""
    if isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, height, width)
    bitmap: np.ndarray = coco_mask.decode(segmentation)
    return bitmap


# ---- training targets ------------------------------------------------------------------------------------------------


def targets_in_rois(masks: Tensor, gt_boxes: Tensor, rois: Tensor, size: int) -> Tensor:
    """The fraction of each RoI bin that the object covers: (P, M, M), (P, 4), (P, 4) -> (P, size, size) in 0..1.

    The exact integral of the M x M crop over each bin, zero outside the ground-truth box.
    """
    side = masks.shape[-1]
    columns = _overlap(rois[:, 0], rois[:, 2], gt_boxes[:, 0], gt_boxes[:, 2], size, side)
    rows = _overlap(rois[:, 1], rois[:, 3], gt_boxes[:, 1], gt_boxes[:, 3], size, side)
    return rows @ masks.to(rows.dtype) @ columns.transpose(1, 2)


def _overlap(start: Tensor, end: Tensor, gt_start: Tensor, gt_end: Tensor, bins: int, side: int) -> Tensor:
    """(P, bins, side): the fraction of RoI bin i that lies in crop cell j, along one axis."""
    edges = torch.linspace(0, 1, bins + 1, device=start.device, dtype=start.dtype)
    edges = start[:, None] + (end - start)[:, None] * edges  # (P, bins + 1) in pixels
    scale = side / (gt_end - gt_start).clamp(min=1e-6)
    edges = (edges - gt_start[:, None]) * scale[:, None]  # in crop cells
    low, high = edges[:, :-1, None], edges[:, 1:, None]
    cells = torch.arange(side, device=start.device, dtype=start.dtype)
    inside = (torch.minimum(high, cells + 1) - torch.maximum(low, cells)).clamp(min=0)
    return inside / (high - low).clamp(min=1e-6)


# ---- predictions: (m, m) probabilities in a box -> pixels or run lengths ---------------------------------------------


def paste_in_boxes(
    probs: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int], style: str = "resdet"
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Paste (N, m, m) probabilities -> per mask ((y, x) of the top left pixel, (h, w) bool), only the part near the box.

    "resdet": bilinear interpolation at pixel centres, zero outside the box, threshold >= 0.5 (like detectron2 and
    mmdetection). "torchvision": the box grows by a padding pixel of the mask and is rounded to whole pixels, edges are
    repeated, threshold > 0.5.
    """
    for mask, (y, rows), (x, columns) in _placed(probs, boxes, image_size, style):
        yield (y, x), _is_on(style)(rows @ mask @ columns.T, 0.5)


def paste_bitmaps(probs: Tensor, boxes: Tensor, image_size: tuple[int, int], style: str = "resdet") -> Tensor:
    """The same as full bitmaps on the tensors' device: (N, m, m), (N, 4) -> (N, H, W) bool. Does not synchronise."""
    with torch.autocast(probs.device.type, enabled=False):
        x1, y1, x2, y2 = boxes.double().unbind(1)
        rows = _weights(y1, y2, image_size[0], probs.shape[-1], style)
        columns = _weights(x1, x2, image_size[1], probs.shape[-1], style)
        bitmaps = torch.empty(len(probs), *image_size, dtype=torch.bool, device=probs.device)
        at_once = max(1, PIXELS_AT_ONCE // max(1, image_size[0] * image_size[1]))
        chunks = (torch.split(t, at_once) for t in (bitmaps, rows, probs.float(), columns.transpose(1, 2)))
        for out, left, mask, right in zip(*chunks, strict=True):
            (torch.gt if style == "torchvision" else torch.ge)(left @ mask @ right, 0.5, out=out)
    return bitmaps


def encode_in_boxes(
    probs: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int], style: str = "resdet"
) -> list[Rle]:
    """Paste and run-length encode, without creating the bitmaps."""
    rles = []
    for mask, (y, rows), (x, columns) in _placed(probs, boxes, image_size, style):
        half, height = rows @ mask, len(rows)  # (h, m)
        block = max(1, 2**20 // max(1, height))  # columns at a time: a million pixels
        edges = [np.zeros(0, dtype=int)]
        for first in range(0, len(columns), block):
            some = columns[first : first + block]
            # Column by column, as in COCO's encoding; one pixel that is off before each column and after the last.
            pixels = np.zeros(len(some) * (height + 1) + 1, dtype=bool)
            _is_on(style)(some @ half.T, 0.5, out=pixels[:-1].reshape(len(some), height + 1)[:, 1:])
            last = np.flatnonzero(pixels[1:] != pixels[:-1])  # the pixels before a change: to on, to off, to on, …
            ends = np.arange(len(last)) % 2
            column, row = np.divmod(last + 1 - ends, height + 1)  # the first and the last pixel of each run
            edges.append((x + first + column) * image_size[0] + y + row - 1 + ends)
        rles.append(_encode_runs(np.concatenate(edges), image_size))
    return rles


def _is_on(style: str) -> np.ufunc:
    return np.greater if style == "torchvision" else np.greater_equal


def encode_bitmap(bitmap: np.ndarray) -> Rle:
    """(H, W) bool -> COCO RLE with its counts as str, ready for JSON."""
    rle: Rle = coco_mask.encode(np.asfortranarray(bitmap, dtype=np.uint8))
    return _printable(rle)


def encode_crop(crop: np.ndarray, corner: tuple[int, int], image_size: tuple[int, int]) -> Rle:
    """(h, w) bool with its top left pixel at `corner` (y, x) of an image of `image_size` (H, W) -> COCO RLE of the image."""
    height, width = crop.shape
    columns = np.zeros((width, height + 1), dtype=bool)  # one pixel that is off before each column and after the last
    columns[:, 1:] = crop.T
    pixels = np.append(columns.ravel(), False)
    last = np.flatnonzero(pixels[1:] != pixels[:-1])
    ends = np.arange(len(last)) % 2
    column, row = np.divmod(last + 1 - ends, height + 1)
    return _encode_runs((corner[1] + column) * image_size[0] + corner[0] + row - 1 + ends, image_size)


def _encode_runs(edges: np.ndarray, image_size: tuple[int, int]) -> Rle:
    """The begin and end (exclusive) of each run of ones, alternating, in column-major order -> COCO RLE."""
    apart = np.ones(len(edges), dtype=bool)  # False where a run at the end of a column continues at the top of the next
    apart[1:-1] = np.repeat(edges[1:-1:2] != edges[2::2], 2)
    bounds = np.concatenate(([0], edges[apart], [image_size[0] * image_size[1]]))
    counts = bounds[1:] - bounds[:-1]
    if len(edges) and counts[-1] == 0:
        counts = counts[:-1]
    return _printable(coco_mask.frPyObjects({"size": list(image_size), "counts": counts.tolist()}, *image_size))


def _printable(rle: Rle) -> Rle:
    counts = rle["counts"]
    assert isinstance(counts, bytes)
    return {"size": [int(side) for side in rle["size"]], "counts": counts.decode("ascii")}  # type: ignore[attr-defined]


def _placed(
    probs: np.ndarray, boxes: np.ndarray, image_size: tuple[int, int], style: str
) -> Iterator[tuple[np.ndarray, Placed, Placed]]:
    """Per mask: (m, m) float32, and its placement along y and x."""
    side = probs.shape[-1]
    x1, y1, x2, y2 = boxes.astype(np.float64).T
    place = _as_torchvision if style == "torchvision" else _at_centres
    return zip(
        probs.astype(np.float32), place(y1, y2, image_size[0], side), place(x1, x2, image_size[1], side), strict=True
    )


def _at_centres(low: np.ndarray, high: np.ndarray, length: int, side: int) -> list[Placed]:
    begin = (np.floor(low) - 1).clip(0, length).astype(int)
    end = (np.ceil(high) + 1).clip(begin, length).astype(int)
    pixels, of = _ranges(begin, end)
    extent = (high - low)[of]
    # For empty boxes, which mmdetection keeps, it repeats the middle of the mask.
    share = np.divide(pixels + 0.5 - low[of], extent, out=np.full(len(pixels), 0.5), where=extent > 0)
    return _split(begin, end, _bilinear(share * side - 0.5, side, clamp=False))


def _as_torchvision(low: np.ndarray, high: np.ndarray, length: int, side: int) -> list[Placed]:
    center, half = (low + high) * 0.5, (high - low) * 0.5 * (side + 2) / side
    first, last = (center - half).astype(int), (center + half).astype(int)  # towards zero, as the original does
    count = np.maximum(last - first + 1, 1)
    begin = first.clip(0, length)
    end = (last + 1).clip(begin, length)
    pixels, of = _ranges(begin, end)
    padded = _bilinear((pixels - first[of] + 0.5) * (side + 2) / count[of] - 0.5, side + 2, clamp=True)
    return _split(begin, end, padded[:, 1:-1])  # the padding is zero, so its columns drop out


def _weights(low: Tensor, high: Tensor, length: int, side: int, style: str) -> Tensor:
    """`_at_centres` or `_as_torchvision` for all pixels of an axis: (N,), (N,) -> (N, length, side) float32."""
    low, high = low[:, None], high[:, None]
    pixels = torch.arange(length, device=low.device, dtype=low.dtype)
    if style == "torchvision":
        center, half = (low + high) * 0.5, (high - low) * 0.5 * (side + 2) / side
        first, last = (center - half).trunc(), (center + half).trunc()
        count = (last - first + 1).clamp(min=1)
        inside = (pixels >= first) & (pixels <= last)
        where = ((pixels - first + 0.5) * (side + 2) / count - 0.5).clamp(0, side + 1) - 1
    else:
        inside = (pixels >= low.floor() - 1) & (pixels < high.ceil() + 1)
        extent = high - low
        where = torch.where(extent > 0, (pixels + 0.5 - low) / extent, 0.5) * side - 0.5
    samples = torch.arange(side, device=low.device)
    return ((1 - (where[:, :, None] - samples).abs()).clamp(min=0) * inside[:, :, None]).float()


def _ranges(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) and (N,) -> the pixels of N ranges, concatenated, and the index of each one's range."""
    count = end - begin
    of = np.repeat(np.arange(len(count)), count)
    return np.arange(len(of)) - (np.cumsum(count) - count - begin)[of], of


def _split(begin: np.ndarray, end: np.ndarray, weights: np.ndarray) -> list[Placed]:
    stop = np.cumsum(end - begin)
    return [(b, weights[s - n : s]) for b, s, n in zip(begin.tolist(), stop, end - begin, strict=True)]


def _bilinear(where: np.ndarray, size: int, *, clamp: bool) -> np.ndarray:
    """(len(where), size) float32 weights of linear interpolation at `where` (0 is the first sample's centre).

    Beyond the ends, the end sample is repeated (`clamp`) or falls off to zero.
    """
    if clamp:
        where = where.clip(0, size - 1)
    below = np.floor(where).clip(-1, size - 1)
    weights = np.zeros((len(where), size + 2), dtype=np.float32)  # with an extra sample at both ends
    at, each = below.astype(int) + 1, np.arange(len(where))
    weights[each, at] = (1 - np.abs(where - below)).clip(min=0)
    weights[each, at + 1] = (1 - np.abs(below + 1 - where)).clip(min=0)
    return weights[:, 1:-1]
