"""The conventions of resdet, and the types that carry data between its parts.

Letters   B images, G objects per image (padded), R RoIs, D detections, A anchors, K classes, M mask side, H W height, width.
Boxes     XYXY, absolute pixels, float32, continuous coordinates: width = x2 - x1, no "+1"; 0 <= x1 < x2 <= W.
          COCO's XYWH exists only in `data/` (in) and `inference/postprocess.py` (out).
Sizes     always (H, W).
Frames    `Batch`, `Targets`, `Samples`, `Detections`: the network's input frame, after resizing and padding at bottom and
          right. `Instances`: the original image's frame.
Images    (H, W, C) in 0..255, RGB or `model.input.channels` others: 8-bit data as uint8; deeper data as float32, scaled from
          `data.pixel_range` to 0..255 without rounding (`data/pixels.py`). dtype conversion, mean, std and the value of the
          padding are up to the model (`models/detector.py`).
Labels    int64 in [0, K), contiguous; K does not include background, which has index K inside the box head. -1 is padding.
Label maps    (H, W) uint8, the class of each pixel or UNLABELLED (255). In Panoptic FPN label 0 stands for all things.
Masks     three frames, three names: ground truth cropped to its own box `masks` (B, G, M, M); the head's output
          `mask_probs` (B, D, m, m) in the predicted box's frame; pasted `Instances.masks` (N, H, W) bool in the image.
Levels    c2..c5, p2..p6 have stride 2**k; dicts of them are ordered fine to coarse.

Operations on all fields of a structure are in `fields.py` (NamedTuples) and `Instances.select` (arrays).

The shapes of all tensors depend only on (B, H, W, G), never on values, so that a training step is one graph.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from resdet.keypoints import Decode
from resdet.masks import encode_in_boxes, paste_in_boxes
from resdet.panoptic import Panoptic, merge

Output = Literal["boxes", "masks", "keypoints", "proposals", "semantic", "classes"]  # kinds of results
UNLABELLED = 255  # in label maps: pixels without a class, and padding
MASK_UNKNOWN = 255  # fills the mask of an object that has a box but no mask: it trains the box head only


class Targets(NamedTuple):
    """Ground truth of a batch, padded to G objects per image.

    boxes  (B, G, 4) float32 XYXY, network-input frame
    labels (B, G) int64 in [0, K), -1 where padded
    valid  (B, G) bool
    masks  (B, G, M, M) uint8 0 or 1, each cropped to its own box; all MASK_UNKNOWN for an object without a mask; None for a
           dataset without masks
    keypoints (B, G, K, 3) float32: x, y, visibility (0: not labelled); None without a keypoint head
    known  (B, K) bool: the classes that the annotations of each image are complete for, so that no annotation means no object;
           None if they are complete for all classes
    semantic (B, H, W) uint8: the label map of each padded image, UNLABELLED if it has none; None without a semantic head
    shares (B, K) float32: how much of each image is of each class, in classification, where images are mixed and each has one
           object, which fills it; None otherwise
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    masks: Tensor | None
    keypoints: Tensor | None = None
    known: Tensor | None = None
    semantic: Tensor | None = None
    shares: Tensor | None = None


class Batch(NamedTuple):
    """The input of a model.

    images      (B, C, H, W) uint8 RGB (or float32 in 0..255), padded at bottom and right
    image_sizes (B, 2) int64, (H, W) of each image before padding
    keys        (B,) int64: seeds for the random sampling of anchors and RoIs, from (seed, epoch, image), so that the losses of
                an image depend neither on the other images of the batch nor on the state of a generator
    targets     None for prediction
    """

    images: Tensor
    image_sizes: Tensor
    keys: Tensor
    targets: Targets | None


class Samples(NamedTuple):
    """RoIs sampled for training the heads. The positives of each image come first.

    boxes    (B, R, 4) float32 XYXY
    labels   (B, R) int64: class, K for background, -1 where padded
    positive (B, R) bool: matched to an object
    valid    (B, R) bool
    gt_index (B, R) int64: the matched object's index in `targets` (0 if there is none)
    gt_boxes (B, R, 4) float32: the matched object's box
    targets, image_sizes  the batch's
    keys     (B,) int64: the seeds they were drawn with
    """

    boxes: Tensor
    labels: Tensor
    positive: Tensor
    valid: Tensor
    gt_index: Tensor
    gt_boxes: Tensor
    targets: Targets
    keys: Tensor
    image_sizes: Tensor


class Loss(NamedTuple):
    """A loss as the sum of its terms, () float32, and their number, () of any dtype.

    The training step divides, by the counts of all processes together, so that the gradients do not depend on how a batch is
    split over processes.
    """

    sum: Tensor
    count: Tensor  # type: ignore[assignment]

    def mean(self) -> Tensor:
        """The mean of these terms: () float32."""
        return self.sum / self.count.clamp(min=1)


class Detections(NamedTuple):
    """Predictions for a batch, padded to D per image, by descending score. A head's `predict` adds its results.

    boxes      (B, D, 4) float32 XYXY, network-input frame
    scores     (B, D) float32
    labels     (B, D) int64 in [0, K)
    valid      (B, D) bool
    image_sizes (B, 2) int64, (H, W) of each image before padding
    mask_probs (B, D, m, m) float32 in 0..1, each in the frame of its box; None without a mask head
    keypoint_logits (B, D, K, S, S) float32, each in the frame of its box; None without a keypoint head
    semantic   (B, S, H/4, W/4) float32: class logits of the padded image's pixels, S classes; None without a semantic head
    paste      how `mask_probs` become pixels: "resdet" or "torchvision" (see `masks.paste_in_boxes`)
    keypoint_decode  how `keypoint_logits` become points (see `keypoints.heatmaps_to_keypoints`)
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    image_sizes: Tensor
    mask_probs: Tensor | None = None
    keypoint_logits: Tensor | None = None
    semantic: Tensor | None = None
    paste: str = "resdet"
    keypoint_decode: Decode = "detectron2"


@dataclass(frozen=True)
class Instances:
    """The objects of one image in its own frame, as NumPy arrays: the result that users get.

    boxes      (N, 4) float32 XYXY
    scores     (N,) float32 (1.0 for ground truth)
    labels     (N,) int64 in [0, K)
    image_size (H, W)
    mask_probs (N, m, m) float32, each in the frame of its box; None without masks
    keypoints  (N, K, 3) float32 x, y, score (visibility for ground truth: 0 where not labelled); None without keypoints
    paste      how `mask_probs` become pixels, as in `Detections`
    semantic   (H, W) uint8: the class of each pixel; None without a semantic head
    """

    PER_IMAGE: ClassVar = ("image_size", "paste", "semantic")  # all other fields have a row per object, or are None

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image_size: tuple[int, int]
    mask_probs: np.ndarray | None = None
    paste: str = "resdet"
    keypoints: np.ndarray | None = None
    semantic: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @cached_property
    def masks(self) -> np.ndarray | None:
        """(N, H, W) bool, computed on first use; for very large images prefer `rle`."""
        if self.mask_probs is None:
            return None
        masks = np.zeros((len(self), *self.image_size), dtype=bool)
        pasted = paste_in_boxes(self.mask_probs, self.boxes, self.image_size, self.paste)
        for mask, ((y, x), crop) in zip(masks, pasted, strict=True):
            mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return masks

    def rle(self) -> list[dict[str, object]] | None:
        """COCO run-length encodings ({"size": [H, W], "counts": str}), computed without full bitmaps."""
        if self.mask_probs is None:
            return None
        return encode_in_boxes(self.mask_probs, self.boxes, self.image_size, self.paste)

    def panoptic(self, *, score: float = 0.5, overlap: float = 0.5, stuff_area: int = 4096) -> Panoptic:
        """The instances of at least `score` and the stuff of `semantic` as segments (`panoptic.merge`)."""
        assert self.semantic is not None, "needs a semantic head"
        assert self.mask_probs is not None, "needs a mask head"
        rows = np.argsort(-self.scores, kind="stable")
        rows = rows[self.scores[rows] >= score]
        masks = paste_in_boxes(self.mask_probs[rows], self.boxes[rows], self.image_size, self.paste)
        merged = merge(
            masks, self.scores[rows], self.labels[rows], self.semantic, overlap=overlap, stuff_area=stuff_area
        )
        segments = [
            segment if segment.instance is None else segment._replace(instance=int(rows[segment.instance]))
            for segment in merged.segments
        ]
        return merged._replace(segments=segments)

    def above(self, score: float) -> Instances:
        """The instances whose score is at least `score`."""
        return self.select(self.scores >= score)

    def select(self, rows: np.ndarray) -> Instances:
        """The instances of `rows`, (N,) bool or (n,) int64."""
        arrays = {name: getattr(self, name) for name in self.per_object()}
        chosen: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return replace(self, **chosen)

    @classmethod
    def per_object(cls) -> list[str]:
        """The names of the fields that have a row per object."""
        return [field.name for field in fields(cls) if field.name not in cls.PER_IMAGE]
