"""The metric that selects best.pt and drives early stopping."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from resdet.config import TrainConfig
from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation
from resdet.evaluation.pixels import PixelKind
from resdet.runtime.console import console
from resdet.structures import Output

KINDS = {
    "bbox": "boxes", "segm": "masks", "keypoints": "keypoints", "proposals": "proposals", "semantic": "label maps",
    "panoptic": "panoptic segments", "classes": "classes of whole pictures",
}  # fmt: skip
MAIN = {"proposals": "AR1000", "semantic": "mIoU", "panoptic": "PQ"}  # the main metric of a kind, where it is not AP


def best_accuracy(config: TrainConfig) -> str:
    """`train.best_metric` of a classifier, by default top-1. Raises `UserError` for a detector's."""
    name = config.best_metric or "classes_top1"
    if not name.startswith("classes_"):
        raise UserError(f"train.best_metric={name} is a detector's: of a classifier it is classes_top1 or classes_top5")
    return name


def best_metric(
    config: TrainConfig, evaluation: Evaluation, outputs: Collection[Output], pixels: Sequence[PixelKind] = ()
) -> str | None:
    """`train.best_metric`; by default PQ, keypoint AP, mask AP or box AP, the first that is evaluated, AR1000 of proposals, or
    mIoU of label maps alone. pixels: the kinds of results of `PixelEvaluation`.
    None, with a warning, if the validation set has no objects.

    outputs: the kinds of results that are evaluated. Raises `UserError` if `train.best_metric` cannot be measured.
    """
    kinds: tuple[str, ...] = evaluation.kinds(outputs)
    kinds = (*pixels, *kinds) if "panoptic" not in pixels and kinds else (*kinds, *pixels)
    main = MAIN.get(kinds[-1], "AP")
    name = config.best_metric or f"{kinds[-1]}_{main}"
    kind = name.partition("_")[0]
    if kind in pixels or (kind in kinds and evaluation.measurable(kind, name.partition("_")[2])):
        return name
    if config.best_metric:
        reason = (
            "the validation set has no object to measure it on" if kind in kinds else f"{KINDS[kind]} are not evaluated"
        )
        raise UserError(f"train.best_metric={name} cannot be measured on {evaluation.source}: {reason}")
    off = "best.pt and train.patience are off" if config.patience else "best.pt is off"
    console.print(f"warning: val has no objects: {main} cannot be measured, {off} ({evaluation.source})", markup=False)
    return None
