"""Valid inputs of every kind, ways to spoil them, and readers that must end in success or in our own error.

`tests/test_hostile.py` takes some of them, `benchmarks/fuzz.py` ten thousand.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import pickle
import random
import signal
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring, tostring

import cv2
import numpy as np
import torch
from safetensors.torch import save

from fuzzing_formats import EXPORTS, PICTURE
from resdet.checkpoints.files import read_file
from resdet.checkpoints.recognise import open_backbone, open_checkpoint
from resdet.config import DataConfig, load_config
from resdet.data.coco import parse_coco, read_coco
from resdet.data.dataset import crop_masks
from resdet.data.images import read_image
from resdet.data.quality.checks import examine
from resdet.data.quality.files import inspect_files
from resdet.data.sources import open_split
from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation
from resdet.evaluation.results import read_results

WEIRD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**18), 0.5, 1e-300, 1e308, -1e308, float("nan"), float("inf"),
    "", "x", "x" * 5000, "\x00", "../../../../etc/passwd", "/etc/passwd", "nan", "1e5", "é😀", [], {}, [[]], [None], [[0, 0]],
    [0, 0, 0, 0], {"size": [1, 1], "counts": "0"}, {"size": [40, 50], "counts": "zzzzzz"}, {"a": {"b": []}}, [1] * 100,
]  # fmt: skip
TOKENS = [
    "", " ", "\n", ":", "- ", "{", "}", "[", "]", "&a *a", "<", ">", "</", "<!--", "&lt;", "&x;", '"', "'", "0", "-1",
    "1e999", "nan", "999999999999999999999", "../..", "\x00", "%", "!!python/object/apply:os.system", "null", "true", "é",
]  # fmt: skip

NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "0.5",
    "1e-300",
    "1e300",
    "-1e9",
    "nan",
    "inf",
    "1e999",
    "255",
    "99999999999999999999",
    "1.0",
]


# ---- spoiling --------------------------------------------------------------------------------------------------------


def spoil_json(value: Any, chance: random.Random) -> Any:
    """A copy with a few nodes replaced, removed, doubled, or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 2, 4])):
        holder, key = _random_place(value, chance)
        if holder is None:
            return copy.deepcopy(chance.choice(WEIRD))
        how = chance.random()
        if how < 0.6:
            holder[key] = copy.deepcopy(chance.choice(WEIRD))
        elif how < 0.75:
            del holder[key]
        elif how < 0.9 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            other, place = _random_place(value, chance)
            if other is not None:
                holder[key] = copy.deepcopy(other[place])
    return value


def _random_place(value: Any, chance: random.Random) -> tuple[Any, Any]:
    holder, key = None, None
    while isinstance(value, dict | list) and value and (holder is None or chance.random() < 0.75):
        holder, key = value, chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = holder[key]
    return holder, key


def spoil_text(text: str, chance: random.Random) -> str:
    """With a few spans removed, doubled, or replaced."""
    for _ in range(chance.choice([1, 1, 2, 4])):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([0, 1, 3, 10, 50]))
        text = text[:start] + chance.choice([*TOKENS, text[start:end] * 3]) + text[end:]
    return text


def spoil_xml(text: str, chance: random.Random) -> str:
    """Well-formed still, with a few elements' texts replaced, or elements removed or doubled."""
    root = fromstring(text)
    for _ in range(chance.choice([1, 1, 2, 4])):
        parent = chance.choice([node for node in root.iter() if len(node)])
        node, how = chance.choice(list(parent)), chance.random()
        if node.attrib and how < 0.7:
            node.attrib[chance.choice(list(node.attrib))] = chance.choice(
                [*NUMBERS, "", "é", "2.jpg", "1,2;3", "x" * 500]
            )
        elif how < 0.6:
            node.text = chance.choice([*NUMBERS, "", "é", "2.jpg", "../1.jpg", "x" * 500, "C:\\a\\1.JPG"])
        elif how < 0.8:
            parent.remove(node)
        else:
            parent.append(copy.deepcopy(node))
    return tostring(root, encoding="unicode")


def spoil_numbers(text: str, chance: random.Random, between: str | None = None) -> str:
    """With a few words replaced by other numbers, removed, or doubled. between: what parts them, None for spaces."""
    lines = [line.split(between) for line in text.splitlines()]
    for _ in range(chance.choice([1, 1, 2, 4])):
        line = chance.choice(lines)
        at = chance.randrange(len(line)) if line else 0
        line[at : at + 1] = chance.choice([[], [chance.choice(NUMBERS)], line[at : at + 1] * 2])
    return "\n".join((between or " ").join(line) for line in lines)


def spoil_bytes(data: bytes, chance: random.Random) -> bytes:
    """With bits flipped, spans removed or doubled, or cut off."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 3, 20])):
        if not changed:
            break
        at, how = chance.randrange(len(changed)), chance.random()
        if how < 0.5:
            changed[at] ^= 1 << chance.randrange(8)
        elif how < 0.65:
            changed[at : at + 4] = struct.pack("<i", chance.choice([-1, 0, 2**31 - 1, 255]))
        elif how < 0.8:
            del changed[at : at + chance.choice([1, 10, 100])]
        elif how < 0.9:
            changed[at:at] = changed[at : at + 50]
        else:
            del changed[at:]
    return bytes(changed)


# ---- valid inputs ----------------------------------------------------------------------------------------------------

BOX = {"image_id": 1, "category_id": 3, "bbox": [5.0, 5.0, 20.0, 10.0]}
COCO: dict[str, Any] = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 50} for i in (1, 2)],
    "annotations": [
        {**BOX, "id": 1, "iscrowd": 0, "area": 200, "segmentation": [[5, 5, 25, 5, 25, 15, 5, 15]]},
        {**BOX, "id": 2, "iscrowd": 1, "segmentation": {"size": [40, 50], "counts": [200, 10, 1790]}},
        {**BOX, "id": 3, "image_id": 2, "category_id": 7, "segmentation": {"size": [40, 50], "counts": "X6:n0000`d1"}},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
}
RESULTS = [
    {**BOX, "score": 0.5, "segmentation": {"size": [40, 50], "counts": "X6:n0000`d1"}},
    {**BOX, "image_id": 2, "score": 0.25, "segmentation": {"size": [40, 50], "counts": [200, 10, 1790]}},
]
XML = """<annotation><folder>x</folder><filename>1.jpg</filename><size><width>50</width><height>40</height><depth>3</depth>
</size><object><name>cat</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>25</xmax><ymax>15</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>15</ymax></bndbox></object></annotation>
"""
YOLO = "0 0.3 0.25 0.4 0.25\n1 0.1 0.1 0.5 0.1 0.5 0.4\n"
DATA_YAML = "path: .\ntrain: images/train\nval: images/train\nnames: {0: cat, 1: dog}\n"
POSE = "0 0.3 0.25 0.4 0.25 0.2 0.2 1 0 0 0\n1 0.1 0.1 0.1 0.1 0.1 0.1 2 0.5 0.5 2\n"
POSE_YAML = DATA_YAML + "kpt_shape: [2, 3]\nkpt_names: {0: [nose, tail]}\n"
MASK = base64.b64encode(cv2.imencode(".png", np.full((5, 5), 255, np.uint8))[1].tobytes()).decode()
LABELME: dict[str, Any] = {
    "version": "5", "imagePath": "1.jpg", "imageHeight": 40, "imageWidth": 50, "imageData": None,
    "shapes": [
        {"label": "cat", "points": [[5, 5], [25, 5], [25, 15]], "shape_type": "polygon"},
        {"label": "dog", "points": [[1, 2], [9, 15]], "shape_type": "rectangle", "group_id": None},
        {"label": "cat", "points": [[5, 5], [25, 5], [25, 15], [5, 15]], "shape_type": "rotation", "group_id": 1},
        {"label": "cat", "points": [[30, 20], [34, 24]], "shape_type": "mask", "group_id": 1, "mask": MASK},
    ],
}  # fmt: skip
CONFIG = """
seed: 3
model:
  backbone: {name: resnet18, weights: none, norm: bn}
  anchors: {sizes: [16, 32, 64, 128, 256], ratios: [0.5, 1, 2]}
  mask: {num_convs: 2}
data:
  root: somewhere
  min_size: [192, 256]
  max_size: 288
  train: {augmentations: [{name: RandomBrightnessContrast, p: 0.5}]}
train: {max_iters: 150, batch_size: 8, lr: 5e-4, schedule: cosine, amp: off}
"""


def pictures() -> list[bytes]:
    return [cv2.imencode(ending, PICTURE)[1].tobytes() for ending in (".jpg", ".png", ".bmp", ".tiff", ".webp")]


def arrays() -> list[bytes]:
    """Images of more than 8 bits or other channels: .npy and TIFF, of bands, of pages, deflated, big-endian."""
    found = []
    for array in (
        PICTURE,
        PICTURE[..., 0].astype(np.uint16) * 100,
        np.dstack([PICTURE, PICTURE[..., :2]]).astype(np.float32),
    ):
        file = io.BytesIO()
        np.save(file, array)
        found.append(file.getvalue())
    deep = PICTURE[..., 0].astype(np.uint16) * 100
    found += [cv2.imencode(".tiff", deep)[1].tobytes(), cv2.imencode(".png", deep)[1].tobytes()]
    found.append(cv2.imencodemulti(".tiff", [deep] * 5)[1].tobytes())
    if find_spec("tifffile") is None:
        return found
    import tifffile

    for options in ({"planarconfig": "separate"}, {"byteorder": ">", "bigtiff": True}, {"compression": "zlib"}):
        file = io.BytesIO()
        bands = np.moveaxis(np.dstack([deep] * 5), 2, 0) if "planarconfig" in options else deep.astype(np.float32)
        tifffile.imwrite(file, bands, **options)
        found.append(file.getvalue())
    return found


def checkpoints() -> list[tuple[str, bytes]]:
    weights = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.ones(64), "fc.bias": torch.zeros(10)}
    plain, nested = io.BytesIO(), io.BytesIO()
    torch.save(weights, plain)
    torch.save({"model": weights, "class_names": ["a"], "config": "seed: 1", "iteration": 3}, nested)
    arrays = {"model": {"stem.conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, "__author__": "Detectron2 Model Zoo"}
    return [
        ("w.pth", plain.getvalue()), ("w.pt", nested.getvalue()), ("w.safetensors", save(weights)),
        ("w.pkl", pickle.dumps(arrays)),
    ]  # fmt: skip


# ---- reading ---------------------------------------------------------------------------------------------------------


def _use(config: DataConfig) -> None:
    """All that a training does with annotations before the first step, doctor and mask targets included."""
    source = open_split(config, "train")
    examine("train", source)
    inspect_files("train", source, decode=True)
    found = parse_coco(source.content, source.images, source.path, source.origins)
    for info in found.images:
        crop_masks(info.objects, 28)


def read_config_text(text: str, folder: Path) -> None:
    (folder / "c.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    load_config(folder / "c.yaml")


def read_coco_text(text: str, folder: Path) -> None:
    _pictures(folder)
    (folder / "a.json").write_text(text)
    failures = []
    for read in (
        lambda: _use(DataConfig.model_validate({"train": {"images": folder, "annotations": folder / "a.json"}})),
        lambda: read_coco(folder / "a.json", folder),
        lambda: Evaluation(folder / "a.json").score([]),
    ):
        try:
            read()
        except UserError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def read_results_text(text: str, folder: Path) -> None:
    (folder / "gt.json").write_text(json.dumps(COCO))
    (folder / "r.json").write_text(text)
    truth = Evaluation(folder / "gt.json")
    found = read_results(folder / "r.json", truth)
    truth.score(found.entries, found.kinds)


def read_voc_text(text: str, folder: Path) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _pictures(folder / "JPEGImages")
    (folder / "Annotations" / "1.xml").write_text(text, encoding="utf-8", errors="surrogatepass")
    (folder / "ImageSets/Main/train.txt").write_text("1\n")
    _use(DataConfig.model_validate({"root": folder, "format": "voc", "train": {"split": "train"}}))


def read_yolo_text(text: str, folder: Path, description: str = DATA_YAML) -> None:
    for name in ("images/train", "labels/train"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _pictures(folder / "images/train")
    (folder / "labels/train/1.txt").write_text(text, encoding="utf-8", errors="surrogatepass")
    (folder / "data.yaml").write_text(description, encoding="utf-8", errors="surrogatepass")
    _use(DataConfig.model_validate({"root": folder, "format": "yolo"}))


def read_labelme_text(text: str, folder: Path) -> None:
    _pictures(folder)
    (folder / "1.json").write_text(text)
    _use(DataConfig.model_validate({"root": folder, "format": "labelme"}))


def read_any(name: str, text: str, folder: Path) -> None:
    """A folder whose format has to be found."""
    _pictures(folder)
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True, exist_ok=True)
    _pictures(folder / "images/train")
    (folder / "labels/train/1.txt").write_text(YOLO)
    (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    _use(DataConfig.model_validate({"root": folder}))


def read_export(name: str, files: dict[str, Any], folder: Path) -> None:
    """An annotation tool's export, by name and found by its looks, and joined with COCO's."""
    export = EXPORTS[name]
    for image in export.images:
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            cv2.imwrite(str(path), PICTURE)
    for file, content in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
            continue
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
    other = folder.with_name(f"{folder.name}-other")
    other.mkdir(exist_ok=True)
    _pictures(other)
    (other / "a.json").write_text(json.dumps(COCO))
    source = {"root": folder, "format": name.split()[0]}
    for train in (
        source,
        [{"annotations": other / "a.json", "images": other}, source | {"known_classes": ["Cat"]}],
    ):
        _use(DataConfig.model_validate({"train": train}))


def spoil_export(name: str, chance: random.Random, *, values: bool) -> dict[str, Any]:
    """The files of an export, one of them spoiled: as text, or the values alone where the format has such."""
    files = dict(EXPORTS[name].files)
    file = chance.choice(list(files))
    content = files[file]
    if isinstance(content, bytes):
        files[file] = spoil_bytes(content, chance)
    elif not values:
        files[file] = spoil_text(content if isinstance(content, str) else json.dumps(content), chance)
    elif not isinstance(content, str):
        files[file] = spoil_json(content, chance)
    elif file.endswith(".xml"):
        files[file] = spoil_xml(content, chance)
    else:
        files[file] = spoil_numbers(content, chance, "," if "," in content else None)
    return files


def read_array(data: bytes, folder: Path) -> None:
    for name in ("a.npy", "a.tif"):
        (folder / name).write_bytes(data)
        for channels in (1, 3, 5):
            with contextlib.suppress(UserError):
                read_image(folder / name, channels)
    read_image(folder / "a.npy")


def read_picture(data: bytes, folder: Path) -> None:
    (folder / "p.jpg").write_bytes(data)
    read_image(folder / "p.jpg")


def read_checkpoint_bytes(name: str, data: bytes, folder: Path) -> None:
    (folder / name).write_bytes(data)
    for read in (read_file, open_checkpoint, open_backbone):
        with contextlib.suppress(UserError):
            read(folder / name)
    read_file(folder / name)


def _pictures(folder: Path) -> None:
    for i in (1, 2):
        if not (folder / f"{i}.jpg").exists():
            cv2.imwrite(str(folder / f"{i}.jpg"), PICTURE)


TARGETS: dict[str, Callable[[random.Random, Path], None]] = {
    "config": lambda c, f: read_config_text(spoil_text(CONFIG, c), f),
    "coco": lambda c, f: read_coco_text(json.dumps(spoil_json(COCO, c)), f),
    "coco text": lambda c, f: read_coco_text(spoil_text(json.dumps(COCO), c), f),
    "results": lambda c, f: read_results_text(json.dumps(spoil_json(RESULTS, c)), f),
    "voc": lambda c, f: read_voc_text(spoil_text(XML, c), f),
    "voc values": lambda c, f: read_voc_text(spoil_xml(XML, c), f),
    "yolo values": lambda c, f: read_yolo_text(spoil_numbers(YOLO, c), f),
    "pose values": lambda c, f: read_yolo_text(spoil_numbers(POSE, c), f, POSE_YAML),
    "yolo": lambda c, f: read_yolo_text(spoil_text(YOLO, c), f),
    "data.yaml": lambda c, f: read_yolo_text(YOLO, f, spoil_text(DATA_YAML, c)),
    "pose": lambda c, f: read_yolo_text(spoil_text(POSE, c), f, POSE_YAML),
    "pose yaml": lambda c, f: read_yolo_text(POSE, f, spoil_text(POSE_YAML, c)),
    "labelme": lambda c, f: read_labelme_text(json.dumps(spoil_json(LABELME, c)), f),
    "any json": lambda c, f: read_any("a.json", json.dumps(spoil_json(c.choice([COCO, LABELME, RESULTS]), c)), f),
    "any yaml": lambda c, f: read_any("data.yaml", spoil_text(c.choice([DATA_YAML, POSE_YAML]), c), f),
    "picture": lambda c, f: read_picture(spoil_bytes(c.choice(pictures()), c), f),
    "array": lambda c, f: read_array(spoil_bytes(c.choice(arrays()), c), f),
    "array bomb": lambda c, f: read_array(_claims(c.choice(arrays()), c), f),
    "checkpoint": lambda c, f: _spoiled_checkpoint(c, f),
}


for _name in EXPORTS:
    TARGETS[f"{_name} values"] = lambda c, f, n=_name: read_export(n, spoil_export(n, c, values=True), f)
    TARGETS[f"{_name} text"] = lambda c, f, n=_name: read_export(n, spoil_export(n, c, values=False), f)


def _claims(data: bytes, chance: random.Random) -> bytes:
    """The same file with another size in its header: more pixels than it holds, or more than memory does."""
    number = chance.choice([0, 41, 2**15, 2**31 - 1])
    for side in (40, 50):
        for old, new in ((f"{side}", f"{number}"), (struct.pack("<H", side), struct.pack("<I", number)[:2])):
            if chance.random() < 0.5:
                data = data.replace(*(v.encode() if isinstance(v, str) else v for v in (old, new)), 1)
    return data


def _spoiled_checkpoint(chance: random.Random, folder: Path) -> None:
    name, data = chance.choice(checkpoints())
    read_checkpoint_bytes(name, spoil_bytes(data, chance), folder)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def on_alarm(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(target: str, chance: random.Random, folder: Path) -> str:
    """ "success", or the message of our own error; anything else escapes."""
    with time_limit(10):
        try:
            TARGETS[target](chance, folder)
        except UserError as error:
            text = str(error)
        else:
            return "success"
    assert str(folder) in text, f"names no file: {text}"
    return text
