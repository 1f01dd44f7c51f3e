"""A config's `data` section -> `Source`: which annotations, in which format, and which of their images make up a split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from resdet.config import DataConfig, DataFormat, SplitConfig, data_root, of_source
from resdet.data.edit import held_out, image_ids, subset
from resdet.data.formats.cityscapes import cityscapes_folder, cityscapes_splits, read_cityscapes
from resdet.data.formats.coco import coco_splits, find_annotations, image_folder, named_annotations, read_coco_files
from resdet.data.formats.common import Reader, Source, read_list, usual_name
from resdet.data.formats.cvat import read_cvat
from resdet.data.formats.detect import FINDERS, FORMATS, Detected, detect, is_empty, unknown
from resdet.data.formats.kitti import read_kitti
from resdet.data.formats.label_maps import label_map_splits, read_label_maps
from resdet.data.formats.label_studio import read_label_studio
from resdet.data.formats.labelme import read_labelme
from resdet.data.formats.masks import masks_splits, read_masks
from resdet.data.formats.mot import read_mot
from resdet.data.formats.names import NameIndex
from resdet.data.formats.open_images import read_open_images
from resdet.data.formats.panoptic import panoptic_splits, read_panoptic
from resdet.data.formats.supervisely import read_supervisely
from resdet.data.formats.via import read_via
from resdet.data.formats.voc import read_voc, voc_splits
from resdet.data.formats.yolo import read_yolo
from resdet.data.formats.yolo_layout import read_layout
from resdet.data.merge import merge
from resdet.data.rules import Id
from resdet.errors import UserError

Split = Literal["train", "val"]
OF_A_FILE = ("yolo", "via", "cvat", "label_studio", "open_images")  # whose readers take a file, not its folder
WITHOUT_SPLITS = ("labelme", "via", "cvat", "label_studio", "open_images", "kitti", "mot")


def open_split(config: DataConfig, split: Split, *, tolerant: bool = False) -> Source:
    """The annotations of a split, those of several sources joined. Raises `UserError`, also for `Source.problems`, unless
    `tolerant` and there is a single source: then the caller reports them."""
    return join_parts(config, open_parts(config, split, tolerant=tolerant))


def open_parts(config: DataConfig, split: Split, *, tolerant: bool = False) -> dict[str, Source]:
    """The sources of a split, each by itself, by name: "train", or "train[0]", "train[1]", … of a list.

    Raises `UserError`, also for `Source.problems` unless `tolerant`.
    """
    parts: dict[str, Source] = {}
    sizes = {"train": 0, "val": 0}  # images of a held-out split
    for name, given in given_sources(config, split).items():
        one = of_source(config, given)
        source = read_source(one, given, name.replace(split, _origin(config, split)))
        source = source if tolerant else source.whole()
        if config.val_fraction:
            held = held_out(source, config.val_fraction, config.group, config.split_seed)
            rest = image_ids(source) - held
            sizes = {"train": sizes["train"] + len(rest), "val": sizes["val"] + len(held)}
            source = subset(source, held if split == "val" else rest)
        files = given.files if split == "train" else config.val.files
        source = _listed(source, files) if files else source
        parts[name] = source if config.limit is None else subset(source, image_ids(source, config.limit))
    if any(sizes.values()) and not all(sizes.values()):
        places = " and ".join(str(source.path) for source in parts.values())
        raise UserError(
            f"data.val_fraction={config.val_fraction:g} of the {sum(sizes.values())} images of {places} leaves none for "
            f"{'val' if sizes['train'] else 'train'}: use another fraction, or a separate validation set (data.val)"
        )
    return parts


def given_sources(config: DataConfig, split: Split) -> Mapping[str, SplitConfig]:
    """The settings of the sources of a split by name (see `open_parts`); a held-out validation set is part of data.train."""
    if _origin(config, split) == "val":
        return {"val": config.val}
    if not isinstance(config.train, list):
        return {split: config.train}
    return {f"{split}[{k}]": given for k, given in enumerate(config.train)}


def join_parts(config: DataConfig, parts: Mapping[str, Source]) -> Source:
    """The sources of `open_parts` as one. Raises `UserError`."""
    known = [getattr(given, "known_classes", None) for name in parts for given in [_given(config, name)]]
    if len(parts) == 1 and known == [None]:
        return next(iter(parts.values()))
    return merge([source.whole() for source in parts.values()], known)


def _given(config: DataConfig, name: str) -> SplitConfig:
    split: Split = "train" if name.startswith("train") else "val"
    return given_sources(config, split)[name]


def _origin(config: DataConfig, split: Split) -> Split:
    return "train" if config.val_fraction else split


def read_source(config: DataConfig, given: SplitConfig, name: str) -> Source:
    """All that a source's settings name, whatever the format. name: what messages call it, "train", "train[1]" or "val"."""
    found, images = detected(config, given), given.images
    key = f"data.{name}"
    split: Split = "train" if name.startswith("train") else "val"
    refuse_what_has_no_effect(found.format, given, key)
    if found.format == "coco":
        images, annotations = coco_paths(config, given, name)
        reason = found.reason if config.format != "auto" else f"{annotations.name} has COCO's structure"
        found = found._replace(path=annotations, reason=reason)
    # A held-out split is taken from all of a VOC folder, or from YOLO's "train".
    named = None if config.val_fraction or found.format in WITHOUT_SPLITS else split
    source = read_whole(config, found, images, given.split or named)
    if given.split and source.split is None:
        raise UserError(f"{source.path}: has no splits, so {key}.split={given.split} has no effect")
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
            f"{key}.split={given.split} has no effect with {key}.annotations={given.annotations}, which is one split: "
            f"set {key}.split=null"
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
        "masks": read_masks,
        "coco_panoptic": read_panoptic,
        "label_maps": read_label_maps,
    }
    source = readers[found.format](found.path, images, split)
    part = f", the split {source.split}" if source.split else ""
    source.notes.insert(0, f"read as {found.format}{part}: {found.reason}")
    return source


def other_splits(found: Detected, source: Source) -> list[str]:
    """The data set's own names of the splits that have been left out of `source`, which was read from it."""
    if source.split is None or (found.format == "coco" and found.path.is_file()):
        return []
    if found.format == "coco":
        return [name for name, path in coco_splits(found.path).items() if path != source.path]
    names: list[str] = []
    if found.format == "voc":
        names = voc_splits(found.path)
    elif found.format == "yolo":
        names = list(read_layout(found.path).entries)
    elif found.format == "cityscapes" and (folder := cityscapes_folder(found.path)):
        names = cityscapes_splits(folder)
    elif found.format == "masks":
        names = masks_splits(found.path)
    elif found.format == "coco_panoptic" and found.path.is_dir():
        names = list(panoptic_splits(found.path))
    elif found.format == "label_maps":
        names = label_map_splits(found.path, source.images)
    # Of VOC's lists, not those of one class, such as cat_train, and of train and val together.
    names = [name for name in names if not re.fullmatch(r"trainval|.+_(train|val|trainval|test)", name)]
    return [name for name in names if source.split not in (name, usual_name(name))]


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
    return Detected("coco", place, "the default, as the folder is empty")


def find_format(config: DataConfig, given: SplitConfig) -> DataFormat:
    """`data.format`, or what the files look like."""
    return detected(config, given).format


def _of_format(kind: DataFormat, place: Path) -> Detected:
    """What the reader of a given format takes."""
    reason = "set by data.format"
    found = FINDERS[kind](place) if place.is_dir() and kind in OF_A_FILE else None
    if found:
        return found._replace(reason=reason)
    if place.is_dir() and kind in OF_A_FILE and kind != "yolo":
        raise UserError(f"{place}: no annotations of data.format={kind}: {FORMATS[kind]}")
    return Detected(kind, place / "data.yaml" if kind == "yolo" and not place.is_file() else place, reason)


def coco_paths(config: DataConfig, given: SplitConfig, name: str) -> tuple[Path, Path]:
    """(image folder, annotation file) of a source in COCO's format: as given, or as found below `data.root`.

    name: "train", "train[1]", "val"; which of the files below the root is meant. Raises `UserError` for a split that does
    not exist.
    """
    root = given.annotations or data_root(config)
    if root.is_file() or root.suffix:
        annotations, root = root, data_root(config) if config.root else root.parent
    elif given.split is not None:
        annotations = named_annotations(root, given.split, f"data.{name}")
    else:
        annotations = find_annotations(root, name.partition("[")[0])
    usual = root / f"{name.partition('[')[0]}2017" if config.root else None
    return given.images or image_folder(annotations, root, usual), annotations


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
