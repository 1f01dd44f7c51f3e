"""`resdet eval`: the numbers of a model on its validation data, or of results: COCO's JSON files, or a folder of label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resdet.class_names import few
from resdet.commands.classes import score_classes
from resdet.commands.common import config_of, guarded, parser_of
from resdet.commands.report import add_report_options, check_report_options, refuse_report, write_page
from resdet.errors import UserError
from resdet.writing import make_folder

if TYPE_CHECKING:
    from resdet.config import Config
    from resdet.data.coco import Annotations
    from resdet.data.collate import LoadedBatch
    from resdet.evaluation.coco import Evaluation, Metrics
    from resdet.inference.predictor import Predictor


def main(arguments: Sequence[str] | None = None) -> int:
    """COCO numbers of a model on a dataset, or of a results file."""
    parser = parser_of(
        "eval",
        "COCO box, mask and keypoint AP, AR of proposals, mIoU and panoptic quality, of a model on its validation data, or of "
        "results: any COCO results file, COCO's panoptic JSON with its PNGs, a folder of label maps. Top-1 and top-5 "
        "accuracy of a classifier.",
    )
    parser.add_argument("config", nargs="?", help="a YAML file; not with --results")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument(
        "--weights", type=Path, help="a checkpoint, or a name: torchvision:NAME; of a classifier imagenet_v1"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="a COCO results JSON, a panoptic one or a folder of label maps, to score instead of a model",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        help="what to score --results against: COCO's JSON; for label maps a dataset's folder, too",
    )
    parser.add_argument("--split", metavar="NAME", help="of that folder (default: its validation split)")
    parser.add_argument(
        "--proposals", action="store_true", help="score --results as boxes without classes: AR at 100 and 1000"
    )
    parser.add_argument("--output", type=Path, help="folder for metrics.json and detections.json (default: eval)")
    add_report_options(parser)
    args = parser.parse_intermixed_args(arguments)
    if args.results and (not args.annotations or args.config):
        parser.error("--results needs --annotations and no config")
    if args.proposals and not args.results:
        parser.error("--proposals needs --results; a model of proposals is scored as one anyway")
    if args.split and not (args.results and args.results.is_dir()):
        parser.error("--split is for --results FOLDER of label maps")
    if not args.results and (not args.config or not args.weights):
        parser.error("give CONFIG and --weights, or --results and --annotations")
    check_report_options(parser, args)

    def run() -> int:
        from resdet.config import find_config

        output = args.output or Path("eval")
        if missing := [str(path) for path in (args.results, args.annotations) if path and not path.exists()]:
            raise UserError(f"{' and '.join(missing)}: no such file or folder")
        if args.results and is_of_pixels(args.results, proposals=args.proposals):
            refuse_report(args, f"{args.results} has label maps or segments")
            score_pixels(args.results, args.annotations, output, args.split)
        elif args.results:
            score_file(
                args.results, args.annotations, output, proposals=args.proposals, with_report=args.report,
                images=args.images, others=args.others,
            )  # fmt: skip
        else:
            config = config_of(args)
            if config.model.kind == "classifier":
                refuse_report(args, f"{args.config} is of a classifier")
                score_classes(config, args.weights, output)
            else:
                recipe = find_config(args.config)
                score_model(
                    config, args.weights, output, with_report=args.report, others=args.others, recipe=recipe
                )  # fmt: skip
        return 0

    return guarded(run)


def score_model(
    config: Config, weights: Path, output: Path, *, with_report: bool = False, others: Sequence[Path] = (),
    recipe: Path | None = None,
) -> Metrics:  # fmt: skip
    """Predict on the validation split, score, write metrics.json and detections.json into `output`; with_report: and a report.

    others, recipe: the results of other checkpoints, and the config file whose published numbers are quoted, for the report.
    """
    from rich.progress import Progress

    from resdet.config import keypoint_section
    from resdet.data.dataset import DetectionDataset
    from resdet.data.splits import read_split, require_data
    from resdet.evaluation.coco import evaluation_of
    from resdet.evaluation.dataset import evaluate_dataset
    from resdet.evaluation.tables import COCO_LIMIT
    from resdet.inference.predictor import Predictor
    from resdet.report.images import of_dataset
    from resdet.runtime.console import console
    from resdet.training.faults import Unreadable
    from resdet.training.setup import crowded

    require_data(config, ["val"])
    predictor = Predictor(config, weights, amp=config.train.amp)
    if predictor.source.source != "resdet":
        console.print(predictor.source.report())
    annotations, notes = labelled_for(predictor, read_split(config, "val"))
    for note in notes:
        console.print(note, markup=False)
    model = predictor.model_config
    if model.limit and (note := crowded(annotations, *model.limit)):
        console.print(note, markup=False)
    if keypoint := keypoint_section(model):
        refuse_other_keypoints(keypoint.names, annotations, predictor.source.path)
    of_model = {
        "min_size": [predictor.min_size],
        "max_size": predictor.max_size,
        "pixel_range": predictor.pixel_range or "auto",
    }
    data = config.data.model_copy(update=of_model)
    dataset = DetectionDataset(
        annotations, data, model.input, train=False, masks=False, semantic="semantic" in model.outputs, seed=config.seed
    )
    evaluation = evaluation_of(annotations, config.data.keypoint_sigmas)
    make_folder(output)
    unreadable = Unreadable("val", len(annotations.images), config.data.max_unreadable)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("predicting", total=len(dataset))

        def seen(loaded: LoadedBatch) -> None:
            unreadable.note(loaded.problems, "it counts as having no detections")
            progress.advance(task, len(loaded.indices))

        scores = evaluate_dataset(
            predictor.model, dataset, evaluation, seen, device=predictor.device, batch_size=min(4, config.train.batch_size),
            amp=config.train.amp,
        )  # fmt: skip
    assert scores
    report(evaluation, scores.metrics, scores.tables, scores.entries, output)
    if with_report:
        limit = max(COCO_LIMIT, predictor.model.selection.max_detections)
        write_page(
            evaluation, scores.metrics, scores.entries, output, others, limit=limit, title=str(weights), tables=scores.tables,
            read=of_dataset(dataset), recipe=recipe,
        )  # fmt: skip
    return scores.metrics


def refuse_other_keypoints(names: Sequence[str], annotations: Annotations, checkpoint: Path) -> None:
    """Raises `UserError` where a model's keypoints are not the dataset's."""
    skeleton = annotations.skeleton
    if skeleton and list(names) != skeleton.names:
        raise UserError(
            f"{checkpoint} and {annotations.source} list different keypoints: {few(names)}; {few(skeleton.names)}"
        )


def labelled_for(predictor: Predictor, annotations: Annotations) -> tuple[Annotations, list[str]]:
    """The annotations in the predictor's label space (`for_classes`).

    To a model of proposals all objects are of one class.
    A checkpoint without class names is taken to have the dataset's if it has as many.
    """
    from resdet.checkpoints.transfer import label_names
    from resdet.data.label_maps import BACKGROUND
    from resdet.data.relabel import as_label_maps, as_objects, for_classes, refuse_other_labels, with_label_maps

    if "proposals" in predictor.model.outputs:
        return as_objects(annotations), []
    names, path = predictor.class_names, str(predictor.source.path)
    if "semantic" in predictor.model.outputs:
        alone = predictor.model.outputs == {"semantic"}
        notes: list[str] = []
        if not annotations.label_maps and alone and names[0] == BACKGROUND:
            annotations, notes = for_classes(annotations, names[1:], path, "the checkpoint")
        elif not alone:
            annotations, notes = for_classes(annotations, names, path, "the checkpoint")
        annotations = as_label_maps(annotations) if alone else with_label_maps(annotations)
        if of_pixels := label_names(predictor.model_config, predictor.source.class_names):
            refuse_other_labels(annotations, of_pixels, path)
        return annotations, notes
    if not predictor.source.class_names and predictor.model.num_classes == len(annotations.class_names):
        return annotations, []
    return for_classes(annotations, names, path, "the checkpoint")


def is_of_pixels(results: Path, *, proposals: bool) -> bool:
    """Whether results are label maps or panoptic segments. Raises `UserError`."""
    from resdet.evaluation.pixel_results import is_panoptic

    found = results.is_dir() or is_panoptic(results)
    if found and proposals:
        raise UserError(f"{results}: --proposals scores boxes, these are results of pixels")
    return found


def score_pixels(results: Path, annotations: Path, output: Path, split: str | None = None) -> Metrics:
    """Score COCO's panoptic JSON, or a folder of label maps; write metrics.json into `output`."""
    from rich.progress import Progress

    from resdet.evaluation.pixel_results import score_label_maps, score_segments
    from resdet.runtime.console import console
    from resdet.writing import write_json

    make_folder(output)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("scoring", total=None)

        def tick(count: int) -> None:
            progress.update(task, total=count, advance=1)

        if results.is_dir():
            scored = score_label_maps(results, annotations, split, tick)
        else:
            scored = score_segments(results, annotations, tick)
    write_json(output / "metrics.json", scored.metrics, indent=2)
    for note in scored.notes:
        console.print(note, markup=False)
    console.print(f"{scored.images} images\n\n{scored.table}\nwritten: {output / 'metrics.json'}", markup=False)
    return scored.metrics


def score_file(
    results: Path, annotations: Path, output: Path, *, proposals: bool = False, with_report: bool = False,
    images: Path | None = None, others: Sequence[Path] = (),
) -> Metrics:  # fmt: skip
    """Score a COCO results JSON, by class or as `proposals`; write metrics.json and a copy of the entries into `output`.

    with_report: and a report, with the pictures in the folder `images`; others: as for `score_model`.
    """
    from resdet.evaluation.coco import Evaluation
    from resdet.evaluation.results import crowding_note, read_results
    from resdet.evaluation.tables import COCO_LIMIT
    from resdet.report.images import of_folder
    from resdet.runtime.console import console

    evaluation = Evaluation(annotations)
    found = read_results(results, evaluation, proposals=proposals)
    read, missing = of_folder(evaluation, images) if images and with_report else (None, "")
    make_folder(output)
    for note in filter(None, (found.left_out, missing)):
        console.print(f"warning: {note}", markup=False)
    for path, readings in ((annotations, evaluation.readings), (results, found.readings)):
        for what, count in readings.summary().items():
            console.print(f"{path}: {count} {what}", markup=False)
    for kind, field in (("segm", "segmentation"), ("keypoints", "keypoints")):
        if not proposals and kind not in found.kinds and any(field in entry for entry in found.entries):
            console.print(f"warning: {results}: {field} not scored: {annotations} has none", markup=False)
    metrics, tables = evaluation.score(found.entries, found.kinds)
    report(evaluation, metrics, tables, found.entries, output)
    if not proposals and (note := crowding_note(evaluation, found.entries)):
        console.print(note)
    if with_report:
        write_page(
            evaluation, metrics, found.entries, output, others, limit=COCO_LIMIT, title=str(results), read=read,
            notes=[found.left_out] if found.left_out else [],
        )  # fmt: skip
    return metrics


def report(evaluation: Evaluation, metrics: Metrics, tables: str, entries: list[dict[str, Any]], output: Path) -> None:
    """Write metrics and detections, print the tables."""
    from resdet.evaluation.results import write_evaluation
    from resdet.runtime.console import console

    write_evaluation(output, metrics, entries)
    console.print(f"{len(evaluation.image_sizes)} images, {len(entries)} detections\n\n{tables}", markup=False)
    if "segm" in metrics and evaluation.without_mask:
        console.print(f"{evaluation.without_mask} objects without a segmentation: their boxes stood in for their masks")
    console.print(f"written: {output / 'metrics.json'}, {output / 'detections.json'}", markup=False)
