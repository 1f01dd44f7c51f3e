"""Open Images V4 to V7: *-annotations-bbox.csv, class-descriptions*.csv and the images -> COCO's structure.

https://storage.googleapis.com/openimages/web/download_v7.html: boxes in fractions of the image size; one marked IsGroupOf is
a crowd. Masks come as separate PNGs and are not read.
"""

from __future__ import annotations

import csv
from pathlib import Path

from resdet.data.formats.common import Builder, Source, all_files, image_sizes
from resdet.data.formats.glimpse import head_of
from resdet.data.images import SUFFIXES, images_among
from resdet.errors import UserError

COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")


def is_open_images(head: bytes) -> bool:
    """Whether a CSV file that begins so holds Open Images' boxes."""
    first = head.decode("utf-8-sig", errors="replace").partition("\n")[0]
    return set(COLUMNS) <= set(first.strip().split(","))


def read_open_images(file: Path, images: Path | None = None, split: str | None = None) -> Source:
    """The boxes of one CSV, on the images below the folder `images` (None: the file's own).

    Raises `UserError` where nothing can be read.

    Images listed in the file but absent from the folder are left out: most people download a part of the nine million.
    """
    images = images or _image_root(file)
    if not is_open_images(head_of(file)):
        raise UserError(f"{file}: not Open Images' boxes: its first line must name {', '.join(COLUMNS)}")
    problems: list[str] = []
    there: dict[str, Path] = {}
    for path in images_among(all_files(images)):
        if path.stem in there:
            problems.append(f"{file}: image {path.stem} may be {there[path.stem]} or {path}: remove one of them")
        there[path.stem] = path
    rows: dict[Path, list[tuple[str, dict[str, str]]]] = {}
    absent: set[str] = set()
    with file.open(newline="", encoding="utf-8-sig") as lines:
        for number, row in enumerate(csv.DictReader(lines), 2):
            if row["ImageID"] in there:
                rows.setdefault(there[row["ImageID"]], []).append((f"{file}:{number}", row))
            else:
                absent.add(row["ImageID"])
    if not rows:
        raise UserError(
            f"{file}: none of its {len(absent)} images is below {images} (IMAGEID{'|'.join(sorted(SUFFIXES))})"
        )
    titles = _titles(file)
    used = {row["LabelName"] for entries in rows.values() for _, row in entries if (row["LabelName"] or "").strip()}
    builder = Builder(file, images, sorted({titles.get(name, name) for name in used}))
    builder.source.problems = problems
    if absent:
        builder.source.remarks["images of the file that are not in the folder (left out)"] = len(absent)
    for (path, entries), size in zip(rows.items(), image_sizes(list(rows), problems), strict=True):
        if size is None:
            continue  # a problem already
        image_id = builder.image(path, size)
        for origin, row in entries:
            if None in row or None in row.values():
                problems.append(f"{origin}: has other columns than the first line names")
                continue
            if not row["LabelName"].strip():
                problems.append(f"{origin}: has no LabelName")
                continue
            try:
                x1, x2, y1, y2 = (float(row[key]) * size[key[0] == "X"] for key in COLUMNS[2:])
            except (TypeError, ValueError):
                problems.append(f"{origin}: XMin, XMax, YMin, YMax must be numbers")
                continue
            label = titles.get(row["LabelName"], row["LabelName"])
            builder.object(image_id, label, [x1, y1, x2 - x1, y2 - y1], origin, crowd=row.get("IsGroupOf") == "1")
    return builder.source


def _image_root(file: Path) -> Path:
    """The folder of the file, or the one above if the file lies in annotations/ or csv/."""
    return file.parent.parent if file.parent.name in ("annotations", "csv", "labels") else file.parent


def _titles(file: Path) -> dict[str, str]:
    """LabelName (/m/…) -> class name, of class-descriptions*.csv in the file's folder or the one above; {} without one."""
    places = [*file.parent.glob("*class-descriptions*.csv"), *file.parent.parent.glob("*class-descriptions*.csv")]
    if not places:
        return {}
    with sorted(places)[0].open(newline="", encoding="utf-8-sig") as lines:
        return {row[0]: row[1] for row in csv.reader(lines) if len(row) == 2 and row[0].startswith("/")}
