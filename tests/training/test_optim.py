from __future__ import annotations

import pytest
import torch
from torch import nn

import resdet
import tiny
from resdet.checkpoints.checkpoint import read_checkpoint
from resdet.config import TrainConfig, parse_config
from resdet.models.build import build_model
from resdet.models.layers import BatchNorm2d
from resdet.training.optim import WeightAverage, build_optimizer, learning_rate


def test_the_published_1x_schedule() -> None:
    config = TrainConfig()
    rates = {i: learning_rate(i, config) for i in (1, 500, 1000, 60000, 60001, 80000, 80001, 90000)}
    assert rates[1] == pytest.approx(0.02 * (0.001 * 0.999 + 0.001))
    assert rates[500] == pytest.approx(0.02 * 0.5005)
    assert rates[1000] == rates[60000] == pytest.approx(0.02)
    assert rates[60001] == rates[80000] == pytest.approx(0.002)
    assert rates[80001] == rates[90000] == pytest.approx(0.0002)


def test_cosine_falls_to_zero() -> None:
    config = TrainConfig(schedule="cosine", max_iters=100, warmup_iters=10, lr=1.0)
    rates = [learning_rate(i, config) for i in range(1, 101)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[9] == pytest.approx(1.0)
    assert rates[54] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_norms_are_not_decayed_and_frozen_parameters_not_trained(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1))
    model[3].requires_grad_(False)
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in model[0].parameters()] == [0.1, 0.1]
    assert [decay[id(p)] for p in (*model[1].parameters(), *model[2].parameters())] == [0, 0, 0, 0]
    assert len(decay) == 6


def test_weight_average_is_the_weighted_mean() -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, decay=0.9)
    expected = 0.0
    for iteration in range(1, 300):
        nn.init.constant_(model.weight, float(iteration))
        average.update(model, iteration)
        keep = min(0.9, iteration / (iteration + 10))
        expected = keep * expected + (1 - keep) * iteration
    assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-4)


def test_heads_and_layers_learn_at_their_own_rates() -> None:
    model = build_model(parse_config({"model": tiny.MODEL}).model)
    config = TrainConfig(head_lr=10, backbone_lr=4, layer_decay=0.5)
    optimizer = build_optimizer(model, config)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    b = model.backbone
    assert scale[id(b.conv1.weight)] == scale[id(b.bn1.weight)] == 4 * 0.5**5
    stages = (b.layer1, b.layer2, b.layer3, b.layer4)
    assert [scale[id(stage[0].conv1.weight)] for stage in stages] == [4 * 0.5**4, 4 * 0.5**3, 4 * 0.5**2, 4 * 0.5]
    assert scale[id(model.fpn.lateral[0].conv.weight)] == scale[id(model.rpn.deltas.bias)] == 1
    assert {scale[id(p)] for p in model.heads.parameters()} == {10}
    assert len(scale) == sum(p.requires_grad for p in model.parameters())
    assert [g["lr_scale"] for g in build_optimizer(model, TrainConfig()).param_groups] == [1, 1]


@pytest.mark.slow
def test_a_step_moves_each_group_by_its_scaled_rate(shapes_root, tmp_path) -> None:
    """Plain SGD without momentum or decay: the step of a head's weight is head_lr times the step of the same at 1."""
    moves = []
    for head_lr in (1.0, 3.0):
        config = tiny.config(
            shapes_root, tmp_path / str(head_lr), max_iters=1, eval_every=0, momentum=0, weight_decay=0, head_lr=head_lr
        )
        torch.manual_seed(config.seed)
        before = build_model(config.model).state_dict()
        resdet.train(config)
        after = read_checkpoint(tmp_path / str(head_lr) / "checkpoints/last.pt").model
        names = ("heads.box.classifier.bias", "rpn.objectness.bias")
        moves.append([(after[name] - before[name]).abs().sum().item() for name in names])
    assert moves[1][0] == pytest.approx(3 * moves[0][0], rel=1e-3)
    assert moves[1][1] == pytest.approx(moves[0][1], rel=1e-3)
