"""Config -> modules: the numbers of the config arrive in the parts."""

from __future__ import annotations

import pytest
import torch

import tiny
from resdet.config import TrainConfig, parse_config
from resdet.engine.optim import build_optimizer, learning_rate
from resdet.models.build import build_model


def built(**changed: dict):
    values = {**tiny.MODEL, **{key: {**tiny.MODEL.get(key, {}), **value} for key, value in changed.items()}}
    return build_model(parse_config({"model": values}).model)


def test_anchor_ratios_set_the_width_of_the_rpn() -> None:
    model = built(anchors={"ratios": [0.5, 1.0]})
    assert (model.rpn.objectness.out_channels, model.rpn.deltas.out_channels) == (2, 8)


@pytest.mark.parametrize("section", ["rpn", "box"])
def test_nms_thresholds_arrive(section: str) -> None:
    model = built(**{section: {"nms_threshold": 0.9}})
    assert {"rpn": model.rpn, "box": model.heads["box"]}[section].nms_threshold == 0.9


def test_delta_weights_scale_the_boxes_that_are_learned() -> None:
    assert built(box={"delta_weights": [1, 2, 3, 4]}).heads["box"].delta_weights == (1, 2, 3, 4)


def test_the_mask_is_twice_the_pool() -> None:
    assert built(mask={"pool_size": 7}).heads["mask"].size == 14


def test_momentum_and_warmup_factor() -> None:
    config = TrainConfig(momentum=0.5, warmup_factor=0.25, warmup_iters=4, lr=1.0)
    optimizer = build_optimizer(built(), config, torch.device("cpu"))
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert learning_rate(1, config) == pytest.approx(0.25 * 0.75 + 0.25)
