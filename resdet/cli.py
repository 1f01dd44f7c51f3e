"""`resdet VERB …`; each verb is also a script, `python tools/VERB.py …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = (
    "train",
    "pretrain",
    "eval",
    "visualize",
    "convert",
    "data",
    "runs",
    "compare",
    "explain",
    "backbones",
    "compare-backbones",
    "browse",
    "benchmark",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the verb that the first argument names; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in VERBS:
        code: int = import_module(f"resdet.commands.{arguments[0].replace('-', '_')}").main(arguments[1:])
        return code
    from resdet import __version__

    asked = bool(arguments) and arguments[0] in ("-h", "--help", "--version")
    text = f"resdet {__version__}\nusage: resdet {{{','.join(VERBS)}}} …    (resdet VERB --help)"
    print(text, file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
