"""The console that all messages are printed to."""

from __future__ import annotations

import contextlib
import os
import sys

from rich.console import Console


class _Console(Console):
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
