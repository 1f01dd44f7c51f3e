"""The commands: `resdet train|eval|visualize|convert|data …`, and the same as `python tools/train.py …`.

Exit codes: 0 done, 2 the user's mistake (one clear message), 75 stopped early and resumable.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resdet.config import Config

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h


def main(arguments: Sequence[str] | None = None) -> int:
    """`resdet VERB …`."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    verbs = {
        "train": train,
        "eval": evaluate,
        "visualize": visualize,
        "convert": convert,
        "data": data,
        "benchmark": benchmark,
    }
    if not arguments or arguments[0] not in verbs:
        from resdet import __version__

        asked = bool(arguments) and arguments[0] in ("-h", "--help", "--version")
        text = f"resdet {__version__}\nusage: resdet {{{','.join(verbs)}}} …    (resdet VERB --help)"
        print(text, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return verbs[arguments[0]](arguments[1:])


def train(arguments: Sequence[str] | None = None) -> int:
    """Train a detector."""
    parser = _parser("train", "Train a detector, evaluate it, keep its best and its last checkpoint.")
    parser.add_argument("config", help="a YAML file, for example configs/maskrcnn_r50.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="for example train.lr=0.01 data.root=DIR")
    parser.add_argument("--output", type=Path, help="folder of the run (default: outputs/CONFIG)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint, or start afresh")
    args = parser.parse_intermixed_args(arguments)

    def run() -> int:
        config = _config(args, default_output=True)
        from resdet.training.loop import train

        return 0 if train(config, resume=args.resume).finished else RESUMABLE

    return _guarded(run, when_interrupted=RESUMABLE)


def evaluate(arguments: Sequence[str] | None = None) -> int:
    """COCO numbers of a model on a dataset, or of a results file."""
    parser = _parser("eval", "COCO box and mask AP, of a model on its validation data or of any COCO results file.")
    parser.add_argument("config", nargs="?", help="a YAML file; not with --results")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--weights", type=Path, help="a checkpoint")
    parser.add_argument("--results", type=Path, help="a COCO results JSON to score instead of a model")
    parser.add_argument("--annotations", type=Path, help="the COCO annotations to score --results against")
    parser.add_argument("--output", type=Path, help="folder for metrics.json and detections.json (default: eval)")
    args = parser.parse_intermixed_args(arguments)
    if args.results and (not args.annotations or args.config):
        parser.error("--results needs --annotations and no config")
    if not args.results and (not args.config or not args.weights):
        parser.error("give CONFIG and --weights, or --results and --annotations")

    def run() -> int:
        from resdet.engine import score

        output = args.output or Path("eval")
        if args.results:
            score.score_file(args.results, args.annotations, output)
        else:
            score.score_model(_config(args), args.weights, output)
        return 0

    return _guarded(run)


def visualize(arguments: Sequence[str] | None = None) -> int:
    """Pictures of a dataset, of predictions, or of both."""
    parser = _parser("visualize", "Draw a dataset's annotations, a model's predictions, or both side by side.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{data,predict,compare}")
    texts = {
        "data": "the validation split's annotations",
        "predict": "predictions on any pictures",
        "compare": "annotations and predictions of the validation split, side by side",
    }
    for kind, text in texts.items():
        sub = kinds.add_parser(kind, help=text, description=text)
        sub.add_argument("config")
        if kind == "predict":
            sub.add_argument("rest", nargs="+", metavar="INPUT", help="pictures, folders, or key.sub=value")
        else:
            sub.add_argument("rest", nargs="*", metavar="key.sub=value")
            sub.add_argument("--split", choices=("train", "val"), default="val")
            sub.add_argument("--count", type=int, default=16, help="how many pictures, spread over the split")
        if kind == "data":
            sub.add_argument("--augmented", action="store_true", help="as training sees them, several times each")
        if kind != "data":
            sub.add_argument("--weights", type=Path, required=True)
            sub.add_argument("--score", type=float, default=0.5, help="lowest score drawn (default: 0.5)")
        sub.add_argument("--color-by", choices=("class", "instance"), default="class")
        sub.add_argument("--output", type=Path, required=True, help="folder for the pictures and sheet.jpg")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args, extra = parser.parse_known_args(arguments)  # intermixed parsing does not know subcommands
    if any(word.startswith("-") for word in extra):
        parser.error(f"unknown option: {' '.join(extra)}")
    args.rest += extra

    def run() -> int:
        from resdet.engine import pictures

        args.overrides = [word for word in args.rest if _is_override(word)]
        config = _config(args)
        if args.kind == "predict":
            inputs = [word for word in args.rest if not _is_override(word)]
            pictures.draw_predictions(config, args.weights, inputs, args.output, args.score, args.color_by)
        else:
            weights, score = getattr(args, "weights", None), getattr(args, "score", 0.5)
            if getattr(args, "augmented", False):
                pictures.draw_augmented(config, args.count, args.output, args.color_by)
                return 0
            pictures.draw_split(config, args.split, args.count, args.output, args.color_by, weights, score)
        return 0

    return _guarded(run)


def data(arguments: Sequence[str] | None = None) -> int:
    """Check a dataset, convert it, draw its statistics."""
    parser = _parser("data", "Find what is wrong with a dataset, convert it to COCO's format, draw its statistics.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{check,convert,stats}")
    look = kinds.add_parser("check", help="what is wrong with the data, with examples and fixes")
    draw = kinds.add_parser("stats", help="class counts, sizes, positions, picture shapes as one picture")
    for sub in (look, draw):
        sub.add_argument("config")
        sub.add_argument("rest", nargs="*", metavar="key.sub=value")
        sub.add_argument("--split", choices=("train", "val"), default="train", help="that --fix mends, or stats draws")
    look.add_argument("--output", type=Path, help="folder for findings.json")
    look.add_argument("--fix", type=Path, metavar="OUT.json", help="write the split with what can be mended")
    draw.add_argument("--output", type=Path, required=True, help="folder for stats.png")
    to_coco = kinds.add_parser("convert", help="Pascal VOC, YOLO, labelme or COCO to one COCO JSON")
    to_coco.add_argument("source", metavar="SOURCE", type=Path, help="a folder, a data.yaml, or a COCO JSON")
    to_coco.add_argument("target", metavar="OUT.json", type=Path)
    to_coco.add_argument("--format", choices=("auto", "coco", "voc", "yolo", "labelme"), default="auto")
    to_coco.add_argument(
        "--split", help="one of the source's splits (VOC: ImageSets/Main/NAME.txt; YOLO: a key of data.yaml)"
    )
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args, extra = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in extra) or (extra and args.kind == "convert"):
        parser.error(f"unknown option: {' '.join(extra)}")

    def run() -> int:
        from resdet.engine import datasets

        if args.kind == "convert":
            datasets.convert(args.source, args.target, args.format, args.split)
            return 0
        args.overrides, output = args.rest + extra, args.output
        args.output = None
        config = _config(args)
        if args.kind == "stats":
            datasets.stats(config, output, args.split)
            return 0
        return 2 if datasets.check(config, output, args.fix, args.split) else 0

    return _guarded(run)


def convert(arguments: Sequence[str] | None = None) -> int:
    """Another tool's checkpoint to resdet's format, or a checkpoint to torchvision's, or to a graph."""
    parser = _parser("convert", "Rewrite a checkpoint of any known tool as resdet's, as torchvision's, or as a graph.")
    parser.add_argument(
        "input", metavar="IN", help="a file of torchvision, detectron2, mmdetection, timm, …; torchvision:NAME"
    )
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="a .safetensors file; .pth for torchvision, .pt2 for a program"
    )
    parser.add_argument("--to", choices=("resdet", "torchvision", "program"), default="resdet",
                        help="program: the prediction as a graph, for torch.export.load")  # fmt: skip
    args = parser.parse_args(arguments)
    ending = {"resdet": ".safetensors", "torchvision": ".pth", "program": ".pt2"}[args.to]
    if args.output.suffix != ending:
        parser.error(f"OUT must end in {ending}")

    def run() -> int:
        from resdet.checkpoints.locate import find_weights
        from resdet.checkpoints.recognise import recognise
        from resdet.export.torchvision import save_own, save_torchvision
        from resdet.writing import make_folder, refuse_overwriting

        source = find_weights(args.input)
        refuse_overwriting([args.output], [source])
        make_folder(args.output.parent)
        found = recognise(source)
        print(found.report())
        if args.to == "program":
            import torch

            from resdet.export.program import export_prediction, save_program
            from resdet.inference.predictor import Predictor

            detector = Predictor.from_checkpoint(args.input, device="cpu").model
            rounds = found.model.input.resize != "torch"
            save_program(export_prediction(detector, torch.uint8 if rounds else torch.float32), args.output)
        elif args.to == "torchvision":
            print(save_torchvision(found, args.output))
        else:
            save_own(found, args.output)
        print(f"written: {args.output}")
        return 0

    return _guarded(run)


def benchmark(arguments: Sequence[str] | None = None) -> int:
    """How fast a config trains and predicts, beside another tool's same model."""
    parser = _parser("benchmark", "Time training, prediction, loader and evaluation, side by side with another tool.")
    sections = ("train", "inference", "batch8", "parts", "loader", "evaluation")
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--compare", choices=("torchvision", "detectron2", "none"), default="torchvision")
    parser.add_argument("--sections", default="train,inference,parts", help=f"of {','.join(sections)}; or all")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1, help="images a training step")
    parser.add_argument("--objects", type=int, default=10, help="objects an image")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each side, after one to warm up")
    parser.add_argument("--profile", action="store_true", help="write a trace of a training step")
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="folder for benchmark.json")
    args = parser.parse_intermixed_args(arguments)
    wanted = list(sections) if args.sections == "all" else args.sections.split(",")
    if unknown := [name for name in wanted if name not in sections]:
        parser.error(f"--sections: {', '.join(unknown)} is none of {', '.join(sections)}")

    def run() -> int:
        output, args.output = args.output, None
        config = _config(args)
        from resdet.engine.benchmark import benchmark
        from resdet.engine.peers import Load
        from resdet.runtime.device import choose_device

        load = Load(tuple(args.size), args.batch, args.objects, args.repeats)
        benchmark(config, load, wanted, choose_device(config.device), args.compare, output, args.profile)
        return 0

    return _guarded(run)


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"resdet {verb}", description=description)


def _is_override(word: str) -> bool:
    """key.sub=value, rather than a picture whose name has an equals sign."""
    return "=" in word and not Path(word).exists()


def _config(args: argparse.Namespace, default_output: bool = False) -> Config:
    from resdet.config_text import load_config
    from resdet.runtime.device import tune_process

    config = load_config(args.config, args.overrides)
    tune_process(config.device)
    if args.output:
        config.output = args.output
    elif default_output and "output" not in config.model_fields_set:
        config.output = Path("outputs") / Path(args.config).stem
    return config


def _guarded(run: Callable[[], int], when_interrupted: int = 130) -> int:
    """Run a command; a user's mistake becomes one message and exit code 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    from resdet.errors import UserError

    try:
        return run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return when_interrupted
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
