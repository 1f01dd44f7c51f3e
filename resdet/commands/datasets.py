"""Datasets in and out: what the verbs of `resdet data` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from resdet.class_names import few
from resdet.config import DataConfig, TrainSplitConfig
from resdet.errors import UserError
from resdet.writing import make_folder, refuse_overwriting, write_json

if TYPE_CHECKING:
    from resdet.data.formats.common import Source


def open_source(place: Path, kind: str, part: str | None, images: Path | None = None) -> Source:
    """A dataset's own split `part` (None: "train" where it has splits, all of Supervisely's); others are named as left out.

    images: the folder of its images; None for the one near it.
    Raises `UserError`, also for one without images.
    """
    source, others = _open(place, kind, part, images)
    _tell_left_out(source, others)
    return source


def open_splits(place: Path, kind: str, part: str | None, images: Path | None = None) -> dict[str, Source]:
    """The split `part`, or without one all that are usual ones (train, val, test), by name; others are named as left out.

    Raises `UserError` as `open_source` does.
    """
    from resdet.data.formats.common import usual_name

    source, others = _open(place, kind, part, images)
    found = {part or "train": source}
    left_out = []
    for own in others:
        name = usual_name(own)
        if name is None or name in found:
            left_out.append(own)
            continue
        try:
            found[name], _ = _open(place, kind, own, images)
        except UserError as error:
            raise UserError(f"{error}\n(the split {own} of {place}; --split NAME takes one split alone)") from None
    _tell_left_out(source, left_out)
    return found


def _open(place: Path, kind: str, part: str | None, images: Path | None) -> tuple[Source, list[str]]:
    """-> also the names of the splits that are left out though none was asked for."""
    from resdet.data.quality.checks import examine
    from resdet.data.quality.summary import refuse
    from resdet.data.sources import detected, other_splits, read_source, read_whole

    if not place.exists():
        raise UserError(f"{place}: no such file or folder")
    given = TrainSplitConfig(split=part, annotations=None if place.is_dir() else place, images=images)
    data = DataConfig.model_validate({"format": kind, "root": place if place.is_dir() else None})
    found = detected(data, given)
    if found.format == "supervisely" and part is None:  # whose datasets have names of their own
        source = read_whole(data, found, images, None).whole()
    else:
        source = read_source(data, given, "train").whole()
    if not source.content["images"]:
        raise UserError(f"{place}: lists no images, so nothing is written")
    refuse(f"{source.path}: has errors, so nothing is written", examine("annotations", source, outlines=False))
    return source, other_splits(found, source) if part is None else []


def _tell_left_out(source: Source, names: list[str]) -> None:
    from resdet.runtime.console import console

    if names:
        what = f"split {names[0]} is" if len(names) == 1 else f"splits {few(names)} are"
        console.print(f"{source.path}: the {what} left out; --split NAME reads one split alone")


def write(source: Source, output: Path) -> None:
    """A COCO JSON whose file names are relative to the source's image folder. Raises `UserError`."""
    from resdet.runtime.console import console

    if output.suffix.lower() != ".json":
        raise UserError(f"{output}: must end in .json")
    refuse_without_objects(source)
    refuse_sources(output, [source])
    make_folder(output.parent)
    write_json(output, source.content)
    describe_written(f"written: {output}", source)
    console.print(f"classes: {', '.join(str(c.get('name', c.get('id'))) for c in source.content['categories'])}")
    console.print(f"file names are relative to {source.images}")


def refuse_sources(output: Path, sources: list[Source]) -> None:
    """Raises `UserError` if `output` is a file that is read. Of a folder of labelme's files the folder alone is known, so that
    none of these is written over."""
    from resdet.data.formats.glimpse import json_kind

    read = [source.path for source in sources]
    refuse_overwriting([output], [*read, output] if json_kind(output) == "labelme" else read)


def refuse_without_objects(source: Source) -> None:
    """Raises `UserError` for label maps of classes, of which nothing would be left in a format of objects."""
    if source.labels and not source.labels.things:
        raise UserError(
            f"{source.path}: its label maps have a class for each pixel, but no objects, so nothing would be left: "
            "convert them --to label_maps or coco_panoptic"
        )


def describe_written(what: str, source: Source) -> None:
    """How much was written, and that label maps were not."""
    from resdet.runtime.console import console

    describe(what, source)
    if source.labels:
        console.print(f"  {len(source.labels.files)} label maps (left out; the format has none)")


def describe(title: str, source: Source) -> None:
    """How much is in annotations, and what was left out of them."""
    from resdet.runtime.console import console

    content = source.content
    counts = [f"{len(content['images'])} images"]
    if labels := source.labels:
        counts.append(f"{len(labels.files)} label maps of {len(labels.classes)} classes")
    if not labels or labels.things:
        counts += [f"{len(content['annotations'])} objects", f"{len(content['categories'])} classes"]
    console.print(f"{title}: {', '.join(counts)}")
    for note in source.notes:
        console.print(f"  {note}")
    for remark, count in [*source.remarks.items(), *source.readings.summary().items()]:
        console.print(f"  {count} {remark}")
