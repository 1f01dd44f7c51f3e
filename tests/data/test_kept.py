"""A dataset of many PNGs is decoded once: the next opening takes what was read, unless a file has changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resdet.config import DataConfig
from resdet.data import kept
from resdet.data.formats import masks, panoptic
from resdet.data.formats.common import Source
from resdet.data.formats.write import WRITERS
from resdet.data.kept import Kept
from resdet.data.quality import label_maps
from resdet.data.sources import open_split
from tiny import panoptic as panoptic_set


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "MANY", 2)
    return tmp_path / "cache/resdet/read"


def counting(monkeypatch, module: object, name: str) -> list:
    """The calls of a function from now on."""
    calls: list = []
    before = getattr(module, name)

    def call(*arguments):
        calls.append(arguments)
        return before(*arguments)

    monkeypatch.setattr(module, name, call)
    return calls


def rewritten(png: Path) -> None:
    """The same number of bytes at another time, as an editor may write."""
    png.write_bytes(png.read_bytes())
    os.utime(png, ns=(1, 1))


def opened(root: Path) -> Source:
    return open_split(DataConfig(root=root), "train")


def test_panoptic_and_instance_maps(cache: Path, tmp_path, shapes_root, monkeypatch) -> None:
    first = opened(panoptic_set(shapes_root, tmp_path / "panoptic"))
    WRITERS["masks"](first, tmp_path / "masks", "train")
    cases = [
        (tmp_path / "panoptic", panoptic, "read_values", "annotations/panoptic_train2017"),
        (tmp_path / "masks", masks, "read_map", "masks/train"),
    ]
    for root, module, function, folder in cases:
        calls = counting(monkeypatch, module, function)
        first = opened(root)
        count = len(list((root / folder).glob("*.png")))
        assert len(calls) == (0 if module is panoptic else count)  # it was opened above
        again = opened(root)
        calls.clear()
        assert (again.content, again.origins, again.remarks, again.split) == (
            first.content,
            first.origins,
            first.remarks,
            first.split,
        )
        assert any("as they were when they were read before" in note for note in again.notes)
        png = next((root / folder).glob("*.png"))
        rewritten(png)
        assert opened(root).content == first.content
        assert len(calls) == count
        data = png.read_bytes()
        png.write_bytes(b"no PNG")
        for _ in range(2):  # problems are not kept
            with pytest.raises(Exception, match=png.name):
                opened(root)
        png.write_bytes(data)
        assert opened(root).content == first.content
        (file,) = (f for f in cache.glob("*.json") if f.name.startswith("coco" if module is panoptic else "masks"))
        file.write_text("{")  # damaged
        assert opened(root).content == first.content


def test_label_maps_are_checked_once(cache: Path, tmp_path, monkeypatch) -> None:
    for k in range(3):
        for folder, values in (("images", 0), ("annotations", k)):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 9), values, np.uint8)).save(tmp_path / "set" / folder / f"{k}.png")
    (tmp_path / "set/classes.txt").write_text("a\nb\nc\n")
    calls = counting(monkeypatch, label_maps, "read_values")
    for split, expected in (("train", 3), ("val", 3), ("train", 0), ("val", 0)):
        calls.clear()
        assert label_maps.inspect_label_maps(split, opened(tmp_path / "set")) == []
        assert len(calls) == expected
    (tmp_path / "set/classes.txt").write_text("a\nb\n")  # 2 is none of them now
    for _ in range(2):
        (finding,) = label_maps.inspect_label_maps("train", opened(tmp_path / "set"))
        assert "has the value 2, but the classes are numbered 0 to 1" in finding.examples[0]


def test_few_files_and_a_cache_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    files = [tmp_path / f"{k}" for k in range(kept.MANY)]
    for home, count in ((tmp_path / "home", kept.MANY - 1), (tmp_path / "file", kept.MANY)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        Kept("x", tmp_path, files[:count]).keep([1])
        assert Kept("x", tmp_path, files[:count]).load() is None
    assert not (tmp_path / "home").exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    Kept("x", tmp_path, files).keep([1])
    assert Kept("x", tmp_path, files).load() == [1]
    files[5].write_text("")
    assert Kept("x", tmp_path, files).load() is None
