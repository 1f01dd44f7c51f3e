"""A recognised RT-DETR -> a folder that transformers opens: model.safetensors, config.json, preprocessor_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from resdet.checkpoints.recognise import Recognised
from resdet.checkpoints.rtdetr import CONFIG, FIXED
from resdet.checkpoints.rtdetr_names import to_transformers
from resdet.config import ModelConfig, RTDETRConfig
from resdet.errors import UserError, listed
from resdet.models.backbones.resnet import architecture
from resdet.writing import atomic_write, make_folder, refuse_overwriting, write_json

EPS = 1e-5  # of its batch norms
WEIGHTS, CONFIG_FILE, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"


def save_transformers(found: Recognised, folder: Path) -> str:
    """-> how to load it there. Raises `UserError` for what transformers cannot build."""
    if not found.whole:
        raise UserError(f"{found.path}: holds a backbone; only an RT-DETR can be written for transformers")
    files = [folder / name for name in (WEIGHTS, CONFIG_FILE, PROCESSOR)]
    refuse_overwriting(files, [found.path])
    name = write_model(found.weights, found.model, found.class_names, folder, found.path)
    write_json(folder / PROCESSOR, _processor(found.model, found.min_size), indent=2)
    return (
        "to load it in transformers:\n"
        f'  model = transformers.{name}.from_pretrained("{folder}")\n'
        f'  processor = transformers.RTDetrImageProcessor.from_pretrained("{folder}")'
    )


def write_model(
    weights: dict[str, Tensor], m: ModelConfig, class_names: list[str], folder: Path, source: str | Path
) -> str:
    """Weights and config.json into a folder. -> the class that reads them.

    source: what an error names. Raises `UserError` for what transformers cannot build.
    """
    if not isinstance(m, RTDETRConfig):
        raise UserError(f"{source}: holds model.kind={m.kind}; only an RT-DETR can be written for transformers")
    _require_buildable(m, source)
    make_folder(folder)
    renamed = to_transformers(_backbone(weights, m))
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file({k: v.contiguous() for k, v in renamed.items()}, temporary, metadata={"format": "pt"})
    config = _config(m, class_names)
    write_json(folder / CONFIG_FILE, config, indent=2)
    return str(config["architectures"][0])


def _require_buildable(m: RTDETRConfig, source: str | Path) -> None:
    b = m.backbone
    fixed: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "backbone.name": (b.name, ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")),
        "backbone.norm": (b.norm, ("frozen_bn", "bn", "sync_bn")),
        "backbone.norm_eps": (b.norm_eps, (EPS,)),
        "backbone.deep_stem": (b.deep_stem, (True,)),
        "backbone.avg_down": (b.avg_down, (True,)),
        "backbone.residual": (b.residual, (True,)),
        "backbone.weight_standardization": (b.weight_standardization, (False,)),
        "backbone.deformable": (b.deformable, ("none",)),
        "decoder.points": (m.decoder.points, ((m.decoder.points[0],) * 3,)),
        "decoder.predict_layers": (m.decoder.predict_layers or m.decoder.layers, (m.decoder.layers,)),
        "input.keep_ratio": (m.input.keep_ratio, (False,)),
    }
    problems = [
        f"model.{key} is {value}, transformers has only {', '.join(map(str, ok))}"
        for key, (value, ok) in fixed.items()
        if value not in ok
    ]
    if problems:
        raise listed(f"{source}: transformers cannot build this model:", problems)


def _backbone(weights: dict[str, Tensor], m: RTDETRConfig) -> dict[str, Tensor]:
    """The weights for RGB, and for the projection in the first shortcut of its shallow ResNets, if need be an identity."""
    weights = dict(weights)
    if m.input.bgr:
        weights["backbone.conv1.0.weight"] = weights["backbone.conv1.0.weight"].flip(1)
    first = "backbone.layer1.0.downsample"
    if not architecture(m.backbone.name).bottleneck and f"{first}.1.weight" not in weights:
        channels = weights["backbone.layer1.0.conv1.weight"].shape[1]
        weights |= {
            f"{first}.1.weight": torch.eye(channels)[..., None, None], f"{first}.2.weight": torch.ones(channels),
            f"{first}.2.bias": torch.zeros(channels), f"{first}.2.running_mean": torch.zeros(channels),
            f"{first}.2.running_var": torch.full((channels,), 1 - EPS),
        }  # fmt: skip
    return weights


def _config(m: RTDETRConfig, class_names: list[str]) -> dict[str, Any]:
    values = m.model_dump()
    arch = architecture(m.backbone.name)
    sizes = [64 * 2**k * (4 if arch.bottleneck else 1) for k in range(4)]
    e, d, version = m.encoder, m.decoder, ""
    if d.sampling == "discrete" or d.offset_scale != 0.5:
        version = "V2"
    names = class_names or [f"LABEL_{k}" for k in range(m.num_classes or 0)]
    config: dict[str, Any] = {
        "architectures": [f"RTDetr{version}ForObjectDetection"],
        "model_type": "rt_detr_v2" if version else "rt_detr",
        "id2label": {str(k): name for k, name in enumerate(names)}, "label2id": {name: k for k, name in enumerate(names)},
        "backbone_config": {
            "model_type": "rt_detr_resnet", "num_channels": m.input.channels, "hidden_sizes": sizes,
            "depths": list(arch.blocks), "layer_type": "bottleneck" if arch.bottleneck else "basic",
            "downsample_in_bottleneck": m.backbone.stride_in_1x1, "out_features": ["stage2", "stage3", "stage4"],
            "out_indices": [2, 3, 4],
        },
        "freeze_backbone_batch_norms": m.backbone.norm == "frozen_bn", "encoder_in_channels": sizes[1:],
        "encoder_hidden_dim": e.width, "encoder_layers": e.layers, "encoder_ffn_dim": e.ffn, "hidden_expansion": e.expansion,
        "decoder_in_channels": [e.width] * 3, "d_model": d.width, "decoder_layers": d.layers, "decoder_ffn_dim": d.ffn,
        "decoder_n_points": d.points[0], **FIXED,
    }  # fmt: skip
    for theirs, ours in CONFIG.items():
        section, _, name = ours.rpartition(".")
        within = values[section] if section else values
        if within is not None:
            config[theirs] = within[name]
    if m.denoising is None:
        config["num_denoising"] = 0
    if version:
        config |= {"decoder_method": "discrete" if d.sampling == "discrete" else "default", "decoder_n_levels": 3}
    else:
        del config["decoder_offset_scale"]
    return config


def _processor(m: ModelConfig, side: int) -> dict[str, Any]:
    """Pixels in 0..1, then mean and std if there are any."""
    order = slice(None, None, -1 if m.input.bgr else None)
    mean, std = ([v / 255 for v in values[order]] for values in (m.input.mean, m.input.std))
    return {
        "image_processor_type": "RTDetrImageProcessor", "do_resize": True, "size": {"height": side, "width": side},
        "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": any(mean) or any(s != 1 for s in std), "image_mean": mean, "image_std": std, "do_pad": False,
    }  # fmt: skip
