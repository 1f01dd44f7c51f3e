"""A checkpoint -> a classifier to evaluate: resdet's own, or the residual backbone of another tool with its last layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from resdet.checkpoints.checkpoint import load_weights
from resdet.checkpoints.files import read_file
from resdet.checkpoints.recognise import Recognised, recognise
from resdet.checkpoints.transfer import completed
from resdet.config import ClassifierConfig
from resdet.errors import UserError
from resdet.models.build import build_model
from resdet.models.detector import Detector


class Opened(NamedTuple):
    """class_names: empty if the file does not have them; its classes are then in the order of the sorted folders' names."""

    model: Detector
    config: ClassifierConfig
    class_names: list[str]
    found: Recognised


def open_classifier(path: Path, config: ClassifierConfig) -> Opened:
    """The classifier in a file, with the architecture and numerics of the weights where the config does not set them.

    Raises `UserError`.
    """
    try:
        found = recognise(path)
    except UserError as error:
        if config.backbone.own:
            raise
        raise UserError(
            f"{path}: is not a classifier that resdet trained, and of {config.backbone.name} no others are evaluated, since "
            f"their networks may have layers between the last map and the classifier ({error})"
        ) from None
    own = found.whole and found.model.kind == "classifier"
    if found.whole and not own:
        raise UserError(f"{path}: holds a detector (model.kind={found.model.kind}), not a classifier")
    if not own:
        weight, bias = last_layer(path)
        found.weights |= {"classifier.weight": weight, "classifier.bias": bias}
    model_config = completed(config, found)
    assert isinstance(model_config, ClassifierConfig)
    if model_config.backbone.name != found.model.backbone.name:
        raise UserError(
            f"{path}: holds a {found.model.backbone.name}, but the config has {model_config.backbone.name}: set "
            f"model.backbone.name={found.model.backbone.name}"
        )
    model_config.num_classes = len(found.weights["classifier.weight"])
    model = build_model(model_config)
    load_weights(model, found.weights, path)
    return Opened(model.eval(), model_config, found.class_names, found)


def last_layer(path: Path) -> tuple[Tensor, Tensor]:
    """Weight (K, C) and bias (K,) of the classifying layer beside a backbone. Raises `UserError` without one."""
    weights = read_file(path).weights
    for name, value in weights.items():
        layer = re.fullmatch(r"((?:.*\.)?(?:fc|classifier|head|head\.fc))\.weight", name)
        bias = weights.get(f"{layer[1]}.bias") if layer else None
        if bias is not None and value.ndim == 2 and bias.shape == value.shape[:1]:
            return value, bias
    raise UserError(
        f"{path}: holds a backbone without its classifying layer (fc.weight and fc.bias), so it has no accuracy"
    )
