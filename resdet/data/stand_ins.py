"""Files that Git left in place of the real ones: symbolic links checked out as text, and Git LFS pointers."""

from __future__ import annotations

from pathlib import Path

LONGEST = 1024  # bytes
LFS = b"version https://git-lfs.github.com/spec/"


def stand_in(data: bytes, name: str | Path) -> str:
    """What the content of the file `name` is, and how to get what is meant; "" for content of its own."""
    if data.startswith(LFS):
        return "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"
    if not 0 < len(data) <= LONGEST:
        return ""
    try:
        target = data.decode().strip()
        if "\n" in target or not Path(name).is_file() or not (Path(name).parent / target).exists():
            return ""
    except (OSError, ValueError):  # no name that a file can have
        return ""
    return (
        f"a text file that holds the path {target!r}: a symbolic link that Git checked out as text; check it out again after "
        "`git config core.symlinks true` (on Windows with developer mode), or put a copy of that in its place"
    )
