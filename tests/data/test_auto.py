"""`auto: true`: what is open is chosen from the data and told; what is set stays."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import resdet
import tiny
from resdet.commands.data import check
from resdet.config import Config, load_config, load_yaml, parse_config
from resdet.data.auto import as_trained, choose
from resdet.data.coco import Annotations
from resdet.data.index import ImageInfo, Objects
from resdet.data.splits import read_split


def annotations(count: int, size: tuple[int, int] = (480, 640), side: float = 100.0, mask: bool = True) -> Annotations:
    boxes = np.array([[0, 0, side, side]], np.float32)
    outline = [[[0.0, 0, side, 0, side, side]]] if mask else [None]
    objects = Objects(boxes, np.zeros(1, np.int64), outline)
    images = tiny.pack([ImageInfo(k, Path(f"{k}.jpg"), size, objects) for k in range(count)], Path())
    return Annotations(Path("x"), images, ["a"], [1])


def chosen(train_set: Annotations, pretrained: bool = True, **values: object) -> tuple[Config, dict[str, str]]:
    config, choices = choose(parse_config({"auto": True, **values}), train_set, pretrained)
    return config, {choice.key: choice.reason for choice in choices}


def test_everything_that_is_open_is_chosen_with_a_reason() -> None:
    config, told = chosen(annotations(1000), train={"batch_size": 4})
    t = config.train
    assert (t.max_iters, t.lr, t.warmup_iters, t.eval_every) == (6000, 0.005, 600, 600)
    assert t.milestones == [4000, 5333]
    assert (config.data.min_size[-1], config.data.max_size) == (480, 800)
    assert config.model.backbone.frozen_stages == 2
    assert (config.model.num_classes, told["model.num_classes"]) == (1, "as in the dataset: a")
    assert told["train.max_iters"] == "1000 images, each seen 24 times"
    assert "linear in the batch size" in told["train.lr"]
    assert "train.batch_size" not in told
    assert all(told.values())


def test_who_looks_at_the_data_sees_them_at_the_size_of_training(shapes_root, capsys) -> None:
    """The anchors' recall of `data check`, and the pictures of `visualize data --augmented`."""
    size = {"min_size": 320, "max_size": 534}  # what auto chooses for these pictures
    recalls, sizes = [], []
    for auto, given in ((True, {}), (False, size), (False, {})):
        anchors = {"sizes": [32, 40, 48, 56, 64]}
        data = {"root": str(shapes_root), **given}
        config = parse_config({"auto": auto, "data": data, "model": {"anchors": anchors}})
        check(config, None, None, "train")
        recalls.append(re.findall(r"anchors match .*", capsys.readouterr().out))
        sizes.append(as_trained(config, read_split(config, "train")).data.max_size)
    assert recalls[0] == recalls[1] != recalls[2]
    assert sizes == [534, 534, 1333]


def test_what_is_set_stays_and_other_choices_follow_it() -> None:
    config, told = chosen(
        annotations(1000), train={"lr": 0.3, "max_iters": 900}, data={"min_size": 333, "max_size": 999},
        model={"backbone": {"frozen_stages": 4}, "num_classes": 1},
    )  # fmt: skip
    assert (config.train.lr, config.train.max_iters, config.data.min_size, config.data.max_size) == (
        0.3,
        900,
        [333],
        999,
    )
    assert config.model.backbone.frozen_stages == 4
    assert config.train.milestones == [600, 800]
    assert not {
        "model.num_classes",
        "train.lr",
        "train.max_iters",
        "data.min_size",
        "model.backbone.frozen_stages",
    } & set(told)


@pytest.mark.parametrize(
    ("count", "batch", "iterations"), [(20, 4, 500), (2400, 16, 1800), (5000, 8, 7500), (3, 16, 100)]
)
def test_the_schedule_follows_the_number_of_pictures(count: int, batch: int, iterations: int) -> None:
    assert chosen(annotations(count), train={"batch_size": batch})[0].train.max_iters == iterations


@pytest.mark.parametrize(
    ("size", "side", "short"),
    [((480, 640), 100, 480), ((480, 640), 16, 800), ((2000, 3000), 300, 800), ((100, 90), 40, 320)],
)
def test_the_input_size_follows_pictures_and_objects(size: tuple[int, int], side: float, short: int) -> None:
    sizes = chosen(annotations(50, size, side))[0].data.min_size
    assert sizes[-1] == short
    assert min(sizes) >= 0.8 * short
    assert sizes == sorted(sizes)


def test_from_scratch_nothing_is_frozen_and_without_masks_there_is_no_mask_head() -> None:
    config, told = chosen(annotations(50, mask=False), pretrained=False, model={"mask": {}})
    assert (config.model.backbone.frozen_stages, config.model.mask) == (0, None)
    assert told["model.mask"] == "no object has a mask"


def test_the_config_that_was_given_is_left_alone_and_the_choices_are_written(shapes_root, tmp_path, capsys) -> None:
    config = parse_config({
        "auto": True, "device": "cpu", "output": str(tmp_path / "run"), "model": {**tiny.MODEL, "num_classes": None},
        "data": {"root": str(shapes_root), "workers": 0, "min_size": 64, "max_size": 96},
        "train": {"max_iters": 1, "batch_size": 2, "eval_every": 0},
    })  # fmt: skip
    before = config.model_dump()
    resdet.train(config)
    assert config.model_dump() == before
    written = load_yaml((tmp_path / "run/resolved.yaml").read_text())
    assert written["train"]["lr"] == pytest.approx(0.02 * 2 / 16)
    again = load_config(tmp_path / "run/config.yaml")  # `auto` would choose again
    assert again == config
    assert not {"lr", "milestones"} & again.train.model_fields_set
    told = capsys.readouterr().out
    assert "auto: train.lr = 0.0025 (linear in the batch size: 0.02 at 16 (sgd))" in told
    assert "auto: model.num_classes = 4 (as in the dataset: disk, box, triangle, star)" in told
    assert re.search(r"auto: anchors match \d+\.\d% of the objects", told)
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["iteration"] == 1
