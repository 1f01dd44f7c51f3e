"""A split's images and objects as a few flat arrays: two million images without two million Python objects.

Forked workers share the arrays' pages, and reference counts never touch them; on disk they are memory-mapped, so that
spawned workers share them too.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from pycocotools import mask as coco_mask

from resdet.data.known import Known
from resdet.data.patch import Patch
from resdet.masks import Rle

Polygons = list[list[float]]
Segmentation = Polygons | Rle | None


class Objects(NamedTuple):
    """The objects of one image, in its stored size: boxes (G, 4) float32 XYXY, labels (G,) int64, and for each object
    its polygons, its RLE, the patch that an augmentation left of them, or None where it comes without a mask.

    keypoints (G, K, 3) float32: x, y, visibility (0 not labelled, 1 hidden, 2 visible); None for a dataset without any.
    label_map (H, W) uint8: of the whole image, while it is augmented with its objects (`label_maps.py`).
    """

    boxes: np.ndarray
    labels: np.ndarray
    segmentations: Sequence[Segmentation | Patch]
    keypoints: np.ndarray | None = None
    label_map: np.ndarray | None = None


class ImageInfo(NamedTuple):
    """One image: its id in the JSON, its file, its annotated size (H, W), and the objects to train on.

    known (K,) bool: the classes that the annotations are complete for; None for all. crowds: the outlines of crowd regions.
    """

    image_id: int | str
    file: Path
    size: tuple[int, int]
    objects: Objects
    known: np.ndarray | None = None
    crowds: Sequence[Segmentation] = ()


class ImageList(Sequence[ImageInfo]):
    """Images by index, made from arrays when asked for; N images, M objects.

    sizes (N, 2) int32 as (H, W); counts (N,) objects of each image; boxes (M, 4) float32; labels (M,) int32;
    keypoints (M, K, 3) float32, or (0, 0, 3) without any; known (R, K) bool and known_rows (N,), see `known.Known`, both
    without a row where all images know all classes. "crowd…" arrays: the outlines of crowds, as the masks of objects.
    """

    NAMES = (
        "ids", "sizes", "name_ends", "names", "object_ends", "boxes", "labels", "mask_ends", "masks", "keypoints", "known",
        "known_rows", "crowd_owner_ends", "crowd_ends", "crowds",
    )  # fmt: skip

    def __init__(self, folder: Path, arrays: dict[str, np.ndarray], saved: Path | None = None) -> None:
        self.folder, self.arrays, self._saved = folder, arrays, saved
        self.sizes, self.boxes, self.labels = arrays["sizes"], arrays["boxes"], arrays["labels"]
        self.keypoints = arrays["keypoints"]

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.arrays["object_ends"], prepend=0)

    @property
    def any_masks(self) -> bool:
        return bool(len(self.arrays["masks"]))

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> ImageInfo: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageInfo]: ...
    def __getitem__(self, index: int | slice) -> ImageInfo | list[ImageInfo]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        name = bytes(_part(self.arrays["names"], self.arrays["name_ends"], index)).decode(errors="surrogateescape")
        ends = self.arrays["object_ends"]
        first, last = int(ends[index - 1]) if index else 0, int(ends[index])
        masks = [_unpack(_part(self.arrays["masks"], self.arrays["mask_ends"], m)) for m in range(first, last)]
        ends = self.arrays["crowd_owner_ends"]
        of_crowds = range(int(ends[index - 1]) if index else 0, int(ends[index]))
        crowds = [_unpack(_part(self.arrays["crowds"], self.arrays["crowd_ends"], c)) for c in of_crowds]
        height, width = (int(side) for side in self.sizes[index])
        keypoints = np.array(self.keypoints[first:last]) if self.keypoints.shape[1] else None
        objects = Objects(np.array(self.boxes[first:last]), self.labels[first:last].astype(np.int64), masks, keypoints)
        rows = self.arrays["known_rows"]
        known = np.array(self.arrays["known"][rows[index]]) if len(rows) else None
        return ImageInfo(self.arrays["ids"][index].item(), self.folder / name, (height, width), objects, known, crowds)

    def __iter__(self) -> Iterator[ImageInfo]:
        return (self[k] for k in range(len(self)))

    def relabelled(self, new_labels: np.ndarray) -> ImageList:
        """The same images with label k as new_labels[k], (K,) int; objects whose new label is negative are left out.

        Which classes are known is dropped: only training uses it, and a training set is never relabelled.
        """
        labels = new_labels.astype(np.int32)[self.labels]
        keep = labels >= 0
        owners = np.repeat(np.arange(len(self)), self.counts)[keep]
        lengths = np.diff(self.arrays["mask_ends"], prepend=0)
        return ImageList(self.folder, self.arrays | {
            "object_ends": np.cumsum(np.bincount(owners, minlength=len(self)), dtype=np.int64),
            "boxes": self.boxes[keep],
            "labels": labels[keep],
            "masks": self.arrays["masks"][np.repeat(keep, lengths)],
            "mask_ends": np.cumsum(lengths[keep], dtype=np.int64),
            "keypoints": self.keypoints[keep] if self.keypoints.shape[1] else self.keypoints,
            **_known_arrays(None),
        })  # fmt: skip

    def as_one_class(self) -> ImageList:
        """The same images with label 0 for every object; complete for it are those that are complete for all classes."""
        changed = {"labels": np.zeros_like(self.labels)}
        if len(self.arrays["known_rows"]):
            changed["known"] = np.asarray(self.arrays["known"].all(axis=1, keepdims=True))
        return ImageList(self.folder, self.arrays | changed)

    def __getstate__(self) -> dict[str, Any]:
        """A memory-mapped list is pickled as the name of its folder, not as its content."""
        return {"folder": self.folder, "saved": self._saved, "arrays": None if self._saved else self.arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = state["arrays"] if state["saved"] is None else _map(state["saved"])
        self.__init__(state["folder"], arrays, state["saved"])  # type: ignore[misc]

    def save(self, folder: Path, note: dict[str, Any]) -> None:
        """Write the arrays and a note into a new `folder`, atomically."""
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in self.NAMES:
            np.save(partial / f"{name}.npy", self.arrays[name])
        (partial / "note.json").write_text(json.dumps({**note, "folder": str(self.folder)}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)

    @classmethod
    def load(cls, folder: Path) -> tuple[ImageList, dict[str, Any]]:
        """(the list, memory-mapped; the note)"""
        note = json.loads((folder / "note.json").read_text())
        return cls(Path(note["folder"]), _map(folder), folder), note


def pack(
    folder: Path,
    ids: Sequence[int | str],
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    owners: Sequence[int],
    boxes: np.ndarray,
    labels: Sequence[int],
    masks: Sequence[Segmentation],
    keypoints: np.ndarray | None = None,
    known: Known | None = None,
    crowds: Sequence[tuple[int, Segmentation]] = (),
) -> ImageList:
    """N images and M objects, in any order, as flat arrays.

    names: files relative to `folder`, or absolute. sizes: (H, W). owners: the number of each object's image, from 0;
    boxes (M, 4) XYXY. keypoints (M, K, 3). crowds: the number of its image, and the outline, of each.
    """
    encoded = [name.encode(errors="surrogateescape") for name in names]  # as file systems have them
    order = np.argsort(np.array(owners, np.int64), kind="stable")  # an image's objects stay in their order
    packed = [_packed(masks[k]) for k in order.tolist()]
    packed_crowds = [_packed(outline) for _, outline in sorted(crowds, key=lambda crowd: crowd[0])]
    crowd_owners = np.array([owner for owner, _ in crowds], np.int64)
    return ImageList(folder, {
        "ids": np.array(ids, np.str_ if ids and isinstance(ids[0], str) else np.int64),
        "sizes": np.array(sizes, np.int32).reshape(-1, 2),
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "name_ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
        "object_ends": np.cumsum(np.bincount(np.array(owners, np.int64), minlength=len(ids)), dtype=np.int64),
        "boxes": boxes[order].astype(np.float32, copy=False),
        "labels": np.array(labels, np.int32)[order],
        "masks": np.frombuffer(b"".join(packed), np.uint8),
        "mask_ends": np.cumsum([len(mask) for mask in packed], dtype=np.int64),
        "keypoints": np.zeros((0, 0, 3), np.float32) if keypoints is None else keypoints[order].astype(np.float32, copy=False),
        **_known_arrays(known),
        "crowd_owner_ends": np.cumsum(np.bincount(crowd_owners, minlength=len(ids)), dtype=np.int64),
        "crowd_ends": np.cumsum([len(crowd) for crowd in packed_crowds], dtype=np.int64),
        "crowds": np.frombuffer(b"".join(packed_crowds), np.uint8),
    })  # fmt: skip


def _known_arrays(known: Known | None) -> dict[str, np.ndarray]:
    table, rows = known or Known(np.zeros((0, 0), bool), np.zeros(0, np.int32))
    return {"known": table, "known_rows": rows}


def _part(data: np.ndarray, ends: np.ndarray, index: int) -> np.ndarray:
    return data[(int(ends[index - 1]) if index else 0) : int(ends[index])]


def _map(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for name in ImageList.NAMES:
        file = folder / f"{name}.npy"
        # Empty arrays cannot be memory-mapped.
        arrays[name] = np.load(file, mmap_mode="r" if file.stat().st_size > 128 else None)
    return arrays


def _packed(segmentation: Segmentation) -> bytes:
    """None: nothing. Polygons: "p", how many, their lengths, float64 coordinates. RLE: "r", height, width, COCO's counts."""
    if segmentation is None:
        return b""
    if isinstance(segmentation, list):
        lengths = [len(polygon) for polygon in segmentation]
        values = array("d", chain.from_iterable(segmentation))
        return struct.pack(f"<cI{len(lengths)}I", b"p", len(lengths), *lengths) + values.tobytes()
    rle: dict[str, Any] = segmentation
    height, width = rle["size"]
    counts = rle["counts"]
    if isinstance(counts, list):
        counts = coco_mask.frPyObjects(rle, height, width)["counts"]
    data: bytes = counts.encode() if isinstance(counts, str) else counts
    return struct.pack("<cII", b"r", height, width) + data


def _unpack(data: np.ndarray) -> Segmentation:
    raw = data.tobytes()
    if not raw:
        return None
    if raw[:1] == b"r":
        _, height, width = struct.unpack_from("<cII", raw)
        return {"size": [height, width], "counts": raw[9:].decode()}
    (count,) = struct.unpack_from("<I", raw, 1)
    lengths = struct.unpack_from(f"<{count}I", raw, 5)
    values = np.frombuffer(raw, np.float64, offset=5 + 4 * count).tolist()
    polygons, start = [], 0
    for length in lengths:
        polygons.append(values[start : start + length])
        start += length
    return polygons
