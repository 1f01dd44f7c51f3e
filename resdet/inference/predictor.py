"""Images in any form -> `Instances` in their own frames."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from resdet.checkpoints.checkpoint import load_weights
from resdet.checkpoints.locate import find_weights
from resdet.checkpoints.rcnn import fit_hint
from resdet.checkpoints.recognise import Recognised, open_checkpoint
from resdet.checkpoints.transfer import FROM_DATA, completed, label_names
from resdet.config import Config, ModelConfig, keypoint_section, load_config, semantic_section
from resdet.data.collate import pad_images, to_device
from resdet.data.pixels import to_unit
from resdet.data.resize import resize_image, resized_size
from resdet.errors import UserError
from resdet.inference.batch import predict_batch
from resdet.inference.inputs import AnyImage, read_pixels
from resdet.inference.postprocess import to_coco as to_coco
from resdet.inference.postprocess import to_instances as to_instances
from resdet.inference.thresholds import Threshold, by_label
from resdet.models.build import build_model
from resdet.models.detector import Detector
from resdet.panoptic import ALL_THINGS
from resdet.runtime.device import DTYPES, choose_device, compiled
from resdet.structures import Batch, Instances


class Predictor:
    """A detector ready to use: `predictor([image, …]) -> [Instances, …]`.

    config:          a `Config` or its path. Keys set in its model section, and data.min_size, max_size and pixel_range if set,
                     override the checkpoint, which determines the rest (architecture, numerics, classes, input size).
    weights:         a checkpoint of resdet or of any tool that `from_checkpoint` supports.
    score_threshold, max_detections: override the config. The threshold may be a number, a dictionary with one for each class,
                     or the path of a report's thresholds.json.
    device:          "auto", "cpu", "cuda", …; by default as in the config.
    amp:             "off", "bf16" or "fp16".
    compile:         torch.compile the network (True), with CUDA graphs ("reduce-overhead"); the first image of each padded
                     size is slow.
    model:           a custom detector (with another head, say) to load the weights into instead of one built from the config;
                     it can no longer be trained (`Detector.prepare_for_inference`).
    batch_size:      images per batch; only images of the same padded size share a batch, so results depend on the other
                     images by rounding only.
    Raises `UserError`.
    """

    def __init__(
        self,
        config: Config | str | Path,
        weights: str | Path | Recognised,
        *,
        score_threshold: Threshold | None = None,
        max_detections: int | None = None,
        device: str | None = None,
        amp: Literal["off", "bf16", "fp16"] = "off",
        compile: bool | Literal["reduce-overhead"] = False,
        model: Detector | None = None,
        batch_size: int = 4,
    ) -> None:
        config = config if isinstance(config, Config) else load_config(config)
        self.device = choose_device(device or config.device)
        found = weights if isinstance(weights, Recognised) else open_checkpoint(find_weights(str(weights)))
        if "classes" in found.model.outputs:
            raise UserError(
                f"{found.path}: holds a classifier, not a detector: resdet eval scores it, and detectors start from it with "
                f"model.backbone.weights={found.path}"
            )
        model_config = completed(config.model, found)
        model_config.num_classes = count = found.values["num_classes"]
        for part, keys in FROM_DATA.items():
            section, described = getattr(model_config, part, None), getattr(found.model, part, None)
            if section and described:
                for key in keys:
                    setattr(section, key, getattr(described, key))
        keypoint = keypoint_section(model_config)
        self.source = found
        self.class_names: list[str] = found.class_names or [f"class {k}" for k in range(count)]
        self.category_ids: list[int | str | None] = found.category_ids or list(range(1, count + 1))
        self.label_names = _label_names(model_config, self.class_names)
        self.edges = keypoint.skeleton if keypoint else []
        self.model = model or build_model(model_config)
        lowest, self.thresholds = by_label(score_threshold, self.class_names)
        self.model.limit(score_threshold=lowest, max_detections=max_detections)
        load_weights(self.model, found.weights, found.path, fit_hint(found.weights, model_config))
        self.model.to(self.device).prepare_for_inference(DTYPES.get(amp))
        if (
            model_config.fold_norm
        ):  # off where results must match the source to the last bit: the layout affects rounding
            self.model.to(memory_format=torch.channels_last)  # 7 % faster on CPUs
        data = config.data
        self.model_config = model_config
        self.min_size = data.min_size[-1] if "min_size" in data.model_fields_set else found.min_size
        self.max_size = data.max_size if "max_size" in data.model_fields_set else found.max_size
        self.pixel_range = data.pixel_range if isinstance(data.pixel_range, tuple) else found.pixel_range
        self.pad_multiple, self.amp, self.batch_size = config.data.pad_multiple, amp, batch_size
        self._predict = compiled(self.model.predict, compile)

    @classmethod
    def from_checkpoint(
        cls,
        path_or_name: str | Path,
        *,
        score_threshold: Threshold | None = None,
        max_detections: int | None = None,
        device: str = "auto",
        amp: Literal["off", "bf16", "fp16"] = "off",
        compile: bool | Literal["reduce-overhead"] = False,
        batch_size: int = 4,
    ) -> Predictor:
        """A detector of torchvision, detectron2, mmdetection, transformers or resdet, with architecture and numerics from its
        checkpoint.

        path_or_name: a file, a folder written by transformers, or a name like "torchvision:maskrcnn_resnet50_fpn_v2" or
        "hf:PekingU/rtdetr_r50vd".
        What was recognised is logged at INFO and kept in `predictor.source`. Raises `UserError`.
        """
        found = open_checkpoint(find_weights(str(path_or_name)))
        logging.getLogger("resdet").info("%s", found.report())
        return cls(
            Config(),
            found,
            score_threshold=score_threshold,
            max_detections=max_detections,
            device=device,
            amp=amp,
            compile=compile,
            batch_size=batch_size,
        )

    def __call__(self, images: Sequence[AnyImage]) -> list[Instances]:
        """Images -> one `Instances` per image, in order, in the image's own pixel coordinates.

        An image is a path, a file's bytes, an open binary file, a Pillow image, or an array (H, W, C) of the model's channels,
        RGB by default, (H, W) for one channel. Arrays are uint8, or any number type if the model has a pixel range.
        Raises `UserError`, naming the item.
        """
        if not isinstance(images, Sequence) or isinstance(images, str | bytes):
            raise UserError(f"got a {type(images).__name__}, expected a list of images: predictor([image])")
        return self.predict_units(self.read(image, i) for i, image in enumerate(images))

    def predict_units(self, images: Iterable[np.ndarray]) -> list[Instances]:
        """The same for images returned by `read`."""
        results: dict[int, Instances] = {}
        waiting: dict[tuple[int, int], list[tuple[int, np.ndarray, tuple[int, int]]]] = {}
        for i, pixels in enumerate(images):
            original = (pixels.shape[0], pixels.shape[1])
            resized = prepare(pixels, self.model_config, self.min_size, self.max_size)
            padded = tuple(-(-side // self.pad_multiple) for side in resized.shape[:2])
            group = waiting.setdefault((padded[0], padded[1]), [])
            group.append((i, resized, original))
            if len(group) == self.batch_size:
                results.update(self._run(group))
                group.clear()
        for group in waiting.values():
            if group:
                results.update(self._run(group))
        return [results[i] for i in sorted(results)]

    def read(self, image: AnyImage, number: int = 0) -> np.ndarray:
        """An image in the network's unit: (H, W, C) uint8, or float32 in 0..255 for a model with a pixel range
        (`pixels.for_display` turns it into RGB). number: names the image in errors. Raises `UserError`."""
        pixels = read_pixels(image, number, self.model_config.input.channels, deep=self.pixel_range is not None)
        return to_unit(pixels, self.pixel_range, image if isinstance(image, str | Path) else f"image {number}")

    def _run(self, group: list[tuple[int, np.ndarray, tuple[int, int]]]) -> dict[int, Instances]:
        indices, images, originals = zip(*group, strict=True)
        padded, sizes = pad_images(images, self.pad_multiple)
        batch = to_device(Batch(padded, sizes, torch.zeros(len(images), dtype=torch.int64), None), self.device)
        detections = predict_batch(self._predict, batch, self.amp)
        found = to_instances(detections, originals)
        if self.thresholds is not None:
            found = [one.select(one.scores >= self.thresholds[one.labels]) for one in found]
        return dict(zip(indices, found, strict=True))


def _label_names(config: ModelConfig, class_names: list[str]) -> list[str]:
    """Of the classes of the label maps, by label; empty without label maps."""
    section = semantic_section(config)
    if section and section.num_classes:
        return label_names(config, class_names) or [ALL_THINGS, *(f"stuff {k}" for k in range(1, section.num_classes))]
    return label_names(config, class_names)


def prepare(image: np.ndarray, config: ModelConfig, min_size: int, max_size: int) -> np.ndarray:
    """Resize an image for the model."""
    i = config.input
    size = resized_size((image.shape[0], image.shape[1]), min_size, max_size, i.rounding, i.keep_ratio)
    return resize_image(image, size, i.resize)
