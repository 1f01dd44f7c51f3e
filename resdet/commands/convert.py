"""`resdet convert`: a checkpoint to another format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdet.commands.common import guarded, parser_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Another tool's checkpoint to resdet's format, or a checkpoint to torchvision's, or to a graph."""
    parser = parser_of(
        "convert", "Rewrite a checkpoint of any known tool as resdet's, as torchvision's, or as a graph."
    )
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

    return guarded(run)
