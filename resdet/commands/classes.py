"""`resdet eval` of a classifier: its accuracy on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resdet.config import Config
    from resdet.data.collate import LoadedBatch
    from resdet.evaluation.coco import Metrics


def score_classes(config: Config, weights: str | Path, output: Path) -> Metrics:
    """Predict the validation pictures, write metrics.json and predictions.json into `output`. Raises `UserError`.

    weights: resdet's checkpoint, or a backbone of torchvision's, timm's or another tool with its classifying layer; a name as
    in `model.backbone.weights`, too.
    """
    from rich.progress import Progress

    from resdet.checkpoints.classifier import open_classifier
    from resdet.checkpoints.locate import find_weights
    from resdet.config import ClassifierConfig
    from resdet.data.class_dataset import ClassificationDataset
    from resdet.data.class_folder import read_class_folder, split_folder
    from resdet.errors import UserError
    from resdet.evaluation.classes import evaluate_classes
    from resdet.evaluation.results import write_evaluation
    from resdet.runtime.console import console
    from resdet.runtime.device import choose_device
    from resdet.training.classes import read_val_classes
    from resdet.training.faults import Unreadable
    from resdet.writing import make_folder

    assert isinstance(config.model, ClassifierConfig)
    file = find_weights(str(weights), config.model.backbone.name)
    opened = open_classifier(file, config.model)
    folder = split_folder(config.data, "val")
    if not opened.class_names:
        names = read_class_folder(folder).class_names
        if len(names) != opened.model.num_classes:
            raise UserError(
                f"{file}: has {opened.model.num_classes} classes without names, {folder} has {len(names)}: which is which "
                "cannot be known"
            )
    val = read_val_classes(folder, opened.class_names or names)
    device = choose_device(config.device)
    model = opened.model.to(device).prepare_for_inference()
    dataset = ClassificationDataset(val, config.data, opened.config.input, train=False, seed=config.seed)
    make_folder(output)
    unreadable = Unreadable("val", len(val.images), config.data.max_unreadable)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("predicting", total=len(dataset))

        def seen(loaded: LoadedBatch) -> None:
            unreadable.note(loaded.problems, "it counts as wrong")
            progress.advance(task, len(loaded.indices))

        size = min(config.train.batch_size, 64)
        scores = evaluate_classes(model, dataset, seen, device=device, batch_size=size, amp=config.train.amp)
    assert scores
    write_evaluation(output, scores.metrics, scores.entries)
    console.print(f"{scores.images} pictures\n\n{scores.tables}", markup=False)
    console.print(f"written: {output / 'metrics.json'}, {output / 'predictions.json'}", markup=False)
    return scores.metrics
