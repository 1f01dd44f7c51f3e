"""YOLO: data.yaml, images/, labels/*.txt (boxes, or polygons of YOLO-seg) -> COCO's structure.

https://docs.ultralytics.com/datasets/detect/: a line is "class x_centre y_centre width height" or "class x y x y x y …",
all as shares of the picture's upright size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from resdet.config import load_yaml
from resdet.data.formats.common import Builder, Source, picture_sizes, polygon_box, read_list
from resdet.data.images import SUFFIXES
from resdet.errors import UserError


def read_yolo(file: Path, split: str) -> Source:
    """One split of a data.yaml: "train", "val" or "test". Raises `UserError` where there is none to read."""
    values = _yaml(file)
    classes = _classes(values, file)
    root = file.parent / str(values.get("path") or ".")
    root = root if root.is_dir() else file.parent
    entries = values.get(split)
    if not entries:
        has = ", ".join(key for key in ("train", "val", "test") if values.get(key)) or "none"
        raise UserError(f"{file}: names no split {split!r} (it has: {has})")
    pictures: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        pictures += _pictures(root, str(entry), file)
    builder = Builder(file, root, classes)
    problems = builder.source.problems
    sizes = picture_sizes(pictures, problems)
    for picture, size in zip(pictures, sizes, strict=True):
        if size is None:
            continue  # a problem already
        image_id = builder.image(picture, size)
        labels = _label_file(picture)
        if not labels.is_file():
            builder.source.remarks["pictures without a label file (negatives)"] += 1
            continue
        for number, line in enumerate(labels.read_text(errors="replace").splitlines(), 1):
            if line.strip():
                _add(builder, image_id, line, f"{labels}:{number}", classes, size, problems)
    return builder.source


def _add(
    builder: Builder,
    image_id: int,
    line: str,
    origin: str,
    classes: list[str],
    size: tuple[int, int],
    problems: list[str],
) -> None:
    words = line.split()
    try:
        label, values = int(float(words[0])), [float(word) for word in words[1:]]
    except (ValueError, OverflowError):
        problems.append(f"{origin}: {line.strip()[:60]!r} is not numbers")
        return
    if not 0 <= label < len(classes):
        problems.append(f"{origin}: class {label}, but data.yaml names classes 0 to {len(classes) - 1}")
    elif not all(map(math.isfinite, values)) or not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
        problems.append(f"{origin}: {len(values)} numbers after the class: 4 for a box, 6, 8, … for a polygon")
    elif any(not -0.01 <= v <= 1.01 for v in values):
        problems.append(
            f"{origin}: {line.strip()[:60]!r} has values outside 0 to 1: YOLO's are shares of the picture's size"
        )
    else:
        scale = [size[1], size[0]]
        pixels = [v * scale[k % 2] for k, v in enumerate(values)]
        if len(values) == 4:
            x, y, w, h = pixels
            builder.object(image_id, classes[label], [x - w / 2, y - h / 2, w, h], origin)
        else:
            builder.object(image_id, classes[label], polygon_box(pixels), origin, [pixels])


def _yaml(file: Path) -> dict[str, Any]:
    try:
        values = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as YAML ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: must hold path, train, val and names")
    return values


def _classes(values: dict[str, Any], file: Path) -> list[str]:
    names = values.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{file}: names must be a list of class names, or numbers from 0 with their names")
    if len(set(map(str, names))) < len(names):
        raise UserError(f"{file}: a class name stands twice in names: {names}")
    return [str(name) for name in names]


def _pictures(root: Path, entry: str, file: Path) -> list[Path]:
    """A folder of pictures, or a text file that lists them."""
    path = root / entry
    if not path.exists() and entry.startswith("../"):  # as Roboflow writes it
        path = root / entry.removeprefix("../")
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if path.is_file():
        return [p if (p := Path(line)).is_absolute() else root / line for line in read_list(path)]
    raise UserError(f"{file}: {path} is neither a folder of pictures nor a list of them")


def _label_file(picture: Path) -> Path:
    """…/images/…/a.jpg -> …/labels/…/a.txt: the last folder called images counts."""
    parts = list(picture.parts)
    for k in range(len(parts) - 2, -1, -1):
        if parts[k] == "images":
            parts[k] = "labels"
            break
    return Path(*parts).with_suffix(".txt")
