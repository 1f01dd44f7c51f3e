"""The first convolution: weights for RGB images -> weights for any number of channels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from resdet.config.model import for_channels
from resdet.errors import UserError

if TYPE_CHECKING:
    from resdet.checkpoints.recognise import Recognised


def stem_name(weights: dict[str, Tensor], prefix: str = "backbone.") -> str:
    """The name of the convolution on the image: the only one of the stem, or the first of a deep stem's three."""
    names = [f"{prefix}conv1.weight", f"{prefix}conv1.0.weight"]
    return next((name for name in names if name in weights), names[0])


def input_channels(weights: dict[str, Tensor], prefix: str = "backbone.") -> int:
    """The channels of the images. Raises `KeyError` or `IndexError` if there is no stem."""
    return weights[stem_name(weights, prefix)].shape[1]


def input_section(values: dict[str, Any], channels: int) -> dict[str, Any]:
    """The `input` section `values` for a stem of `channels` channels; values that do not fit their number are dropped."""
    if channels == 3:
        return values
    kept = {k: v for k, v in values.items() if k in ("resize", "rounding")}
    kept |= {k: v for k, v in values.items() if k in ("mean", "std") and len(v) == channels}
    return {"channels": channels, **kept}


def inflate(weight: Tensor, channels: int) -> Tensor:
    """RGB filters (O, 3, h, w) -> (O, C, h, w), with the same response to a grey image repeated in all channels.

    C < 3: each channel gets (W_r + W_g + W_b) / C.
    C > 3: the first three keep W_r, W_g, W_b, the others get their average, all times 3 / C.
    Either way the filters sum to W_r + W_g + W_b over the channels.
    """
    average = weight.mean(1, keepdim=True)
    if channels < 3:
        return average.expand(-1, channels, -1, -1) * (3 / channels)
    return torch.cat([weight, average.expand(-1, channels - 3, -1, -1)], dim=1) * (3 / channels)


def with_channels(found: Recognised, channels: int) -> Recognised:
    """An RGB checkpoint with stem, mean and std adapted to `channels`. Raises `UserError` if it is not for RGB.

    For mean and std see `config.for_channels`; the response that `inflate` preserves is that to normalised images.
    """
    section = found.model.input
    if section.channels == channels:
        return found
    if section.channels != 3:
        raise UserError(
            f"{found.path}: takes {section.channels} channels, but model.input.channels is {channels}: set "
            f"model.input.channels={section.channels}, or start from weights for RGB"
        )
    name = stem_name(found.weights)
    ends = slice(None, None, -1 if section.bgr else None)
    weight = inflate(found.weights[name].flip(1) if section.bgr else found.weights[name], channels)
    pixels = {
        **found.values.get("input", {}), "channels": channels, "bgr": False,
        "mean": for_channels(section.mean[ends], channels), "std": for_channels(section.std[ends], channels),
    }  # fmt: skip
    note = f"the stem's filters for RGB are {'averaged' if channels < 3 else 'spread'} over {channels} channel(s)"
    return replace(
        found,
        values={**found.values, "input": pixels},
        weights={**found.weights, name: weight},
        notes=[*found.notes, note],
    )
