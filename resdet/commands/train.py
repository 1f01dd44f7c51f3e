"""`resdet train`: train a detector, evaluate it, keep its best and its last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resdet.commands.common import RESUMABLE, config_of, guarded, parser_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a detector."""
    parser = parser_of("train", "Train and evaluate a detector, keeping the best and the last checkpoint.")
    parser.add_argument("config", help="a YAML file, for example configs/maskrcnn_r50.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="for example train.lr=0.01 data.root=DIR")
    parser.add_argument("--output", type=Path, help="run folder (default: outputs/CONFIG)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint if there is one")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action="store_true", help="print warnings and the result alone")
    how_much.add_argument(
        "--verbose", action="store_true", help="print a line for each logged iteration in terminals, too"
    )
    args = parser.parse_intermixed_args(arguments)

    def run() -> int:
        from resdet.runtime.console import console

        console.terse, console.verbose = args.quiet, args.verbose
        config = config_of(args, default_output=True)
        from resdet.training.loop import train

        return 0 if train(config, resume=args.resume).finished else RESUMABLE

    return guarded(run, when_interrupted=RESUMABLE)
