"""Whatever has one plain meaning is read as that, by everything that reads annotations, and counted; the rest is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pictures import textured
from resdet.commands import data as data_command
from resdet.config import DataConfig
from resdet.data.coco import parse_coco, read_coco
from resdet.data.formats.common import Source
from resdet.data.image_folder import ImageFolder
from resdet.data.normalise import normalise
from resdet.data.outlines import plain_outline
from resdet.data.quality.checks import examine
from resdet.data.quality.repair import repair
from resdet.data.sources import open_split
from resdet.errors import UserError
from resdet.evaluation.coco import Evaluation
from resdet.evaluation.results import read_results

Content = dict[str, Any]
HEIGHT, WIDTH = 40, 50


def bitmap(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    mask[y, x] = 0  # no symmetry
    return mask


def plain(folder: Path) -> Content:
    """Three images with two objects each, in COCO's own form; the first of each has a polygon, the second an RLE."""
    content: Content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    for k in (1, 2, 3):
        cv2.imwrite(str(folder / f"{k}.png"), textured(HEIGHT, WIDTH, seed=k))
        content["images"].append({"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH})
        rle = coco_mask.encode(bitmap(10, 12 + k, 30, 9))
        content["annotations"] += [
            {"id": 2 * k, "image_id": k, "category_id": 1, "bbox": [5, 2 * k, 20, 10], "iscrowd": 0, "area": 200.0,
             "segmentation": [[5, 2 * k, 25, 2 * k, 25, 2 * k + 10, 5, 2 * k + 10]]},
            {"id": 2 * k + 1, "image_id": k, "category_id": 2, "bbox": [10, 12 + k, 30, 9], "iscrowd": 0, "area": 269.0,
             "segmentation": {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}},
        ]  # fmt: skip
    return content


def every(key: str, change: Callable[[Content], object]) -> Callable[[Content], None]:
    def spoil(content: Content) -> None:
        for entry in content[key]:
            change(entry)

    return spoil


def polygons(change: Callable[[list[float]], object]) -> Callable[[Content], None]:
    return every(
        "annotations", lambda e: e.update(segmentation=change(e["segmentation"][0])) if e["id"] % 2 == 0 else 0
    )


def rles(change: Callable[[Content], Content]) -> Callable[[Content], None]:
    return every("annotations", lambda e: e.update(segmentation=change(e["segmentation"])) if e["id"] % 2 else 0)


def exchanged(box: list[float]) -> list[float]:
    """From the far corner to the near one."""
    return [box[0] + box[2], box[1] + box[3], -box[2], -box[3]]


def points(polygon: list[float]) -> list[list[float]]:
    return np.reshape(polygon, (-1, 2)).tolist()


def transposed(rle: Content) -> Content:
    """As a tool writes it that takes (width, height) for (height, width): the bitmap itself lies on its side."""
    turned = coco_mask.encode(np.asfortranarray(coco_mask.decode(rle).T))
    return {"size": [WIDTH, HEIGHT], "counts": turned["counts"].decode()}


def runs(rle: Content) -> Content:
    flat = np.r_[False, coco_mask.decode(rle).T.ravel() > 0, False]
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": [str(HEIGHT), float(WIDTH)], "counts": list(map(str, np.diff(np.r_[0, edges, HEIGHT * WIDTH])))}


# name: (how it is written, code of what is told, how often)
WAYS: dict[str, tuple[Callable[[Content], object], str, int]] = {
    "image_id text": (every("annotations", lambda e: e.update(image_id=str(e["image_id"]))), "ids-as-text", 6),
    "image_id float": (every("annotations", lambda e: e.update(image_id=float(e["image_id"]))), "ids-as-text", 6),
    "image ids text": (every("images", lambda e: e.update(id=f"0{e['id']}")), "ids-as-text", 3),
    "category ids": (every("categories", lambda e: e.update(id=float(e["id"]))), "ids-as-text", 2),
    "category_id": (every("annotations", lambda e: e.update(category_id=str(e["category_id"]))), "ids-as-text", 6),
    "bbox text": (every("annotations", lambda e: e.update(bbox=list(map(str, e["bbox"])))), "numbers-as-text", 6),
    "bbox JSON": (every("annotations", lambda e: e.update(bbox=str(e["bbox"]))), "numbers-as-text", 6),
    "size text": (every("images", lambda e: e.update(height="40", width=50.0)), "numbers-as-text", 3),
    "polygon text": (polygons(lambda p: [list(map(str, p))]), "numbers-as-text", 3),
    "area text": (every("annotations", lambda e: e.update(area=str(e["area"]))), "numbers-as-text", 6),
    "area": (every("annotations", lambda e: e.update(area="?")), "area-invalid", 6),
    "crowd text": (every("annotations", lambda e: e.update(iscrowd="0")), "crowd-as-text", 6),
    "crowd false": (every("annotations", lambda e: e.update(iscrowd=False)), "crowd-as-text", 6),
    "windows": (every("images", lambda e: e.update(file_name=f"images\\{e['file_name']}")), "name-with-path", 3),
    "folder": (every("images", lambda e: e.update(file_name=f"/data/x/{e['file_name']}")), "name-with-path", 3),
    "upload": (every("images", lambda e: e.update(file_name=f"../upload/1/8f3a-{e['file_name']}")), "name-with-path", 3),
    "address": (every("images", lambda e: e.update(file_name=f"s3://b/a%20b/{e['file_name']}?v=1")), "name-with-path", 3),
    "no size": (every("images", lambda e: e.pop("width")), "size-missing", 3),
    "size zero": (every("images", lambda e: e.update(height=0, width=0)), "size-missing", 3),
    "flat": (polygons(lambda p: p), "outline-nesting", 3),
    "points": (polygons(lambda p: [points(p)]), "outline-nesting", 3),
    "one list of points": (polygons(points), "outline-nesting", 3),
    "transposed": (rles(transposed), "rle-transposed", 3),
    "size exchanged": (rles(lambda r: {**r, "size": r["size"][::-1]}), "rle-transposed", 3),
    "str of bytes": (rles(lambda r: {**r, "counts": str(r["counts"].encode())}), "rle-as-bytes", 3),
    "runs as text": (rles(runs), "numbers-as-text", 3),
    "exchanged corners": (every("annotations", lambda e: e.update(bbox=exchanged(e["bbox"]))), "box-swapped", 6),
    "one id for all": (every("annotations", lambda e: e.update(id=7)), "object-id", 5),
    "no ids": (every("annotations", lambda e: e.pop("id")), "object-id", 6),
    "annotation ids": (every("annotations", lambda e: e.update(id=float(e["id"]))), "ids-as-text", 6),
    "no bbox": (every("annotations", lambda e: e.pop("bbox")), "box-missing", 6),
}  # fmt: skip


def meaning(content: Content, folder: Path) -> list[Any]:
    """What a training takes from annotations, masks as pixels."""
    read = parse_coco(content, folder, folder / "a.json")
    outlines = [
        coco_mask.merge(coco_mask.frPyObjects(s, HEIGHT, WIDTH)) if isinstance(s, list) else s
        for info in read.images
        for s in info.objects.segmentations
    ]
    return [
        [(i.image_id, i.file, i.size, i.objects.boxes.tolist(), i.objects.labels.tolist()) for i in read.images],
        [coco_mask.decode(rle).tobytes() for rle in outlines],
    ]


@pytest.mark.parametrize("way", WAYS)
def test_one_plain_meaning_is_read_by_all_and_counted(way: str, tmp_path) -> None:
    spoil, code, count = WAYS[way]
    good = plain(tmp_path)
    bad = copy.deepcopy(good)
    spoil(bad)
    written = copy.deepcopy(bad)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(bad))
    data = DataConfig.model_validate({"train": {"images": tmp_path, "annotations": file}})
    source = open_split(data, "train")
    assert bad == written
    assert meaning(source.content, tmp_path) == meaning(good, tmp_path)
    assert {key: reading.count for key, reading in source.readings.items()} == {code: count}
    assert sum(count == n for n in read_coco(file, tmp_path).skipped.values()) == 1
    # The doctor has a row for it, and no error; the repaired file is plain, whole, and fit for COCO's own tools.
    assert [(f.code, f.count, f.severity) for f in examine("train", source) if f.code != "class-rare"] == [
        (code, count, "warning")
    ]
    repaired = repair(source, examine("train", source))
    assert not repaired.costs()
    assert meaning(repaired.content, tmp_path) == meaning(good, tmp_path)
    assert not normalise(repaired.content, tmp_path).readings
    assert all({"area", "iscrowd", "bbox", "id"} <= e.keys() for e in repaired.content["annotations"])
    # Scored against, it gives the same numbers.
    hits = [{**entry, "score": 0.9} for entry in good["annotations"]]
    (tmp_path / "good.json").write_text(json.dumps(good))
    if "size" not in code:  # an evaluation knows no folder
        metrics, _ = Evaluation(file).score(hits)
        assert metrics == Evaluation(tmp_path / "good.json").score(hits)[0]
        assert metrics["segm"]["AP"] == pytest.approx(1)
    # And as detections.
    if code not in ("area-invalid", "crowd-as-text", "box-missing", "name-with-path"):
        (tmp_path / "r.json").write_text(json.dumps([{**e, "score": "0.9"} for e in bad["annotations"]]))
        truth = Evaluation(tmp_path / "good.json")
        found = read_results(tmp_path / "r.json", truth)
        assert truth.score(found.entries)[0]["segm"]["AP"] == pytest.approx(1)


@pytest.mark.parametrize("key", ["known_category_ids", "neg_category_ids", "not_exhaustive_category_ids"])
def test_ids_in_lists_of_known_classes_are_read_like_others(key: str, tmp_path) -> None:
    content = plain(tmp_path)
    content["images"][0] |= {"neg_category_ids": [], key: ["1", 2.0, 2]}
    found = normalise(content, tmp_path)
    assert (found.content["images"][0][key], found.readings["ids-as-text"].count) == ([1, 2, 2], 1)
    content["images"][0][key] = ["7", None]  # not listed: an error, as it is
    assert normalise(content, tmp_path).content["images"][0][key] == ["7", None]
    for entry in content["categories"]:
        entry["id"] = f"c{entry['id']}"
    content["images"][0][key] = ["c1"]
    assert normalise(content, tmp_path).content["images"][0][key] == ["c1"]


def test_an_empty_outline_is_no_mask_to_lose(tmp_path) -> None:
    content = plain(tmp_path)
    for entry in content["annotations"]:
        entry["segmentation"] = [[]]
    source = Source(tmp_path / "a.json", tmp_path, content)
    assert repair(source, examine("train", source)).costs() == []


def test_ids_that_are_text_stay_text(tmp_path) -> None:
    """As COCO's own tools take them: in the results, too."""
    content = plain(tmp_path)
    for entry in content["images"]:
        entry["id"] = f"im_{entry['id']}"
    for entry in content["annotations"]:
        entry |= {"image_id": f"im_{entry['image_id']}", "category_id": {1: "x", 2: "c"}[entry["category_id"]]}
    content["categories"] = [{"id": "x", "name": "a"}, {"id": "c", "name": "b"}]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    read = read_coco(file, tmp_path)
    assert [info.image_id for info in read.images] == ["im_1", "im_2", "im_3"]
    assert (read.category_ids, read.class_names) == (["c", "x"], ["b", "a"])
    read.images.save(tmp_path / "index", {})
    again, _ = type(read.images).load(tmp_path / "index")
    assert [info.image_id for info in again] == ["im_1", "im_2", "im_3"]
    (tmp_path / "r.json").write_text(json.dumps([{**e, "score": 0.9} for e in content["annotations"]]))
    truth = Evaluation(file, read.images.arrays["ids"].tolist())
    found = read_results(tmp_path / "r.json", truth)
    assert found.entries[0]["image_id"] == "im_1"
    assert truth.score(found.entries)[0]["bbox"]["AP"] == pytest.approx(1)
    assert len(COCO(str(file)).loadRes(str(tmp_path / "r.json")).anns) == 6
    values = {"limit": 1, "train": {"images": tmp_path, "annotations": file}}
    assert len(open_split(DataConfig.model_validate(values), "train").content["annotations"]) == 2


@pytest.mark.parametrize(
    ("change", "both"),
    [
        (
            lambda c: c["images"].append({**c["images"][0], "id": "1", "file_name": "2.png"}),
            ("1.png (1)", "2.png ('1')"),
        ),
        (lambda c: c["categories"].append({"id": 2.0, "name": "c"}), ("b (2)", "c (2.0)")),
        (lambda c: c["images"][1].update(file_name="old/1.png"), ("'1.png'", "'old/1.png'")),
        (lambda c: [e.update(file_name=f"{e['id']}/3.png") for e in c["images"]], ("'1/3.png'", "'2/3.png'")),
    ],
)
def test_what_is_ambiguous_is_an_error_that_names_both(change, both, tmp_path) -> None:
    content = plain(tmp_path)
    change(content)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    values = {"train": {"images": tmp_path, "annotations": file}}
    for read in (
        lambda: read_coco(file, tmp_path),
        lambda: open_split(DataConfig.model_validate(values), "train"),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert all(name in str(caught.value) for name in both)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.jpg", "a.jpg"), ("./a.jpg", "./a.jpg"), ("sub/b.jpg", "sub/b.jpg"), ("x/sub/b.jpg", "sub/b.jpg"),
        ("C:\\data\\sub\\b.jpg", "sub/b.jpg"), ("https://host/x%20y/a.jpg?token=/b.jpg#z", "a.jpg"),
        ("/data/local-files/?d=images/a.jpg", "a.jpg"), ("images/c%20d.jpg", "c d.jpg"), ("p/e%20f.jpg", "e%20f.jpg"),
        ("/data/upload/3/1a2b3c4d-a.jpg", "a.jpg"), ("../../a.jpg", "a.jpg"), ("b.jpg", None), ("A.jpg", None),
        ("", None), ("a.jpg\0", None), ("x/", None), ("http://[a/a.jpg", "a.jpg"),
    ],
)  # fmt: skip
def test_names_of_other_machines(name: str, file: str | None, tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    for there in ("a.jpg", "sub/b.jpg", "c d.jpg", "e%20f.jpg"):
        (tmp_path / there).touch()
    assert ImageFolder(tmp_path).find(name) == file


def test_an_rle_that_fits_turned_and_unturned_is_no_mask() -> None:
    """Two masks of one box and different pixels: nobody knows which."""
    rle = {"size": [4, 4], "counts": [5, 2, 9]}
    assert plain_outline(rle, (4, 4), [1, 1, 1, 2]).value is rle
    ring = np.zeros((20, 12), np.uint8, order="F")
    ring[1:19, 1:6] = 1
    ring[2, 1] = 0
    wide = {"size": [20, 12], "counts": coco_mask.encode(ring)["counts"].decode()}
    found = plain_outline(wide, (12, 20), [1, 1, 18, 5])
    np.testing.assert_array_equal(coco_mask.decode(found.value), ring.T)
    assert plain_outline(wide, (12, 20), [0, 0, 1, 1]).value is wide
    assert plain_outline(wide, (12, 20), None).value is wide


def test_a_repair_that_loses_much_asks_first(tmp_path, capsys) -> None:
    content = plain(tmp_path)
    content["annotations"][0]["bbox"] = "?"
    file, fixed = tmp_path / "a.json", tmp_path / "fixed.json"
    file.write_text(json.dumps(content))
    keys = [f"data.{s}.{k}={v}" for s in ("train", "val") for k, v in (("images", tmp_path), ("annotations", file))]
    command = ["check", "maskrcnn_r18", *keys, "--fix", str(fixed)]
    assert data_command.main(command) == 2
    assert "would drop 1 of 6 objects" in " ".join(capsys.readouterr().err.split())
    assert not fixed.exists()
    assert data_command.main([*command, "--drop"]) == 2  # the file itself still has the error
    assert len(json.loads(fixed.read_text())["annotations"]) == 5


def test_one_of_two_copies_is_no_loss(tmp_path) -> None:
    content = plain(tmp_path)
    content["annotations"] += [{**entry, "id": entry["id"] + 50} for entry in content["annotations"]]
    source = Source(tmp_path / "a.json", tmp_path, content)
    repaired = repair(source, examine("train", source))
    assert (repaired.done["duplicate"], len(repaired.content["annotations"])) == (6, 6)
    assert repaired.costs() == []
