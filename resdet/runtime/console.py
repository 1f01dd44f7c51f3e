"""The console that all messages are printed to."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from rich.console import Console


class _Console(Console):
    """terse: print only warnings and results. verbose: print more of what a run does."""

    terse = verbose = False

    @property
    def live(self) -> bool:
        """Whether a live panel can be shown: in a terminal that can redraw lines, unless the console is terse."""
        return self.is_terminal and not self.is_dumb_terminal and not self.terse

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, but of strings a terse console prints only warnings."""
        text = objects[0].lstrip() if objects and isinstance(objects[0], str) else ""
        if not self.terse or not text or text.startswith(("warning", "skipped")):
            super().print(*objects, **options)

    def result(self, text: str) -> None:
        """Print the outcome of a command, whether terse or not."""
        super().print(text)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:  # a closed terminal, a full disk
            self.on_broken_pipe()
            with contextlib.suppress(OSError):
                print(f"warning: no more output can be written ({error.strerror})", file=sys.stderr, flush=True)

    def on_broken_pipe(self) -> None:
        """The output is no longer read (`| head`, a closed `tee`): continue silently; results are in files."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# User text (class names, paths) is printed verbatim, not interpreted as rich's markup or emoji codes.
console = _Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
