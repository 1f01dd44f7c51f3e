"""`data.train` as a list of sources whose annotations are complete for different classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import resdet
import tiny
from resdet import cli
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.config import DataConfig, load_config, parse_config
from resdet.data.dataset import DetectionDataset
from resdet.data.known import KNOWN
from resdet.data.sources import open_parts, open_split
from resdet.data.splits import read_split
from resdet.errors import UserError
from resdet.training.setup import prepare_inputs

Content = dict[str, list[dict]]


def halves(shapes_root: Path, folder: Path) -> list[dict]:
    """Two sources of six images: disks and boxes, whose ids are other ones, and triangles and stars."""
    content = json.loads((shapes_root / "annotations/instances_train2017.json").read_text())
    given = []
    for k, (images, ids) in enumerate(((content["images"][:6], (10, 11)), (content["images"][6:], (13, 14)))):
        here = {image["id"] for image in images}
        part = {
            "images": images,
            "annotations": [e for e in content["annotations"] if e["image_id"] in here and e["category_id"] in ids],
            "categories": [c for c in content["categories"] if c["id"] in ids],
        }
        (folder / f"{k}.json").write_text(json.dumps(part))
        given.append({"annotations": str(folder / f"{k}.json"), "images": str(shapes_root / "train2017")})
    return given


def known_names(source) -> list[set[str] | None]:
    names = {c["id"]: c["name"] for c in source.content["categories"]}
    return [{names[k] for k in i[KNOWN]} if KNOWN in i else None for i in source.content["images"]]


def data(train: object, **more: object) -> DataConfig:
    return DataConfig.model_validate({"train": train, **more})


def test_classes_are_joined_by_name_and_images_know_those_of_their_source(shapes_root, tmp_path) -> None:
    given = halves(shapes_root, tmp_path)
    source = open_split(data(given), "train")
    assert [c["name"] for c in source.content["categories"]] == ["disk", "box", "triangle", "star"]
    assert known_names(source) == [{"disk", "box"}] * 6 + [{"triangle", "star"}] * 6
    assert source.parts == [6, 6]
    alone = open_split(data(given[1]), "train")
    assert known_names(alone) == [None] * 6
    assert alone.content["annotations"] == json.loads(Path(given[1]["annotations"]).read_text())["annotations"]
    assert len(source.content["annotations"]) == sum(
        len(part.content["annotations"]) for part in open_parts(data(given), "train").values()
    )


def test_known_classes_take_some_of_a_file_or_say_that_a_class_is_absent(shapes_root, tmp_path) -> None:
    first, second = halves(shapes_root, tmp_path)
    source = open_split(
        data([first | {"known_classes": ["Box"]}, second | {"known_classes": ["star", "Box"]}]), "train"
    )
    assert [c["name"] for c in source.content["categories"]] == ["box", "star"]
    assert known_names(source) == [{"box"}] * 6 + [None] * 6  # the second knows all that there is
    (lost,) = [count for remark, count in source.remarks.items() if "outside known_classes" in remark]
    objects = [e for part in (first, second) for e in json.loads(Path(part["annotations"]).read_text())["annotations"]]
    assert lost == sum(e["category_id"] in (10, 13) for e in objects)
    with pytest.raises(UserError, match=r"0\.json: known_classes has 'helmet', which no source lists"):
        open_split(data([first | {"known_classes": ["box", "helmet"]}, second]), "train")
    with pytest.raises(UserError, match=r"known_classes has 'Box', which no source lists"):
        open_split(data([first | {"known_classes": ["box", "Box"]}, second]), "train")
    alone = open_split(data(first | {"known_classes": ["box"]}), "train")
    assert [c["name"] for c in alone.content["categories"]] == ["box"]


def test_one_image_file_in_two_sources_is_refused(shapes_root, tmp_path) -> None:
    first, _ = halves(shapes_root, tmp_path)
    with pytest.raises(UserError, match=r"is in .*0\.json and in .*0\.json: remove one of them"):
        open_split(data([first, first]), "train")


def test_a_made_split_holds_out_of_each_source(shapes_root, tmp_path) -> None:
    made = data(halves(shapes_root, tmp_path), val_fraction=0.34)
    train, val = open_parts(made, "train"), open_parts(made, "val")
    assert list(train) == ["train[0]", "train[1]"]
    for k in range(2):
        names = [{i["file_name"] for i in parts[k].content["images"]}
                 for parts in (list(train.values()), list(val.values()))]  # fmt: skip
        assert len(names[0]) + len(names[1]) == 6
        assert names[0].isdisjoint(names[1])
        assert 1 <= len(names[1]) <= 3


def test_each_source_has_its_root_its_format_and_its_augmentations(shapes_root, tmp_path) -> None:
    first, second = halves(shapes_root, tmp_path)
    for name, label in (("a", 0), ("b", 1)):
        place = tmp_path / "yolo" / "images" / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(next((shapes_root / "train2017").iterdir()).read_bytes())
        labels = place.parents[1] / "labels" / f"{name}.txt"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text(f"{label} 0.5 0.5 0.2 0.2\n")
    (tmp_path / "yolo/data.yaml").write_text("train: images\nval: images\nnames: [star, hat]\n")
    config = parse_config({"data": {
        "flip": 0, "min_size": 96, "max_size": 96,
        "train": [first, {"root": str(tmp_path / "yolo"), "augmentations": [{"name": "InvertImg", "p": 1}]}, second],
    }})  # fmt: skip
    read = read_split(config, "train")
    assert read.class_names == ["disk", "box", "star", "hat", "triangle"]
    assert read.parts == [6, 2, 6]
    dataset = DetectionDataset(read, config.data, config.model.input, train=True, masks=False, seed=0)
    inverted = [bool((dataset.augmented(k, 0)[0] == 255 - dataset.read(k)).all()) for k in (0, 5, 6, 7, 8, 13)]
    assert inverted == [False, False, True, True, False, False]
    assert dataset[6, 0].known.tolist() == [False, False, True, True, False]


def test_mistakes_name_the_source(shapes_root, tmp_path) -> None:
    first, second = halves(shapes_root, tmp_path)
    values = tiny.values(shapes_root)
    values["data"]["train"] = [first, second | {"annotations": str(tmp_path / "none.json")}]
    with pytest.raises(UserError, match=r"missing: +.*none\.json"):
        prepare_inputs(parse_config(values))
    content: Content = json.loads(Path(second["annotations"]).read_text())
    content["annotations"][0]["category_id"] = 99
    content["images"].append(content["images"][0])
    Path(second["annotations"]).write_text(json.dumps(content))
    values["data"]["train"] = [first, second]
    with pytest.raises(UserError, match=r"train\[1\]: annotation of a category that is not listed \(1\)"):
        prepare_inputs(parse_config(values))
    with pytest.raises(UserError, match=r"1\.json: annotation \d+: category_id 99") as caught:
        open_split(parse_config(values).data, "train")
    assert "used twice" in str(caught.value)
    values["data"]["train"] = [first, second | {"split": "x", "imagess": 1}]
    with pytest.raises(UserError, match=r"data\.train\[1\]\.imagess: unknown key; did you mean data\.train\.images"):
        parse_config(values)


@pytest.mark.slow
def test_two_sources_train_one_model(shapes_root, tmp_path, capsys) -> None:
    """From check to a resumed run, with every command that reads data.train."""
    values = tiny.values(shapes_root, max_iters=2, eval_every=2)
    values["data"]["train"] = halves(shapes_root, tmp_path)
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(values))
    assert cli.main(["data", "check", str(file), "--output", str(tmp_path / "check")]) == 0
    assert "train[1]" in capsys.readouterr().out
    assert cli.main(["data", "check", str(file), "--fix", str(tmp_path / "fixed.json")]) == 2
    assert "data.train lists 2" in capsys.readouterr().err
    assert (
        cli.main(["visualize", "data", str(file), "--augmented", "--count", "2", "--output", str(tmp_path / "look")])
        == 0
    )
    assert cli.main(["data", "stats", str(file), "--output", str(tmp_path / "stats")]) == 0
    out = tmp_path / "run"
    result = resdet.train(load_config(file, [f"output={out}"]))
    assert set(result.metrics) == {"bbox", "segm"}
    printed = capsys.readouterr().out
    assert "0.json: supervises 2 of 4 classes: disk, box" in printed.replace("\n", "")
    checkpoint = read_checkpoint(out / "checkpoints/last.pt")
    assert checkpoint.class_names == ["disk", "box", "triangle", "star"]
    again = resdet.train(load_config(out / "config.yaml", ["train.max_iters=3"]), resume=True)
    assert again.iteration == 3
    assert np.isfinite(next(iter(again.metrics["bbox"].values())))


def test_a_class_is_not_moved_by_images_that_do_not_know_it(shapes_root, tmp_path) -> None:
    config = tiny.config(shapes_root, tmp_path / "run")
    config.data.train = data(halves(shapes_root, tmp_path)).train
    config, inputs = prepare_inputs(config)
    dataset = DetectionDataset(inputs.train, config.data, config.model.input, train=True, masks=True, seed=0)
    from resdet.data.collate import collate
    from resdet.models.build import build_model

    model = build_model(config.model)
    sum(model(collate([dataset[0, 0], dataset[1, 0]]).batch).values()).backward()
    gradient = model.heads["box"].classifier.weight.grad
    assert not gradient[[2, 3]].any()
    assert torch.isfinite(gradient).all()
    assert gradient[[0, 1, 4]].any(dim=1).all()
