"""Pictures of classes -> `Sample`s and batches: torchvision's transforms, driven by (seed, epoch, index)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from resdet.config import ClassificationConfig, DataConfig, InputConfig
from resdet.data.coco import Annotations
from resdet.data.collate import LoadedBatch, Sample
from resdet.data.dataset import DetectionDataset
from resdet.data.images import open_pillow, read_header
from resdet.errors import UserError
from resdet.structures import Batch, Targets


class ClassificationDataset(DetectionDataset):
    """As `DetectionDataset`, of pictures each of which is one object that fills it."""

    def __init__(
        self, annotations: Annotations, data: DataConfig, model_input: InputConfig, *, train: bool, seed: int
    ) -> None:
        super().__init__(annotations, data, model_input, train=train, masks=False, seed=seed)
        c = data.classification
        self.transform = training_transform(c, data.flip, model_input.mean) if train else evaluation_transform(c)
        self.mix = mixing(c, len(annotations.class_names)) if train else None

    def _sample(self, index: int, epoch: int, first: Sequence[int]) -> Sample:
        info = self.annotations.images[index]
        key = zlib.crc32(f"{self.seed} {epoch} {index}".encode())
        picture = read_picture(info.file, self.input.channels)
        with seeded(key):
            image: Tensor = self.transform(picture)
        return _sample_of(image.permute(1, 2, 0).numpy(), info.objects.labels, key, index)

    def _blank(self, index: int, problems: list[str]) -> Sample:
        """A grey picture: in evaluation an unreadable one counts as one that is not recognised."""
        side = self.data.classification.val_crop
        image = np.full((side, side, self.input.channels), 127, np.uint8)
        sample = _sample_of(image, self.annotations.images[index].objects.labels, 0, index)
        return sample._replace(problems=tuple(problems))

    def collate(self, samples: Sequence[Sample]) -> LoadedBatch:
        """A batch of one size without padding, mixed in training; what is drawn depends on its first picture's key."""
        images = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in samples])
        labels = torch.from_numpy(np.stack([s.labels for s in samples]))  # (B, 1)
        shares = F.one_hot(labels[:, 0], len(self.annotations.class_names)).float()
        if self.mix:
            with seeded(samples[0].key):
                mixed, shares = self.mix(images.float(), labels[:, 0])
            images = mixed.round_().to(torch.uint8)
        boxes = torch.from_numpy(np.stack([s.boxes for s in samples]))
        targets = Targets(boxes, labels, torch.ones_like(labels, dtype=torch.bool), None, shares=shares)
        sizes = torch.tensor([images.shape[2:]] * len(samples))
        keys = torch.tensor([s.key for s in samples])
        problems = {s.row: s.problems for s in samples if s.problems}
        return LoadedBatch(Batch(images, sizes, keys, targets), [s.row for s in samples], problems)


def _sample_of(image: np.ndarray, labels: np.ndarray, key: int, index: int) -> Sample:
    height, width = image.shape[:2]
    return Sample(image, np.array([[0, 0, width, height]], np.float32), labels, None, key, index)


def training_transform(c: ClassificationConfig, flip: float, mean: Sequence[float]) -> Callable[[Image.Image], Tensor]:
    """A picture -> (C, crop, crop) uint8: a crop of random size and proportions, mirrored, augmented, erased."""
    augment = {"none": [], "randaugment": [v2.RandAugment()], "trivial": [v2.TrivialAugmentWide()]}[c.augment]
    transform: Callable[[Image.Image], Tensor] = v2.Compose([
        v2.RandomResizedCrop(c.crop, scale=c.scale, interpolation=_interpolation(c), antialias=True),
        v2.RandomHorizontalFlip(flip),
        *augment,
        v2.PILToTensor(),
        *([v2.RandomErasing(c.erase, value=[round(v) for v in mean])] if c.erase else []),
    ])  # fmt: skip
    return transform


def evaluation_transform(c: ClassificationConfig) -> Callable[[Image.Image], Tensor]:
    """A picture -> (C, val_crop, val_crop) uint8: resized, the middle cut out, as torchvision evaluates its weights."""
    resize = v2.Resize(c.val_resize, interpolation=_interpolation(c), antialias=True)
    transform: Callable[[Image.Image], Tensor] = v2.Compose([resize, v2.CenterCrop(c.val_crop), v2.PILToTensor()])
    return transform


def mixing(c: ClassificationConfig, classes: int) -> Callable[[Tensor, Tensor], Any] | None:
    """Images (B, C, H, W) and labels (B,) -> mixed images and shares (B, K); None if nothing is mixed."""
    kinds = [(c.mixup, v2.MixUp), (c.cutmix, v2.CutMix)]
    chosen = [kind(alpha=alpha, num_classes=classes) for alpha, kind in kinds if alpha]
    return v2.RandomChoice(chosen) if chosen and classes > 1 else None


def _interpolation(c: ClassificationConfig) -> InterpolationMode:
    return InterpolationMode(c.interpolation)


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """torch's CPU generator, from which torchvision draws, at a seed; its state is restored."""
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(key)
        yield
    finally:
        torch.set_rng_state(state)


def read_picture(file: Path, channels: int) -> Image.Image:
    """An 8-bit file as RGB, or grey, by Pillow and as stored (without EXIF's rotation), as every ImageNet result was measured.

    Raises `UserError`.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    header = read_header(data, file)
    if header.dtype != np.uint8 or header.bands:
        kind = f"{header.channels} channels of {header.dtype}"
        raise UserError(f"{file}: has {kind}; a classifier takes 8-bit pictures in grey or RGB: convert it")
    try:
        return open_pillow(data).convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{file}: cannot be decoded as a picture ({error})") from None
