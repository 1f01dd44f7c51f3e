"""What every format is turned into, and what their readers share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resdet.data.images import SUFFIXES, read_header
from resdet.errors import UserError, listed


@dataclass
class Source:
    """Annotations in COCO's structure.

    path:     what messages name. images: the folder that every "file_name" is relative to.
    content:  {"images", "annotations", "categories"} as in a COCO file.
    origins:  annotation id -> the file and line it came from, for messages; empty for COCO, where the id says it.
    remarks:  what was left out or taken in a particular way, counted.
    problems: what could not be read and so is not in `content`: files, lines, objects.
    """

    path: Path
    images: Path
    content: dict[str, Any]
    origins: dict[int, str] = field(default_factory=dict)
    remarks: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def whole(self) -> Source:
        """Itself. Raises one `UserError` with all `problems` if there are any."""
        if self.problems:
            raise listed(f"{self.path}: {len(self.problems)} problem(s):", self.problems)
        return self


class Builder:
    """Collects images and objects into COCO's structure; ids count from one, categories by the order of `classes`."""

    def __init__(self, path: Path, images: Path, classes: Sequence[str]) -> None:
        self.classes = {name: k + 1 for k, name in enumerate(classes)}
        categories = [{"id": k, "name": name} for name, k in self.classes.items()]
        self.source = Source(path, images, {"images": [], "annotations": [], "categories": categories})

    def image(self, file: Path, size: tuple[int, int]) -> int:
        """Add a picture of (H, W). -> its id"""
        entries = self.source.content["images"]
        name = file.relative_to(self.source.images) if file.is_relative_to(self.source.images) else file
        entries.append({"id": len(entries) + 1, "file_name": name.as_posix(), "height": size[0], "width": size[1]})
        return len(entries)

    def object(self, image_id: int, name: str, bbox: list[float], origin: str, segmentation: Any = None) -> None:
        """Add an object: bbox XYWH in pixels; segmentation as in COCO or None."""
        entries = self.source.content["annotations"]
        entry = {
            "id": len(entries) + 1,
            "image_id": image_id,
            "category_id": self.classes[name],
            "bbox": bbox,
            "iscrowd": 0,
        }
        if segmentation is not None:
            entry["segmentation"] = segmentation
        else:
            entry["area"] = max(bbox[2], 0) * max(bbox[3], 0)
        entries.append(entry)
        self.source.origins[len(entries)] = origin


def picture_sizes(files: Sequence[Path], problems: list[str]) -> list[tuple[int, int] | None]:
    """(H, W) of each file, upright, from its header, read in parallel; None, with a problem, for one that is no picture."""

    def size(file: Path) -> tuple[int, int] | str:
        try:
            return read_header(file.read_bytes(), file).upright_size
        except OSError as error:
            return f"{file}: cannot be read ({error.strerror})"
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(size, files))
    problems += [entry for entry in found if isinstance(entry, str)]
    return [entry if isinstance(entry, tuple) else None for entry in found]


def stems_of(files: Iterable[Path]) -> dict[str, Path]:
    """Picture files by their names without ending."""
    return {file.stem: file for file in sorted(files) if file.suffix.lower() in SUFFIXES}


def polygon_box(points: Sequence[float]) -> list[float]:
    """[x, y, x, y, …] -> XYWH of the box around them."""
    xs, ys = points[0::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def read_list(path: Path) -> list[str]:
    """The lines of a text file, without empty ones. Raises `UserError`."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
