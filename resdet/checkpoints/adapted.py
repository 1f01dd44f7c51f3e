"""Checkpoints for backbones of timm and torchvision: under any prefix, in the library's names or those that it can convert."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resdet.checkpoints.backbones import preferred
from resdet.checkpoints.files import Contents, read_file, require_finite
from resdet.checkpoints.recognise import Recognised
from resdet.checkpoints.stem import inflate
from resdet.config import ModelConfig, load_yaml
from resdet.errors import listed
from resdet.models.backbones.adapted import Adapted, plain
from resdet.models.backbones.libraries import pixels_of
from resdet.models.build import build_backbone


def open_for(config: ModelConfig, path: Path) -> Recognised:
    """The weights in a file for the library's backbone that the config names. Raises `UserError` if some are missing."""
    contents = read_file(path)
    with torch.device("meta"):  # names and shapes alone
        backbone = build_backbone(config)
    assert isinstance(backbone, Adapted)
    wanted = backbone.net.state_dict()
    name, channels = config.backbone.name, config.input.channels
    origin, weights = _matched(contents.weights, wanted)
    if _missing(weights, wanted) and name.startswith("timm:"):
        for tensors in _converted(contents.weights, name.removeprefix("timm:")):
            other = _matched(tensors, wanted)
            if len(other[1]) > len(weights):
                origin, weights = f"names that timm converts{other[0]}", other[1]
    if problems := _missing(weights, wanted):
        first = ", ".join(list(contents.weights)[:3])
        raise listed(f"{path}: does not hold the weights of {name} (its first tensors: {first}):", problems, limit=4)
    notes = []
    for key, value in weights.items():
        if value.ndim == 4 and value.shape[1] == 3 and wanted[key].shape[1] == channels != 3:
            weights[key] = inflate(value, channels)
            notes.append(
                f"the first convolution's filters for RGB are {'averaged' if channels < 3 else 'spread'} over {channels} "
                "channel(s)"
            )
    if wrong := [
        f"{key}: the file has {tuple(value.shape)}, {name} has {tuple(wanted[key].shape)}"
        for key, value in weights.items()
        if value.shape != wanted[key].shape
    ]:
        raise listed(f"{path}: does not fit {name}; the first differences:", wrong, limit=4)
    require_finite(weights, path)
    return Recognised(
        path,
        f"{name.partition(':')[0]}'s names{origin}" if not origin.startswith("names") else origin,
        {"input": _input(contents, name, channels), "backbone": {"name": name}},
        {f"backbone.net.{key}": value for key, value in weights.items()},
        whole=False,
        notes=notes,
    )


def _matched(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The prefix under which most of the wanted names are, for the report, and the tensors by these names."""
    names = {plain(name): name for name in wanted}
    found: dict[str, dict[str, Tensor]] = {}
    for full, value in given.items():
        parts = full.split(".")
        for k in range(len(parts)):
            name = names.get(plain(".".join(parts[k:])))
            if name is not None:
                found.setdefault("".join(f"{part}." for part in parts[:k]), {})[name] = value
    if not found:
        return "", {}
    most = max(len(inside) for inside in found.values())
    prefixes = [prefix for prefix, inside in found.items() if len(inside) == most]
    prefix = preferred(prefixes)
    return f", prefix {prefix!r}" if prefix else "", found[prefix]


def _missing(weights: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    return [f"missing: {k}" for k, v in wanted.items() if k not in weights and v.is_floating_point()]


def _converted(given: dict[str, Tensor], name: str) -> list[dict[str, Tensor]]:
    """What timm's own filter for that family makes of the file's tensors, under each prefix that most of them have."""
    import timm

    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
    convert: Any = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return []
    counts = Counter(
        ".".join(parts[:k]) for parts in (full.split(".") for full in given) for k in range(len(parts)) if k < 4
    )
    results = []
    for prefix in [p for p, count in counts.items() if count >= 0.3 * len(given)]:
        head = f"{prefix}." if prefix else ""
        inside = {full[len(head) :]: value for full, value in given.items() if full.startswith(head)}
        try:
            results.append(dict(convert(inside, model)))
        except Exception:  # not that family's tensors: the names decide
            continue
    return results


def _input(contents: Contents, name: str, channels: int) -> dict[str, Any]:
    """The pixels that the weights were trained with: in a checkpoint of resdet as its config says, else as the library says of
    the model."""
    if contents.ours:
        saved = load_yaml(str(contents.meta["config"]))
        return dict((saved.get("model") or {}).get("input") or {})
    pixels = pixels_of(name)
    if pixels is None or channels != 3:
        return {"channels": channels}
    return {"mean": pixels.mean, "std": pixels.std, "bgr": False}
