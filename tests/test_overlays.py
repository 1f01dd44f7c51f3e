"""Label maps and segments: drawn, and written as COCO's panoptic annotations."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from pictures import textured
from resdet.config import parse_config
from resdet.data.sources import open_split
from resdet.data.splits import read_split
from resdet.evaluation.panoptic import PanopticScore
from resdet.inference.panoptic_files import PanopticFiles, ids_apart
from resdet.overlays import color_of, muted, segments_of
from resdet.structures import UNLABELLED, Instances
from resdet.visualize import draw, side_by_side


def found(masks: bool = True) -> Instances:
    """A cat of class 1 on grass, under sky; a row without a class."""
    semantic = np.full((40, 60), 1, np.uint8)
    semantic[20:], semantic[39] = 2, UNLABELLED
    boxes = np.array([[10, 10, 30, 30]], np.float32)
    probs = np.ones((1, 28, 28), np.float32) if masks else None
    return Instances(boxes, np.ones(1, np.float32), np.array([1]), (40, 60), probs, semantic=semantic)


def test_segments_are_drawn_with_a_legend_of_those_that_are_there() -> None:
    picture, names = textured(40, 60), ["things", "sky", "grass", "snow"]
    drawn = draw(picture, found(), ["dog", "cat"], label_names=names)
    assert drawn.shape[1] == 60 * 12
    legend = drawn[40 * 12 :]
    assert 22 <= len(legend) <= 66
    colors = {tuple(color) for color in legend.reshape(-1, 3).tolist()}
    assert {
        muted(color_of(1)),
        muted(color_of(2)),
        color_of(4 + 1),
    } <= colors  # sky, grass, and after all stuff the cat
    assert not {muted(color_of(3)), color_of(4)} & colors
    canvas = drawn[: 40 * 12].astype(int)
    plain = draw(picture, Instances(*(a[:0] for a in (found().boxes, found().scores, found().labels)), (40, 60)), [])
    sky = canvas[24:96, 24:96] - 0.45 * plain[24:96, 24:96]
    assert np.abs(sky - 0.55 * np.array(muted(color_of(1)))).max() < 2
    assert np.array_equal(canvas[-11:], plain[-11:])  # of no class
    assert (canvas[15 * 12, 10 * 12 - 1] == 255).all()  # the cat's left boundary
    wide = side_by_side(drawn, drawn[:480])
    assert wide.shape == (len(drawn), 60 * 24, 3)
    alone = draw(picture, found(masks=False), [], label_names=names)
    pixels_only = draw(picture, found(masks=False), [], label_names=["land", *names[1:]])
    assert color_of(1) in {
        tuple(color) for color in pixels_only[40 * 12 :].reshape(-1, 3).tolist()
    }  # nothing beside it
    assert color_of(4 + 1) not in {tuple(color) for color in alone[40 * 12 :].reshape(-1, 3).tolist()}


def test_ids_of_segments_are_all_given_or_all_numbered() -> None:
    assert ids_apart([17, 18], [90, 95], 2, 2) == ([17, 18], [90, 95])
    assert ids_apart([2, None], [90, 95], 2, 2) == ([1, 2], [90, 95])
    assert ids_apart([17, 18], [18, 95], 2, 2) == ([17, 18], [19, 20])
    assert ids_apart([17, 17], [], 2, 1) == ([1, 2], [3])


def test_segments_are_written_as_they_are_read(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(textured(40, 60)).save(tmp_path / "images/a.png")
    files = PanopticFiles(tmp_path / "out", [(17, "dog"), (18, "cat")], [(90, "sky"), (95, "grass")])
    panoptic = segments_of(found())
    files.add("a.png", "a", panoptic)
    given = {"annotations": str(files.write()), "images": str(tmp_path / "images")}
    config = parse_config({"data": {"train": given, "val": given}})
    (entry,) = open_split(config.data, "train").content["annotations"]
    assert (entry["category_id"], entry["bbox"]) == (18, [10, 10, 20, 20])
    read = read_split(config, "val")
    assert read.label_maps.names == ["things", "sky", "grass"]
    labels = found().semantic.copy()
    labels[10:30, 10:30] = 0
    assert np.array_equal(read.label_maps.read(read.images[0]), labels)
    ids = np.asarray(Image.open(tmp_path / "out/panoptic/a.png")).astype(int) @ [1, 256, 65536]
    assert np.array_equal(ids, panoptic.ids)
    (annotation,) = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]
    assert [s["area"] for s in annotation["segments_info"]] == [s.area for s in panoptic.segments]
    score = PanopticScore([True, True, False, False])
    numbers = {s.id: s.label if s.thing else 1 + s.label for s in panoptic.segments}
    score.add(ids, numbers, ids, {v.value: v for v in read.label_maps.source.files[1].values})
    assert score.metrics()["PQ"] == 1
