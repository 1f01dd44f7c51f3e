"""Every defect is planted and found; valid data stay quiet; what can be mended is mended."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pictures import textured
from resdet.config import DataConfig, RCNNConfig
from resdet.data.coco import parse_coco
from resdet.data.formats.common import Source
from resdet.data.quality.advice import best_anchors, best_overlaps, examine_sizes
from resdet.data.quality.categories import compare
from resdet.data.quality.checks import examine, unusable
from resdet.data.quality.files import inspect_files, leaks, with_file_sizes
from resdet.data.quality.polygons import crossed_share
from resdet.data.quality.repair import repair
from resdet.data.quality.report import KINDS, Finding, Findings
from resdet.data.quality.summary import report
from resdet.data.readings import READINGS
from resdet.data.sources import open_split

Content = dict[str, Any]


def source(folder: Path, name: str = "train") -> Source:
    """Six pictures of 60 x 80, two objects in each, of the classes a and b by turns."""
    images = folder / name
    images.mkdir(parents=True)
    content: Content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    for k in range(1, 13):
        if k % 2:
            number = len(content["images"]) + 1
            picture = textured(60, 80, seed=number + 100 * (name == "val"))
            cv2.imwrite(str(images / f"{number}.jpg"), picture)
            content["images"].append({"id": number, "file_name": f"{number}.jpg", "height": 60, "width": 80})
        x, y = 5 + 3 * k, 10 + 2 * k
        content["annotations"].append({
            "id": k, "image_id": (k + 1) // 2, "category_id": 1 + k % 2, "bbox": [x, y, 30, 20], "iscrowd": 0,
            "segmentation": [[x, y, x + 30, y, x + 30, y + 20, x, y + 20]],
        })  # fmt: skip
    content["annotations"] += [
        dict(e, id=e["id"] + 20, bbox=[60, 45, 8, 9], segmentation=[[60, 45, 68, 45, 68, 54, 60, 54]])
        for e in content["annotations"]
    ]
    return Source(folder / f"{name}.json", images, content)


def everything(train: Source, val: Source | None = None) -> list[Finding]:
    found, digests = inspect_files("train", train, decode=True, channels=3)
    found += unusable({"train": train}) + examine("train", with_file_sizes(train, found))
    if val:
        more, others = inspect_files("val", val, decode=True)
        found += more + examine("val", val) + compare(train, val) + leaks(digests, others)
    return [f for f in found if f.code != "class-rare"]  # six objects of each


def test_valid_data_are_quiet(tmp_path, coco_open) -> None:
    assert everything(source(tmp_path), source(tmp_path, "val")) == []
    with_keypoints = source(tmp_path / "posed")
    posed()(with_keypoints)
    assert everything(with_keypoints) == []
    data = DataConfig(root=coco_open)
    found = [f for name in ("train", "val") for f in examine(name, open_split(data, name))]
    assert {f.code for f in found} <= {"class-rare"}


def each(key: str, change: Callable[[Content], object]) -> Callable[[Source], None]:
    """Change every entry of a list."""

    def plant(s: Source) -> None:
        for entry in s.content[key]:
            change(entry)

    return plant


def one(key: str, index: int, **changes: object) -> Callable[[Source], None]:
    """Change one entry of a list."""
    return lambda s: s.content[key][index].update(changes)


def shares(entry: Content) -> None:
    x, y, w, h = entry["bbox"]
    entry.update(bbox=[x / 80, y / 60, w / 80, h / 60], segmentation=None)


def corners(entry: Content) -> None:
    x, y, w, h = entry["bbox"]
    entry.update(bbox=[x, y, x + w, y + h], segmentation=None)


def written_as(form: Callable[..., list[float]], x: float = 30, y: float = 20) -> Callable[[Source], None]:
    """Boxes around (x, y) and near the upper left corner by turns, as `form` writes (x, y, w, h)."""

    def plant(s: Source) -> None:
        for k, entry in enumerate(s.content["annotations"]):
            left, top = (2, 2) if k % 2 else (x, y)
            entry.update(bbox=form(left + k / 2, top + k / 2, 25, 25), segmentation=None)

    return plant


def polygon_shares(entry: Content) -> None:
    entry["segmentation"] = [[v / (60 if k % 2 else 80) for k, v in enumerate(p)] for p in entry["segmentation"]]


def exchanged(entry: Content) -> None:
    entry["segmentation"] = [[p[k ^ 1] for k in range(len(p))] for p in entry["segmentation"]]


def listed_twice(s: Source) -> None:
    """The first image, and its second object in a second entry."""
    s.content["images"].append({**s.content["images"][0], "id": 99, "file_name": "./1.jpg"})
    s.content["annotations"][1]["image_id"] = 99


def rotated(s: Source) -> None:
    """Stored as 60 x 80, upright 80 x 60, annotated as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(textured(60, 80)).save(s.images / "1.jpg", exif=exif)


def cut_off(s: Source) -> None:
    file = s.images / "1.jpg"
    file.write_bytes(file.read_bytes()[:-300])


def animated(s: Source) -> None:
    frames = [Image.fromarray(textured(60, 80, seed=seed)) for seed in (50, 51)]
    frames[0].save(s.images / "1.gif", save_all=True, append_images=frames[1:])
    s.content["images"][0]["file_name"] = "1.gif"


def stored_as(s: Source, index: int, pixels: np.ndarray) -> None:
    np.save(s.images / f"{index}.npy", pixels)
    s.content["images"][index]["file_name"] = f"{index}.npy"


def posed(index: int = 0, categories: int = 2, **changes: object) -> Callable[[Source], None]:
    """Every object has the keypoints left and right, the first of them labelled, but one that is changed."""

    def plant(s: Source) -> None:
        for entry in s.content["categories"][:categories]:
            entry.update(keypoints=["left", "right"], skeleton=[[1, 2]])
        for entry in s.content["annotations"]:
            entry.update(keypoints=[*entry["bbox"][:2], 2, 0, 0, 0], num_keypoints=1)
        s.content["annotations"][index].update(changes)

    return plant


def other_keypoints(s: Source) -> None:
    s.content["categories"][0]["keypoints"] = ["left"]
    s.content["categories"][1]["keypoints"] = ["right"]


PLANTED: list[tuple[str, Callable[[Source], object], int]] = [
    ("unusable", lambda s: s.problems.extend(["a.xml: not readable as XML", "b.xml: object 1: has no bndbox"]), 2),
    ("image-id", one("images", 1, id="x"), 1),
    ("image-size", one("images", 0, height=0), 1),
    ("image-name", one("images", 1, file_name=None), 1),
    ("image-twice", listed_twice, 1),
    ("crowd-flag", one("annotations", 3, iscrowd=5), 1),
    ("crowd-only", each("annotations", lambda e: e.update(iscrowd=1)), 24),
    ("mask-missing", lambda s: [e.update(segmentation=None) for e in s.content["annotations"][12:]], 12),
    ("category-id", lambda s: s.content["categories"].append({"id": 1, "name": "c"}), 1),
    ("category-unnamed", one("categories", 1, name=""), 1),
    ("category-name", lambda s: s.content["categories"].append({"id": 3, "name": "a"}), 1),
    ("category-gap", lambda s: s.content["categories"].extend([{"id": 5, "name": "c"}, {"id": 11, "name": "d"}]), 2),
    ("category-unknown", one("annotations", 3, category_id=17), 1),
    ("known-classes", one("images", 2, neg_category_ids=[17]), 1),
    ("off-by-one", each("annotations", lambda e: e.update(category_id=e["category_id"] - 1)), 12),
    ("image-unknown", one("annotations", 3, image_id=99), 1),
    ("box-malformed", one("annotations", 3, bbox=[1, 2, float("nan"), 4]), 1),
    ("box-xyxy", each("annotations", corners), 24),
    ("box-centred", written_as(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], 42), 24),
    ("box-form", written_as(lambda x, y, w, h: [y, x, h, w], 42), 24),
    ("label-xywh", written_as(lambda x, y, w, h: [x - w / 2, y - h / 2, w, h]), 24),
    ("label-xyxy", written_as(lambda x, y, w, h: [x - (x + w) / 2, y - (y + h) / 2, x + w, y + h], 45, 25), 24),
    ("masks-elsewhere", each("annotations", exchanged), 24),
    ("mask-normalised", each("annotations", polygon_shares), 24),
    ("box-normalised", each("annotations", shares), 24),
    ("box-degenerate", one("annotations", 20, bbox=[5, 5, 0, 9]), 1),
    ("box-outside", one("annotations", 20, bbox=[70, 5, 20, 9], segmentation=None), 1),
    ("box-nowhere", one("annotations", 20, bbox=[100, 5, 20, 9]), 1),
    ("polygon-short", one("annotations", 20, segmentation=[[1, 1, 9, 10], [60, 45, 68, 45, 68, 54, 60, 54]]), 1),
    ("polygon-crossing", one("annotations", 20, segmentation=[[60, 45, 68, 54, 68, 45, 60, 54]]), 1),
    ("polygon-apart", one("annotations", 0, bbox=[8, 12, 70, 40]), 1),
    ("mask-empty", one("annotations", 20, segmentation={"size": [60, 80], "counts": [4800]}), 1),
    ("mask-malformed", one("annotations", 20, segmentation={"size": [1, 1], "counts": [1]}), 1),
    ("keypoints-malformed", posed(keypoints=[9, 9, 2]), 1),
    ("keypoints-malformed", posed(keypoints=[9, 9, 2, 8, 8, 3]), 1),
    ("keypoints-outside", posed(keypoints=[99, 9, 2, 8, 8, 1], num_keypoints=2), 1),
    ("keypoints-number", posed(num_keypoints=2), 1),
    ("keypoints-unlisted", posed(categories=1), 12),
    ("keypoints-differ", other_keypoints, 1),
    ("skeleton", each("categories", lambda e: e.update(keypoints=["left", "right"], skeleton=[[1, 3]])), 2),
    ("duplicate", lambda s: s.content["annotations"].append(dict(s.content["annotations"][0], id=99)), 1),
    ("file-missing", lambda s: (s.images / "3.jpg").unlink(), 1),
    ("file-empty", lambda s: (s.images / "3.jpg").write_bytes(b""), 1),
    ("file-unreadable", lambda s: (s.images / "3.jpg").write_bytes(b"no picture"), 1),
    ("file-unreadable", lambda s: (s.images / "3.jpg").write_text("2.jpg"), 1),  # a link, checked out as text
    ("channels", lambda s: stored_as(s, 0, np.ones((60, 80, 5), np.uint8)), 1),
    ("file-void", lambda s: stored_as(s, 0, np.full((60, 80), np.nan, np.float32)), 1),
    ("file-truncated", cut_off, 1),
    ("file-size", one("images", 0, height=61), 1),
    ("file-exif", rotated, 1),
    ("file-animated", animated, 1),
    ("file-outside", one("images", 0, file_name="../train.json"), 1),
    ("same-image", lambda s: (s.images / "2.jpg").write_bytes((s.images / "1.jpg").read_bytes()), 1),
]


@pytest.mark.parametrize(("code", "plant", "count"), PLANTED, ids=[code for code, _, _ in PLANTED])
def test_a_planted_defect_is_found_with_its_number_and_place(code: str, plant, count: int, tmp_path) -> None:
    s = source(tmp_path)
    plant(s)
    found = {f.code: f for f in everything(s)}
    assert found[code].count == count
    assert found[code].examples[0]
    # An unknown id leaves orphans; nothing else may be blamed.
    follow_up = {"image-id": {"image-unknown"}, "image-size": {"file-size"}}.get(code, set())
    assert set(found) - {code} <= follow_up


def test_boxes_that_fit_as_they_stand_alone_are_left_so(tmp_path) -> None:
    s = source(tmp_path)
    before = [entry["bbox"] for entry in s.content["annotations"]]
    each("annotations", corners)(s)
    s.content["annotations"][0] |= {"bbox": [40, 40, 20, 15], "segmentation": None}
    (finding,) = [f for f in everything(s) if f.code == "box-xyxy"]
    assert finding.count == 23
    assert [e["bbox"] for e in repair(s, [finding]).content["annotations"]] == [[40, 40, 20, 15], *before[1:]]


def test_what_shows_between_splits(tmp_path) -> None:
    train, val = source(tmp_path), source(tmp_path, "val")
    val.content["categories"][1]["name"] = "c"
    (val.images / "1.jpg").write_bytes((train.images / "2.jpg").read_bytes())
    train.content["annotations"] = [e for e in train.content["annotations"] if e["category_id"] == 1]
    found = {f.code: f for f in everything(train, val)}
    assert set(found) == {"categories-differ", "leak", "class-unseen"}
    assert found["leak"].examples == ["val 1.jpg is train 2.jpg"]
    assert found["categories-differ"].examples == ["only in train: ['b'], only in val: ['c']"]


def test_rare_classes(tmp_path) -> None:
    codes = {f.code: f.examples for f in examine("train", source(tmp_path))}
    assert "class-rare" not in codes  # twelve of each
    s = source(tmp_path / "two")
    s.content["annotations"] = s.content["annotations"][:12]
    assert {f.code: f.examples for f in examine("train", s)} == {"class-rare": ["a: 6", "b: 6"]}


MENDED = [code for code, (_, _, fix) in KINDS.items() if "--fix" in fix and code not in READINGS]


@pytest.mark.parametrize("code", MENDED)
def test_what_can_be_mended_is(code: str, tmp_path) -> None:
    plant = {name: plant for name, plant, _ in PLANTED}[code]
    s, good = source(tmp_path / "bad"), source(tmp_path / "good")
    plant(s)
    before = copy.deepcopy(s.content)
    repaired = repair(s, everything(s))
    content, done = repaired.content, repaired.done
    assert sum(done.values()) >= 1
    assert s.content == before or "nan" in str(before)  # the original is left alone
    mended = Source(s.path, s.images, content)
    assert everything(mended) == [], done
    read = parse_coco(content, s.images, s.path)
    if code in ("off-by-one", "image-size", "file-size"):
        assert [{k: v for k, v in e.items() if k != "area"} for e in content["annotations"]] == good.content[
            "annotations"
        ]
    if code in ("box-xyxy", "box-normalised"):
        boxes = [e["bbox"] for e in content["annotations"]]
        np.testing.assert_allclose(boxes, [e["bbox"] for e in good.content["annotations"]], atol=1e-9)
    assert read.images


@pytest.mark.parametrize(
    ("polygon", "low", "high"),
    [
        ([0, 0, 10, 0, 10, 10, 0, 10], 0, 0),
        ([0, 0, 10, 10, 10, 0, 0, 10], 0.4, 0.6),  # a figure of eight
        ([0, 0, 10, 0, 10, 10, 0, 10] * 2, 0.9, 1.1),  # drawn twice
        ([0, 0, 100, 0, 100, 100, 99, 100, 100, 99, 0, 100], 0, 0.05),  # a slip of the hand
        ([0, 0, 50, 0.5, 100, 0], 0, 0.01),
    ],
)
def test_crossing_is_measured_by_area(polygon: list[float], low: float, high: float) -> None:
    assert low <= crossed_share(polygon) <= high


def test_sizes_against_anchors_and_input(shapes) -> None:
    data = DataConfig(min_size=96, max_size=200)
    usual, advice = examine_sizes(shapes, data, RCNNConfig())
    assert "anchors" in {f.code for f in usual}  # shapes of 20 pixels, anchors from 32 on
    assert re.match(r"model.anchors.sizes=\[[\d,]+\] model.anchors.ratios=\[[\d.,]+\] would match \d", advice[1])
    assert "a pretrained RPN would have to relearn them" in advice[1]
    found, _ = examine_sizes(shapes, DataConfig(min_size=24, max_size=50), RCNNConfig())
    assert {f.code for f in found} >= {"too-small"}
    found, _ = examine_sizes(shapes, DataConfig(min_size=5000, max_size=9000), RCNNConfig())
    assert {f.code for f in found} >= {"too-large"}


def test_anchor_overlap_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    objects = rng.uniform(5, 300, (50, 2))
    sizes, ratios = [32.0, 128.0], [0.5, 2.0]
    expected = []
    for w, h in objects:
        best = 0.0
        for s in sizes:
            for r in ratios:
                aw, ah = s / r**0.5, s * r**0.5
                inter = min(w, aw) * min(h, ah)
                best = max(best, inter / (w * h + aw * ah - inter))
        expected.append(best)
    np.testing.assert_allclose(best_overlaps(objects, sizes, ratios), expected)
    squares = np.full((20, 2), 16.0)
    assert best_anchors(squares)[0][0] == 16


def test_bccds_two_degenerate_boxes(bccd) -> None:
    found = []
    for split in ("train", "val", "test"):
        data = DataConfig.model_validate({"root": bccd, "val": {"split": split}})
        found += examine(split, open_split(data, "val"))
    assert [(f.code, f.split, f.count) for f in found] == [("box-degenerate", "train", 1), ("box-degenerate", "val", 1)]
    assert "BloodImage_00343.xml: object 4 (RBC)" in found[0].examples[0]


def test_the_command_prints_writes_and_mends(tmp_path, capsys) -> None:
    from resdet import cli

    train, val = source(tmp_path), source(tmp_path, "val")
    train.content["annotations"][20]["bbox"] = [5, 5, 0, 9]
    for s in (train, val):
        s.path.write_text(json.dumps(s.content))
    keys = [
        f"data.{k}.{what}={tmp_path / file}"
        for k in ("train", "val")
        for what, file in (("images", k), ("annotations", f"{k}.json"))
    ]
    command = [
        "check",
        "maskrcnn_r18",
        "model.num_classes=null",
        *keys,
        "--output",
        str(tmp_path / "out"),
        "--fix",
        str(tmp_path / "fixed.json"),
    ]
    assert cli.main(["data", *command]) == 0
    said = capsys.readouterr().out
    assert "boxes without area" in said
    assert "train, repaired: 1 box-degenerate" in said
    listed = json.loads((tmp_path / "out/findings.json").read_text())["findings"]
    assert [(f["code"], f["count"], f["severity"]) for f in listed if f["code"] == "box-degenerate"] == [
        ("box-degenerate", 1, "warning")
    ]
    assert len(json.loads((tmp_path / "fixed.json").read_text())["annotations"]) == 23
    for image in train.content["images"]:  # a wrong size, in which boxes seem to lie outside, costs none of them
        image.update(height=30, width=40)
    train.path.write_text(json.dumps(train.content))
    assert cli.main(["data", *command]) == 2
    assert "repaired: 1 box-degenerate, 6 file-size" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "fixed.json").read_text())["annotations"]) == 23
    for identity in ([1], 2):  # no id, and another image's
        train.content["images"][0]["id"] = identity
        train.path.write_text(json.dumps(train.content))
        assert cli.main(["data", *command, "--drop"]) == 2
        said = "".join(capsys.readouterr()).replace("\n", " ")
        assert "fixed.json: not written: image id missing, not an integer, or used twice: image number" in said
    train.content["images"][0]["id"] = 1
    train.path.write_text(json.dumps(train.content))
    (train.images / "1.jpg").unlink()
    assert cli.main(["data", *command[:-2]]) == 2  # an error
    assert "missing image files" in capsys.readouterr().out


def test_files_that_cannot_be_read_stand_in_the_table_beside_the_rest(tmp_path, capsys) -> None:
    """Pascal VOC, of whose files one is no XML, one has no picture, one a box of letters, one another size than its picture."""
    from resdet import cli

    root = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    thing = (
        "<object><name>cat</name><bndbox><xmin>{}</xmin><ymin>9</ymin><xmax>60</xmax><ymax>50</ymax></bndbox></object>"
    )
    for k in range(12):
        cv2.imwrite(str(root / f"JPEGImages/{k}.jpg"), textured(60, 80, seed=k))
        size = f"<size><width>{70 if k == 3 else 80}</width><height>60</height></size>"
        text = f"<annotation>{size}{thing.format('x' if k == 2 else 9 + k)}</annotation>"
        (root / f"Annotations/{k}.xml").write_text(text[:20] if k == 0 else text)
    (root / "JPEGImages/1.jpg").unlink()
    command = [
        "finetune",
        f"data.root={root}",
        "data.val_fraction=0.4",
        "model.weights=null",
        "model.backbone.weights=none",
        "model.backbone.norm=bn",
    ]
    fixed, out = tmp_path / "fixed.json", tmp_path / "out"
    assert cli.main(["data", "check", *command, "--output", str(out), "--fix", str(fixed)]) == 2
    findings = json.loads((out / "findings.json").read_text())["findings"]
    (unread,) = [f for f in findings if f["code"] == "unusable"]
    assert unread["count"] == 3
    for what in ("0.xml: not readable as XML", "1.xml: its image '1' is not there", "2.xml: object 1 (cat): xmin"):
        assert what in " ".join(unread["examples"])
    (size,) = [f for f in findings if f["code"] == "file-size"]
    assert "3.jpg is 60 x 80 (H x W), annotated 60 x 70" in size["examples"][0]
    assert "3 unusable" in capsys.readouterr().out
    names = {e["file_name"] for e in json.loads(fixed.read_text())["images"]}
    assert not names & {"JPEGImages/0.jpg", "JPEGImages/1.jpg"}  # not negatives: nobody has said that they are empty
    assert cli.main(["train", *command, "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "0.xml: not readable" in said
    assert "3.jpg is 60 x 80" in said
    assert not (tmp_path / "run").exists()


def test_the_table_fits_80_columns_with_paths_relative_to_the_data_and_the_file_has_the_whole(
    tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    root = tmp_path / "a folder, with [brackets]" / ("x" * 90)
    findings = Findings("train")
    for k in range(9):
        findings.add("file-missing", f"image {k}: {root}/train/camera 1/{k}.jpg (No such file or directory)")
    findings.add("file-size", f"image 3: {root}/{'long_' * 40}end.jpg is 60 x 80 (H x W), annotated 60 x 90")
    report(list(findings.by_code.values()), [Path("datasets/coco"), root])
    *table, note, _ = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) == 80
    text = re.sub(r"[\s│]", "", "".join(table))
    for k in range(3):
        assert f"image{k}:train/camera1/{k}.jpg(Nosuchfileordirectory)" in text
    assert "…and6more" in text
    assert f"{'long_' * 40}end.jpgis60x80(HxW),annotated60x90"[-100:] in text
    assert str(root)[:40] not in "".join(table)
    assert note == f"paths are relative to {root}"
    assert len(findings.by_code["file-missing"].examples) == 9
