"""`resdet convert`: a checkpoint to another format, another tool's config to resdet's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdet.commands.common import guarded, parser_of
from resdet.runtime.console import console


def main(arguments: Sequence[str] | None = None) -> int:
    """Another tool's checkpoint or config to resdet's format, or a checkpoint to torchvision's, or to a graph."""
    parser = parser_of(
        "convert",
        "Convert a checkpoint of any supported tool to resdet's format, torchvision's, transformers', or to an exported "
        "graph; with "
        "--config, convert a detectron2 or mmdetection config to resdet's.",
    )
    parser.add_argument(
        "input", metavar="IN", help="a checkpoint of torchvision, detectron2, mmdetection, timm, …, or torchvision:NAME"
    )
    parser.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        help="a .safetensors file; .pth for torchvision, .pt2 for a graph, .yaml for a config, a folder for transformers",
    )
    parser.add_argument("--config", action="store_true",
                        help="IN is a config: detectron2's .yaml or LazyConfig .py, mmdetection's .py or checkpoint; "
                        "nothing in it is run, and every key is accounted for")  # fmt: skip
    parser.add_argument("--images", type=int, metavar="N",
                        help="with --config: number of training images, for schedules in epochs")  # fmt: skip
    parser.add_argument("--to", choices=("resdet", "torchvision", "transformers", "program"), default="resdet",
                        help="program: the prediction as a graph, for torch.export.load")  # fmt: skip
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"),
                        help="with --to program: its only input size, multiples of 32; ViT and Swin need it")  # fmt: skip
    args = parser.parse_args(arguments)
    endings = {"resdet": ".safetensors", "torchvision": ".pth", "transformers": "", "program": ".pt2"}
    ending = ".yaml" if args.config else endings[args.to]
    if ending and args.output.suffix != ending:
        parser.error(f"OUT must end in {ending}")
    if not ending and args.output.is_file():
        parser.error(f"OUT must be a folder, but {args.output} is a file")
    if args.config and args.to != "resdet":
        parser.error(f"--to {args.to} has no effect beside --config")
    if args.images is not None and not args.config:
        parser.error("--images has no effect without --config")
    if args.size and (args.to != "program" or args.size[0] % 32 or args.size[1] % 32):
        parser.error("--size is for --to program, two multiples of 32")
    if args.config:
        return guarded(lambda: _convert_config(Path(args.input), args.output, args.images))

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
            dtype = torch.uint8 if rounds else torch.float32
            save_program(export_prediction(detector, dtype, args.size and tuple(args.size)), args.output)
        elif args.to == "torchvision":
            print(save_torchvision(found, args.output))
        elif args.to == "transformers":
            from resdet.export.transformers import save_transformers

            print(save_transformers(found, args.output))
        else:
            save_own(found, args.output)
        print(f"written: {args.output}")
        return 0

    return guarded(run)


def _convert_config(source: Path, output: Path, images: int | None) -> int:
    from resdet.config import load_config
    from resdet.migration.convert import CONFIGS, migrate_file, migrate_text
    from resdet.migration.report import report, to_yaml
    from resdet.writing import make_folder, refuse_overwriting, write_text

    refuse_overwriting([output], [source])
    make_folder(output.parent)
    is_text = source.suffix in CONFIGS
    migration = migrate_file(source, images) if is_text else migrate_text(_config_text(source), source, images)
    console.print(report(migration))
    write_text(output, to_yaml(migration))
    load_config(output)
    console.print(f"written: {output}")
    return 0


def _config_text(path: Path) -> str:
    """The config that mmdetection keeps in a checkpoint. Raises `UserError`."""
    from resdet.checkpoints.files import read_file
    from resdet.errors import UserError

    meta = read_file(path).meta.get("meta")
    text = (meta.get("cfg") or meta.get("config")) if isinstance(meta, dict) else None
    if not isinstance(text, str):
        raise UserError(
            f"{path}: has no config text (mmdetection's meta.cfg); give the config file itself, .py or .yaml"
        )
    return text
