"""ImageNet-pretrained residual weights for the backbone: by name (torchvision's files and cache) or from a file."""

from __future__ import annotations

import os
import urllib.error
from pathlib import Path

import torch
from torch import Tensor

from resdet.engine.checkpoint import load_weights, read_checkpoint
from resdet.errors import UserError
from resdet.models.resnet import ResNet

# torchvision's IMAGENET1K_V1 files; the hash that the name ends in is checked after a download.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
}
SERVER = "https://download.pytorch.org/models/"


def find_weights(name: str, weights: str) -> Path:
    """`weights` of backbone `name` ("imagenet" or a path) -> a file on disk, downloaded if need be.

    Raises `UserError` that says which file is missing, where it was looked for, and what to do.
    """
    if weights != "imagenet":
        path = Path(weights)
        if not path.is_file():
            raise UserError(f"model.backbone.weights: {path}: no such file (write imagenet, none or a file)")
        return path
    file = FILES[name]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / file).is_file():
        try:
            torch.hub.load_state_dict_from_url(SERVER + file, check_hash=True, map_location="cpu", weights_only=True)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(
                f"ImageNet weights for {name} are not there and could not be downloaded ({error}).\n"
                f"  looked for:   {folder / file}\n"
                f"  to fix:       download {SERVER}{file} elsewhere and put it there"
                f"{'' if 'TORCH_HOME' in os.environ else ' (or set TORCH_HOME)'},\n"
                f"                or name a file of your own: model.backbone.weights=/path/to/{file},\n"
                f"                or train from scratch: model.backbone.weights=none"
            ) from None
    return folder / file


def load_backbone(backbone: ResNet, path: Path) -> None:
    """Fill a backbone from a classifier's state dict with torchvision's names; its `fc` is left out."""
    weights: dict[str, Tensor] = read_checkpoint(path).model
    load_weights(backbone, {k: v for k, v in weights.items() if not k.startswith("fc.")}, path)
