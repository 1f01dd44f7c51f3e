"""A config that trains in seconds."""

from __future__ import annotations

from pathlib import Path

import yaml

from resdet.config import Config
from resdet.config_text import parse_config

MODEL = {
    "num_classes": 4,
    "backbone": {"name": "resnet18", "weights": "none"},
    "fpn": {"channels": 16},
    "anchors": {"sizes": [16, 32, 64, 96, 128]},
    "rpn": {"pre_nms_train": 60, "post_nms_train": 40, "pre_nms_predict": 60, "post_nms_predict": 40},
    "box": {"width": 16, "samples": 16},
    "mask": {"num_convs": 1, "width": 16},
}


def values(root: Path, **train: object) -> dict:
    return {
        "device": "cpu",
        "model": MODEL,
        "data": {"root": str(root), "min_size": 64, "max_size": 96, "workers": 0},
        "train": {
            "max_iters": 4, "batch_size": 2, "lr": 0.001, "warmup_iters": 1, "log_every": 1, "eval_every": 2,
            "checkpoint_every": 2, "milestones": [3], **train,
        },
    }  # fmt: skip


def config(root: Path, output: Path, **train: object) -> Config:
    return parse_config({**values(root, **train), "output": str(output)})


def config_file(root: Path, folder: Path, **train: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values(root, **train)))
    return path
