"""Which annotations a config means, in which format, and which images of them belong to a split -> `Source`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from resdet.config import DataConfig, DataFormat, SplitConfig, data_root
from resdet.data.edit import held_out, image_ids, subset
from resdet.data.formats.cityscapes import read_cityscapes
from resdet.data.formats.coco import find_annotations, image_folder, named_annotations, read_coco_files
from resdet.data.formats.common import Reader, Source, read_list
from resdet.data.formats.cvat import read_cvat
from resdet.data.formats.detect import FINDERS, FORMATS, Detected, detect, is_empty, unknown
from resdet.data.formats.kitti import read_kitti
from resdet.data.formats.label_studio import read_label_studio
from resdet.data.formats.labelme import read_labelme
from resdet.data.formats.mot import read_mot
from resdet.data.formats.names import NameIndex
from resdet.data.formats.open_images import read_open_images
from resdet.data.formats.supervisely import read_supervisely
from resdet.data.formats.via import read_via
from resdet.data.formats.voc import read_voc
from resdet.data.formats.yolo import read_yolo
from resdet.data.rules import Id
from resdet.errors import UserError

Split = Literal["train", "val"]
OF_A_FILE = ("yolo", "via", "cvat", "label_studio", "open_images")  # whose readers take a file, not its folder
WITHOUT_SPLITS = ("labelme", "via", "cvat", "label_studio", "open_images", "kitti", "mot")


def open_split(config: DataConfig, split: Split, *, tolerant: bool = False) -> Source:
    """The annotations of a split. Raises `UserError`, also for `Source.problems` unless `tolerant`, for who reports them."""
    given = config.train if split == "train" or config.val_fraction else config.val
    source = read_source(config, given, split)
    source = source if tolerant else source.whole()
    if config.val_fraction:
        held = held_out(source, config.val_fraction, config.group, config.split_seed)
        for name, part in (("val", held), ("train", image_ids(source) - held)):
            if not part and image_ids(source):
                raise UserError(
                    f"data.val_fraction={config.val_fraction:g} of the {len(image_ids(source))} images of {source.path} leaves "
                    f"none for {name}: use another share, or a validation set of its own (data.val)"
                )
        source = subset(source, held if split == "val" else image_ids(source) - held)
    chosen = config.train if split == "train" else config.val
    source = _listed(source, chosen.files) if chosen.files else source
    if config.limit is None:
        return source
    return subset(source, image_ids(source, config.limit))


def read_source(config: DataConfig, given: SplitConfig, split: Split) -> Source:
    """All that the config names for a split, whatever the format."""
    found, images = detected(config, given), given.images
    key = f"data.{'train' if config.val_fraction else split}"
    refuse_what_has_no_effect(found.format, given, key)
    if found.format == "coco":
        images, annotations = coco_paths(config, split)
        found = found._replace(path=annotations)
    # Where a split is made, it is made of all of a VOC folder or of YOLO's "train".
    named = None if config.val_fraction or found.format in WITHOUT_SPLITS else split
    source = read_whole(config, found, images, given.split or named)
    if given.split and source.split is None:
        raise UserError(f"{source.path}: has no splits, so {key}.split={given.split} means nothing here")
    return source


def refuse_what_has_no_effect(kind: DataFormat, given: SplitConfig, key: str) -> None:
    """Raises `UserError` for keys of `data.train` or `data.val` (`key`) that this format does not use."""
    if kind in WITHOUT_SPLITS and given.split is not None:
        raise UserError(
            f"{key}.split={given.split}: {kind} has no named splits; name each split's own files with {key}.annotations"
        )
    if kind == "yolo" and given.images is not None:
        raise UserError(f"{key}.images={given.images} has no effect: YOLO's data.yaml names the image folders")
    if kind == "coco" and None not in (given.split, given.annotations):
        raise UserError(
            f"{key}.split={given.split} has no effect beside {key}.annotations={given.annotations}: one file is one split"
        )


def read_whole(config: DataConfig, found: Detected, images: Path | None, split: str | None) -> Source:
    """A data set of a known format, or one split of it by the data set's own name."""
    readers: dict[DataFormat, Reader] = {
        "coco": read_coco_files,
        "voc": partial(read_voc, origin=config.voc_origin),
        "yolo": read_yolo,
        "labelme": read_labelme,
        "via": read_via,
        "cvat": read_cvat,
        "label_studio": read_label_studio,
        "supervisely": read_supervisely,
        "open_images": read_open_images,
        "kitti": read_kitti,
        "mot": read_mot,
        "cityscapes": read_cityscapes,
    }
    source = readers[found.format](found.path, images, split)
    part = f", the split {source.split}" if source.split else ""
    source.notes.insert(0, f"read as {found.format}{part}: {found.reason}")
    return source


def detected(config: DataConfig, given: SplitConfig) -> Detected:
    """`data.format`, or what the files look like, and the file or folder to read. Raises `UserError`."""
    root = data_root(config)
    place = given.annotations or (given.images if given.images and not config.root else root)
    if config.format != "auto":
        return _of_format(config.format, place)
    found = detect(place)
    if found and found.format == "coco":
        return Detected("coco", place, found.reason)
    if found:
        return found
    if place.is_file() or not is_empty(place):
        raise unknown(place)
    return Detected("coco", place, "nothing is there")


def find_format(config: DataConfig, given: SplitConfig) -> DataFormat:
    """`data.format`, or what the files look like."""
    return detected(config, given).format


def _of_format(kind: DataFormat, place: Path) -> Detected:
    """What the reader of a given format takes."""
    reason = "data.format says so"
    found = FINDERS[kind](place) if place.is_dir() and kind in OF_A_FILE else None
    if found:
        return found._replace(reason=reason)
    if place.is_dir() and kind in OF_A_FILE and kind != "yolo":
        raise UserError(f"{place}: no annotations of data.format={kind}: {FORMATS[kind]}")
    return Detected(kind, place / "data.yaml" if kind == "yolo" and not place.is_file() else place, reason)


def coco_paths(config: DataConfig, split: Split) -> tuple[Path, Path]:
    """(image folder, annotation file) of a split in COCO's format: as given, or as they are found below `data.root`.

    Raises `UserError` for a split of a name that is not there.
    """
    part: Split = "train" if config.val_fraction else split
    given: SplitConfig = config.train if part == "train" else config.val
    root = given.annotations or data_root(config)
    if root.is_file() or root.suffix:
        annotations, root = root, data_root(config) if config.root else root.parent
    elif given.split is not None:
        annotations = named_annotations(root, given.split, f"data.{part}")
    else:
        annotations = find_annotations(root, part)
    return given.images or image_folder(annotations, root), annotations


def _listed(source: Source, listing: Path) -> Source:
    """The images that a list file names: by path, file name or stem, one a line. Raises `UserError` for unknown ones."""
    by_name: dict[str, Id] = {}
    for entry in source.content["images"]:
        by_name.setdefault(Path(str(entry.get("file_name"))).as_posix(), entry.get("id"))
    index = NameIndex(by_name)
    wanted = read_list(listing)
    chosen: set[Id] = set()
    unknown: list[str] = []
    for line in wanted:
        try:
            chosen.add(by_name[index.find(line, source.remarks)])
        except UserError as error:
            unknown.append(f"{line!r}" if " may be " not in str(error) else str(error))
    if unknown:
        raise UserError(
            f"{listing}: {len(unknown)} of {len(wanted)} lines name no image of {source.path}, the first: {unknown[0]}"
        )
    return subset(source, chosen)
