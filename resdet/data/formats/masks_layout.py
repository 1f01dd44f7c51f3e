"""Which file is the label map, or one object's mask, of which image: folders beside each other, or suffixes of names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from resdet.data.formats.common import all_files, usual_name
from resdet.data.formats.glimpse import files_in, glimpse
from resdet.data.images import SUFFIXES, images_among

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "pngimages", "jpegimages")
MAP_FOLDERS = ("masks", "mask", "labels", "label", "instances", "pedmasks")
IMAGE_ENDS = ("", "_img", "_image", "_rgb")
MAP_ENDS = ("_cp_masks", "_masks", "_mask", "_labels", "_label", "_instances")
OTHER_ENDS = ("_seg.npy", "_flows.tif", "_outlines.png")  # that Cellpose writes beside its maps
FEW = 20  # folders that are looked into to recognise the layout


class Map(NamedTuple):
    """A file and its image. of_one: the mask of one object rather than a label map. name: the class that its folder says."""

    file: Path
    image: Path
    of_one: bool
    name: str | None


class MasksLayout(NamedTuple):
    """maps: in the order of their images. without_map, without_image: files with no partner. unclear: (map, images that it
    may be of). others: how many files of other kinds were passed over."""

    maps: list[Map]
    without_map: list[Path]
    without_image: list[Path]
    unclear: list[tuple[Path, list[Path]]]
    others: int


def looks_like_masks(root: Path) -> Path | None:
    """A file that is a map or mask by its place, at `root` or up to two folders below it; None if there is none."""
    first = _below(root)
    second = _below(first[0]) if first else []
    for place in (root, *first, *second):
        for maps in _below(place):
            if maps.name.lower() in MAP_FOLDERS and (folder := _image_folder(maps)):
                beside = folder != place or any(files_in(place, *SUFFIXES))
                if beside and (file := next((p for p in glimpse(maps) if p.suffix.lower() in SUFFIXES), None)):
                    return file
        files = files_in(place, *SUFFIXES)
        stems = {file.stem for file in files}
        if file := next((file for file in files if _is_beside(file, stems)), None):
            return file
    return None


def read_masks_layout(root: Path, images: Path | None) -> MasksLayout:
    """All maps below `root`; their images beside them, or below the folder `images`."""
    listed = all_files(root)
    files = images_among(f for f in listed if not f.name.endswith(OTHER_ENDS))
    others = sum(f.name.endswith(OTHER_ENDS) for f in listed)
    folders: dict[Path, Path] = {}  # of images, by the one of maps
    homes = {file: _home(file, root, images, folders) for file in files}
    stems: dict[Path, set[str]] = {}
    for file in files:
        stems.setdefault(file.parent, set()).add(file.stem)
    beside = {file for file in files if homes[file] is None and _is_beside(file, stems[file.parent])}
    pictures = [file for file in files if homes[file] is None and file not in beside]
    if images is not None:
        pictures = images_among(all_files(images))
        pictures = [file for file in pictures if file not in homes or homes[file] is None]
    index: dict[Path, list[Path]] = {}
    for file in pictures:
        index.setdefault(file.with_suffix(""), []).append(file)
    found: dict[Path, list[Map]] = {}
    orphans: dict[tuple[Path, Path], list[Path]] = {}
    unclear: list[tuple[Path, list[Path]]] = []
    for file in files:
        home = homes[file] or ((file.parent, file.parent) if file in beside else None)
        if home is None:
            continue
        partners, of_one, name = _partners(file, *home, index)
        if not partners:
            orphans.setdefault(home, []).append(file)
        elif len(partners) > 1:
            unclear.append((file, partners))
        else:
            found.setdefault(partners[0], []).append(Map(file, partners[0], of_one, name))
    _take_single_images(orphans, pictures, found)
    taken = {image for _, candidates in unclear for image in candidates}
    return MasksLayout(
        [entry for image in pictures for entry in found.get(image, [])],
        [image for image in pictures if image not in found and image not in taken],
        [file for lonely in orphans.values() for file in lonely],
        unclear,
        others,
    )


def _take_single_images(
    orphans: dict[tuple[Path, Path], list[Path]], pictures: list[Path], found: dict[Path, list[Map]]
) -> None:
    """Where a folder has a single image and no map of it, what lies in its folder of masks is one object each: as in
    ID/images/ID.png and ID/masks/*.png. Moves such files from `orphans`, by their folders, to `found`, by their image."""
    by_folder: dict[Path, list[Path]] = {}
    for image in pictures:
        by_folder.setdefault(image.parent, []).append(image)
    for (maps, folder), files in list(orphans.items()):
        here = by_folder.get(folder, [])
        if len(here) == 1 and here[0] not in found:
            names = [file.relative_to(maps).parent.name or None for file in files]
            found[here[0]] = [Map(file, here[0], True, name) for file, name in zip(files, names, strict=True)]
            del orphans[maps, folder]


def split_of(image: Path, root: Path) -> str | None:
    """The split that an image belongs to: a folder train, val, … at the top, or within the folder of images there."""
    parts = image.relative_to(root).parts[:-1] if image.is_relative_to(root) else ()
    return next((part for part in parts[:2] if usual_name(part)), None)


def _below(folder: Path) -> list[Path]:
    try:
        return list(islice((p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")), FEW))
    except OSError:
        return []


def _image_folder(maps: Path) -> Path:
    """The folder of images beside one of maps; the folder around it if there is none of such a name."""
    there = {path.name.lower(): path for path in maps.parent.glob("*/")}
    return next((there[name] for name in IMAGE_FOLDERS if name in there), maps.parent)


def _home(file: Path, root: Path, images: Path | None, folders: dict[Path, Path]) -> tuple[Path, Path] | None:
    """(the folder of maps that a file lies in, that of its images); None for a file that lies in none."""
    parts = file.relative_to(root).parts[:-1]
    for k in reversed(range(len(parts))):
        if parts[k].lower() in MAP_FOLDERS:
            maps = root.joinpath(*parts[: k + 1])
            if maps not in folders:
                folders[maps] = images or _image_folder(maps)
            return maps, folders[maps]
    if images is not None and not file.is_relative_to(images):
        return root, images
    return None


def _is_beside(file: Path, stems: set[str]) -> bool:
    """Whether a file is the map of an image beside it, among files of these stems."""
    return any(stem + end in stems for stem in _bare(file.stem) for end in IMAGE_ENDS)


def _bare(stem: str) -> Iterator[str]:
    """A map's name without the suffixes that mark one."""
    yield from (stem.removesuffix(end) for end in MAP_ENDS if stem.endswith(end) and stem != end)


def _partners(
    file: Path, maps: Path, folder: Path, index: dict[Path, list[Path]]
) -> tuple[list[Path], bool, str | None]:
    """(the images that a map may be of, whether it is one object's mask, its class by its folder).

    masks/…/NAME is the map of images/…/NAME, masks/…/CLASS/NAME one of the objects of a class in it; masks/…/NAME/ANY holds an
    object each, as does masks/…/NAME/CLASS/ANY.
    """
    inner = file.relative_to(maps).parent
    name = inner.name or None
    stems = [file.stem, *_bare(file.stem)]
    for place, of_class in ((folder / inner, None), (folder / inner.parent, name)) if name else ((folder, None),):
        for stem in stems:
            for end in IMAGE_ENDS:
                if images := [p for p in index.get(place / (stem + end), []) if p != file]:
                    return images, False, of_class
    if name:
        for place, of_class in ((folder / inner, None), (folder / inner.parent, name)):
            if images := index.get(place, []):
                return images, True, of_class
    return [], False, None
