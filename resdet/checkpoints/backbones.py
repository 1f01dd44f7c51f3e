"""Checkpoints of backbones: names of torchvision, timm, detectron2, Caffe2 (MSRA) or RT-DETR, under any prefix -> ours."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from resdet.checkpoints import rtdetr_names
from resdet.checkpoints.names import to_ours
from resdet.checkpoints.stem import input_channels, input_section
from resdet.models.backbones.resnet import RESNETS, Architecture, architecture_name

CAFFE_MEAN = (103.53, 116.28, 123.675)  # of BGR
EPS = 1e-5
# Of the copies in a file of self-supervised training (DINO, I-JEPA), the one that its authors evaluate.
EVALUATED = ("teacher", "target_encoder")


class Backbone(NamedTuple):
    """weights: names as in `ResNet`. values: the `input` and `backbone` sections that belong to them.

    origin: whose names they are, for messages. left_over: names that are not the backbone's or a classifier's.
    """

    origin: str
    weights: dict[str, Tensor]
    values: dict[str, Any]
    left_over: list[str]


def recognise_backbone(raw: dict[str, Tensor]) -> Backbone | None:
    """The residual backbone in these tensors, None without one. Raises `KeyError` for one that resdet cannot build."""
    for origin, sign, translate in (
        ("torchvision's or timm's names", r"layer1\.0\.conv1\.weight$", _torchvision_names),
        ("a sequence of torchvision's layers", r"4\.0\.conv1\.weight$", _sequence_names),
        ("detectron2's names", r"res2\.0\.conv1\.weight$", _detectron2_names),
        ("Caffe2's names", r"res2_0_branch2a_w$", _caffe2_names),
        ("RT-DETR's names", r"res_layers\.0\.blocks\.0\.branch2a\.conv\.weight$", _rtdetr_names),
    ):
        prefixes = [m[1] for m in (re.match(rf"((?:.*\.)?){sign}", name) for name in raw) if m]
        if not prefixes:
            continue
        prefix = preferred(prefixes)
        inside = {name[len(prefix) :]: value for name, value in raw.items() if name.startswith(prefix)}
        weights, left_over = translate(inside)
        caffe = translate in (_detectron2_names, _caffe2_names)
        values = architecture(weights)
        grouped = values["name"].startswith("resnext")
        if values["norm"] != "gn":
            values |= {"norm_eps": EPS}
            del values["norm"]  # the weights are the same whether frozen, trained or synchronised
        values["stride_in_1x1"] = caffe and not grouped
        origin += f", prefix {prefix!r}" if prefix else ""
        section = input_section(pixels(caffe, grouped), input_channels(weights, prefix=""))
        return Backbone(origin, weights, {"input": section, "backbone": values}, left_over)
    return None


def preferred(prefixes: list[str]) -> str:
    """Of the prefixes of several copies the one that is evaluated, else the first."""
    evaluated = (prefix for word in EVALUATED for prefix in prefixes if word in prefix.split("."))
    return next(evaluated, prefixes[0])


def pixels(caffe: bool, grouped: bool) -> dict[str, Any]:
    """The input scaling of ImageNet weights: torchvision's, or that of the Caffe models (ResNeXt's divides by std)."""
    if not caffe:
        return {"bgr": False, "mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    return {"bgr": True, "mean": CAFFE_MEAN, "std": (57.375, 57.12, 58.395) if grouped else (1.0, 1.0, 1.0)}


def architecture(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The keys of `model.backbone` that follow from shapes and names, with or without a layer4. Raises `KeyError`."""
    blocks = tuple(
        len({m[1] for m in (re.match(rf"layer{k}\.(\d+)\.", name) for name in weights) if m}) for k in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in weights
    groups, base_width = 1, 64
    if bottleneck:
        middle = weights["layer1.0.conv2.weight"]
        groups = middle.shape[0] // middle.shape[1]
        base_width = middle.shape[0] // groups
    if not blocks[3]:
        matching = [
            known.blocks
            for known in RESNETS.values()
            if (known.bottleneck, known.blocks[:3]) == (bottleneck, blocks[:3])
        ]
        blocks = matching[0] if matching else blocks
    wanted = Architecture(bottleneck, blocks, groups, base_width)  # type: ignore[arg-type]
    name = architecture_name(wanted)
    if name is None:
        raise KeyError(
            f"a backbone of {wanted}; known are resnet18, resnet34, resnet50, resnet101, resnet152, wide_resnet50_2, "
            "wide_resnet101_2 and the ResNeXts of these depths"
        )
    return {
        "name": name,
        "norm": "frozen_bn" if "bn1.running_mean" in weights or "conv1.1.running_mean" in weights else "gn",
        "deep_stem": "conv1.0.weight" in weights,
        "residual": any(name.startswith("layer2.0.downsample.") for name in weights),
        "avg_down": "layer2.0.downsample.1.weight" in weights and weights["layer2.0.downsample.1.weight"].ndim == 4,
        **({"project_first": True} if not bottleneck and "layer1.0.downsample.1.weight" in weights else {}),
        **_deformable(weights),
    }


def _deformable(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Version, stages and offset groups of deformable convolutions, from the shapes of their offsets; {} without any."""
    offsets = {m[1]: v for k, v in weights.items() if (m := re.match(r"layer(\d)\.\d+\.conv2\.offset\.weight", k))}
    if not offsets:
        return {}
    channels = len(next(iter(offsets.values())))
    # 18 channels per group in version 1, 27 in version 2; a multiple of both is taken for version 2.
    modulated = channels % 27 == 0
    return {
        "deformable": "v2" if modulated else "v1",
        "deformable_stages": [f"c{int(k) + 1}" for k in sorted(offsets)],
        "deformable_groups": channels // (27 if modulated else 18),
    }


def _torchvision_names(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    kept = {k: v for k, v in weights.items() if re.match(r"(conv1|bn1|layer[1-4])\.", k)}
    return kept, [k for k in weights if k not in kept and not re.match(r"(fc|head|classifier)\.", k)]


def _sequence_names(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """`nn.Sequential(*resnet.children())`, as lightly has it: the layers by their number."""
    layers = {"0": "conv1", "1": "bn1", **{str(k + 3): f"layer{k}" for k in range(1, 5)}}
    numbered = [(layers.get(name.partition(".")[0]), name.partition(".")[2], name) for name in weights]
    return {f"{layer}.{rest}": weights[name] for layer, rest, name in numbered if layer}, [
        name for layer, _, name in numbered if not layer
    ]


def _detectron2_names(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    converted, unknown = to_ours({f"backbone.bottom_up.{k}": v for k, v in weights.items()}, "detectron2")
    kept = {k.removeprefix("backbone."): v for k, v in converted.items()}
    return kept, [k.removeprefix("backbone.bottom_up.") for k in unknown if ".linear." not in k]


def _rtdetr_names(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    converted, unknown = rtdetr_names.to_ours({f"backbone.{k}": v for k, v in weights.items()}, rtdetr_names.AUTHORS)
    return {k.removeprefix("backbone."): v for k, v in converted.items()}, [
        k.removeprefix("backbone.") for k in unknown if not re.match(r"backbone\.(fc|head)\.", k)
    ]


_CAFFE2_BLOCK = re.compile(r"res([2-5])_(\d+)_branch(1|2a|2b|2c)_(w|(?:bn|gn)_\w+)$")
_CAFFE2_STEM = re.compile(r"(?:conv1_(w)|(?:res_)?conv1_((?:bn|gn)_\w+))$")
_CAFFE2_LAST = {
    "s": "weight", "gamma": "weight", "b": "bias", "beta": "bias", "rm": "running_mean", "running_mean": "running_mean",
    "riv": "running_var", "running_var": "running_var",
}  # fmt: skip


def _caffe2_names(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    kept, unknown = {}, []
    for name, value in weights.items():
        stem, block = _CAFFE2_STEM.match(name), _CAFFE2_BLOCK.match(name)
        part = (stem[1] or stem[2]) if stem else block[4] if block else ""
        last = "weight" if part == "w" else _CAFFE2_LAST.get(part[3:])
        if last is None:
            if not re.search(r"_momentum$|^(pred|fc1000|lr|conv1_b)", name):
                unknown.append(name)
            continue
        conv = part == "w"
        if block and block[3] == "1":
            ours = f"downsample.{0 if conv else 1}"
        else:
            ours = f"{'conv' if conv else 'bn'}{'abc'.index(block[3][1]) + 1 if block else 1}"
        ours = f"layer{int(block[1]) - 1}.{block[2]}.{ours}" if block else ours
        kept[f"{ours}.{last}"] = value
        if part in ("bn_s", "bn_gamma"):
            # The MSRA files hold batch norms as a scale and a shift: mean 0, variance + epsilon = 1.
            kept.setdefault(f"{ours}.running_mean", torch.zeros(len(value)))
            kept.setdefault(f"{ours}.running_var", torch.full((len(value),), 1 - EPS))
    return kept, unknown
