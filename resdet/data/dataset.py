"""Annotations -> `Sample`s in the network's input frame: decode, augment, crop masks, resize, flip."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from torch.utils.data import Dataset

from resdet.config import DataConfig, InputConfig, train_sources
from resdet.data.augment import AugmentationError, Augmentations
from resdet.data.augment_support import refuse_unsupported
from resdet.data.coco import Annotations
from resdet.data.collate import LoadedBatch, Sample, collate
from resdet.data.images import decode_image, read_header
from resdet.data.index import ImageInfo, Objects
from resdet.data.label_maps import resize_labels
from resdet.data.patch import Patch, patch_of_rle
from resdet.data.pixels import PixelRange, to_unit
from resdet.data.resize import resize_image, resized_size
from resdet.errors import UserError, listed
from resdet.keypoints import flip_order
from resdet.masks import crop_polygons
from resdet.structures import MASK_UNKNOWN, UNLABELLED

log = logging.getLogger("resdet")


class DetectionDataset(Dataset[Sample | UserError]):
    """dataset[index, epoch] -> `Sample`, a pure function of (seed, epoch, index): the same in any worker, in any order.
    dataset[index, epoch, first, its_epoch]: the same in a batch that begins with that image, whose draw of a size counts for
    all where images become squares.

    train: augment, draw a short side, flip; otherwise the last `min_size` and nothing random.
    An image that cannot be read is reported in `Sample.problems`; in training another random one replaces it, in evaluation
    a blank one without objects. If no replacement can be read either, the `UserError` is returned, for `loader.batches` to
    raise in the main process.
    """

    def __init__(
        self,
        annotations: Annotations,
        data: DataConfig,
        model_input: InputConfig,
        *,
        train: bool,
        masks: bool,
        keypoints: bool = False,
        semantic: bool = False,
        seed: int,
    ) -> None:
        self.annotations, self.data, self.input = annotations, data, model_input
        self.train, self.masks, self.seed = train, masks, seed
        self.pixel_range = data.pixel_range if isinstance(data.pixel_range, tuple) else None
        self.swap: np.ndarray | None = None  # (K,): for each keypoint the one it becomes in a mirrored image
        self.label_maps = annotations.label_maps if semantic else None
        if keypoints:
            assert annotations.skeleton
            self.swap = np.array(flip_order(annotations.skeleton.names, data.keypoint_flip_pairs))
        # One for each source of data.train; the images of source k end at `ends[k]`.
        self.augmentations = [
            Augmentations(source.augmentations, self.swap) if source.augmentations else None
            for source in train_sources(data)
        ] if train else [None]  # fmt: skip
        self.ends = np.cumsum(annotations.parts or [len(annotations.images)])
        if not train:
            self.ends = self.ends[-1:]
        for part, augmentations in enumerate(self.augmentations):
            if augmentations:
                refuse_unsupported(augmentations.transforms, model_input.channels, self.pixel_range is not None)
                self._try_smallest(augmentations, int(self.ends[part - 1]) if part else 0, int(self.ends[part]))

    def _augmentations_of(self, index: int) -> Augmentations | None:
        return self.augmentations[int(np.searchsorted(self.ends, index, side="right"))]

    def _try_smallest(self, augmentations: Augmentations, start: int, end: int) -> None:
        """Raise now what would stop training at the first image that is too small for a crop."""
        sizes = self.annotations.images.sizes[start:end]
        for index in sorted({start + int(sizes[:, axis].argmin()) for axis in (0, 1) if len(sizes)}):
            try:
                augmentations.try_on(tuple(sizes[index - start].tolist()))
            except AugmentationError as error:
                raise AugmentationError(f"{self.annotations.images[index].file}: {error}") from error

    def __len__(self) -> int:
        return len(self.annotations.images)

    def collate(self, samples: Sequence[Sample]) -> LoadedBatch:
        """The samples of a batch, padded to a common size."""
        return collate(samples, self.data.pad_multiple)

    def __getitem__(self, item: tuple[int, ...]) -> Sample | UserError:
        index, epoch, *first = item
        problems: list[str] = []
        for candidate in self._candidates(index, epoch):
            try:
                sample = self._sample(candidate, epoch, first or [index, epoch])
                return sample._replace(problems=tuple(problems))
            except AugmentationError as error:
                return error  # not replaced by another image: the settings are wrong, not the file
            except UserError as error:
                problems.append(str(error))
        if not self.train:
            return self._blank(index, problems)
        folder = self.annotations.images[index].file.parent
        state = "is still there" if folder.is_dir() else "is gone"
        return listed(f"none of {len(problems)} images tried could be read; their folder {folder} {state}:", problems)

    def _candidates(self, index: int, epoch: int) -> Iterator[int]:
        """The image itself and, in training, others of its aspect group to replace it."""
        yield index
        if self.train:
            groups = aspect_groups(self.annotations)
            alike = np.flatnonzero((groups == groups[index]) & (np.arange(len(groups)) != index))
            yield from np.random.default_rng([self.seed, epoch, index, 2]).permutation(alike)[:4].tolist()

    def _blank(self, index: int, problems: list[str]) -> Sample:
        """A grey image of the annotated size: in evaluation an unreadable image counts as one without detections."""
        info = self.annotations.images[index]
        size = resized_size(
            info.size, self.data.min_size[-1], self.data.max_size, self.input.rounding, self.input.keep_ratio
        )
        masks = np.zeros((0, self.data.mask_size, self.data.mask_size), np.uint8) if self.masks else None
        image = np.full((*size, self.input.channels), 127, np.uint8)
        dtype = np.float32 if self.input.resize == "torch" or self.pixel_range else np.uint8
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        keypoints = None if self.swap is None else np.zeros((0, len(self.swap), 3), np.float32)
        semantic = np.full(size, UNLABELLED, np.uint8) if self.label_maps else None
        return Sample(image.astype(dtype), *none, masks, 0, index, tuple(problems), keypoints, info.known, semantic)

    def read(self, index: int) -> np.ndarray:
        """The image as annotated: (H, W, C) uint8, or float32 in 0..255 (see `pixels.to_unit`)."""
        return self._read(index)

    def _read(self, index: int, reduce: int = 1) -> np.ndarray:
        if self.annotations.read_image:
            return self.annotations.read_image(index)
        return read_annotated(self.annotations.images[index], self.input.channels, self.pixel_range, reduce)

    def augmented(self, index: int, epoch: int) -> tuple[np.ndarray, Objects]:
        """The image and its objects after the configured augmentations, before resizing and flipping."""
        image, objects = self.read(index), self._objects(index)
        augmentations = self._augmentations_of(index)
        if augmentations:
            unit = np.float32(255 if image.dtype == np.float32 else 1)  # albumentations takes floating point in 0..1
            image = image if unit == 1 else image / unit
            try:
                image, objects = augmentations(image, objects, [self.seed, epoch, index, 1])
            except AugmentationError as error:
                raise AugmentationError(f"{self.annotations.images[index].file}: {error}") from error
            image = image if unit == 1 else image * unit
        return image, objects

    def _objects(self, index: int) -> Objects:
        info = self.annotations.images[index]
        return info.objects._replace(label_map=self.label_maps.read(info)) if self.label_maps else info.objects

    def _reduction(self, size: tuple[int, int], short: int) -> int:
        """The factor by which a JPEG may be decoded smaller, never below the size it is resized to. Only in training, where
        all images are resized at random, by our own numerics, and nothing else sees the full-size pixels."""
        if not self.train or self.input.resize != "opencv" or self.annotations.read_image:
            return 1
        target = resized_size(size, short, self.data.max_size, self.input.rounding, self.input.keep_ratio)
        return max(r for r in (1, 2, 4, 8) if r == 1 or min(size) // r >= min(target))

    def _sample(self, index: int, epoch: int, first: Sequence[int]) -> Sample:
        rng = np.random.default_rng([self.seed, epoch, index, 0])
        short = int(rng.choice(self.data.min_size)) if self.train else self.data.min_size[-1]
        if self.train and not self.input.keep_ratio:
            short = int(np.random.default_rng([self.seed, first[1], first[0], 0]).choice(self.data.min_size))
        info = self.annotations.images[index]
        reduce = 1 if self._augmentations_of(index) else self._reduction(info.size, short)
        if reduce > 1:
            image, objects, old = self._read(index, reduce), self._objects(index), info.size
        else:
            image, objects = self.augmented(index, epoch)
            old = (image.shape[0], image.shape[1])
        masks = crop_masks(objects, self.data.mask_size) if self.masks else None
        flip = self.train and rng.random() < self.data.flip
        new = resized_size(old, short, self.data.max_size, self.input.rounding, self.input.keep_ratio)
        image = resize_image(image, new, self.input.resize)
        scale = np.array([new[1] / old[1], new[0] / old[0]] * 2, dtype=np.float32)
        boxes = objects.boxes * scale
        semantic = None if objects.label_map is None else resize_labels(objects.label_map, new)
        keypoints = None
        if self.swap is not None:
            assert objects.keypoints is not None
            keypoints = objects.keypoints * [*scale[:2], 1]
        if flip:
            image = cv2.flip(image, 1).reshape(image.shape)  # several times faster than a copy with a negative stride
            boxes[:, [0, 2]] = new[1] - boxes[:, [2, 0]]
            masks = None if masks is None else masks[:, :, ::-1]
            semantic = None if semantic is None else np.ascontiguousarray(semantic[:, ::-1])
            if keypoints is not None:
                keypoints[..., 0] = np.where(keypoints[..., 2] > 0, new[1] - keypoints[..., 0], 0)
                keypoints = keypoints[:, self.swap]
        return Sample(
            image=image,
            boxes=boxes,
            labels=objects.labels,
            masks=None if masks is None else np.ascontiguousarray(masks),
            key=zlib.crc32(f"{self.seed} {epoch} {index}".encode()),
            row=index,
            keypoints=None if keypoints is None else keypoints.astype(np.float32),
            known=info.known,
            semantic=semantic,
        )


def crop_masks(objects: Objects, side: int) -> np.ndarray:
    """Each object's mask cropped to its box: (G, side, side) uint8, MASK_UNKNOWN throughout where there is none."""
    crops = np.full((len(objects.labels), side, side), MASK_UNKNOWN, np.uint8)
    for crop, box, segmentation in zip(crops, objects.boxes, objects.segmentations, strict=True):
        if isinstance(segmentation, list):
            crop[:] = crop_polygons(segmentation, box, side)
        elif segmentation is not None:
            patch = segmentation if isinstance(segmentation, Patch) else patch_of_rle(segmentation)
            crop[:] = patch.crop(box, side)
    return crops


def read_annotated(
    info: ImageInfo, channels: int = 3, pixel_range: PixelRange | None = None, reduce: int = 1
) -> np.ndarray:
    """Decode an image so that it has the size its annotation names, or that part of it (see `decode_image`).

    -> (H, W, channels) uint8, or float32 in 0..255 (see `pixels.to_unit`).

    EXIF rotation is applied where the size then agrees. A file rotated by EXIF but annotated as stored stays as stored,
    with a warning. Raises `UserError` where neither agrees.
    """
    try:
        data = info.file.read_bytes()
    except OSError as error:
        raise UserError(f"{info.file}: cannot be read ({error.strerror})") from None
    header = read_header(data, info.file)
    if header.upright_size == info.size:
        return to_unit(decode_image(data, info.file, header, channels, reduce), pixel_range, info.file)
    if header.size == info.size:
        log.warning(
            "%s: EXIF says it is rotated, but the annotated size %s is that of the stored pixels: kept as stored",
            info.file, info.size,
        )  # fmt: skip
        image = decode_image(data, info.file, header, channels, reduce, upright=False)
        return to_unit(image, pixel_range, info.file)
    raise UserError(
        f"{info.file}: the image is {header.upright_size[0]} x {header.upright_size[1]} (H x W), the annotation says "
        f"{info.size[0]} x {info.size[1]}: correct the height and width in the annotation file"
    )


def repeat_factors(annotations: Annotations, threshold: float | None, negatives: float | None) -> np.ndarray | None:
    """How often each image should occur in an epoch: (N,), or None for once each.

    threshold: repeat-factor sampling (Gupta et al. 2019, arXiv:1908.03195): an image whose rarest class occurs in a fraction
    f < threshold of the images occurs sqrt(threshold / f) times.
    negatives: the fraction of an epoch that images without objects make up.
    """
    if threshold is None and negatives is None:
        return None
    images, classes = annotations.images, len(annotations.class_names)
    factors = np.ones(len(images))
    if threshold is not None:
        owners = np.repeat(np.arange(len(images)), images.counts)
        pairs = np.unique(owners * classes + images.labels)  # each class of each image once
        share = np.bincount(pairs % classes, minlength=classes) / len(images)
        by_class = np.sqrt(np.maximum(1, threshold / np.maximum(share, 1e-12)))
        np.maximum.at(factors, pairs // classes, by_class[pairs % classes])
    empty = images.counts == 0
    if negatives is not None and empty.any() and not empty.all():
        factors[empty] = negatives / (1 - negatives) * factors[~empty].sum() / empty.sum()
    return factors


def aspect_groups(annotations: Annotations) -> np.ndarray:
    """(N,) bool: landscape or not. Batches of one group need little padding."""
    sizes = annotations.images.sizes
    landscape: np.ndarray = sizes[:, 1] >= sizes[:, 0]
    return landscape


def padded_sizes(annotations: Annotations, data: DataConfig, model_input: InputConfig) -> Sequence[tuple[int, int]]:
    """The padded (H, W) of each image in evaluation."""

    def up(side: int) -> int:
        return -(-side // data.pad_multiple) * data.pad_multiple

    sizes = [
        resized_size((h, w), data.min_size[-1], data.max_size, model_input.rounding, model_input.keep_ratio)
        for h, w in annotations.images.sizes.tolist()
    ]
    return [(up(h), up(w)) for h, w in sizes]
