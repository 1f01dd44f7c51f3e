"""Images as flat arrays: nothing is lost, workers share them, and the cache follows its file."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import resdet
import tiny
from resdet.config import DataConfig
from resdet.data import cache
from resdet.data.cache import cache_path, keep_index, load_index
from resdet.data.coco import Annotations
from resdet.data.index import ImageInfo, ImageList, Objects

FOLDER = Path("/pictures")


def images() -> list[ImageInfo]:
    polygons = [[0.1, 0.2, 30.25, 5.5, 7, 9], [1, 1, 2, 2, 3, 1.0000001]]
    rle = {"size": [40, 50], "counts": "0P3"}
    boxes = np.array([[0, 1, 2, 3], [4, 5, 6, 7.5], [1, 1, 9, 9]], np.float32)
    return [
        ImageInfo(7, FOLDER / "a b/ü.jpg", (40, 50), Objects(boxes, np.array([2, 0, 1]), [polygons, None, rle])),
        ImageInfo(2**40, Path("/elsewhere/x.jpg"), (1, 99999), Objects(boxes[:0], np.zeros(0, np.int64), [])),
        ImageInfo(9, FOLDER / "c.jpg", (3, 4), Objects(boxes[1:2], np.array([5]), [None])),
    ]


def same(one: ImageInfo, two: ImageInfo) -> bool:
    return (
        one[:3] == two[:3]
        and np.array_equal(one.objects.boxes, two.objects.boxes)
        and one.objects.labels.tolist() == two.objects.labels.tolist()
        and one.objects.segmentations == two.objects.segmentations
    )


@pytest.mark.parametrize("saved", [True, False])
def test_nothing_is_lost(saved: bool, tmp_path) -> None:
    packed = tiny.pack(images(), FOLDER)
    if saved:
        packed.save(tmp_path / "index", {"x": 1})
        packed, note = ImageList.load(tmp_path / "index")
        assert note["x"] == 1
    assert len(packed) == 3
    for one, two in zip(packed, images(), strict=True):
        assert same(one, two)
    assert same(packed[-1], images()[2])
    assert [info.image_id for info in packed[:2]] == [7, 2**40]
    assert packed.counts.tolist() == [3, 0, 1]
    assert packed.any_masks
    with pytest.raises(IndexError):
        packed[3]


def test_a_mapped_list_is_pickled_by_its_place(tmp_path) -> None:
    packed = tiny.pack(images() * 500, FOLDER)
    packed.save(tmp_path / "index", {})
    mapped, _ = ImageList.load(tmp_path / "index")
    small, large = pickle.dumps(mapped), pickle.dumps(packed)
    assert len(small) < 500 < 50_000 < len(large)
    for text in (small, large):
        assert same(pickle.loads(text)[1002], images()[0])


def test_uncompressed_counts_become_compressed_ones() -> None:
    info = images()[0]
    rle = {"size": [2, 3], "counts": [1, 2, 3]}
    packed = tiny.pack([info._replace(objects=info.objects._replace(segmentations=[rle, None, None]))], FOLDER)
    from resdet.masks import decode_rle

    assert np.array_equal(decode_rle(packed[0].objects.segmentations[0], 2, 3), decode_rle(rle, 2, 3))


def test_the_cache_follows_its_file(shapes_root, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = DataConfig(root=shapes_root)
    assert cache_path(data, "train") is None  # small
    monkeypatch.setattr(cache, "LARGE", 0)
    path = cache_path(data, "train")
    assert path is not None
    assert path.is_relative_to(tmp_path / "cache")
    assert cache_path(DataConfig(root=shapes_root, limit=3), "train") is None
    assert load_index(path) is None
    kept = keep_index(Annotations(Path("x.json"), tiny.pack(images(), FOLDER), ["a"], [4]), path)
    again = load_index(path)
    assert again is not None
    assert (again.class_names, again.category_ids, len(again.images)) == (["a"], [4], 3)
    assert same(kept.images[0], images()[0])
    file = shapes_root / "annotations/instances_train2017.json"
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert cache_path(data, "train") != path  # another state of the file
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    (path / "boxes.npy").write_bytes(b"torn")
    assert load_index(path) is None


@pytest.mark.slow
def test_a_second_training_starts_from_the_index(shapes_root, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LARGE", 0)
    runs = []
    for name in ("first", "second"):
        resdet.train(tiny.config(shapes_root, tmp_path / name, max_iters=2, eval_every=0))
        runs.append([json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()])
        assert ("indexed before" in capsys.readouterr().out) is (name == "second")
    assert runs[0] == runs[1]
