"""`tools/eval.py`: the COCO numbers of a model on its validation data, or of a results file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import track

from resdet.config import Config
from resdet.data.coco import Annotations
from resdet.data.dataset import DetectionDataset
from resdet.data.relabel import for_classes
from resdet.evaluation.coco import Evaluation, Metrics, evaluation_of, read_results
from resdet.inference.dataset import predict_dataset
from resdet.inference.predictor import Predictor
from resdet.runtime.console import console
from resdet.training.faults import Unreadable
from resdet.training.loop import write_evaluation
from resdet.training.setup import read_split, require_data
from resdet.writing import make_folder


def score_model(config: Config, weights: Path, output: Path) -> Metrics:
    """Predict on the validation split, score, write metrics.json and detections.json into `output`."""
    require_data(config, ["val"])
    predictor = Predictor(config, weights, amp=config.train.amp)
    if predictor.source.source != "resdet":
        console.print(predictor.source.report())
    annotations, notes = labelled_for(predictor, read_split(config, "val"))
    for note in notes:
        console.print(note, markup=False)
    model = predictor.model_config
    data = config.data.model_copy(update={"min_size": [predictor.min_size], "max_size": predictor.max_size})
    dataset = DetectionDataset(annotations, data, model.input, train=False, masks=False, seed=config.seed)
    entries: list[dict[str, Any]] = []
    make_folder(output)
    steps = predict_dataset(
        predictor.model, dataset, device=predictor.device, batch_size=min(4, config.train.batch_size),
        amp=config.train.amp, paste=model.mask.paste if model.mask else "resdet",
    )  # fmt: skip
    unreadable = Unreadable("val", len(annotations.images), config.data.max_unreadable)
    for loaded, found, _ in track(steps, "predicting", console=console, disable=not console.is_terminal):
        unreadable.note(loaded.problems, "it counts as without detections")
        entries += found
    evaluation = evaluation_of(annotations)
    kinds = ("bbox", "segm") if model.mask and evaluation.has_masks else ("bbox",)
    return _report(evaluation, entries, kinds, output)


def labelled_for(predictor: Predictor, annotations: Annotations) -> tuple[Annotations, list[str]]:
    """The annotations in the predictor's label space (`for_classes`).

    A checkpoint without class names is taken to have the dataset's if it has as many.
    """
    if not predictor.source.class_names and predictor.model.num_classes == len(annotations.class_names):
        return annotations, []
    return for_classes(annotations, predictor.class_names, str(predictor.source.path), "the checkpoint")


def score_file(results: Path, annotations: Path, output: Path) -> Metrics:
    """Score a COCO results JSON, write metrics.json and a copy of the entries into `output`."""
    evaluation = Evaluation(annotations)
    entries, kinds = read_results(results, evaluation)
    make_folder(output)
    return _report(evaluation, entries, kinds, output)


def _report(evaluation: Evaluation, entries: list[dict[str, Any]], kinds: tuple[str, ...], output: Path) -> Metrics:
    metrics, tables = evaluation.score(entries, kinds)
    write_evaluation(output, metrics, entries)
    console.print(f"{len(evaluation.image_sizes)} images, {len(entries)} detections\n\n{tables}")
    if "segm" in kinds and evaluation.without_mask:
        console.print(f"{evaluation.without_mask} objects without a segmentation: their boxes stood in for their masks")
    console.print(f"written: {output / 'metrics.json'}, {output / 'detections.json'}")
    return metrics
