"""`tools/eval.py`: the COCO numbers of a model on its validation data, or of a results file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import track

from resdet.config import Config
from resdet.data.dataset import DetectionDataset
from resdet.engine.evaluate import Evaluation, Metrics, predict_dataset, read_results
from resdet.engine.log import console
from resdet.engine.setup import make_synthetic, missing_data, read_split
from resdet.engine.train import write_evaluation
from resdet.errors import UserError
from resdet.predict import Predictor


def score_model(config: Config, weights: Path, output: Path) -> Metrics:
    """Predict on the validation split, score, write metrics.json and detections.json into `output`."""
    make_synthetic(config)
    problems = missing_data(config, ["val"])
    if problems:
        raise UserError("\n\n".join(problems))
    predictor = Predictor(config, weights)
    annotations = read_split(config, "val")
    if len(annotations.class_names) != predictor.model.num_classes:
        raise UserError(
            f"{weights} knows {predictor.model.num_classes} classes, {annotations.source} has "
            f"{len(annotations.class_names)}: evaluate on data with the same categories"
        )
    dataset = DetectionDataset(annotations, config.data, config.model.input, train=False, masks=False, seed=config.seed)
    entries: list[dict[str, Any]] = []
    steps = predict_dataset(
        predictor.model, dataset, device=predictor.device, batch_size=min(4, config.train.batch_size),
        amp=config.train.amp, paste=config.model.mask.paste if config.model.mask else "resdet",
    )  # fmt: skip
    for _, found, _ in track(steps, "predicting", console=console, disable=not console.is_terminal):
        entries += found
    evaluation = Evaluation(annotations.source, [info.image_id for info in annotations.images])
    kinds = ("bbox", "segm") if config.model.mask and evaluation.has_masks else ("bbox",)
    return _report(evaluation, entries, kinds, output)


def score_file(results: Path, annotations: Path, output: Path) -> Metrics:
    """Score a COCO results JSON, write metrics.json and a copy of the entries into `output`."""
    evaluation = Evaluation(annotations)
    entries, kinds = read_results(results, evaluation)
    return _report(evaluation, entries, kinds, output)


def _report(evaluation: Evaluation, entries: list[dict[str, Any]], kinds: tuple[str, ...], output: Path) -> Metrics:
    metrics, tables = evaluation.score(entries, kinds)
    write_evaluation(output, metrics, entries)
    console.print(f"{len(evaluation.image_sizes)} images, {len(entries)} detections\n\n{tables}")
    if "segm" in kinds and evaluation.without_mask:
        console.print(f"{evaluation.without_mask} objects without a segmentation: their boxes stood in for their masks")
    console.print(f"written: {output / 'metrics.json'}, {output / 'detections.json'}")
    return metrics
