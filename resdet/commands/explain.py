"""`resdet explain`: what happens inside a detector while it predicts an image, as pictures and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdet.commands.common import guarded, parser_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Explain a prediction."""
    text = "Show what happens inside a detector while it predicts an image: feature maps, proposals or anchors, boxes, masks."
    parser = parser_of("explain", text)
    parser.add_argument("weights", help="a checkpoint of resdet or of another tool, or a name like torchvision:…")
    parser.add_argument("image", type=Path)
    parser.add_argument("--score", type=float, default=0.5, help="lowest score of objects to follow (default: 0.5)")
    parser.add_argument("--device", default="auto", help="(default: auto)")
    parser.add_argument("--output", type=Path, required=True, help="folder for index.html and the pictures")
    args = parser.parse_args(arguments)

    def run() -> int:
        from resdet.explain.page import explain, write_explanation
        from resdet.inference.predictor import Predictor
        from resdet.runtime.console import console
        from resdet.runtime.device import tune_process
        from resdet.writing import make_folder

        tune_process(args.device)
        make_folder(args.output)
        predictor = Predictor.from_checkpoint(args.weights, score_threshold=args.score, device=args.device)
        sections = explain(predictor, predictor.read(args.image))
        page = write_explanation(f"{args.image.name} by {Path(args.weights).name}", sections, args.output)
        found = sections[0].text or "label map predicted."
        console.print(f"{found} {sum(len(s.figures) for s in sections)} pictures and their page: {page}")
        if not any(section.small for section in sections) and "boxes" in predictor.model.outputs:
            console.print("no object was followed: none has that score; --score takes a lower one")
        return 0

    return guarded(run)
