"""JSON files -> Python values, fast also for millions of entries."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resdet.errors import UserError


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's garbage collector, which would double the time to read millions of entries, none of them garbage."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises `UserError`."""
    try:
        with no_collection():
            return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
