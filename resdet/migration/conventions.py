"""How each tool computes where its configs and checkpoints say nothing: `model` sections that all of its detectors share."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "anchors": {"offset": 0.0},
    "pool": {"aligned": True, "sampling_ratio": 0},
    "fold_norm": False,  # masks whose edge lies on their box's, and scores that tie, show the last bit
}
OF_HEADS = ("box", "pool")  # sections that mean nothing to the RPN alone
DETECTRON2: dict[str, Any] = {
    **_COMMON,
    "input": {"resize": "pillow"},
    "rpn": {"fixed_divisor": True},
    "box": {"empty": "drop_last"},
}
MMDETECTION: dict[str, Any] = {
    **_COMMON,
    "rpn": {"clamp_shrink": True, "rank": "sigmoid"},
    "box": {"empty": "keep", "clamp_shrink": True},
}
