"""What does not follow from a checkpoint's shapes: channel order, pixel scaling, stride placement, anchors, RoIAlign, classes.

These are the source's conventions, or are in the config text that mmdetection stores in its files.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from resdet.checkpoints import cascade
from resdet.checkpoints.backbones import pixels
from resdet.checkpoints.names import Source
from resdet.errors import UserError
from resdet.migration.conventions import DETECTRON2, MMDETECTION, OF_HEADS
from resdet.migration.expressions import known
from resdet.migration.python_config import parse_python

# Proposals of detectors without FPN, in detectron2 and mmdetection.
SINGLE_LEVEL = {"pre_nms_train": 12000, "pre_nms_predict": 6000, "post_nms_train": 2000, "post_nms_predict": 1000}


def add_numerics(values: dict[str, Any], source: Source, raw: dict[str, Tensor], meta: dict[str, Any]) -> list[str]:
    """Add the numerics to the `model` section of an architecture, in place. -> notes on what was inferred from what.

    raw: the tensors by their names in the file. meta: the file's other content.
    """
    backbone, box = values["backbone"], values["box"]
    alone = box is None
    if source == "torchvision":
        v2 = values["fpn"]["norm"] == "bn"  # there is always an FPN
        values["input"] = {"resize": "torch", "rounding": "floor"}
        values["anchors"] = {"offset": 0.0, "rounded": True, "grid_stride": True}
        values["rpn"] |= {"min_size": 1e-3, "post_nms_train": 2000, "loss_beta": 1 / 9}
        values["pool"] = {"aligned": False, "sampling_ratio": 2}
        if not alone:
            box |= {"min_size": 1e-2, "loss_beta": 1 / 9}
        # The frozen batch norms of V1's COCO weights have an epsilon of zero; those of V2, other depths and models built
        # without weights do not.
        trained = "backbone.body.bn1.num_batches_tracked" in raw
        backbone["norm"] = "bn" if trained or v2 else backbone["norm"]
        backbone["norm_eps"] = 0.0 if backbone["norm"] == "frozen_bn" and backbone["name"] == "resnet50" else 1e-5
        if "mask" in values:
            values["mask"]["paste"] = "torchvision"
        if "keypoint" in values:
            values["keypoint"]["decode"] = "torchvision"
        return [f"torchvision's {'V2' if v2 else 'V1'} builder, judging by the norms in its pyramid"]
    for key, shared in (DETECTRON2 if source == "detectron2" else MMDETECTION).items():
        if not (alone and key in OF_HEADS):
            values[key] = {**values.get(key, {}), **shared} if isinstance(shared, dict) else shared
    if source == "detectron2":
        notes = add_detectron2_input(values, raw)
        if "keypoint" in values:  # as in its model zoo
            values["rpn"]["post_nms_train"], values["box"]["loss_beta"] = 1500, 0.5
        if "fpn" not in values:
            values["rpn"] |= SINGLE_LEVEL
        if "cascade" in values:
            values["rpn"]["post_nms_train"] = 2000
        if alone:  # as in its model zoo
            values["rpn"] |= {"post_nms_predict": 2000, "pre_nms_predict": 1000 if "fpn" in values else 12000}
        return notes
    config = mmdetection_config(meta)
    model = _section(config, "model")
    note = add_mmdetection_input(values, config)
    if alone:
        tested = _section(_section(model, "test_cfg"), "rpn")
        values["rpn"] |= {
            "pre_nms_predict": tested.get("nms_pre", 2000), "post_nms_predict": tested.get("max_per_img", 1000)
        }  # fmt: skip
    else:
        values["box"]["low_quality"] = "mask" in values and "cascade" not in values
    heads = {
        k: v[0] if isinstance(v, list) and v else v for k, v in _section(model, "roi_head").items()
    }  # of a cascade
    of_section = {
        "backbone": _section(model, "backbone"), "fpn": _section(model, "neck"),
        "box": _section(heads, "bbox_head"), "mask": _section(heads, "mask_head"),
    }  # fmt: skip
    for key, section in of_section.items():
        if values.get(key) and _section(section, "conv_cfg").get("type") == "ConvWS":
            values[key]["weight_standardization"] = True
    if "cascade" in values:
        values["cascade"] |= cascade.of_mmdetection(model)
        values["rpn"] |= {"post_nms_train": 2000, "loss_beta": 1 / 9}
        values["box"]["loss_beta"] = 1.0
    return [note]


def add_detectron2_input(values: dict[str, Any], raw: dict[str, Tensor]) -> list[str]:
    """Complete `input` and `backbone` of a detectron2 model. -> notes on what was inferred from what."""
    backbone = values["backbone"]
    grouped = backbone["name"].startswith("resnext")
    values["input"] = {**values["input"], **pixels(caffe=True, grouped=grouped)}
    backbone["stride_in_1x1"] = not grouped and backbone["norm"] == "frozen_bn"
    notes = ["input scaling and stride placement are those of detectron2's model zoo for this backbone"]
    # Only if norms were trained: the statistics of a frozen stem are those of the weights that training started from.
    if not grouped and values.get("fpn", {}).get("norm") == "bn" and divided_by_std(raw):
        values["input"] |= pixels(caffe=True, grouped=True)
        backbone["stride_in_1x1"] = False
        notes.append("but pixels are divided by their std and strides are in the 3x3, judging by the stem's statistics")
    if {"pixel_mean", "pixel_std"} <= raw.keys():  # in older files
        mean, std = (tuple(raw[k].flatten().tolist()) for k in ("pixel_mean", "pixel_std"))
        values["input"] |= {"mean": mean, "std": std, "bgr": mean[0] < mean[2]}
        notes.append("but mean and std are from the file")
    return notes


def add_mmdetection_input(values: dict[str, Any], config: dict[str, Any], style: str = "pytorch") -> str:
    """The same for an mmdetection model, from the config in the file. style: of the backbone, if there is no config."""
    model = _section(config, "model")
    given = _section(model, "data_preprocessor") or _section(config, "img_norm_cfg")
    caffe = (_section(model, "backbone").get("style", "pytorch") if model else style) == "caffe"
    rgb = bool(given.get("bgr_to_rgb", given.get("to_rgb", not caffe)))
    usual = pixels(caffe, grouped=False)
    values["input"] = {
        "bgr": not rgb, "mean": tuple(given.get("mean") or usual["mean"]), "std": tuple(given.get("std") or usual["std"])
    }  # fmt: skip
    values["backbone"]["stride_in_1x1"] = caffe
    origin = "the config in the file" if model else f"the usual {style} style, since the file has no config"
    return f"input scaling and stride placement from {origin}"


def divided_by_std(raw: dict[str, Tensor]) -> bool:
    """Whether a detectron2 stem was trained on pixels divided by their standard deviation (about 57), judged by the running
    variance of its batch norm.

    False if there is none: with group norm, and in the MSRA weights, where the statistics are folded.
    """
    at = next((name.removesuffix("stem.conv1.weight") for name in raw if name.endswith("stem.conv1.weight")), None)
    variance = None if at is None else raw.get(f"{at}stem.conv1.norm.running_var")
    if variance is None or float(variance.float().std()) <= 1e-3 * float(variance.float().mean()):
        return False
    # The variance of a filter's responses is that of the pixels, 1 or 57 ** 2, times its squared length and a gain. The
    # gain's median is 1 for ResNet-18's filters on COCO and 14 on ImageNet's crops, hence a limit between 14 and 57 ** 2.
    length = raw[f"{at}stem.conv1.weight"].float().square().sum((1, 2, 3))
    alive = length > 1e-6 * length.max()
    return float((variance.float()[alive] / length[alive]).median()) < 4 * 57


def mmdetection_config(meta: dict[str, Any]) -> dict[str, Any]:
    """The values in mmdetection's config text that can be read without running it; {} if there is none.

    meta: see `Contents`.
    """
    inner = _section(meta, "meta")
    text = inner.get("cfg") or inner.get("config")
    if not isinstance(text, str):
        return {}
    try:
        return {name: known(value) for name, value in parse_python(text).values.items()}
    except UserError:
        return {}


def class_names(
    source: Source, count: int, meta: dict[str, Any], *, coco_keypoints: bool = False
) -> tuple[list[str], list[int]]:
    """(names, dataset category ids) by label, from the file or, for models of COCO's size, COCO's; empty if unknown.

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
