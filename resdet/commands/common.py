"""What the verbs share: their parsers, the config with its overrides, and the exit codes.

0 done, 2 the user's mistake (one clear message), 75 stopped early and resumable. A verb's module imports torch and
the like inside its functions, so that `--help` does not wait for them.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resdet.config import Config

RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h


def parser_of(verb: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"resdet {verb}", description=description)


def is_override(word: str) -> bool:
    """key.sub=value, rather than an image whose name has an equals sign."""
    return "=" in word and not Path(word).exists()


def config_of(args: argparse.Namespace, default_output: bool = False) -> Config:
    from resdet.config import load_config
    from resdet.runtime.device import tune_process

    config = load_config(args.config, args.overrides)
    tune_process(config.device)
    if args.output:
        config.output = args.output
    elif default_output and "output" not in config.model_fields_set:
        config.output = Path("outputs") / Path(args.config).stem
    return config


def detector_config_of(args: argparse.Namespace) -> Config:
    """`config_of`, for verbs that work on annotated objects. Raises `UserError` for a classifier's."""
    from resdet.errors import UserError

    config = config_of(args)
    if config.model.kind == "classifier":
        raise UserError(
            f"{args.config}: model.kind=classifier has no annotated objects, which this command is for: resdet pretrain "
            "reports what is wrong with its pictures"
        )
    return config


def guarded(run: Callable[[], int], when_interrupted: int = 130) -> int:
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
