"""The `model` section of Faster, Mask, Keypoint and Cascade R-CNN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from resdet.config.model import FPNConfig, HeadNorm, ModelConfig
from resdet.config.semantic import PanopticHeadConfig
from resdet.config.types import Count, Positive, Section, Share

if TYPE_CHECKING:  # --help must not import torch
    from resdet.structures import Output


class AnchorConfig(Section):
    sizes: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        32,
        64,
        128,
        256,
        512,
    )  # fmt: skip; with an FPN one for each of p2..p6, otherwise all on the one map
    ratios: list[float] = [0.5, 1.0, 2.0]  # height / width
    offset: Share = 0.5
    rounded: bool = False
    grid_stride: bool = False


class RPNConfig(Section):
    num_convs: Positive = 1
    pre_nms_train: Positive = 2000
    pre_nms_predict: Positive = 1000
    post_nms_train: Positive = 1000
    post_nms_predict: Positive = 1000
    nms_threshold: Share = 0.7
    min_size: float = 0.0
    samples: Positive = 256
    positive_fraction: Share = 0.5
    high: Share = 0.7
    low: Share = 0.3
    loss_beta: float = 0.0
    clamp_shrink: bool = False  # bound how far a delta shrinks a box, too (mmdetection)
    rank: Literal["logit", "sigmoid"] = "logit"  # by what proposals are ordered (mmdetection: sigmoid)
    fixed_divisor: bool = False  # of the losses: samples * images (detectron2) instead of the sampled anchors' number

    @model_validator(mode="after")
    def _in_order(self) -> RPNConfig:
        if self.low > self.high:
            raise ValueError(
                f"low ({self.low}) is above high ({self.high}): an anchor could be both foreground and background"
            )
        return self


class PoolConfig(Section):
    sampling_ratio: Count = 2  # 0: adaptive, as detectron2 and mmdetection; slower
    aligned: bool = True


class BoxConfig(Section):
    trunk: Literal["2fc", "4conv1fc", "res5"] = "2fc"  # res5: the backbone's layer4, on RoIs of c4 (model.neck: c4)
    width: Positive = 1024
    norm: HeadNorm = "none"  # of 4conv1fc's convolutions
    weight_standardization: bool = False  # of the same
    class_agnostic: bool = False  # one box for all classes instead of one for each
    samples: Positive = 512
    positive_fraction: Share = 0.25
    iou_threshold: Share = 0.5
    low_quality: bool = False
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0  # above 0, focal loss instead of cross-entropy
    class_weights: list[Annotated[float, Field(ge=0)]] | None = None  # of each class, then of the background
    delta_weights: tuple[float, float, float, float] = (10, 10, 5, 5)
    loss_beta: float = 0.0
    objectness: bool = False  # the proposal's score counts, too
    score_threshold: Share = 0.05
    nms_threshold: Share = 0.5
    soft_sigma: Annotated[float, Field(ge=0)] = 0.0  # above 0, Soft-NMS lowers scores, instead of nms_threshold
    max_detections: Positive = 100
    min_size: float = 0.0
    # Boxes without area: dropped before suppression, after it (detectron2), or never (mmdetection)
    empty: Literal["drop_first", "drop_last", "keep"] = "drop_first"
    clamp_shrink: bool = False


class PointRendConfig(Section):
    side: Positive = 7  # of the coarse mask
    width: Positive = 1024
    num_fc: Positive = 2
    point_width: Positive = 256
    point_num_fc: Positive = 3
    points: Positive = 196  # of the loss
    steps: Count = 5  # how often the mask's side doubles in prediction: 7 becomes 224
    subdivision_points: Positive = 784


class CascadeConfig(Section):
    """Box heads in a row (`models/heads/cascade.py`), one for each entry of `ious`; one box serves all classes."""

    ious: Annotated[list[Share], Field(min_length=1)] = [0.5, 0.6, 0.7]  # from which a box is positive
    delta_weights: list[tuple[float, float, float, float]] = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    loss_weights: list[Annotated[float, Field(ge=0)]] = [1.0, 1.0, 1.0]
    resample: bool = False  # box.samples drawn anew at each stage (mmdetection), not only at the first (detectron2)
    scale_gradients: bool = True  # the stages move the features no more than one head would (detectron2)
    average: Literal["scores", "logits"] = "scores"  # of all stages (mmdetection: logits, before the softmax)
    mask_heads: Literal["one", "each"] = "one"  # for all stages, or for each stage (mmdetection)

    @model_validator(mode="after")
    def _as_many_stages(self) -> CascadeConfig:
        counts = {key: len(getattr(self, key)) for key in ("ious", "delta_weights", "loss_weights")}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{key} has {count}" for key, count in counts.items())
            raise ValueError(f"needs one entry for each stage in each list, but {told}")
        return self


class MaskConfig(Section):
    num_convs: Count = 4
    width: Positive = 256
    norm: HeadNorm = "none"
    weight_standardization: bool = False
    class_agnostic: bool = False  # one mask for all classes instead of one for each
    pool_size: Positive = 14  # masks have twice this side; the same with box.trunk: res5
    paste: Literal["resdet", "torchvision"] = "resdet"
    point_rend: PointRendConfig | None = None  # this head instead of the convolutions above


class KeypointConfig(Section):
    num_keypoints: Positive | None = None  # these three: None and empty for what the annotations list
    names: list[str] = []
    skeleton: list[tuple[int, int]] = []  # pairs of keypoints' numbers, from 0, drawn as limbs
    num_convs: Count = 8
    width: Positive = 512
    norm: HeadNorm = "none"
    pool_size: Positive = 14  # heatmaps have four times this side
    decode: Literal["detectron2", "torchvision"] = "detectron2"  # scores: shares of the softmax, or logits


class RCNNConfig(ModelConfig):
    kind: Literal["rcnn"] = "rcnn"
    # What RPN and heads look at: p2..p6 of a pyramid, or one map of the backbone, c4 (C4 detectors) or c5 (with
    # backbone.c5_dilation: 2, DC5)
    neck: Literal["fpn", "c4", "c5"] = "fpn"
    fpn: FPNConfig = FPNConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RPNConfig = RPNConfig()
    pool: PoolConfig = PoolConfig()
    box: BoxConfig | None = BoxConfig()  # null: the RPN alone, whose proposals have no class
    cascade: CascadeConfig | None = None  # None: one box head; {} : Cascade R-CNN
    mask: MaskConfig | None = None  # None: Faster R-CNN
    keypoint: KeypointConfig | None = None  # {}: Keypoint R-CNN
    semantic: PanopticHeadConfig | None = None  # {}, beside a mask head: Panoptic FPN

    @property
    def outputs(self) -> frozenset[Output]:
        if not self.box:
            return frozenset({"proposals"})
        heads: dict[Output, object] = {
            "boxes": self.box, "masks": self.mask, "keypoints": self.keypoint, "semantic": self.semantic
        }  # fmt: skip
        return frozenset(output for output, head in heads.items() if head)

    @property
    def limit(self) -> tuple[str, int]:
        if self.box:
            return "model.box.max_detections", self.box.max_detections
        return "model.rpn.post_nms_predict", self.rpn.post_nms_predict

    @model_validator(mode="after")
    def _neck_fits(self) -> RCNNConfig:
        problems = []
        if self.neck == "fpn" and len(self.anchors.sizes) != 5:
            problems.append(
                f"anchors.sizes has {len(self.anchors.sizes)} numbers: an FPN needs 5, one for each of p2..p6"
            )
        if self.box and self.box.trunk == "res5" and self.neck != "c4":
            problems.append(f"box.trunk=res5 computes c5 on RoIs of c4, but neck={self.neck}: set model.neck=c4")
        if self.box and self.box.trunk == "res5" and not self.backbone.own:
            problems.append(
                f"box.trunk=res5 is layer4 of resdet's own ResNets, not of {self.backbone.name}: set it to 2fc"
            )
        if self.box and self.box.trunk == "res5" and self.cascade:
            problems.append("cascade needs box heads of their own at each stage: set box.trunk=2fc or 4conv1fc")
        if self.neck != "fpn" and self.mask and self.mask.point_rend:
            problems.append(f"mask.point_rend needs the fine maps of an FPN, but neck={self.neck}")
        if self.neck == "c4" and self.backbone.c5_dilation != 1:
            problems.append("backbone.c5_dilation=2 has no effect with neck=c4: DC5 is model.neck=c5")
        if self.neck != "fpn" and self.semantic:
            problems.append(f"semantic needs the levels p2..p5 of an FPN, but neck={self.neck}")
        without = [
            name for name in ("cascade", "mask", "keypoint", "semantic") if self.box is None and getattr(self, name)
        ]
        if without:
            fix = ", ".join(f"model.{name}=null" for name in without)
            problems.append(
                f"box=null is the RPN alone, whose proposals no other head completes: set {fix}, or give model.box a section"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self


def semantic_section(model: ModelConfig) -> PanopticHeadConfig | None:
    """That of an R-CNN with a semantic head; None for all other detectors."""
    return model.semantic if isinstance(model, RCNNConfig) else None


def keypoint_section(model: ModelConfig) -> KeypointConfig | None:
    """That of an R-CNN with a keypoint head; None for all other detectors."""
    return model.keypoint if isinstance(model, RCNNConfig) else None
