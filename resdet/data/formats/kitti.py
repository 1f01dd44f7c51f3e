"""KITTI's 2D object detection: label_2/*.txt beside image_2/ -> COCO's structure.

http://www.cvlibs.net/datasets/kitti/eval_object.php: a line is type, truncated, occluded, alpha, left, top, right, bottom
in pixels from zero, then seven numbers of the object in 3D.
"""

from __future__ import annotations

import math
from pathlib import Path

from resdet.data.formats.common import Builder, Source, image_sizes, images_by_stem
from resdet.errors import UserError

COLUMNS = (8, 15, 16)


def kitti_folders(root: Path) -> tuple[Path, Path] | None:
    """(labels, images) below `root` or its training folder; None if this is not KITTI's layout."""
    for base in (root, root / "training"):
        if (base / "label_2").is_dir() and (base / "image_2").is_dir():
            return base / "label_2", base / "image_2"
    return None


def read_kitti(root: Path, given: Path | None = None, split: str | None = None) -> Source:
    """All labelled images; "DontCare" regions are counted and left out. Raises `UserError` where nothing can be read."""
    folders = kitti_folders(root)
    if folders is None:
        raise UserError(f"{root}: no label_2 and image_2 folders (KITTI's layout), nor in {root / 'training'}")
    labels, images = folders[0], given or folders[1]
    problems: list[str] = []
    by_stem = images_by_stem(images, problems)
    lines: dict[Path, list[tuple[str, list[str]]]] = {}
    for file in sorted(labels.glob("*.txt")):
        text = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        entries = [(f"{file}:{number}", line.split()) for number, line in enumerate(text, 1) if line.strip()]
        if file.stem in by_stem:
            lines[by_stem[file.stem]] = entries
        else:
            problems.append(f"{file}: its image {images / file.stem}.* is not there")
    if not lines and not problems:
        raise UserError(f"{labels}: no .txt files")
    names = {words[0] for entries in lines.values() for _, words in entries} - {"DontCare"}
    builder = Builder(root, images, sorted(names))
    builder.source.problems = problems
    for (path, entries), size in zip(lines.items(), image_sizes(list(lines), problems), strict=True):
        if size is None:
            continue  # a problem already
        image_id = builder.image(path, size)
        for origin, words in entries:
            if len(words) not in COLUMNS:  # with a column missing, a wrong number would be read as a coordinate
                problems.append(
                    f"{origin}: has {len(words)} columns; KITTI's have 15, or 16 with a score, or the first 8"
                )
                continue
            if words[0] == "DontCare":
                builder.source.remarks["DontCare regions (left out; they count as background)"] += 1
                continue
            try:  # all of them: a type of two words would otherwise move the box by a column
                x1, y1, x2, y2 = [float(word) for word in words[1:]][3:7]
            except ValueError:
                problems.append(f"{origin}: {' '.join(words)[:60]!r} must be one word for the type, then numbers alone")
                continue
            if not all(map(math.isfinite, (x1, y1, x2, y2))):
                problems.append(f"{origin}: its box is not finite")
                continue
            builder.object(image_id, words[0], [x1, y1, x2 - x1, y2 - y1], origin)
    return builder.source
