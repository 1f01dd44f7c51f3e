"""What annotations were read as, where they are not in the form of COCO's own files: counted, with examples."""

from __future__ import annotations

from dataclasses import dataclass, field

READINGS: dict[str, str] = {
    "ids-as-text": "ids written as text or floats (read as integers)",
    "numbers-as-text": "objects or images with numbers written as text (read as numbers)",
    "crowd-as-text": "iscrowd values that are text, true or false (read as 0 or 1)",
    "area-invalid": "areas that are not a number, or negative (computed from the mask or box)",
    "object-id": "objects whose id is missing or another one's (numbered anew)",
    "box-swapped": "boxes whose corners are exchanged, so that width or height is negative (read as the same box)",
    "name-with-path": "file names with a path or address before them (found in the image folder by their last part)",
    "size-missing": "images without height and width (taken from the file)",
    "outline-nesting": "polygons not nested as [[x, y, …]] (read as that)",
    "rle-transposed": "RLE masks of size [W, H] (transposed to [H, W])",
    "rle-as-bytes": "RLE counts written as Python's bytes (read as text)",
    "box-missing": "objects without bbox (taken from their mask)",
}


@dataclass
class Reading:
    """How many entries were read in one of the ways of `READINGS`, and the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class Readings(dict[str, Reading]):
    """By code of `READINGS`."""

    def note(self, code: str, example: str) -> None:
        reading = self.setdefault(code, Reading())
        reading.count += 1
        if len(reading.examples) < 5:
            reading.examples.append(example[:200])

    def summary(self) -> dict[str, int]:
        """{what was read how: how often}"""
        return {READINGS[code]: reading.count for code, reading in self.items()}
