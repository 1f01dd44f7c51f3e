"""JSON files -> Python values, fast also for millions of entries."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resdet.data.stand_ins import stand_in
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
    """What a JSON file holds. Raises `UserError`, also for a key that one object has twice: JSON keeps only the last."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        with no_collection():
            return json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from None
        if not data.strip(b"\0 \t\r\n"):
            raise UserError(f"{path}: is empty ({len(data)} bytes, no JSON): write or copy it again") from None
        raise UserError(f"{path}: {stand_in(data, path) or f'not valid JSON ({error})'}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; the check takes a sixth more time than reading without it."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    key, count = Counter(key for key, _ in pairs).most_common(1)[0]
    identity = f"id {found['id']!r:.40}, " if "id" in found else ""
    raise UserError(
        f"the key {key!r} occurs {count} times in one object ({identity}keys {', '.join(found):.200}): keep one"
    )
