"""A resumed run: every setting that changed applies and is named, or is refused by name before work starts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.config import Config, TrainConfig
from resdet.config.io import _keys
from resdet.errors import UserError
from resdet.models.backbones.base import Backbone
from resdet.models.detector import Detector
from resdet.training.loop import train
from resdet.training.optim import build_optimizer, restore_optimizer
from resdet.training.resume import FIXED, MODEL_KEYS_THAT_APPLY, SCHEDULE, UNUSED, config_of


class Chain(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer3, self.layer4 = nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 3)

    def stages(self) -> list[list[nn.Module]]:
        return [[self.norm], [self.layer3], [self.layer4]]


class SmallDetector(Detector):
    """Every rate and decay has a group of its own."""

    def __init__(self) -> None:
        super().__init__(Chain(), nn.Identity(), num_classes=1, pixel_mean=[0], pixel_std=[1])
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for (layer,) in self.backbone.stages():
            x = layer(x)
        return self.head(x)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group["lr_scale"]
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=random)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "change",
    [{}, {"weight_decay": 0.3}, {"weight_decay": 0.0}, {"momentum": 0.5}, {"head_lr": 7.0}, {"layer_decay": 0.5},
     {"head_lr": 1.0}],
)  # fmt: skip
def test_changed_settings_apply_and_momenta_stay(name: str, change: dict) -> None:
    """The oracle changes each parameter's settings by hand, in an optimizer that never stopped."""
    before = TrainConfig(optimizer=name, lr=0.1, head_lr=2.0, weight_decay=0.1)
    after = before.model_copy(update=change)
    expected = SmallDetector()
    optimizer = build_optimizer(expected, before)
    steps(expected, optimizer, 3, seed=1)
    found, saved = copy.deepcopy(expected), copy.deepcopy(optimizer.state_dict())

    wanted = {
        id(parameter): {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in build_optimizer(expected, after).param_groups
        for parameter in group["params"]
    }
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    lone = type(optimizer)([{"params": [p], **wanted[id(p)]} for p in parameters], lr=0.1)
    lone.state = optimizer.state
    steps(expected, lone, 3, seed=2)

    resumed = build_optimizer(found, after)
    restore_optimizer(resumed, build_optimizer(found, before), saved)
    steps(found, resumed, 3, seed=2)
    for one, two in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model = SmallDetector()
    saved = build_optimizer(model, TrainConfig()).state_dict()
    model.backbone.layer3.requires_grad_(False)
    with pytest.raises(UserError, match="does not match the parameters that are trained now"):
        restore_optimizer(build_optimizer(model, TrainConfig()), build_optimizer(model, TrainConfig()), saved)


@pytest.fixture(scope="module")
def run(shapes_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "run"
    torch.manual_seed(0)
    train(tiny.config(shapes_root, folder, max_iters=1, milestones=[60000, 80000], eval_every=0))
    return folder


def resumed(shapes_root: Path, run: Path, folder: Path, **settings: object) -> Config:
    """A config whose run `folder` stands where `run` stopped. settings: `section__key=value`."""
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.pt"):
        (folder / name).hardlink_to(run / name)
    config = tiny.config(shapes_root, folder, max_iters=2, milestones=[60000, 80000], eval_every=0)
    for key, value in settings.items():
        *path, last = key.split("__")
        section = config
        for part in path:
            section = getattr(section, part)
        setattr(section, last, value)
    return config


def test_what_changed_is_named_and_reaches_the_optimizer(shapes_root, run, tmp_path, capsys) -> None:
    config = resumed(
        shapes_root, run, tmp_path / "run", train__head_lr=50.0, train__weight_decay=0.25, train__momentum=0.5,
        train__layer_decay=0.5, train__ema_decay=0.9, data__flip=0.0, seed=3, model__box__focal_gamma=2.0,
    )  # fmt: skip
    assert train(config, resume=True).iteration == 2
    said = capsys.readouterr().out.splitlines()
    assert [line.strip().split(":")[1].strip() for line in said if "warning:" in line] == [
        "seed is 3, was 0",
        "model.box.focal_gamma is 2.0, was 0.0",
        "data.flip is 0.0, was 0.5",
        "train.max_iters is 2, was 1",
        "train.head_lr is 50.0, was 1.0",
        "train.layer_decay is 0.5, was 1.0",
        "train.momentum is 0.5, was 0.9",
        "train.weight_decay is 0.25, was 0.0001",
        "train.ema_decay is 0.9, was None",
    ]
    groups = read_checkpoint(tmp_path / "run/checkpoints/last.pt").training["optimizer"]["param_groups"]
    assert {group["momentum"] for group in groups} == {0.5}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.25}
    assert {group["lr_scale"] for group in groups} == {0.5**k for k in range(6)} - {0.5**0} | {1.0, 50.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train__optimizer": "adamw"}, r"train\.optimizer is adamw, was sgd"),
        ({"model__backbone__norm": "gn"}, r"model\.backbone\.norm is gn, was bn"),
        ({"model__backbone__stride_in_1x1": True}, r"model\.backbone\.stride_in_1x1 is True, was False"),
        ({"model__mask": None, "model__fpn__channels": 8}, r"model\.fpn\.channels is 8, was 16"),
        ({"model__box__width": 8, "train__optimizer": "adamw"}, r"(?s)box\.width is 8, .*optimizer is adamw"),
    ],
)
def test_what_cannot_change_is_refused_by_name(shapes_root, run, tmp_path, settings: dict, message: str) -> None:
    config = resumed(shapes_root, run, tmp_path / "run", **settings)
    before = (tmp_path / "run/config.yaml").read_text()
    with pytest.raises(UserError, match=message) as caught:
        train(config, resume=True)
    assert "model.weights=" in str(caught.value)
    assert (tmp_path / "run/config.yaml").read_text() == before
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_frozen_stages_cannot_change(shapes_root, run, tmp_path) -> None:
    config = resumed(shapes_root, run, tmp_path / "run", model__backbone__frozen_stages=2)
    config.model.backbone.weights = "imagenet"  # without weights nothing could be frozen
    with pytest.raises(UserError, match=r"model\.backbone\.frozen_stages is 2, was 0"):
        train(config, resume=True)


def test_nothing_is_said_of_settings_that_stayed(shapes_root, run, tmp_path, capsys) -> None:
    config = resumed(shapes_root, run, tmp_path / "run", train__max_iters=1)
    train(config, resume=True)
    assert "warning:" not in capsys.readouterr().out
    assert config_of(read_checkpoint(run / "checkpoints/last.pt")) is not None


def test_every_key_named_here_exists() -> None:
    assert (MODEL_KEYS_THAT_APPLY | FIXED | UNUSED | SCHEDULE) - set(_keys(Config)) == set()
