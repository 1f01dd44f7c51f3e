"""A folder or an annotation file -> which format it is in, and why. The content of the files decides, not only their names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from resdet.config import DataFormat, load_yaml
from resdet.data.formats.cityscapes import cityscapes_folder
from resdet.data.formats.common import SPLITS, read_text
from resdet.data.formats.glimpse import SMALL, files_in, glimpse, head_of, json_kind, root_tag
from resdet.data.formats.kitti import kitti_folders
from resdet.data.formats.label_maps import NAMES_FILE, label_map_folder
from resdet.data.formats.masks import masks_file
from resdet.data.formats.mot import is_mot
from resdet.data.formats.open_images import is_open_images
from resdet.data.formats.panoptic import panoptic_files
from resdet.data.formats.supervisely import is_supervisely
from resdet.data.formats.via import is_via_csv
from resdet.data.images import ARRAY, SUFFIXES
from resdet.errors import UserError


class Detected(NamedTuple):
    """path: the file or folder that the format's reader takes."""

    format: DataFormat
    path: Path
    reason: str


def detect(place: Path) -> Detected | None:
    """The format of a folder or file; None where there is no sign of any. Raises `UserError` for several at once."""
    if place.is_file():
        return _of_file(place)
    found = [evidence for kind, find in FINDERS.items() if kind != "masks" and (evidence := find(place))]
    if len(found) > 1 and found[-1].format == "coco" and not _is_standard(found[-1].path, place):
        found.pop()  # a JSON file that was made of the others
    if len(found) > 1:
        both = "\n".join(f"  - {evidence.format}: {evidence.reason}" for evidence in found)
        raise UserError(f"{place}: annotations of several formats; choose one with data.format=…:\n{both}")
    return found[0] if found else find_masks(place)  # which may lie beside annotations of any format


def unknown(place: Path) -> UserError:
    """The error for a folder or file in which no format is recognised: what is there, and what is read."""
    files = [place] if place.is_file() else list(glimpse(place))
    lines = [f"  - {text}" for text in dict.fromkeys(filter(None, map(_foreign, files)))][:5]
    if not lines and any("labels" in path.parts and path.suffix == ".txt" for path in files):
        lines = ["  - images and labels/*.txt as of YOLO, but no data.yaml (or classes.txt) with the class names"]
    counts = Counter(path.suffix.lower() or "without a suffix" for path in files)
    there = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6)) or "no files"
    read = "\n".join(f"  - {name}: {text}" for name, text in FORMATS.items())
    found = "\n".join(lines) if len(lines) > 1 else lines[0].strip(" -") if lines else there
    return UserError(
        f"{place}: no annotations in a supported format. Supported (data.format):\n{read}\nfound:"
        + (f"\n{found}" if len(lines) > 1 else f" {found}")
    )


def is_empty(folder: Path) -> bool:
    """Whether there is neither an image nor an annotation file: the dataset is still to be made."""
    return not any(
        path.suffix.lower() in {*SUFFIXES, ARRAY} or _foreign(path) for path in islice(glimpse(folder), 1000)
    )


# ---- the formats that are read ---------------------------------------------------------------------------------------


def find_voc(folder: Path) -> Detected | None:
    for place in (folder / "Annotations", folder, *(folder / name for name in SPLITS)):
        files = files_in(place, ".xml")
        if files and root_tag(files[0]) in ("annotation", ""):
            name = files[0].relative_to(folder)
            return Detected("voc", folder, f"{name} is Pascal VOC's XML, one of {len(files)}")
    return None


def find_yolo(folder: Path) -> Detected | None:
    found = [path for path in files_in(folder, ".yaml", ".yml") if _is_data_yaml(path)]
    usual = [path for path in found if path.stem in ("data", "dataset")]
    if len(found) > 1 and len(usual) != 1:
        names = " and ".join(path.name for path in found[:4])
        raise UserError(
            f"{folder}: {names} each look like a YOLO data.yaml: name one with data.train.annotations=… and data.val.…"
        )
    for path in usual or found:
        return Detected("yolo", path, f"{path.name} names classes and splits as YOLO's data.yaml")
    for path in (folder / "obj.data", *(folder / name for name in CLASS_FILES)):
        if path.is_file() and (path.suffix == ".data" or _has_labels(folder)):
            return Detected("yolo", path, f"{path.relative_to(folder)} lists the classes of YOLO label files")
    return None


def find_labelme(folder: Path) -> Detected | None:
    if any(_is_standard(path, folder) for place in _coco_places(folder) for path in files_in(place, ".json")):
        return None  # whose folders are not searched for more
    for path in islice((p for p in glimpse(folder) if p.suffix.lower() == ".json"), 5):
        if json_kind(path) == "labelme":
            return Detected("labelme", folder, f"{path.relative_to(folder)} has labelme's shapes")
    return None


def find_via(folder: Path) -> Detected | None:
    for path in files_in(folder, ".json", ".csv"):
        if (json_kind(path) if path.suffix.lower() == ".json" else "via" * is_via_csv(head_of(path))) == "via":
            return Detected("via", path, f"{path.name} has the regions of VGG Image Annotator")
    return None


def find_cvat(folder: Path) -> Detected | None:
    for path in [*files_in(folder, ".xml"), *files_in(folder / "annotations", ".xml")]:
        if root_tag(path) == "annotations":
            return Detected("cvat", path, f"{path.relative_to(folder)} is CVAT's XML")
    return None


def find_label_studio(folder: Path) -> Detected | None:
    for path in files_in(folder, ".json"):
        if json_kind(path) == "label_studio":
            return Detected("label_studio", path, f"{path.name} has the tasks of Label Studio")
    return None


def find_supervisely(folder: Path) -> Detected | None:
    if is_supervisely(folder):
        return Detected("supervisely", folder, "meta.json and DATASET/ann are Supervisely's")
    return None


def find_open_images(folder: Path) -> Detected | None:
    places = (folder, *(folder / name for name in ("annotations", "csv", "labels")))
    found = [path for place in places for path in files_in(place, ".csv") if is_open_images(head_of(path))]
    if len(found) > 1:
        names = " and ".join(path.name for path in found[:4])
        raise UserError(
            f"{folder}: {names} each hold boxes of Open Images: name one with data.train.annotations and data.val.…"
        )
    for path in found:
        return Detected("open_images", path, f"{path.name} has the columns of Open Images' boxes")
    return None


def find_kitti(folder: Path) -> Detected | None:
    return Detected("kitti", folder, "label_2 and image_2 are KITTI's") if kitti_folders(folder) else None


def find_mot(folder: Path) -> Detected | None:
    return Detected("mot", folder, "gt/gt.txt beside img1 is MOT Challenge's") if is_mot(folder) else None


def find_cityscapes(folder: Path) -> Detected | None:
    found = cityscapes_folder(folder)
    return Detected("cityscapes", folder, f"{found.name} beside leftImg8bit is Cityscapes'") if found else None


def find_masks(folder: Path) -> Detected | None:
    file = None if label_map_folder(folder) else masks_file(folder)  # of objects, unless classes.txt names the numbers
    reason = f"{file.relative_to(folder)} is a label map or mask by its place and pixels" if file else ""
    return Detected("masks", folder, reason) if file else None


def find_panoptic(folder: Path) -> Detected | None:
    found = (
        [] if find_coco(folder) else panoptic_files(folder)
    )  # instances beside them are meant, unless data.format is set
    reason = f"{found[0].relative_to(folder)} has COCO's segments_info" if found else ""
    return Detected("coco_panoptic", folder, reason) if found else None


def find_label_maps(folder: Path) -> Detected | None:
    found = label_map_folder(folder)
    reason = f"{NAMES_FILE} and {found.name}/ beside images/ are of label maps" if found else ""
    return Detected("label_maps", folder, reason) if found else None


def _coco_places(folder: Path) -> list[Path]:
    return [folder / "annotations", folder, *(folder / name for name in SPLITS)]


def find_coco(folder: Path) -> Detected | None:
    for path in (file for place in _coco_places(folder) for file in files_in(place, ".json")):
        if json_kind(path) == "coco":
            return Detected("coco", path, f"{path.relative_to(folder)} has COCO's images, annotations and categories")
    return None


# In this order where several are found; COCO is last, for a COCO file is what others are converted to. Masks count only where
# nothing else is found.
FINDERS: dict[DataFormat, Callable[[Path], Detected | None]] = {
    "voc": find_voc,
    "yolo": find_yolo,
    "labelme": find_labelme,
    "via": find_via,
    "cvat": find_cvat,
    "label_studio": find_label_studio,
    "supervisely": find_supervisely,
    "open_images": find_open_images,
    "kitti": find_kitti,
    "mot": find_mot,
    "cityscapes": find_cityscapes,
    "masks": find_masks,
    "coco_panoptic": find_panoptic,
    "label_maps": find_label_maps,
    "coco": find_coco,
}
FORMATS: dict[DataFormat, str] = {
    "coco": "COCO's JSON (annotations/instances_*.json, Roboflow's _annotations.coco.json, or data.train.annotations=FILE)",
    "voc": "Pascal VOC (an .xml file for each image, in Annotations/ or beside it)",
    "yolo": "YOLO (data.yaml or classes.txt, images/ and labels/*.txt: boxes, polygons, oriented boxes, poses)",
    "labelme": "labelme and X-AnyLabeling (a .json file for each image)",
    "via": "VGG Image Annotator 1 and 2 (JSON or CSV, beside the images)",
    "cvat": "CVAT for images 1.1 (annotations.xml)",
    "label_studio": "Label Studio (JSON or JSON-MIN, beside the images)",
    "supervisely": "Supervisely (meta.json, DATASET/img and DATASET/ann)",
    "open_images": "Open Images (*-annotations-bbox.csv)",
    "kitti": "KITTI's 2D boxes (label_2 and image_2)",
    "mot": "MOT Challenge (SEQUENCE/gt/gt.txt and SEQUENCE/img1)",
    "coco_panoptic": "COCO's panoptic JSON (panoptic_*.json, and a folder of that name with PNGs of ids)",
    "label_maps": "label maps (a PNG of class numbers for each image: images/, annotations/, classes.txt; or Cityscapes')",
    "cityscapes": "Cityscapes (gtFine or gtCoarse, and leftImg8bit)",
    "masks": "label maps with one number an object, or a mask for each object (images/ and masks/, or NAME_masks.png)",
}
CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "predefined_classes.txt")


def _of_file(path: Path) -> Detected | None:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".data", ".names", ".txt"):
        return Detected("yolo", path, f"{path.name} was named as the annotations")
    if suffix == ".json":
        kind = json_kind(path)
        if kind in ("labelme", "via", "label_studio"):
            return Detected(kind, path, f"{path.name} is {kind}'s")  # type: ignore[arg-type]
        if kind == "coco_panoptic":
            return Detected("coco_panoptic", path, f"{path.name} has COCO's segments_info")
        if kind in ("coco", ""):
            return Detected("coco", path, f"{path.name} was named as the annotations")
    if suffix == ".xml" and root_tag(path) == "annotations":
        return Detected("cvat", path, f"{path.name} is CVAT's XML")
    if suffix == ".csv":
        if is_via_csv(head_of(path)):
            return Detected("via", path, f"{path.name} has the regions of VGG Image Annotator")
        if is_open_images(head_of(path)):
            return Detected("open_images", path, f"{path.name} has the columns of Open Images' boxes")
    return None


def _is_standard(path: Path, folder: Path) -> bool:
    """Whether a COCO file lies where COCO or Roboflow put it, rather than being made there by a conversion."""
    ours = path.parent == folder / "annotations" and path.name.startswith("instances_")
    return ours or path.name == "_annotations.coco.json"


def _is_data_yaml(path: Path) -> bool:
    try:
        values = load_yaml(read_text(path)) if path.stat().st_size < SMALL else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return path.stem in ("data", "dataset")  # the reader reports what is wrong with it
    keys = set(SPLITS)
    return isinstance(values, dict) and "names" in values and not keys.isdisjoint(values)


def _has_labels(folder: Path) -> bool:
    """Whether some text file holds a line of YOLO's numbers."""
    texts = (p for p in glimpse(folder) if p.suffix == ".txt" and p.stem not in ("classes", "predefined_classes"))
    line = rb"(?:\xef\xbb\xbf)?\s*\d+(?:\.0)?(?:\s+-?\d*\.?\d+){4}"
    return any(re.match(line, head_of(path)) for path in islice(texts, 20))


FOREIGN_TAGS = {"dataset": "dlib's XML", "annotation": "Pascal VOC's XML"}


def _foreign(path: Path) -> str:
    """What a file is that is not read, and the next step; "" for nothing in particular."""
    if path.suffix.lower() in (".json", ".xml", ".csv") and not head_of(path):
        return f"{path} is empty (0 bytes): write or copy it again"
    if path.suffix.lower() == ".json":
        kind = json_kind(path)
        if kind == "coco":
            return f"{path} is COCO's: data.train.annotations={path}"
        if kind in FORMATS:
            return f"{path} is {kind}'s: data.train.annotations={path}"
        return f"{path} is {kind}'s: export it as COCO" if kind else ""
    if path.suffix.lower() == ".xml":
        tag = FOREIGN_TAGS.get(root_tag(path))
        return f"{path} is {tag}: export it as COCO or Pascal VOC" if tag else ""
    if path.suffix.lower() == ".csv":
        return f"{path} is a table, but neither Open Images' boxes nor VGG Image Annotator's regions: export it as COCO"
    if path.suffix.lower() in (".tfrecord", ".record", ".parquet", ".mat", ".zip", ".tar"):
        return f"{path} is a {path.suffix} file: unpack it, or export it as COCO"
    return ""
