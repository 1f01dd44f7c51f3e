"""Weights for RGB, made weights for any number of channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from resdet.checkpoints.recognise import Recognised
from resdet.checkpoints.stem import inflate, with_channels
from resdet.errors import UserError


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8])
def test_a_grey_image_in_all_channels_gets_the_response_that_it_had(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, 7, 7, generator=generator, dtype=torch.float64)
    grey = torch.randn(2, 1, 21, 34, generator=generator, dtype=torch.float64)
    before = F.conv2d(grey.expand(-1, 3, -1, -1), weight, padding=3)
    inflated = inflate(weight, channels)
    assert inflated.shape == (8, channels, 7, 7)
    after = F.conv2d(grey.expand(-1, channels, -1, -1), inflated, padding=3)
    torch.testing.assert_close(after, before)
    if channels > 3:
        torch.testing.assert_close(inflated[:, :3], weight * 3 / channels)


def recognised(**pixels: object) -> Recognised:
    weights = {"backbone.conv1.weight": torch.arange(3.0).view(1, 3, 1, 1)}
    return Recognised(Path("x.pth"), "torchvision", {"input": pixels}, weights)


def test_mean_and_std_follow_and_the_order_becomes_rgb() -> None:
    found = with_channels(recognised(bgr=True, mean=(1, 2, 6), std=(1, 1, 1)), 4)
    assert found.model.input.mean == (6, 2, 1, 3)
    assert not found.model.input.bgr
    assert found.weights["backbone.conv1.weight"].flatten().tolist() == [1.5, 0.75, 0, 0.75]
    assert with_channels(recognised(), 1).weights["backbone.conv1.weight"].item() == 3
    with pytest.raises(UserError, match=r"x\.pth: takes 4 channels, but model\.input\.channels is 5"):
        with_channels(found, 5)
