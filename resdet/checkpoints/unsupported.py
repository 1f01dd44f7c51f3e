"""Detectors and backbones that resdet knows but cannot build: parameter names -> the name of the model, for errors."""

from __future__ import annotations

import re
from collections.abc import Iterable

# (model, pattern in a parameter's name); the most specific first.
SIGNS = (
    ("a RegNet backbone (RegNetX, RegNetY)", r"(?:^|\.)bottom_up\.s1\.b1\.|backbone\.(?:bottom_up\.)?s1\.b1\."),
    ("a RegNet backbone (RegNetX, RegNetY)", r"trunk_output\.block1\.block1-0\.f\."),
    ("a Res2Net backbone", r"layer1\.0\.(?:bns|convs)\.0\."),
    ("a ResNeSt backbone", r"layer1\.0\.conv2\.fc1\."),
    ("an HRNet backbone", r"stage2\.0\.(?:branches|fuse_layers)\."),
    ("a Swin Transformer backbone", r"layers\.0\.blocks\.0\.attn\.|stages\.0\.blocks\.0\.attn\.w_msa\."),
    ("a vision transformer (ViTDet)", r"(?:backbone|net)\.blocks\.0\.attn\.qkv\."),
    ("a ConvNeXt backbone", r"stages\.0\.0\.(?:dwconv|depthwise_conv|gamma)"),
    ("a GCNet (context blocks in the backbone)", r"context_block\d*\.conv_mask\."),
    ("deformable RoI pooling (mdpool)", r"bbox_roi_extractor\.roi_layers\.\d\.offset_fc\."),
    ("Mask Scoring R-CNN", r"mask_iou_head\.|maskiou"),
    ("Double-Head R-CNN", r"bbox_head\.(?:fc_branch|conv_branch)\."),
    ("Grid R-CNN", r"grid_head\."),
    ("HTC (Hybrid Task Cascade)", r"roi_head\.semantic_head\."),
    ("DETR or one of its kin", r"(?:transformer|encoder)\.(?:encoder\.)?layers\.0\.(?:self_attn|attentions)\."),
    ("YOLOX", r"backbone\.backbone\.dark2\.|bbox_head\.multi_level_cls_convs\."),
    ("an Ultralytics YOLO", r"(?:^|\.)model\.\d+\.(?:cv1|m)\.(?:conv|0)\."),
    ("CornerNet", r"tl_heat|tl_pool\."),
)  # fmt: skip


def known_but_unsupported(names: Iterable[str]) -> str | None:
    """The unsupported model that has these parameters; None if there is none."""
    names = list(names)
    if any(re.search(r"(?:^|\.)rpn_head\.rpn_conv\.", n) for n in names) and not any("neck." in n for n in names):
        return "an R-CNN of mmdetection without FPN (C4, DC5)"
    return next((kind for kind, sign in SIGNS if any(re.search(sign, name) for name in names)), None)
