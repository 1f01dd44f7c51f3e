"""`resdet pretrain`: train a backbone as a classifier of pictures; detectors start from its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resdet.commands.common import parser_of
from resdet.commands.train import train_as_told

if TYPE_CHECKING:
    from resdet.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a classifier."""
    parser = parser_of(
        "pretrain",
        "Train a backbone as a classifier on a folder of train/CLASS/*.jpg and val/CLASS/*.jpg. Its checkpoints are "
        "model.backbone.weights of detectors.",
    )
    return train_as_told(parser, arguments, require_classifier, example="imagenet_r50")


def require_classifier(config: Config) -> None:
    """Raises `UserError` for a detector's config."""
    from resdet.errors import UserError

    if config.model.kind != "classifier":
        raise UserError(f"model.kind={config.model.kind} is a detector: train it with resdet train")
