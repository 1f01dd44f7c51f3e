"""What a checkpoint's shapes cannot tell: channel order, pixel scaling, stride placement, anchors, RoIAlign, classes.

These are the source's conventions, or stand in the config text that mmdetection stores in its files.
"""

from __future__ import annotations

import ast
from typing import Any

from torch import Tensor

from resdet.checkpoints.backbones import pixels
from resdet.checkpoints.names import Source


def add_numerics(values: dict[str, Any], source: Source, raw: dict[str, Tensor], meta: dict[str, Any]) -> list[str]:
    """Complete the `model` section of an architecture in place. -> what was decided by what, for people.

    raw: the tensors by their names in the file. meta: the file's other content.
    """
    backbone, box = values["backbone"], values["box"]
    if source == "torchvision":
        v2 = values["fpn"]["norm"] == "bn"
        values["input"] = {"resize": "torch", "rounding": "floor"}
        values["anchors"] = {"offset": 0.0, "rounded": True, "grid_stride": True}
        values["rpn"] |= {"min_size": 1e-3, "post_nms_train": 2000, "loss_beta": 1 / 9}
        values["pool"] = {"aligned": False, "sampling_ratio": 2}
        box |= {"min_size": 1e-2, "loss_beta": 1 / 9}
        # V1's COCO weights have a frozen batch norm with an epsilon of zero; V2, other depths and models that were built
        # without any weights have not.
        trained = "backbone.body.bn1.num_batches_tracked" in raw
        backbone["norm"] = "bn" if trained or v2 else backbone["norm"]
        backbone["norm_eps"] = 0.0 if backbone["norm"] == "frozen_bn" and backbone["name"] == "resnet50" else 1e-5
        if "mask" in values:
            values["mask"]["paste"] = "torchvision"
        if "keypoint" in values:
            values["keypoint"]["decode"] = "torchvision"
        return [f"torchvision's {'V2' if v2 else 'V1'} builder, told by the norms in its pyramid"]
    values["anchors"] = {"offset": 0.0}
    values["pool"] = {"aligned": True, "sampling_ratio": 0}
    values["fold_norm"] = False  # masks whose edge lies on their box's, and scores that tie, show the last bit
    if source == "detectron2":
        grouped = backbone["name"].startswith("resnext")
        values["input"] = {**pixels(caffe=True, grouped=grouped), "resize": "pillow"}
        backbone["stride_in_1x1"] = not grouped and backbone["norm"] == "frozen_bn" and values["fpn"]["norm"] != "gn"
        box["empty"] = "drop_last"
        values["rpn"]["fixed_divisor"] = True
        if "keypoint" in values:  # as its model zoo trains people
            values["rpn"]["post_nms_train"], box["loss_beta"] = 1500, 0.5
        notes = ["input scaling and stride placement are those of detectron2's model zoo for this backbone"]
        if {"pixel_mean", "pixel_std"} <= raw.keys():  # in older files
            mean, std = (tuple(raw[k].flatten().tolist()) for k in ("pixel_mean", "pixel_std"))
            values["input"] |= {"mean": mean, "std": std, "bgr": mean[0] < mean[2]}
            notes.append("but mean and std are the file's own")
        return notes
    inner = _section(meta, "meta")
    text = inner.get("cfg") or inner.get("config")
    text = text if isinstance(text, str) else ""
    model = _python_literal(text, "model")
    given = model.get("data_preprocessor") or _python_literal(text, "img_norm_cfg")
    caffe = _section(model, "backbone").get("style") == "caffe"
    rgb = bool(given.get("bgr_to_rgb", given.get("to_rgb", not caffe)))
    usual = pixels(caffe, grouped=False)
    values["input"] = {
        "bgr": not rgb, "mean": tuple(given.get("mean", usual["mean"])), "std": tuple(given.get("std", usual["std"]))
    }  # fmt: skip
    backbone["stride_in_1x1"] = caffe
    box |= {"empty": "keep", "clamp_shrink": True}
    values["rpn"] |= {"clamp_shrink": True, "rank": "sigmoid"}
    box["low_quality"] = "mask" in values
    told = "the config in the file" if model else "the usual one of the pytorch style: the file has no config"
    return [f"input scaling and stride placement from {told}"]


def _python_literal(text: str, name: str) -> dict[str, Any]:
    """The value of `name = dict(…)` in Python source, without running it; {} if it is not there or not plain."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    for statement in tree.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if isinstance(statement, ast.Assign) and isinstance(target, ast.Name) and target.id == name:
            value = _value(statement.value)
            return value if isinstance(value, dict) else {}
    return {}


def _value(node: ast.expr) -> Any:
    """dict(…) calls, containers and constants; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {k.arg: _value(k.value) for k in node.keywords if k.arg}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(entry) for entry in node.elts]
    if isinstance(node, ast.Dict):
        return {
            _value(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)
        }
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        return -node.operand.value if isinstance(node.operand.value, int | float) else None
    return node.value if isinstance(node, ast.Constant) else None


def class_names(
    source: Source, count: int, meta: dict[str, Any], *, coco_keypoints: bool = False
) -> tuple[list[str], list[int]]:
    """(names, dataset category ids), label by label; empty where neither the file nor COCO's habit tells.

    coco_keypoints: whether the model has as many keypoints as COCO's persons.
    """
    if coco_keypoints and count == 1:
        return ["person"], [1]
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    coco: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # with background and gaps, by id
    if source == "torchvision" and count == len(coco) - 1:
        return coco[1:], list(range(1, count + 1))
    ids = [k for k, name in enumerate(coco) if name not in ("__background__", "N/A")]
    inner = _section(meta, "meta")
    dataset = _section(inner, "dataset_meta")
    given = next((d[k] for d in (dataset, inner) for k in ("classes", "CLASSES") if d.get(k) is not None), None)
    names = [str(name) for name in given] if isinstance(given, list | tuple) and len(given) == count else []
    of_coco = [coco[k] for k in ids]
    if source in ("detectron2", "mmdetection") and count == len(ids) and (not names or set(names) == set(of_coco)):
        return names or of_coco, [coco.index(name) for name in names] if names else ids
    return names, list(range(1, count + 1)) if names else []


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    inner = values.get(key)
    return inner if isinstance(inner, dict) else {}
