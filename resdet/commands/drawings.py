"""Where the drawings and other files of `resdet visualize` go."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resdet.writing import make_folder, refuse_overwriting

SHEET_NAME = "sheet.jpg"


def places(files: Sequence[Path], output: Path, suffix: str = ".jpg") -> list[Path]:
    """Where each image's drawing goes in `output`, which is made. Raises `UserError` if one, or the contact sheet, would
    overwrite an image."""
    used = {SHEET_NAME}
    drawings = []
    stems = Counter(file.stem for file in files)
    for file, distinct in zip(files, distinct_names(files), strict=True):
        stem = file.stem if stems[file.stem] == 1 else distinct
        names = (f"{stem}{f'_{k}' if k > 1 else ''}{suffix}" for k in itertools.count(1))
        drawings.append(output / next(name for name in names if name not in used))
        used.add(drawings[-1].name)
    refuse_overwriting([*drawings, output / SHEET_NAME], files)
    make_folder(output)
    return drawings


def distinct_names(files: Sequence[Path]) -> list[str]:
    """The folders in which the files differ and their names, as one word: cam1/0.jpg and cam2/0.jpg -> cam1_0, cam2_0."""
    resolved = [file.absolute() for file in files]
    shared = Path(os.path.commonpath([file.parent for file in resolved])) if files else Path()
    words = ["_".join((*file.relative_to(shared).parts[:-1], file.stem)) for file in resolved]
    count = Counter(words)
    return [word if count[word] == 1 else word + file.suffix for word, file in zip(words, files, strict=True)]
