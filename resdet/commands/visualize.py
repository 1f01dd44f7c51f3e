"""`resdet visualize`: drawings and a contact sheet of annotations, predictions, or both."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resdet.commands.common import detector_config_of, guarded, is_override, parser_of
from resdet.commands.drawings import SHEET_NAME, places
from resdet.errors import UserError
from resdet.writing import make_folder, write_text

if TYPE_CHECKING:
    import numpy as np

    from resdet.config import Config
    from resdet.drawing.layout import ColorBy
    from resdet.structures import Instances

SHEET = 36  # drawings on a contact sheet at most
FORMATS = ("jpg", "png", "svg", "pdf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a dataset, predictions, or both."""
    parser = parser_of("visualize", "Draw a dataset's annotations, a model's predictions, or both side by side.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{data,predict,compare}")
    texts = {
        "data": "the validation split's annotations",
        "predict": "predictions on any images",
        "compare": "annotations and predictions of the validation split, side by side",
    }
    for kind, text in texts.items():
        sub = kinds.add_parser(kind, help=text, description=text)
        sub.add_argument("config")
        if kind == "predict":
            sub.add_argument("rest", nargs="+", metavar="INPUT", help="images, folders, or key.sub=value")
        else:
            sub.add_argument("rest", nargs="*", metavar="key.sub=value")
            sub.add_argument("--split", choices=("train", "val"), default="val")
            sub.add_argument(
                "--count", type=int, default=16, help="number of images, spread evenly over the split (default: 16)"
            )
        if kind == "data":
            sub.add_argument(
                "--augmented", action="store_true", help="as training sees them, several augmented versions of each"
            )
        if kind != "data":
            sub.add_argument("--weights", type=Path, required=True)
            sub.add_argument(
                "--score", default="0.5", help="lowest score drawn, or a report's thresholds.json (default: 0.5)"
            )
        sub.add_argument(
            "--color-by",
            choices=("auto", "class", "instance"),
            default="auto",
            help="auto: by instance where there is one class, else by class",
        )
        sub.add_argument("--format", choices=FORMATS, default="jpg", help="of the drawings (default: jpg)")
        sub.add_argument("--output", type=Path, required=True, help="folder for the drawings and sheet.jpg")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args, extra = parser.parse_known_args(arguments)  # intermixed parsing does not know subcommands
    if any(word.startswith("-") for word in extra):
        parser.error(f"unknown option: {' '.join(extra)}")
    args.rest += extra

    def run() -> int:
        from resdet.inference.thresholds import threshold_of

        suffix = f".{args.format}"
        if suffix in (".svg", ".pdf"):
            from resdet.drawing.vector import require_matplotlib

            require_matplotlib()
        args.overrides = [word for word in args.rest if is_override(word)]
        config = detector_config_of(args)
        if args.kind == "predict":
            inputs = [word for word in args.rest if not is_override(word)]
            draw_predictions(config, args.weights, inputs, args.output, threshold_of(args.score), args.color_by, suffix)
        else:
            weights, score = getattr(args, "weights", None), threshold_of(getattr(args, "score", "0.5"))
            if getattr(args, "augmented", False):
                draw_augmented(config, args.count, args.output, args.color_by)
                return 0
            draw_split(config, args.split, args.count, args.output, args.color_by, weights, score, suffix)
        return 0

    return guarded(run)


def draw_split(
    config: Config, split: Literal["train", "val"], count: int, output: Path, color_by: ColorBy,
    weights: Path | None = None, score: float | Path = 0.5, suffix: str = ".jpg",
) -> None:  # fmt: skip
    """Draw the annotations of `count` images spread over a split; with `weights`, predictions beside them."""
    import numpy as np

    from resdet.data.dataset import read_annotated
    from resdet.data.pixels import for_display
    from resdet.data.splits import read_split, require_data
    from resdet.drawing.raster import rasterise
    from resdet.inference.predictor import Predictor
    from resdet.training.setup import as_modelled, with_pixel_range
    from resdet.visualize import annotated_instances, layout_of, save_drawing

    require_data(config, [split])
    annotations = as_modelled(config.model, read_split(config, split))
    predictor = Predictor(config, weights, score_threshold=score) if weights else None
    above = f"above the thresholds of {score.name}" if isinstance(score, Path) else f"with score {score:.0%} or more"
    if predictor:
        channels, pixel_range = predictor.model_config.input.channels, predictor.pixel_range
    else:
        given = with_pixel_range(config, annotations).data.pixel_range
        channels, pixel_range = config.model.input.channels, given if isinstance(given, tuple) else None
    chosen = np.unique(np.linspace(0, len(annotations.images) - 1, min(count, len(annotations.images))).astype(int))
    names, edges = annotations.class_names, annotations.skeleton.edges if annotations.skeleton else []
    tiles = []
    maps = annotations.label_maps if "semantic" in config.model.outputs else None
    infos = [annotations.images[index] for index in chosen]
    for info, place in zip(infos, places([info.file for info in infos], output, suffix), strict=True):
        image = read_annotated(info, channels, pixel_range)
        shown = for_display(image)
        truth = annotated_instances(info.objects, info.size, label_map=maps.read(info) if maps else None)
        label_names = maps.names if maps else []
        layouts = [
            layout_of(shown, truth, names, color_by=color_by, scores=False, edges=edges, label_names=label_names)
        ]
        tiles.append((rasterise(layouts[0]), f"{info.file.name}: {_counted(truth)}"))
        if predictor:
            (found,) = predictor.predict_units([image])
            layouts.append(
                layout_of(
                    shown, found, predictor.class_names, color_by=color_by, edges=predictor.edges,
                    label_names=predictor.label_names,
                )
            )  # fmt: skip
            tiles.append((rasterise(layouts[1]), f"predicted: {_counted(found, ' ' + above)}"))
        save_drawing(layouts, place)
    _write_sheet(tiles, output, len(chosen), columns=4 if predictor else None)


def draw_augmented(config: Config, count: int, output: Path, color_by: ColorBy, versions: int = 3) -> None:
    """Draw what training sees: `count` images, plain and then `versions` times augmented, resized and flipped.

    Boxes, keypoints and masks are those of the training samples, masks pasted back from the crops that become targets.
    """
    import numpy as np

    from resdet.data.auto import as_trained
    from resdet.data.dataset import DetectionDataset
    from resdet.data.pixels import for_display
    from resdet.data.splits import read_split, require_data
    from resdet.structures import MASK_UNKNOWN, Instances
    from resdet.training.setup import as_modelled, with_pixel_range
    from resdet.visualize import annotated_instances, draw

    require_data(config, ["train"])
    annotations = as_modelled(config.model, read_split(config, "train"))
    config = with_pixel_range(as_trained(config, annotations), annotations)
    data = DetectionDataset(
        annotations,
        config.data,
        config.model.input,
        train=True,
        masks=True,
        keypoints=annotations.skeleton is not None,
        semantic="semantic" in config.model.outputs,
        seed=config.seed,
    )
    edges = annotations.skeleton.edges if annotations.skeleton else []
    label_names = data.label_maps.names if data.label_maps else []
    names = annotations.class_names
    shown = partial(draw, class_names=names, color_by=color_by, scores=False, edges=edges, label_names=label_names)
    chosen = np.unique(np.linspace(0, len(data) - 1, min(count, len(data), SHEET // (versions + 1))).astype(int))
    tiles = []
    make_folder(output)
    for index in map(int, chosen):
        info = annotations.images[index]
        label_map = data.label_maps.read(info) if data.label_maps else None
        truth = annotated_instances(info.objects, info.size, label_map=label_map)
        plain = shown(for_display(data.read(index)), truth)
        tiles.append((plain, info.file.name))
        for epoch in range(versions):
            sample = data[index, epoch]
            if isinstance(sample, UserError):
                raise sample
            known = None if sample.masks is None else np.where(sample.masks == MASK_UNKNOWN, 0, sample.masks)
            objects = Instances(
                sample.boxes, np.ones(len(sample.labels), np.float32), sample.labels, sample.image.shape[:2],
                None if known is None else known.astype(np.float32), keypoints=sample.keypoints,
                semantic=sample.semantic,
            )  # fmt: skip
            pixels = for_display(sample.image)
            tile = shown(pixels, objects)
            height, width = sample.image.shape[:2]
            tiles.append((tile, f"epoch {epoch}: {width} x {height}, {_counted(objects)}"))
    _write_sheet(tiles, output, len(chosen), columns=versions + 1)


def _counted(found: Instances, which: str = "") -> str:
    """ "3 objects" and `which`; of a label map alone "4 classes"."""
    import numpy as np

    from resdet.structures import UNLABELLED

    if not len(found) and found.semantic is not None and found.mask_probs is None:
        count = int((np.unique(found.semantic) != UNLABELLED).sum())
        return "1 class" if count == 1 else f"{count} classes"
    return f"{len(found)} object{'s' * (len(found) != 1)}{which}"


def draw_predictions(
    config: Config,
    weights: Path,
    inputs: Sequence[str],
    output: Path,
    score: float | Path,
    color_by: ColorBy,
    suffix: str = ".jpg",
) -> None:
    """Draw predictions on image files and folders. Files that are not images are named and skipped."""
    from resdet.data.formats.label_maps import NAMES_FILE
    from resdet.data.image_files import find_images, other_files
    from resdet.data.pixels import for_display
    from resdet.drawing.raster import rasterise
    from resdet.inference.panoptic_files import panoptic_files, write_png
    from resdet.inference.predictor import Predictor
    from resdet.runtime.console import console
    from resdet.visualize import layout_of, save_drawing

    files = find_images(list(inputs))
    drawings = places(files, output, suffix)
    predictor = Predictor(config, weights, score_threshold=score)
    tiles: list[tuple[np.ndarray, str]] = []
    failed: list[str] = []
    segments = panoptic_files(predictor, output)
    for file, place in zip(files, drawings, strict=True):
        try:
            image = predictor.read(file)
        except UserError as error:
            failed.append(str(error))
            continue
        (found,) = predictor.predict_units([image])
        layout = layout_of(
            for_display(image), found, predictor.class_names, color_by=color_by, edges=predictor.edges,
            label_names=predictor.label_names,
        )  # fmt: skip
        save_drawing([layout], place)
        if found.semantic is not None:
            write_png(found.semantic, output / "label_maps" / f"{place.stem}.png")
        if segments:
            segments.add(file.name, place.stem, found.panoptic(score=0.0))
        if len(tiles) < SHEET:
            tiles.append((rasterise(layout), f"{file.name}: {_counted(found)}"))
    for problem in failed:
        console.print(f"skipped: {problem}")
    if others := other_files(inputs):
        kinds = ", ".join(f"{count} {suffix or 'without any'}" for suffix, count in sorted(others.items()))
        console.print(
            f"skipped in folders: {others.total()} file(s) without an image suffix ({kinds}); name them to try them"
        )
    if not tiles:
        raise UserError(f"none of the {len(files)} files could be read as an image")
    _write_sheet(tiles, output, len(files) - len(failed))
    if predictor.label_names:
        write_text(output / "label_maps" / NAMES_FILE, "".join(f"{name}\n" for name in predictor.label_names))
    if segments:
        console.print(f"segments: {segments.write()}", markup=False)


def _write_sheet(tiles: list[tuple[np.ndarray, str]], output: Path, count: int, columns: int | None = None) -> None:
    from resdet.runtime.console import console
    from resdet.visualize import contact_sheet, save_image

    save_image(contact_sheet(tiles[:SHEET], columns), output / SHEET_NAME)
    console.print(f"{count} drawing(s) in {output}; contact sheet: {output / SHEET_NAME}")
