"""Backbones of timm and torchvision by name: "timm:convnext_tiny", "torchvision:efficientnet_b0"."""

from __future__ import annotations

import difflib
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn

from resdet.errors import UserError, first_line
from resdet.models.backbones.adapted import LEVELS, Adapted, Fit, Map, as_map, measure, sample

# Arguments by which timm's models take images of any size; the first that works.
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})
# Padding multiples that are tried; windows of 7 and 8 pixels on maps of stride 32 need the last two.
MULTIPLES = (32, 224, 256)


class Parts(NamedTuple):
    """The arguments of `Adapted`."""

    net: nn.Module
    maps: list[Map]
    fit: Fit
    cuts: list[str]
    stem: str | None = None


class Pixels(NamedTuple):
    """Of the pretraining, RGB in 0..255."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def library_backbone(
    name: str,
    *,
    inputs: int = 3,
    frozen_stages: int = 0,
    frozen_norms: bool = False,
    drop_path: float = 0.0,
    checkpointing: bool = False,
) -> Adapted:
    """The named network with random weights and without its classifier. Raises `UserError`.

    drop_path: the rate of stochastic depth (Huang et al. 2016, arXiv:1603.09382) in the last block.
    checkpointing: recompute activations in backward instead of keeping them: less memory, about a third more time.
    """
    require_known(name)
    library, _, bare = name.partition(":")
    build = _timm if library == "timm" else _torchvision
    parts = build(name, bare, inputs, drop_path, checkpointing)
    return Adapted(
        parts.net,
        parts.maps,
        fit=parts.fit,
        cuts=parts.cuts,
        stem=parts.stem,
        frozen_stages=frozen_stages,
        frozen_norms=frozen_norms,
    )


def require_known(name: str) -> None:
    """Raises `UserError`, with near names, if a library does not have that model; other names are not looked at."""
    library, _, bare = name.partition(":")
    if library == "timm":
        timm = _import_timm(name)
        known = timm.list_models()
        if not timm.is_model(bare.partition(".")[0]):
            raise UserError(f"model.backbone.name={name}: timm has no model {bare!r}{_near(bare, known)}")
        if bare.partition(".")[2] and bare not in (tagged := timm.list_pretrained(f"{bare.partition('.')[0]}.*")):
            raise UserError(f"model.backbone.name={name}: timm has no such weights{_near(bare, tagged)}")
    elif library == "torchvision":
        known = torchvision.models.list_models(module=torchvision.models)
        if bare not in known:
            raise UserError(f"model.backbone.name={name}: torchvision has no classifier {bare!r}{_near(bare, known)}")


def pixels_of(name: str) -> Pixels | None:
    """How the named model's pretraining scaled pixels; None if nothing says so."""
    library, _, bare = name.partition(":")
    if library == "timm":
        config = _import_timm(name).models.get_pretrained_cfg(bare)
        mean, std = (config.mean, config.std) if config else (None, None)
    else:
        weights = next(iter(torchvision.models.get_model_weights(bare)), None)
        transform = weights.transforms() if weights else None
        mean, std = getattr(transform, "mean", None), getattr(transform, "std", None)
    if not mean or not std:
        return None
    return Pixels(tuple(round(255 * v, 3) for v in mean), tuple(round(255 * v, 3) for v in std))


def _timm(name: str, bare: str, inputs: int, drop_path: float, checkpointing: bool) -> Parts:
    create = partial(_import_timm(name).create_model, bare, features_only=True, in_chans=inputs)
    if drop_path:
        create = partial(create, drop_path_rate=drop_path)
    problems: list[str] = []
    for options in OPTIONS:
        try:
            with torch.device("meta"):  # shapes alone
                shapes = create(**options)
        except Exception as error:  # of timm's many kinds
            problems.append(first_line(error))
            continue
        declared = list(shapes.feature_info.reduction())
        for multiple in MULTIPLES:
            fit = _fit(declared, multiple)
            try:
                maps = measure(shapes, inputs, fit, who=f"model.backbone.name={name}")
            except UserError:
                raise
            except Exception as error:
                problems.append(first_line(error))
                continue
            net = create(**options)
            if checkpointing:
                _checkpoint(net, name)
            modules = net.feature_info.module_name()
            cuts = [module for module, stride in zip(modules, declared, strict=True) if stride > 2]
            blocks = [f"blocks.{k}" for k in range(len(getattr(getattr(net, "model", net), "blocks", [])))]
            return Parts(net, maps, fit, blocks if len(set(declared)) == 1 and blocks else cuts)
    if drop_path and "drop_path_rate" in problems[0]:
        raise UserError(f"model.backbone.drop_path: {name} does not support it: set it to 0")
    raise UserError(
        f"model.backbone.name={name}: does not work as a backbone for images of any size: choose another ({problems[0]})"
    )


def _fit(declared: list[int], multiple: int) -> Fit:
    """Patches of other sides than a power of 2 (14) are resized to one of the next (16)."""
    patch = declared[-1]
    if len(set(declared)) > 1 or patch & (patch - 1) == 0:
        return Fit(multiple)
    return Fit(multiple, patch, 1 << patch.bit_length())


def _checkpoint(net: nn.Module, name: str) -> None:
    network: Any = getattr(net, "model", net)
    try:
        network.set_grad_checkpointing(True)
    except Exception:
        raise UserError(
            f"model.backbone.checkpointing: {name} does not support it: set model.backbone.checkpointing=false"
        ) from None


def _torchvision(name: str, bare: str, inputs: int, drop_path: float, checkpointing: bool) -> Parts:
    """The maps are the outputs of the last module of each stride, of those on the top two levels."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    if checkpointing:
        raise UserError(f"model.backbone.checkpointing: {name} does not support it, timm's models do: set it to false")
    options = {"stochastic_depth_prob": drop_path} if drop_path else {}
    try:
        model = torchvision.models.get_model(bare, weights=None, **options)
    except TypeError:
        raise UserError(f"model.backbone.drop_path: {name} does not support it: set it to 0") from None
    if inputs != 3:
        _replace_first_convolution(model, inputs)
    problem = ""
    for multiple in MULTIPLES:
        try:
            with redirect_stderr(StringIO()):  # of torch.fx
                nodes = get_graph_node_names(model)[1]
                order = list(dict.fromkeys(block for node in nodes if (block := _block_of(node, model))))
                outputs, size = sample(create_feature_extractor(model, order), inputs, Fit(multiple))
        except Exception as error:
            problem = problem or first_line(error)
            continue
        found = [m for place, y in enumerate(outputs) if (m := as_map(place, y, size)) and m.stride in LEVELS]
        taps = {m.stride: m for m in found}  # the last of each stride
        maps = [m._replace(place=place) for place, m in enumerate(taps.values())]
        net = create_feature_extractor(model, [order[m.place] for m in taps.values()])
        first = [m.place for m in found if m.stride == 4]
        stem = order[: first[0] + (len(first) > 1)] if first else []
        cuts = [_with_parameters(order[: m.place + 1], model) for m in taps.values()]
        return Parts(net, maps, Fit(multiple), cuts, _with_parameters(stem, model))
    raise UserError(
        f"model.backbone.name={name}: does not work as a backbone for images of any size: choose another ({problem})"
    )


def _block_of(node: str, model: nn.Module) -> str | None:
    """The module that a node of the graph is in: a child of the model or, of a sequence of them, its child."""
    top, _, rest = node.partition(".")
    child = getattr(model, top, None)
    if not isinstance(child, nn.Module):
        return None
    below = rest.partition(".")[0]
    return f"{top}.{below}" if isinstance(child, nn.Sequential) and below in dict(child.named_children()) else top


def _with_parameters(modules: list[str], model: nn.Module) -> str:
    """The last of the modules that has parameters."""
    return next((m for m in reversed(modules) if any(True for _ in model.get_submodule(m).parameters())), "")


def _replace_first_convolution(model: nn.Module, inputs: int) -> None:
    name, conv = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, last = name.rpartition(".")
    new = nn.Conv2d(
        inputs, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None,  # type: ignore[arg-type]
    )  # fmt: skip
    setattr(model.get_submodule(parent), last, new)


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise UserError(f"model.backbone.name={name} needs the extra: pip install 'resdet[timm]'") from None
    return timm


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""
