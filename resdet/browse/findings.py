"""What the data check finds in a split, and in which images."""

from __future__ import annotations

from typing import Any, NamedTuple

from resdet.config import Config
from resdet.data.quality.checks import examine
from resdet.data.quality.report import Finding
from resdet.data.sources import Split, join_parts, open_parts


class Concern(NamedTuple):
    """A kind of finding and the ids of the images that it concerns; none where it concerns the split as a whole."""

    code: str
    what: str
    fix: str
    times: int
    images: set[Any]


def concerns_of(config: Config, split: Split) -> list[Concern]:
    """The findings in the annotations of a split; image files are not opened. Raises `UserError`."""
    source = join_parts(config.data, open_parts(config.data, split, tolerant=True))
    owners = {id(entry): entry.get("image_id") for entry in source.content["annotations"]}
    known = {entry.get("id") for entry in source.content["images"]}
    return [
        Concern(found.code, found.what, found.fix, found.count, _images(found, owners, known))
        for found in examine(split, source)
    ]


def _images(found: Finding, owners: dict[int, Any], known: set[Any]) -> set[Any]:
    """A finding's items are annotations, by Python's id, ids of images, or pairs of these."""
    items = [one for item in found.items for one in (item if isinstance(item, tuple) else (item,))]
    of_images = found.code.startswith("image") or found.code == "same-image"
    return {
        identity
        for item in items
        if isinstance(item, int | str) and (identity := item if of_images else owners.get(item)) in known  # type: ignore[arg-type]
    }
