"""What the index of a very large dataset costs: time to load it, and memory of every worker that uses it.

    python benchmarks/index.py [FOLDER]

First the aim's size, 2 million images and 30 million boxes, generated straight into the binary form; then 100 thousand
images and 1.5 million boxes as COCO JSON, read by resdet and by pycocotools' COCO(). Needs 4 GB of disk in FOLDER. A
worker's memory is what it cannot share (Private_Dirty of /proc/PID/smaps_rollup) after touching 50 thousand random images.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing as mp
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resdet.data.coco import parse_coco, read_coco_json
from resdet.data.index import ImageList

MIB = 2**20


def generated(images: int, boxes: int, folder: Path) -> ImageList:
    """Arrays as `pack` makes them, drawn at random, boxes without masks."""
    rng = np.random.default_rng(0)
    ends = np.sort(rng.integers(0, boxes, images))
    ends[-1] = boxes
    corners = rng.random((boxes, 2), dtype=np.float32) * 500
    names = np.char.mod("%012d.jpg", np.arange(images)).astype("S16")
    return ImageList(folder, {
        "ids": np.arange(images),
        "sizes": np.tile(np.array([[480, 640]], np.int32), (images, 1)),
        "names": names.view(np.uint8),
        "name_ends": np.arange(1, images + 1) * 16,
        "object_ends": ends,
        "boxes": np.concatenate([corners, corners + 20], axis=1),
        "labels": rng.integers(0, 80, boxes, dtype=np.int32),
        "masks": np.zeros(0, np.uint8),
        "mask_ends": np.zeros(boxes, np.int64),
    })  # fmt: skip


def private_memory() -> float:
    """MiB of this process's own: pages of a mapped file, which all processes share, do not count."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def _use(data: Any, touch: Callable[[Any, int], object], count: int, queue: Any) -> None:
    before = private_memory()
    for index in np.random.default_rng(1).integers(0, count, 50_000):
        touch(data, int(index))
    queue.put(private_memory() - before)


def worker_memory(data: Any, touch: Callable[[Any, int], object], count: int, context: str) -> float:
    """MiB that a worker comes to occupy by using the data."""
    os.sync()  # pages of a file that are not on disk yet would count as the worker's own
    queue = mp.get_context(context).Queue()
    process = mp.get_context(context).Process(target=_use, args=(data, touch, count, queue))
    process.start()
    result: float = queue.get()
    process.join()
    return result


def touch_image(images: Sequence[Any], index: int) -> object:
    return images[index].objects.boxes.sum()


def touch_coco(coco: Any, index: int) -> object:
    return [a["bbox"] for a in coco.loadAnns(coco.getAnnIds(imgIds=[index]))]


def large(folder: Path) -> None:
    images, boxes = 2_000_000, 30_000_000
    generated(images, boxes, folder).save(folder / "index", {})
    began = time.perf_counter()
    mapped, _ = ImageList.load(folder / "index")
    total = int(mapped.counts.sum())
    seconds = time.perf_counter() - began
    size = sum(f.stat().st_size for f in (folder / "index").iterdir()) / MIB
    print(f"{len(mapped):,} images, {total:,} boxes: {size:,.0f} MiB on disk, loaded in {seconds:.2f} s")
    for context in ("fork", "spawn"):
        print(f"  a {context}ed worker occupies {worker_memory(mapped, touch_image, images, context):.1f} MiB more")


def compared(folder: Path) -> None:
    from pycocotools.coco import COCO

    count, boxes = 100_000, 1_500_000
    rng = np.random.default_rng(0)
    corners = (rng.random((boxes, 2)) * 400).round(2).tolist()
    owners = rng.integers(0, count, boxes).tolist()
    (folder / "pictures").mkdir(exist_ok=True)
    for k in range(count):
        (folder / "pictures" / f"{k}.jpg").touch()
    content = {
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 480, "width": 640} for k in range(count)],
        "annotations": [
            {"id": k + 1, "image_id": owners[k], "category_id": 1 + k % 80, "bbox": [*corners[k], 20.5, 30.25],
             "area": 620.125, "iscrowd": 0}
            for k in range(boxes)
        ],
        "categories": [{"id": k, "name": str(k)} for k in range(1, 81)],
    }  # fmt: skip
    file = folder / "large.json"
    file.write_text(json.dumps(content))
    del content, corners, owners
    print(f"{count:,} images, {boxes:,} boxes, {file.stat().st_size / MIB:,.0f} MiB of JSON")
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
    print(f"  pycocotools' COCO(): {time.perf_counter() - began:.1f} s, ", end="")
    print(f"a forked worker occupies {worker_memory(coco, touch_coco, count, 'fork'):.0f} MiB more")
    del coco
    began = time.perf_counter()
    read = parse_coco(read_coco_json(file), folder / "pictures", file)
    print(f"  resdet, reading and checking the JSON: {time.perf_counter() - began:.1f} s, ", end="")
    read.images.save(folder / "small", {})
    began = time.perf_counter()
    mapped, _ = ImageList.load(folder / "small")
    print(f"then from its index {time.perf_counter() - began:.3f} s, ", end="")
    print(f"a forked worker occupies {worker_memory(mapped, touch_image, count, 'fork'):.1f} MiB more")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        large(Path(name))
        compared(Path(name))
