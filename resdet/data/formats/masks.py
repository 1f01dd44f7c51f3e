"""Label maps of objects (0 background, one number an object), or a mask file for each object -> COCO's structure.

Layouts: `masks_layout.py`. The class of an object is the first of these that there is: CLASS of masks/CLASS/NAME.png; that of a
JSON beside the map and of its name, {"1": "cell", …}; the only name in ROOT/classes.json (a list, which also orders the
classes); "object".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from resdet.class_names import few
from resdet.data.formats.common import Builder, Source, all_files, image_sizes, usual_name
from resdet.data.formats.masks_layout import Map, MasksLayout, looks_like_masks, read_masks_layout, split_of
from resdet.data.formats.masks_pixels import Pixels, is_map, read_map
from resdet.data.json_files import read_json
from resdet.data.kept import Kept
from resdet.errors import UserError

OBJECT = "object"  # the class where none is named
NAMES_FILE = "classes.json"
AT_ONCE = 32  # maps whose objects are in memory before they become run lengths
PIECES = "objects in several pieces (each is one object)"
PALETTE = "palette images (the indices are the objects' numbers)"
EMPTY = "label maps without an object"
OVERLAP = "objects that cover pixels of another one of their image (kept as they are)"
WITHOUT_MAP = "images without a label map (left out: the map of an image without objects is all 0)"
OF_CELLPOSE = "files of Cellpose that are not label maps, such as _seg.npy (left out)"
LAYOUTS = (
    "images/NAME beside masks/NAME (or labels/, PedMasks/), NAME_masks.png (_mask, _label, _cp_masks) beside NAME.png, or "
    "ID/images/ID.png and ID/masks/*.png"
)
Names = dict[int, str]  # classes by the numbers of a label map


def masks_file(folder: Path) -> Path | None:
    """A file by which a folder is recognised as one of label maps or masks; None if it is not."""
    file = looks_like_masks(folder)
    if file is None or (file.parent / "_classes.csv").is_file():  # Roboflow's masks of classes, not objects
        return None
    return file if is_map(file) else None


def masks_splits(root: Path) -> list[str]:
    """The folders train, val, … of the images below `root`, or within their folder."""
    return _splits(read_masks_layout(root, None), root)


def read_masks(root: Path, images: Path | None = None, split: str | None = None) -> Source:
    """A split, or all where there is none. images: their folder; `root` then holds the maps.

    Raises `UserError` where nothing can be read.
    """
    if not root.is_dir():
        raise UserError(f"{root}: label maps lie in a folder: name that")
    listed = [file for folder in (root, images) if folder for file in all_files(folder)]
    kept = Kept("masks", root, listed, part=f"{images} {split}")
    if (found := kept.load()) is not None:
        return _from_kept(found, root, images or root)
    source = _read_files(root, images, split)
    if not source.problems:
        content = {"content": source.content, "split": source.split, "remarks": source.remarks}
        kept.keep({**content, "origins": list(source.origins.items())})
    return source


def _from_kept(found: dict[str, Any], root: Path, images: Path) -> Source:
    notes = ["its files are as they were when they were read before"]
    return Source(
        root,
        images,
        found["content"],
        dict(found["origins"]),
        Counter(found["remarks"]),
        notes=notes,
        split=found["split"],
    )


def _read_files(root: Path, images: Path | None, split: str | None) -> Source:
    layout, base = read_masks_layout(root, images), images or root
    if not layout.maps:
        example = f" ({layout.without_image[0]} has no image of its name)" if layout.without_image else ""
        raise UserError(f"{root}: no label map or mask with its image: {LAYOUTS}{example}")
    part = _part(layout, root, base, split)
    problems = [f"{file}: has no image of its name: rename it, or move it away" for file in part.without_image]
    problems += [
        f"{file}: is the map of {few([str(each) for each in candidates])}: keep one of them"
        for file, candidates in part.unclear
    ]
    names = {entry.file: _names_beside(entry, problems) for entry in part.maps}
    listed = _listed(root / NAMES_FILE)
    used = {name for given in names.values() if given is not None for name in given.values()}
    used |= {entry.name or OBJECT for entry in part.maps if names[entry.file] is None}
    builder = Builder(root, base, listed or sorted(used, key=lambda name: (name == OBJECT, name)))
    builder.source.split = next((split_of(e.image, base) for e in part.maps), None) if split else None
    builder.source.problems += problems
    builder.source.remarks.update({WITHOUT_MAP: len(part.without_map), OF_CELLPOSE: layout.others})
    default = listed[0] if len(listed) == 1 else OBJECT
    image, image_id, covered = (
        Path(),
        0,
        np.zeros((0, 0), bool),
    )  # the image at hand, and which of its pixels have an object
    for entry, size, found in _read_all(part.maps, builder.source):
        if entry.image != image:
            image, image_id, covered = entry.image, builder.image(entry.image, size), np.zeros(size, bool)
        for each in found:
            _add(builder, image_id, entry, each, names[entry.file], default, covered)
    builder.source.remarks += Counter()  # drops zero counts
    return builder.source


def _add(
    builder: Builder, image_id: int, entry: Map, pixels: Pixels, names: Names | None, default: str, covered: np.ndarray
) -> None:
    """Add an object, and its pixels to those `covered` (H, W) of its image."""
    source = builder.source
    origin = str(entry.file) if entry.of_one else f"{entry.file}: object {pixels.number}"
    name = entry.name or (default if names is None else names.get(pixels.number, ""))
    if name not in builder.classes:
        beside = entry.file.with_suffix(".json").name
        source.problems.append(
            f"{origin}: is not in {beside}, which gives the class of each number" if not name else
            f"{origin}: its class {name!r} is not in {NAMES_FILE}" if name != OBJECT else
            f"{origin}: its class is not said, which may be {few(list(builder.classes))}: write it into {beside} as "
            '{number: class}, or put the map into a folder of its class'
        )  # fmt: skip
        return
    builder.bitmap(image_id, name, pixels.crop, pixels.corner, covered.shape, origin)
    (y, x), (h, w) = pixels.corner, pixels.crop.shape
    region = covered[y : y + h, x : x + w]
    source.remarks[OVERLAP] += bool((region & pixels.crop).any())
    source.remarks[PIECES] += pixels.pieces() > 1
    region |= pixels.crop


def _read_all(maps: list[Map], source: Source) -> Iterator[tuple[Map, tuple[int, int], list[Pixels]]]:
    """Each map that can be read, (H, W), and its objects; the others become problems."""
    files = list(dict.fromkeys(entry.image for entry in maps))
    sizes = dict(zip(files, image_sizes(files, source.problems), strict=True))
    usable = [(entry, size) for entry in maps if (size := sizes[entry.image])]

    def read(given: tuple[Map, tuple[int, int]]) -> tuple[list[Pixels], bool] | str:
        try:
            return read_map(*given)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(usable), AT_ONCE):
            some = usable[start : start + AT_ONCE]
            for (entry, size), found in zip(some, pool.map(read, some), strict=True):
                if isinstance(found, str):
                    source.problems.append(found)
                    continue
                source.remarks[EMPTY] += not found[0]
                source.remarks[PALETTE] += found[1]
                yield entry, size, found[0]


def _splits(layout: MasksLayout, base: Path) -> list[str]:
    return sorted({name for entry in layout.maps if (name := split_of(entry.image, base))})


def _part(layout: MasksLayout, root: Path, base: Path, split: str | None) -> MasksLayout:
    """The files of a split; all if there is none. Raises `UserError` for one that is not there."""
    there = _splits(layout, base)
    if not split or not there:
        return layout
    chosen = next((name for name in there if split in (name, usual_name(name))), None)
    if chosen is None:
        raise UserError(f"{root}: no split {split!r}; it has {', '.join(there)} (data.val_fraction holds one out)")
    return layout._replace(
        maps=[entry for entry in layout.maps if split_of(entry.image, base) == chosen],
        without_map=[file for file in layout.without_map if split_of(file, base) == chosen],
        without_image=[file for file in layout.without_image if split_of(file, root) == chosen],
        unclear=[(file, images) for file, images in layout.unclear if split_of(file, root) == chosen],
    )


def _listed(path: Path) -> list[str]:
    """The names in classes.json; none if it is not there. Raises `UserError`."""
    if not path.is_file():
        return []
    names = read_json(path)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise UserError(f'{path}: must be a list of class names, as ["cell"]')
    if len(set(names)) < len(names):
        raise UserError(f"{path}: lists a class twice")
    return names


def _names_beside(entry: Map, problems: list[str]) -> Names | None:
    """{number: class} of the JSON beside a map; None without one, or where its folder says the class."""
    path = entry.file.with_suffix(".json")
    if entry.name or not path.is_file():
        return None
    try:
        content = read_json(path)
    except UserError as error:
        problems.append(str(error))
        return None
    if isinstance(content, dict) and all(
        key.isascii() and key.isdigit() and len(key) < 20 and isinstance(name, str) and name.strip()
        for key, name in content.items()
    ):
        return {int(key): name for key, name in content.items()}
    problems.append(f'{path}: must give the class of each number in {entry.file.name}, as {{"1": "cell"}}')
    return None
