"""Results files of pixels get the numbers that a model with the same predictions gets, or one clear error."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import SHARED
from resdet import cli
from resdet.config import parse_config
from resdet.data.splits import read_split
from resdet.evaluation.pixels import PixelEvaluation
from resdet.inference.panoptic_files import PanopticFiles, write_png
from resdet.masks import decode_rle
from resdet.structures import UNLABELLED, Instances
from tiny import panoptic

TRUTH = "annotations/panoptic_val2017.json"


def scored(results: Path, annotations: Path, output: Path, *more: str) -> dict[str, Any]:
    arguments = ["--results", results, "--annotations", annotations, "--output", output]
    assert cli.main(["eval", *map(str, arguments), *more]) == 0
    return json.loads((output / "metrics.json").read_text())


def refused(results: Path, annotations: Path, capsys, *more: str) -> str:
    arguments = ["--results", results, "--annotations", annotations, "--output", results.parent / "out"]
    assert cli.main(["eval", *map(str, arguments), *more]) == 2
    return capsys.readouterr().err


@pytest.fixture
def predicted(shapes_root, tmp_path) -> tuple[Path, Path, dict[str, Any]]:
    """(the dataset, a folder of results, the metrics of the same predictions), which are a little off."""
    root = panoptic(shapes_root, tmp_path / "set")
    config = parse_config({"data": {"root": str(root)}})
    truth = read_split(config, "val")
    evaluation = PixelEvaluation(truth, {"boxes", "masks", "semantic"})
    things = list(zip(truth.category_ids, truth.class_names, strict=True))
    stuff = list(zip(truth.label_maps.ids, truth.label_maps.names, strict=True))[1:]
    files = PanopticFiles(tmp_path / "results", things, stuff)
    rng = np.random.default_rng(0)
    for index, info in enumerate(truth.images):
        masks = np.stack([decode_rle(rle, *info.size) for rle in info.objects.segmentations])
        boxes = info.objects.boxes
        crops = [mask[int(y) : int(y2), int(x) : int(x2)] for mask, (x, y, x2, y2) in zip(masks, boxes, strict=True)]
        small = [np.asarray(Image.fromarray(crop * 255).resize((28, 28))) / 255 for crop in crops]
        semantic = np.roll(truth.label_maps.read(info), 5, axis=0)
        semantic[semantic == UNLABELLED] = 1
        scores = rng.uniform(0.3, 1.0, len(boxes)).astype(np.float32)
        found = Instances(boxes, scores, info.objects.labels, info.size, np.array(small, np.float32), semantic=semantic)
        evaluation.add(index, found)
        segments = found.panoptic()
        files.add(info.file.name, info.file.stem, segments)
        write_png(semantic, tmp_path / "results/label_maps" / f"{info.file.stem}.png")
    files.write()
    (tmp_path / "results/label_maps/classes.txt").write_text("".join(f"{name}\n" for name in truth.label_maps.names))
    metrics, _ = evaluation.score()
    assert 0.2 < metrics["panoptic"]["PQ"] < 0.99
    assert 0.2 < metrics["semantic"]["mIoU"] < 0.99
    return root, tmp_path / "results", metrics


def test_the_same_numbers_as_the_model(predicted, tmp_path, capsys) -> None:
    """Images and categories are matched by name: here they have other ids. Without the lists, ids count."""
    root, results, metrics = predicted
    assert scored(results / "panoptic.json", root / TRUTH, tmp_path / "out") == {"panoptic": metrics["panoptic"]}
    assert "panoptic quality, percent" in capsys.readouterr().out
    content, truth = (json.loads(path.read_text()) for path in (results / "panoptic.json", root / TRUTH))
    assert [e["id"] for e in content["images"]] != [e["id"] for e in truth["images"]]
    ids = {Path(image["file_name"]).name: image["id"] for image in truth["images"]}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    annotations = [{**e, "image_id": ids[names[e["image_id"]]]} for e in content["annotations"]]
    (results / "panoptic.json").write_text(json.dumps({"annotations": annotations}))
    assert scored(results / "panoptic.json", root / TRUTH, tmp_path / "out") == {"panoptic": metrics["panoptic"]}

    maps = results / "label_maps"
    for annotation in (root / TRUTH, root):
        assert scored(maps, annotation, tmp_path / "out") == {"semantic": metrics["semantic"]}
    (maps / "classes.txt").unlink()  # the numbers are labels in any case
    assert scored(maps, root, tmp_path / "out", "--split", "val2017") == {"semantic": metrics["semantic"]}


def test_label_maps_by_the_datasets_numbers_or_by_names(tmp_path) -> None:
    root, found = tmp_path / "set", tmp_path / "found"
    truth = np.repeat(np.arange(4, dtype=np.uint8), 5)[:, None] * np.ones((1, 8), np.uint8)
    guess = np.where(truth == 3, 2, truth)
    for folder, pixels in ((root / "images/val", truth), (root / "annotations/val", truth), (found, guess)):
        folder.mkdir(parents=True)
        Image.fromarray(pixels).save(folder / "a.png")
    (root / "classes.txt").write_text("unlabelled\nsky\nsea\nland\n")
    expected = {"mIoU": (1 + 1 / 2 + 0) / 3, "pAcc": 2 / 3, "mAcc": 2 / 3, "fwIoU": (1 + 1 / 2) / 3}
    metrics = scored(found, root, tmp_path / "out")["semantic"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    # The same by names, in another order; the sea is not predicted, but something that is no class.
    (found / "classes.txt").write_text("sky\nfog\nLand\n")
    Image.fromarray(np.choose(truth, [0, 0, 1, 2]).astype(np.uint8)).save(found / "a.png")
    expected = {"mIoU": (1 + 0 + 1) / 3, "pAcc": 2 / 3, "mAcc": 2 / 3}
    metrics = scored(found, root, tmp_path / "out")["semantic"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_cocos_examples_against_themselves_and_without_a_segment(tmp_path) -> None:
    examples = SHARED / "coco_panoptic"
    if not examples.is_dir():
        pytest.skip(f"needs COCO's panoptic examples in {examples}")
    truth = examples / "panoptic_examples.json"
    perfect = scored(truth, truth, tmp_path / "out")["panoptic"]
    assert perfect == dict.fromkeys(("PQ", "SQ", "RQ", "PQth", "SQth", "RQth", "PQst", "SQst", "RQst"), 1.0)
    content = json.loads(truth.read_text())
    shutil.copytree(examples / "panoptic_examples", tmp_path / "mine")
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    entry = content["annotations"][0]
    counts: dict[int, list[int]] = {}
    for one in content["annotations"]:
        for segment in one["segments_info"]:
            counts.setdefault(segment["category_id"], []).append(1 - segment["iscrowd"])
    first = next(s for s in entry["segments_info"] if s["category_id"] in things and not s["iscrowd"])
    entry["segments_info"].remove(first)
    png = tmp_path / "mine" / entry["file_name"]
    pixels = np.array(Image.open(png))
    pixels[(pixels.astype(int) @ [1, 256, 65536]) == first["id"]] = 0
    Image.fromarray(pixels).save(png)
    (tmp_path / "mine.json").write_text(json.dumps(content))
    spoiled = scored(tmp_path / "mine.json", truth, tmp_path / "out")["panoptic"]
    number = {category: sum(some) for category, some in counts.items() if sum(some)}
    quality = [(n - 1) / (n - 1 + 0.5) if c == first["category_id"] else 1.0 for c, n in number.items()]
    assert spoiled["PQ"] == pytest.approx(np.mean(quality))


def other_size(content: dict, folder: Path) -> None:
    png = next(folder.glob("*.png"))
    Image.open(png).resize((7, 5), Image.Resampling.NEAREST).save(png)


def unlisted(content: dict, folder: Path) -> None:
    content["annotations"][0]["segments_info"].pop()


def not_drawn(content: dict, folder: Path) -> None:
    content["annotations"][0]["segments_info"].append({"id": 9999, "category_id": content["categories"][0]["id"]})


def missing_image(content: dict, folder: Path) -> None:
    content["annotations"].pop()


def missing_png(content: dict, folder: Path) -> None:
    next(folder.glob("*.png")).unlink()


def missing_folder(content: dict, folder: Path) -> None:
    shutil.rmtree(folder)


def other_category(content: dict, folder: Path) -> None:
    used = content["annotations"][0]["segments_info"][0]["category_id"]
    next(c for c in content["categories"] if c["id"] == used)["name"] = "fish"


def no_category(content: dict, folder: Path) -> None:
    content["annotations"][0]["segments_info"][0]["category_id"] = 12345


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_size, r"\.png: the label map is 5 x 7 \(H x W\), its image \d+ x \d+"),
        (unlisted, r"\.png: has the id \d+, which its segments_info does not list"),
        (not_drawn, r"\.png: has no pixel of segment 9999, which its segments_info lists"),
        (missing_image, r"has no annotation of 1 of the 4 images of .*, such as \d+\.jpg: predict these, too"),
        (missing_png, r"\.png: the label map cannot be read \(No such file or directory\)"),
        (missing_folder, r"results/panoptic: no such folder \(the PNGs of "),
        (other_category, r"segment \d+ is of 'fish', which .* does not list"),
        (no_category, r"category_id 12345 is not listed"),
    ],
)
def test_panoptic_results_that_cannot_be_scored(spoil: Callable, message: str, predicted, capsys) -> None:
    root, results, _ = predicted
    content = json.loads((results / "panoptic.json").read_text())
    spoil(content, results / "panoptic")
    (results / "panoptic.json").write_text(json.dumps(content))
    told = refused(results / "panoptic.json", root / TRUTH, capsys)
    assert re.search(message, told)


def test_other_results_that_cannot_be_scored(predicted, capsys, shapes_root) -> None:
    root, results, _ = predicted
    maps = results / "label_maps"
    assert "--proposals scores boxes" in refused(results / "panoptic.json", root / TRUTH, capsys, "--proposals")
    instances = shapes_root / "annotations/instances_val2017.json"
    assert "is not COCO's panoptic JSON: its annotations" in refused(results / "panoptic.json", instances, capsys)
    (results / "detections.json").write_text("[]")
    assert "make COCO's JSON of objects with `resdet data convert`" in refused(
        results / "detections.json", root / TRUTH, capsys
    )
    png = next(maps.glob("*.png"))
    pixels = np.array(Image.open(png))
    Image.fromarray(pixels[:9]).save(png)
    assert "the label map is 9 x " in refused(maps, root, capsys)
    pixels[0] = 77
    Image.fromarray(pixels).save(png)
    assert "has the value 77, but the classes are numbered 0 to 2" in refused(maps, root, capsys)
    png.unlink()
    assert "has no label map of 1 of the 4 images of " in refused(maps, root, capsys)
    (maps / "classes.txt").write_text("x\ny\nz\n")
    write_png(pixels, png)
    assert "have no class in common: x, y, z; things, " in refused(maps, root, capsys)
