"""The stages of a Cascade R-CNN in a checkpoint: whether all are there, and their settings in mmdetection's config."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

# The modules of a stage, by our names, and the names in a model with a single box head.
PLACES = {"heads.box.stages": "heads.box", "heads.box.masks": "heads.mask"}
STAGES = 3  # of every published model


def single(name: str) -> str:
    """The name that a parameter of a stage has in a model with one box head and one mask head."""
    for place, alone in PLACES.items():
        name = re.sub(rf"^{re.escape(place)}\.\d+\.", f"{alone}.", name)
    return name


def first_stage(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as if the first stage were the only one."""
    later = re.compile(r"heads\.box\.(stages|masks)\.[1-9]\d*\.")
    return {single(name): value for name, value in weights.items() if not later.match(name)}


def is_cascade(weights: dict[str, Tensor]) -> bool:
    return any(name.startswith("heads.box.stages.") for name in weights)


def missing(weights: dict[str, Tensor], stages: int = STAGES) -> list[str]:
    """One line per stage that is incomplete or too many, for a cascade of `stages` stages."""
    parts = {"heads.box.stages.{}.trunk.": "box head", "heads.box.stages.{}.classifier.": "classifier",
             "heads.box.stages.{}.regressor.": "box regressor"}  # fmt: skip
    if any(name.startswith("heads.box.masks.") for name in weights):
        parts["heads.box.masks.{}."] = "mask head"
    problems = []
    for k in range(stages):
        absent = [what for prefix, what in parts.items() if not any(n.startswith(prefix.format(k)) for n in weights)]
        if absent:
            problems.append(f"stage {k} of 0 to {stages - 1}: no {', no '.join(absent)}")
    more = {int(m[1]) for m in (re.match(r"heads\.box\.stages\.(\d+)\.", name) for name in weights) if m}
    problems += [f"stage {k}: there should be {stages} stages, 0 to {stages - 1}" for k in sorted(more) if k >= stages]
    return problems


def of_mmdetection(model: dict[str, Any]) -> dict[str, Any]:
    """The `model.cascade` section of an mmdetection model, from the `model` of its config as far as given."""
    head, train = model.get("roi_head") or {}, model.get("train_cfg") or {}
    section = {
        "ious": [0.5, 0.6, 0.7], "loss_weights": [1.0, 0.5, 0.25],
        "resample": True, "scale_gradients": False, "average": "logits",
    }  # fmt: skip
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    try:
        stds = [[float(s) for s in one["bbox_coder"]["target_stds"]] for one in head["bbox_head"]]
        section["loss_weights"] = [float(w) for w in head["stage_loss_weights"]]
        section["ious"] = [float(stage["assigner"]["pos_iou_thr"]) for stage in train["rcnn"]]
    except (KeyError, TypeError, ValueError):
        pass  # an older or incomplete config: keep the defaults
    return {**section, "delta_weights": [[1 / s for s in one] for one in stds]}


def stages_in(model: dict[str, Any]) -> int:
    """The number of stages in the `model` of mmdetection's config; the default if it is not given."""
    count = (model.get("roi_head") or {}).get("num_stages")
    return count if isinstance(count, int) and count > 0 else STAGES
