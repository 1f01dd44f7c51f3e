"""`resdet train`: train a detector, evaluate it, keep its best and its last checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resdet.commands.common import RESUMABLE, config_of, guarded, parser_of

if TYPE_CHECKING:
    from resdet.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a detector."""
    return train_as_told(
        parser_of("train", "Train and evaluate a detector, keeping the best and the last checkpoint."), arguments
    )


def train_as_told(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    check: Callable[[Config], None] | None = None,
    example: str = "maskrcnn_r50",
) -> int:
    """Train what the arguments say. check: of the config; may raise `UserError`."""
    parser.add_argument("config", help=f"a YAML file, for example configs/{example}.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="for example train.lr=0.01 data.root=DIR")
    parser.add_argument("--output", type=Path, help="run folder (default: outputs/CONFIG)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint if there is one")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quiet", action="store_true", help="print only warnings and the result")
    how_much.add_argument(
        "--verbose", action="store_true", help="print a line for each logged iteration in terminals, too"
    )
    args = parser.parse_intermixed_args(arguments)

    def run() -> int:
        from resdet.runtime.console import console

        console.terse, console.verbose = args.quiet, args.verbose
        config = config_of(args, default_output=True)
        if check:
            check(config)
        from resdet.training.loop import train

        return 0 if train(config, resume=args.resume).finished else RESUMABLE

    return guarded(run, when_interrupted=RESUMABLE)
