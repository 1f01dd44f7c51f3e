"""Label maps: a PNG for each image whose numbers are classes, 255 for none, as ADE20K, Cityscapes and COCO-stuff have them.

ROOT/images[/SPLIT]/… beside ROOT/annotations[/SPLIT]/… (or labels, masks), files of equal names, and ROOT/classes.txt, which
names the classes by their numbers from 0, one a line; pixels of a class named "unlabelled" are not learned.
Cityscapes (Cordts et al. 2016): leftImg8bit/SPLIT/CITY/X_leftImg8bit.png and gtFine/SPLIT/CITY/X_gtFine_labelTrainIds.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from resdet.data.formats.common import (
    ALIASES,
    SPLITS,
    Builder,
    Source,
    all_files,
    image_sizes,
    no_images,
    read_text,
    unread_images,
)
from resdet.data.formats.glimpse import glimpse
from resdet.data.images import images_among
from resdet.data.label_maps import LabelFile, LabelSource, Value
from resdet.errors import UserError
from resdet.structures import UNLABELLED

FOLDERS = ("annotations", "labels", "masks")
NAMES_FILE = "classes.txt"
IGNORED = "unlabelled"
CITYSCAPES = (  # by train id, of cityscapesscripts/helpers/labels.py
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain", "sky",
    "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip


class Layout(NamedTuple):
    """The folders of images and label maps, what the names of their files end with, and the classes by number."""

    images: Path
    labels: Path
    image_end: str
    label_end: str
    names: list[str]


def label_map_folder(root: Path) -> Path | None:
    """The folder of label maps beside `images`; None if this is not the layout."""
    if not (root / "images").is_dir() or not (root / NAMES_FILE).is_file():
        return None
    folders = (root / name for name in FOLDERS)
    return next((f for f in folders if f.is_dir() and any(p.suffix.lower() == ".png" for p in glimpse(f))), None)


def read_label_maps(root: Path, images: Path | None = None, split: str | None = None) -> Source:
    """A split, or everything where the folders have no splits. Raises `UserError`, also for a split that is not there."""
    layout = _layout(root, images)
    folders = _split_folders(layout, split)
    image_root, label_root = folders or (layout.images, layout.labels)
    found = all_files(image_root)
    files = [f for f in images_among(found) if f.name.endswith(layout.image_end)]
    if not files:
        raise no_images(image_root, found)
    builder = Builder(label_root, layout.images, [])
    source = builder.source
    source.split = image_root.name if folders else None
    source.problems += unread_images(found)
    kept = [(k, name) for k, name in enumerate(layout.names) if name != IGNORED]
    label_of = {value: label for label, (value, _) in enumerate(kept)}
    values = [Value(k, label_of.get(k, UNLABELLED)) for k in range(len(layout.names))]
    maps = {p.with_suffix(p.suffix.lower()): p for p in all_files(label_root)}
    labels: dict[int | str, LabelFile] = {}
    missing = 0
    for file, size in zip(files, image_sizes(files, source.problems), strict=True):
        stem = file.name.removesuffix(layout.image_end or file.suffix)
        label = label_root / file.relative_to(image_root).with_name(f"{stem}{layout.label_end}")
        if size is None:
            continue
        if label not in maps:
            missing += 1
            source.problems += [f"{file}: its label map {label} is not there"] if missing <= 100 else []
            continue
        labels[builder.image(file, size)] = LabelFile(maps[label], values)
    source.labels = LabelSource(kept, labels, [])
    source.content["categories"] = [{"id": value, "name": name} for value, name in kept]
    return source


def label_map_splits(root: Path, images: Path) -> list[str]:
    """The folders that images and label maps both have, where these are splits."""
    return sorted(_shared_folders(_layout(root, images)))


def _layout(root: Path, images: Path | None) -> Layout:
    for kind in ("gtFine", "gtCoarse"):
        if (root / kind).is_dir() and (root / "leftImg8bit").is_dir():
            ends = "_leftImg8bit.png", f"_{kind}_labelTrainIds.png"
            return Layout(images or root / "leftImg8bit", root / kind, *ends, list(CITYSCAPES))
    labels = next((root / name for name in FOLDERS if (root / name).is_dir()), None)
    folder = images or root / "images"
    if labels is None or not folder.is_dir():
        raise UserError(
            f"{root}: no folder of images beside one of label maps ({', '.join(FOLDERS)}), nor Cityscapes' leftImg8bit and "
            "gtFine"
        )
    listing = next((place / NAMES_FILE for place in (root, labels) if (place / NAMES_FILE).is_file()), None)
    if listing is None:
        raise UserError(
            f"{root / NAMES_FILE}: is not there: write the names of the classes into it, one a line, by their numbers from 0 "
            f'("{IGNORED}" for one that is not to be learned)'
        )
    return Layout(folder, labels, "", ".png", read_names(listing))


def read_names(listing: Path) -> list[str]:
    """The names in classes.txt, by their numbers. Raises `UserError`."""
    names = [line.strip() for line in read_text(listing).rstrip().splitlines()]
    if "" in names or not 0 < len(names) <= UNLABELLED:
        where = f"line {names.index('') + 1} is empty" if "" in names else f"it has {len(names)}"
        raise UserError(f"{listing}: needs 1 to {UNLABELLED} names, one on each line, but {where}")
    if twice := next((name for name in names if name != IGNORED and names.count(name) > 1), None):
        raise UserError(f"{listing}: names {twice!r} twice")
    return names


def _split_folders(layout: Layout, split: str | None) -> tuple[Path, Path] | None:
    """Of images and label maps; None where neither folder has splits."""
    there = _shared_folders(layout)
    if not there & {*SPLITS, "testing"} and split not in there:
        return None
    wanted = (*ALIASES.get(split or "train", (split,)),)
    name = next((name for name in wanted if name in there), None)
    if name is None:
        raise UserError(f"{layout.images}: has no split {split!r} (there are: {', '.join(sorted(there))})")
    return layout.images / name, layout.labels / name


def _shared_folders(layout: Layout) -> set[str]:
    return {p.name for p in layout.images.glob("*/")} & {p.name for p in layout.labels.glob("*/")}
