"""resdet: object detection and segmentation on residual backbones.

config = resdet.load_config("configs/maskrcnn_r50.yaml", ["train.lr=0.01"])
resdet.train(config)
instances = resdet.Predictor(config, "outputs/checkpoints/best.pt")(["image.jpg"])
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resdet.config import Config as Config
    from resdet.config import load_config as load_config
    from resdet.errors import UserError as UserError
    from resdet.export.program import export_prediction as export_prediction
    from resdet.inference.predictor import Predictor as Predictor
    from resdet.models.build import build_model as build_model
    from resdet.structures import Batch as Batch
    from resdet.structures import Detections as Detections
    from resdet.structures import Instances as Instances
    from resdet.structures import Targets as Targets
    from resdet.training.loop import train as train

try:
    __version__ = version("resdet")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0"

# Imported on first use, so that `import resdet` and `--help` do not import torch.
_HOMES = {
    "Config": "config",
    "load_config": "config",
    "train": "training.loop",
    "UserError": "errors",
    "build_model": "models.build",
    "Predictor": "inference.predictor",
    "export_prediction": "export.program",
    "Batch": "structures",
    "Targets": "structures",
    "Detections": "structures",
    "Instances": "structures",
}
__all__ = ["Batch", "Config", "Detections", "Instances", "Predictor", "Targets", "UserError", "__version__",
           "build_model", "export_prediction", "load_config", "train"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resdet' has no attribute {name!r}")
    return getattr(import_module(f"resdet.{_HOMES[name]}"), name)
