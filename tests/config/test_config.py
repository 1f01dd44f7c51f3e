from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from resdet.config import (
    Config,
    DataConfig,
    data_root,
    dump_config,
    dump_settings,
    find_config,
    load_config,
    parse_config,
    settings_of,
)
from resdet.data.sources import coco_paths
from resdet.errors import UserError
from resdet.models.build import build_model

SHIPPED_FOLDER = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(SHIPPED_FOLDER.rglob("*.yaml"))


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_config_loads_builds_and_says_its_command(path: Path) -> None:
    config = load_config(path)
    import torch

    if config.model.num_classes is None:  # counted from the data
        config.model.num_classes = 3
    with torch.device("meta"):
        model = build_model(config.model)
    assert model.outputs == config.model.outputs
    text = path.read_text()
    assert text.startswith("# ")
    assert f"python tools/train.py configs/{path.relative_to(SHIPPED_FOLDER)}" in text
    assert load_config(write_back(config, path.stem)) == config


def write_back(config: Config, stem: str) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / f"{stem}.yaml"
    path.write_text(dump_config(config))
    return path


def test_all_configs_of_the_contract_are_there() -> None:
    wanted = {"fasterrcnn_r50", "keypointrcnn_r50", "quickstart"} | {
        f"maskrcnn_{n}" for n in ("r50", "r50_3x", "r18", "r34", "r101", "r152", "x101")
    }
    assert wanted <= {p.stem for p in SHIPPED}
    plain = [p.stem for p in SHIPPED if not load_config(p).model.backbone.residual]
    assert plain == ["maskrcnn_plain34"]


def test_overrides_reach_any_depth(tmp_path) -> None:
    path = write(tmp_path, "train: {lr: 0.1}\n")
    config = load_config(
        path,
        ["train.lr=1e-4", "data.min_size=[320, 400]", "model.mask.num_convs=2", "device=cpu", "model.backbone.weights=none",
         "data.train.images=/x y/z", "train.amp=off", "data.limit=8"],
    )  # fmt: skip
    assert config.train.lr == 1e-4
    assert config.data.min_size == [320, 400]
    assert config.model.mask is not None
    assert config.model.mask.num_convs == 2
    assert config.data.train.images == Path("/x y/z")
    assert config.train.amp == "off"
    assert config.data.limit == 8
    assert load_config(path, ["data.min_size=480"]).data.min_size == [480]
    assert load_config(path, ["model.mask=null"]).model.mask is None


def test_scalars_are_yaml_1_2(tmp_path) -> None:
    assert load_config(write(tmp_path, "train: {lr: 1e-3, amp: off}\n")).train.lr == 1e-3
    assert load_config(write(tmp_path, "train: {compile: true}\n")).train.compile is True
    with pytest.raises(UserError, match=r"train\.amp"):
        load_config(write(tmp_path, "train: {amp: on}\n"))


def test_all_mistakes_are_listed_with_suggestions(tmp_path) -> None:
    path = write(
        tmp_path, "lr: 3\ntrain: {max_iter: 5, lr: fast, amp: bf6}\nmodel: {num_clases: 3, box: {width: -1}}\n"
    )
    with pytest.raises(UserError) as caught:
        load_config(path)
    text = str(caught.value)
    assert "6 mistake(s)" in text
    assert "lr: unknown key; did you mean train.lr?" in text
    assert "train.max_iter: unknown key; did you mean train.max_iters?" in text
    assert "model.num_clases: unknown key; did you mean model.num_classes?" in text
    assert "did you mean 'bf16'?" in text
    assert "train.lr: Input should be a valid number" in text
    assert "(given: 'fast')" in text
    assert "model.box.width" in text


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[1, 2]", [], "must hold `key: value` pairs"),
        ("a: [", [], "cannot be read as YAML"),
        ("", ["train.lr"], "write it as key.sub=value"),
        ("", ["=3"], "write it as key.sub=value"),
        ("", ["train.batch_size=5", "train.accumulate=2"], "must be a multiple of train.accumulate"),
        ("", ["data.min_size=2000"], "is below data.min_size"),
        ("", ["data.pad_multiple=33"], "multiple of 32"),
        ("", ["model.rpn=null"], r"model\.rpn: must be a section \(\{key: value\}\), got null"),
        ("", ["model.kind=rtdtr"], r"model\.kind: must be one of rcnn.*rtdetr.*did you mean 'rtdetr'"),
        (
            "",
            ["model.kind=rtdetr", "model.box.width=3"],
            r"model\.box: unknown key for model\.kind=rtdetr",
        ),
        ("", ["model.kind=rtdetr", "model.decoder.layer=3"], r"did you mean model\.decoder\.layers"),
        ("", ["model.kind=rtdetr", "model.decoder.heads=3"], r"decoder\.width \(256\) must be a multiple"),
    ],
)
def test_other_mistakes(tmp_path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text), overrides)


def test_shipped_configs_are_found_by_name_and_a_typo_gets_a_hint(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("configs/quickstart.yaml", "quickstart.yaml", "quickstart"):
        assert find_config(name).name == "quickstart.yaml"
    with pytest.raises(UserError, match=r"did you mean configs/maskrcnn_r50\.yaml"):
        find_config("configs/maskrcn_r50.yaml")


def test_data_paths(monkeypatch) -> None:
    monkeypatch.delenv("RESDET_DATASETS", raising=False)
    config = parse_config({}).data
    assert data_root(config) == Path("datasets/coco")
    assert coco_paths(config, config.train, "train") == (
        Path("datasets/coco/train2017"), Path("datasets/coco/annotations/instances_train2017.json"),
    )  # fmt: skip
    monkeypatch.setenv("RESDET_DATASETS", "/data")
    assert data_root(config) == Path("/data/coco")
    config = parse_config({"data": {"root": "/r", "val": {"images": "/v", "annotations": "/a.json"}}}).data
    assert coco_paths(config, config.val, "val") == (Path("/v"), Path("/a.json"))
    assert coco_paths(config, config.train, "train")[0] == Path("/r/train2017")


def test_the_number_of_classes_must_be_known_to_build() -> None:
    with pytest.raises(UserError, match=r"model\.num_classes is not set"):
        build_model(parse_config({}).model)


@pytest.mark.parametrize(("cores", "workers"), [(2, 2), (64, 4), (None, 1)])
def test_no_more_workers_than_cores(cores: int | None, workers: int, monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert DataConfig().workers == workers
    assert parse_config({"data": {"workers": 7}}).data.workers == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lr: 1}\nmodel: {}\ntrain: {lr: 2}\n", "train appears twice (lines 1 and 3)"),
        ("train:\n  lr: 1\n  lr: 2\n", "train.lr appears twice (lines 2 and 3)"),
        ("data:\n  train:\n    augmentations:\n    - {name: A, p: 1, p: 0}\n", "augmentations[0].p appears twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text))
    assert message in str(caught.value)


def test_a_doubled_override_is_refused_and_aliases_are_not_doubled(tmp_path) -> None:
    path = write(tmp_path, "train: {lr: 1}\n")
    with pytest.raises(UserError, match=r"train\.lr is given twice: 'train\.lr=1' and 'train\.lr=2'"):
        load_config(path, ["train.lr=1", "train.lr=2"])
    split = "data:\n  train: &a {split: x}\n  val: *a\n"
    assert load_config(write(tmp_path, split)).data.val.split == "x"


def test_paths_and_names_of_overrides_are_taken_literally(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    path = write(tmp_path, "data: {train: {images: ~/pictures}}")
    config = load_config(
        path, ["data.root=2024", "data.val.images=file #1", "data.val.split=1e3", "model.weights=~/w.pt"]
    )
    assert config.data.root == Path("2024")
    assert config.data.val.images == Path("file #1")
    assert config.data.val.split == "1e3"
    assert config.model.weights == "/home/ada/w.pt"
    assert config.data.train.images == Path("/home/ada/pictures")
    assert load_config(path, ["data.root=null"]).data.root is None
    assert load_config(path, ["data.root='a b'"]).data.root == Path("a b")
    with pytest.raises(UserError, match="2024 is read as a number; quote it"):
        load_config(write(tmp_path, "data: {root: 2024}"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"val_fraction": 0.3, "val": {"images": "x"}}, "data.val.images=x beside data.val_fraction=0.3"),
        ({"val_fraction": 0.3, "val": {"split": "test"}}, "data.val.split=test beside data.val_fraction=0.3"),
        ({"group": "^a"}, "data.group has no effect without data.val_fraction"),
        ({"val_fraction": 0.3, "group": "("}, "not a regular expression"),
        ({"synthetic": {}, "format": "voc"}, "data.format=voc beside data.synthetic"),
    ],
)
def test_data_keys_that_contradict_each_other_are_refused(data: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"data": data})
    assert message in str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_settings_written_and_read_again_are_the_same_and_as_open(path: Path, tmp_path) -> None:
    config = load_config(path, ["train.amp=off", "model.backbone.norm_eps=1e-5"])  # one of them set to its default
    again = load_config(write(tmp_path, dump_settings(config)))
    assert again == config
    assert open_keys(again) == open_keys(config)


def test_settings_changed_in_place_are_written(tmp_path) -> None:
    config = Config()
    config.train.lr = 0.5
    config.data.root = Path("x")
    assert load_config(write(tmp_path, dump_settings(config))) == config
    assert "momentum" not in dump_settings(config)


def test_what_follows_other_keys_stays_open() -> None:
    config = parse_config({"model": {"backbone": {"weights": "none"}, "input": {"channels": 1}}})
    assert "norm" not in dump_settings(config)
    assert "mean" not in dump_settings(config)
    model = {"kind": "rtdetr", "input": {"channels": 4}, "encoder": {"layers": 2}}
    other = parse_config({"model": model})
    assert other.model.input.std == (255.0,) * 4
    assert settings_of(other.model) == model
    config.model.backbone.norm = "frozen_bn"
    with pytest.raises(UserError, match=r"frozen_bn with model\.backbone\.weights=none"):
        dump_settings(config)


def open_keys(section: BaseModel, prefix: str = "") -> set[str]:
    """What nobody has set."""
    found: set[str] = set()
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found |= open_keys(value, f"{prefix}{name}.")
        elif name not in section.model_fields_set:
            found.add(prefix + name)
    return found
