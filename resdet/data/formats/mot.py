"""MOT Challenge: SEQUENCE/gt/gt.txt beside SEQUENCE/img1/ -> COCO's structure, one class: pedestrian.

Milan et al. 2016, arXiv:1603.00831, table 4: a line is frame, track, left, top, width, height in pixels from one, whether it
counts, class (1 is a pedestrian), visibility. The 2015 files have no classes: all that counts is a pedestrian.
"""

from __future__ import annotations

from pathlib import Path

from resdet.data.formats.common import Builder, Source, image_sizes, images_by_stem
from resdet.errors import UserError


def is_mot(root: Path) -> bool:
    """Whether a folder is a sequence or holds sequences."""
    return bool(_sequences(root))


COLUMNS = (7, 9, 10)


def read_mot(root: Path, images: Path | None = None, split: str | None = None) -> Source:
    """Every frame of all sequences below `root`. Raises `UserError` where nothing can be read."""
    sequences = _sequences(root)
    if not sequences:
        raise UserError(f"{root}: no gt/gt.txt beside img1 (MOT Challenge's layout)")
    builder = Builder(root, root, ["pedestrian"])
    problems = builder.source.problems
    for sequence in sequences:
        stems = images_by_stem(sequence / "img1", problems)
        frames = {int(stem): path for stem, path in stems.items() if stem.isdigit()}
        ids: dict[int, int] = {}
        for (frame, path), size in zip(frames.items(), image_sizes(list(frames.values()), problems), strict=True):
            if size is not None:
                ids[frame] = builder.image(path, size)
        file = sequence / "gt" / "gt.txt"
        for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
            if line.strip():
                _add(builder, ids, frames, line.split(","), f"{file}:{number}")
    return builder.source


def _sequences(root: Path) -> list[Path]:
    found = [root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))] if root.is_dir() else []
    return [folder for folder in found if (folder / "gt" / "gt.txt").is_file() and (folder / "img1").is_dir()]


def _add(builder: Builder, ids: dict[int, int], frames: dict[int, Path], words: list[str], origin: str) -> None:
    if len(words) not in COLUMNS:  # with one missing, another number would be taken for a side
        builder.source.problems.append(f"{origin}: has {len(words)} columns, expected 9, 10 or the first 7")
        return
    try:
        frame, (x, y, w, h) = int(words[0]), (float(word) for word in words[2:6])
        counts = float(words[6]) != 0
        kind = int(float(words[7])) if len(words) > 7 else -1
    except (ValueError, IndexError, OverflowError):
        builder.source.problems.append(f"{origin}: {','.join(words)[:60]!r} is not frame, track, box, flag and class")
        return
    if kind not in (1, -1):  # 2015 has -1
        builder.source.remarks["objects that are not pedestrians (left out)"] += 1
    elif not counts:
        builder.source.remarks["pedestrians flagged as not to be evaluated (left out)"] += 1
    elif frame not in frames:
        builder.source.problems.append(f"{origin}: frame {frame} is not in img1")
    elif frame in ids:
        builder.object(ids[frame], "pedestrian", [x - 1, y - 1, w, h], origin)
