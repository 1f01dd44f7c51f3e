"""Parameter names and class layouts of torchvision, detectron2 and mmdetection -> ours.

One table per source: (pattern of the beginning of a name, our replacement). The rest of the name is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from resdet.checkpoints import dense_names

Source = Literal["torchvision", "detectron2", "mmdetection", "resdet"]

_COARSE = r"roi_heads\.mask_(?:head\.coarse|coarse)_head\."  # PointRend, in new and old files
_POINT = r"roi_heads\.mask_(?:head\.point|point)_head\."


def _detectron2_backbone(prefix: str) -> list[tuple[str, str]]:
    """A ResNet under a prefix. In C4 detectors res5 is part of the heads, which run it on RoIs."""
    rows = [(rf"{prefix}stem\.conv1\.norm\.", "backbone.bn1."), (rf"{prefix}stem\.conv1\.", "backbone.conv1.")]
    for k in range(1, 5):
        stage, ours = rf"{prefix}res{k + 1}\.(\d+)\.", rf"backbone.layer{k}.\1."
        rows += [
            (rf"{stage}conv2_offset\.", f"{ours}conv2.offset."),
            (rf"{stage}conv(\d)\.norm\.", rf"{ours}bn\2."),
            (rf"{stage}conv(\d)\.", rf"{ours}conv\2."),
            (rf"{stage}shortcut\.norm\.", f"{ours}downsample.1."),
            (rf"{stage}shortcut\.", f"{ours}downsample.0."),
        ]
    return rows


TABLES: dict[Source, list[tuple[str, str]]] = {
    "resdet": [],
    "torchvision": [
        (r"backbone\.body\.", "backbone."),
        (r"backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"fpn.lateral.\1.conv."),
        (r"backbone\.fpn\.inner_blocks\.(\d)\.1\.", r"fpn.lateral.\1.norm."),
        (r"backbone\.fpn\.inner_blocks\.(\d)\.(?=weight|bias)", r"fpn.lateral.\1.conv."),  # files of V1 on disk
        (r"backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"fpn.output.\1.conv."),
        (r"backbone\.fpn\.layer_blocks\.(\d)\.1\.", r"fpn.output.\1.norm."),
        (r"backbone\.fpn\.layer_blocks\.(\d)\.(?=weight|bias)", r"fpn.output.\1.conv."),
        (r"backbone\.fpn\.extra_blocks\.", "fpn.top."),
        (r"rpn\.head\.conv\.(\d)\.0\.", r"rpn.convs.\1."),
        (r"rpn\.head\.conv\.(?=weight|bias)", "rpn.convs.0."),
        (r"rpn\.head\.cls_logits\.", "rpn.objectness."),
        (r"rpn\.head\.bbox_pred\.", "rpn.deltas."),
        (r"roi_heads\.box_head\.fc6\.", "heads.box.trunk.fc1."),
        (r"roi_heads\.box_head\.fc7\.", "heads.box.trunk.fc2."),
        (r"roi_heads\.box_head\.5\.", "heads.box.trunk.fc."),
        (r"roi_heads\.box_head\.(\d)\.0\.", r"heads.box.trunk.convs.\1.conv."),
        (r"roi_heads\.box_head\.(\d)\.1\.", r"heads.box.trunk.convs.\1.norm."),
        (r"roi_heads\.box_predictor\.cls_score\.", "heads.box.classifier."),
        (r"roi_heads\.box_predictor\.bbox_pred\.", "heads.box.regressor."),
        (r"roi_heads\.mask_head\.(\d)\.0\.", r"heads.mask.convs.\1.conv."),
        (r"roi_heads\.mask_head\.(\d)\.1\.", r"heads.mask.convs.\1.norm."),
        (r"roi_heads\.mask_head\.mask_fcn(\d)\.", r"heads.mask.convs.-\1.conv."),
        (r"roi_heads\.mask_predictor\.conv5_mask\.", "heads.mask.upsample."),
        (r"roi_heads\.mask_predictor\.mask_fcn_logits\.", "heads.mask.logits."),
        *((rf"roi_heads\.keypoint_head\.{2 * k}\.", f"heads.keypoint.convs.{k}.conv.") for k in range(8)),
        (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.", "heads.keypoint.logits."),
    ],
    "detectron2": [
        *_detectron2_backbone(r"backbone\.bottom_up\."),
        *_detectron2_backbone(r"backbone\."),  # without FPN
        *_detectron2_backbone(r"roi_heads\."),  # C4: res5 alone
        *((rf"backbone\.fpn_lateral{k + 2}\.norm\.", f"fpn.lateral.{k}.norm.") for k in range(4)),
        *((rf"backbone\.fpn_lateral{k + 2}\.", f"fpn.lateral.{k}.conv.") for k in range(4)),
        *((rf"backbone\.fpn_output{k + 2}\.norm\.", f"fpn.output.{k}.norm.") for k in range(4)),
        *((rf"backbone\.fpn_output{k + 2}\.", f"fpn.output.{k}.conv.") for k in range(4)),
        (r"backbone\.top_block\.", "fpn.top."),
        (r"proposal_generator\.rpn_head\.conv\.conv(\d)\.", r"rpn.convs.\1."),
        (r"proposal_generator\.rpn_head\.conv\.", "rpn.convs.0."),
        (r"proposal_generator\.rpn_head\.objectness_logits\.", "rpn.objectness."),
        (r"proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.deltas."),
        (r"roi_heads\.box_head\.(\d)\.conv(\d)\.norm\.", r"heads.box.stages.\1.trunk.convs.-\2.norm."),
        (r"roi_heads\.box_head\.(\d)\.conv(\d)\.", r"heads.box.stages.\1.trunk.convs.-\2.conv."),
        (r"roi_heads\.box_head\.(\d)\.fc(\d)\.", r"heads.box.stages.\1.trunk.fc\2."),
        (r"roi_heads\.box_predictor\.(\d)\.cls_score\.", r"heads.box.stages.\1.classifier."),
        (r"roi_heads\.box_predictor\.(\d)\.bbox_pred\.", r"heads.box.stages.\1.regressor."),
        (r"roi_heads\.box_head\.conv(\d)\.norm\.", r"heads.box.trunk.convs.-\1.norm."),
        (r"roi_heads\.box_head\.conv(\d)\.", r"heads.box.trunk.convs.-\1.conv."),
        (r"roi_heads\.box_head\.fc(\d)\.", r"heads.box.trunk.fc\1."),
        (r"roi_heads\.box_predictor\.cls_score\.", "heads.box.classifier."),
        (r"roi_heads\.box_predictor\.bbox_pred\.", "heads.box.regressor."),
        (rf"{_COARSE}reduce_spatial_dim_conv\.", "heads.mask.coarse.reduce."),
        (rf"{_COARSE}(?:coarse_mask_)?fc(\d)\.", r"heads.mask.coarse.fcs.-\1."),
        (rf"{_COARSE}prediction\.", "heads.mask.coarse.logits."),
        (rf"{_POINT}fc(\d)\.", r"heads.mask.point.fcs.-\1."),
        (rf"{_POINT}predictor\.", "heads.mask.point.logits."),
        (r"roi_heads\.mask_head\.mask_fcn(\d)\.norm\.", r"heads.mask.convs.-\1.norm."),
        (r"roi_heads\.mask_head\.mask_fcn(\d)\.", r"heads.mask.convs.-\1.conv."),
        (r"roi_heads\.mask_head\.deconv\.", "heads.mask.upsample."),
        (r"roi_heads\.mask_head\.predictor\.", "heads.mask.logits."),
        # In its towers, every convolution but p2's only one is followed by a doubling, which has a number, too.
        *(
            (rf"sem_seg_head\.p{k + 2}\.{2 * i}\.{theirs}", f"heads.semantic.towers.{k}.convs.{i}.{ours}.")
            for k in range(4)
            for i in range(max(1, k))
            for theirs, ours in ((r"norm\.", "norm"), ("", "conv"))
        ),
        (r"sem_seg_head\.predictor\.", "heads.semantic.logits."),
        (r"roi_heads\.keypoint_head\.conv_fcn(\d)\.", r"heads.keypoint.convs.-\1.conv."),
        (r"roi_heads\.keypoint_head\.score_lowres\.", "heads.keypoint.logits."),
    ],
    "mmdetection": [
        (r"backbone\.layer(\d)\.(\d+)\.conv2(?:\.conv_offset|_offset)\.", r"backbone.layer\1.\2.conv2.offset."),
        (r"backbone\.layer(\d)\.(\d+)\.gn(\d)\.(?=weight|bias)", r"backbone.layer\1.\2.bn\3."),
        (r"backbone\.stem\.7\.(?=\w)", "backbone.bn1."),
        (r"backbone\.stem\.", "backbone.conv1."),
        (r"backbone\.gn1\.(?=weight|bias)", "backbone.bn1."),
        (r"backbone\.", "backbone."),
        (r"neck\.lateral_convs\.(\d)\.conv\.", r"fpn.lateral.\1.conv."),
        (r"neck\.lateral_convs\.(\d)\.(?:bn|gn)\.", r"fpn.lateral.\1.norm."),
        (r"neck\.fpn_convs\.(\d)\.conv\.", r"fpn.output.\1.conv."),
        (r"neck\.fpn_convs\.(\d)\.(?:bn|gn)\.", r"fpn.output.\1.norm."),
        (r"rpn_head\.rpn_conv\.(\d)\.conv\.", r"rpn.convs.\1."),
        (r"rpn_head\.rpn_conv\.", "rpn.convs.0."),
        (r"rpn_head\.rpn_cls\.", "rpn.objectness."),
        (r"rpn_head\.rpn_reg\.", "rpn.deltas."),
        *(
            (rf"roi_head\.bbox_head\.(\d)\.{theirs}\.", rf"heads.box.stages.\1.{ours}.")
            for theirs, ours in (
                (r"shared_convs\.(\d)\.conv", r"trunk.convs.\2.conv"),
                (r"shared_convs\.(\d)\.(?:bn|gn)", r"trunk.convs.\2.norm"),
                (r"shared_fcs\.0", "trunk.fc1"),
                (r"shared_fcs\.1", "trunk.fc2"),
                ("fc_cls", "classifier"),
                ("fc_reg", "regressor"),
            )
        ),
        (r"roi_head\.mask_head\.(\d)\.convs\.(\d)\.conv\.", r"heads.box.masks.\1.convs.\2.conv."),
        (r"roi_head\.mask_head\.(\d)\.convs\.(\d)\.(?:bn|gn)\.", r"heads.box.masks.\1.convs.\2.norm."),
        (r"roi_head\.mask_head\.(\d)\.upsample\.", r"heads.box.masks.\1.upsample."),
        (r"roi_head\.mask_head\.(\d)\.conv_logits\.", r"heads.box.masks.\1.logits."),
        (r"roi_head\.bbox_head\.shared_convs\.(\d)\.conv\.", r"heads.box.trunk.convs.\1.conv."),
        (r"roi_head\.bbox_head\.shared_convs\.(\d)\.(?:bn|gn)\.", r"heads.box.trunk.convs.\1.norm."),
        (r"roi_head\.bbox_head\.shared_fcs\.0\.", "heads.box.trunk.fc1."),
        (r"roi_head\.bbox_head\.shared_fcs\.1\.", "heads.box.trunk.fc2."),
        (r"roi_head\.bbox_head\.fc_cls\.", "heads.box.classifier."),
        (r"roi_head\.bbox_head\.fc_reg\.", "heads.box.regressor."),
        (r"roi_head\.mask_head\.convs\.(\d)\.conv\.", r"heads.mask.convs.\1.conv."),
        (r"roi_head\.mask_head\.convs\.(\d)\.(?:bn|gn)\.", r"heads.mask.convs.\1.norm."),
        (r"roi_head\.mask_head\.upsample\.", "heads.mask.upsample."),
        (r"roi_head\.mask_head\.conv_logits\.", "heads.mask.logits."),
        (r"semantic_head\.conv_upsample_layers\.(\d)\.conv\.(\d)\.conv\.", r"heads.semantic.towers.\1.convs.\2.conv."),
        (
            r"semantic_head\.conv_upsample_layers\.(\d)\.conv\.(\d)\.(?:gn|bn)\.",
            r"heads.semantic.towers.\1.convs.\2.norm.",
        ),
        (r"semantic_head\.conv_logits\.", "heads.semantic.logits."),
    ],
}
# Names that occur in one source only; with alternatives for detectors without FPN.
SIGNS: dict[Source, str] = {
    "detectron2": r"(?:backbone\.bottom_up|proposal_generator\.rpn_head)\.",
    "torchvision": r"backbone\.body\.",
    "mmdetection": r"neck\.lateral_convs?\.",
    "resdet": r"(?:fpn\.lateral|rpn\.objectness|queries\.score)\.",
}


def source_of(names: Iterable[str]) -> tuple[Source, str] | None:
    """The source of a detector with these names and their prefix ("model.", "state_dict.module.", …); None for no detector.

    If there are several copies (averaged weights, an optimiser's state), the first in the file counts.
    """
    names = list(names)
    for source, sign in SIGNS.items():
        for name in names:
            match = re.match(rf"((?:.*\.)?){sign}", name)
            if match:
                return source, match[1]
    return None


def to_ours(weights: dict[str, Tensor], source: Source) -> tuple[dict[str, Tensor], list[str]]:
    """Weights by our names and in our class layout, and the names that are in no table."""
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    kind = dense_names.kind_of(weights)
    table = TABLES[source] + (dense_names.rows_of(source, kind) if kind else [])
    for name, value in weights.items():
        ours = name if source == "resdet" else _translate(name, table)
        if ours is None:
            unknown.append(name)
        else:
            value = _without_background(ours, value) if source == "torchvision" else value
            if source == "mmdetection" and ours.startswith("heads.semantic.logits."):
                value = torch.cat([value[-1:], value[:-1]])  # all things come last there, first here
            converted[ours] = (
                value.squeeze(-1) if ours.startswith("heads.mask.point.") else value
            )  # convolutions of width 1
    one_fc = any(k.endswith("trunk.convs.0.conv.weight") for k in converted)
    if one_fc:  # the single layer of 4conv1fc; elsewhere it is named like the first of two
        converted = {k.replace(".trunk.fc1.", ".trunk.fc."): v for k, v in converted.items()}
    if kind and source != "resdet":
        converted = dense_names.to_our_layout(dense_names.from_first_level(converted), kind, source)
    return converted, unknown


def _translate(name: str, table: list[tuple[str, str]]) -> str | None:
    for pattern, ours in table:
        translated, hits = re.subn(f"^{pattern}", ours, name)
        if hits:
            # "-1" to "-4": the source numbers its layers from one.
            return re.sub(r"\.(convs|fcs)\.-(\d)\.", lambda m: f".{m[1]}.{int(m[2]) - 1}.", translated)
    return None


def from_ours(name: str, source: Source, kind: dense_names.Kind | None = None) -> str | None:
    """The inverse of a table: our name of a parameter -> theirs, None if they have none. Class layouts stay as they are.
    kind: of a one-stage detector."""
    for pattern, ours in TABLES[source] + (dense_names.rows_of(source, kind) if kind else []):
        if "(?=" in pattern:
            continue  # reads a second spelling
        # "\1", "\2" become the numbers to find; "-" means that the source numbers its layers from one.
        match = re.match(re.sub(r"-?\\\\\d", r"(\\d+)", re.escape(ours.replace("-", ""))), name)
        if match:
            from_one = re.findall(r"(-?)\\\d", ours)
            numbers = [str(int(number) + bool(sign)) for number, sign in zip(match.groups(), from_one, strict=True)]
            theirs = re.sub(r"\(\\d\+?\)", lambda _: numbers.pop(0), pattern)  # noqa: B023 (called at once)
            theirs = re.sub(r"\(\?:([^|]+)\|[^)]+\)", r"\1", theirs)  # the first of two spellings
            return theirs.replace("\\", "") + name[match.end() :]
    return None


def _without_background(name: str, value: Tensor) -> Tensor:
    """torchvision has a background row first in every predictor; ours is last in the classifier, and nowhere else."""
    if name.startswith("heads.box.classifier."):
        return torch.cat([value[1:], value[:1]])
    if name.startswith("heads.box.regressor."):
        return value[4:]
    return value[1:] if name.startswith("heads.mask.logits.") else value
