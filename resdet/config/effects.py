"""Keys that have no effect given the others: one table of them, and a warning for each that was set anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel

from resdet.config.data import train_sources
from resdet.config.rcnn import RCNNConfig
from resdet.config.schema import Config


class Rule(NamedTuple):
    """key has no effect where `idle` is true; because: the settings responsible, with the config's fields in braces."""

    key: str
    idle: Callable[[Any], object]  # of a config, whose model is of a kind that has the key
    because: str


def _basic_blocks(config: Config) -> bool:
    return config.model.backbone.name in ("resnet18", "resnet34")


def _no_keypoint_convolutions(config: Any) -> bool:
    return config.model.keypoint is not None and not config.model.keypoint.num_convs


def _without_fpn(config: Any) -> bool:
    return isinstance(config.model, RCNNConfig) and config.model.neck != "fpn"


def _rpn_alone(config: Config) -> bool:
    return "proposals" in config.model.outputs


def _classifier(config: Config) -> bool:
    return "classes" in config.model.outputs


def _pretrained(config: Config) -> bool:
    return config.model.weights is not None or config.model.backbone.weights != "none"


def _named_elsewhere(config: Config) -> bool:
    d = config.data
    given = [*train_sources(d), *([] if d.val_fraction else [d.val])]
    return all(source.root or (source.images and source.annotations) for source in given)


NO_DEFORMABLE = "model.backbone.deformable={model.backbone.deformable}"
RPN_ALONE = "model.box=null"
NAMED = "data.train and data.val, which name their own images and annotations"
NO_EVALUATION = "train.eval_every={train.eval_every}, which disables evaluation"
RULES = (
    # Not for weights=none, which a config that starts from a whole detector often keeps from one trained from scratch.
    Rule(
        "model.backbone.weights",
        lambda c: c.model.weights and c.model.backbone.weights != "none",
        "model.weights={model.weights}, a whole detector",
    ),
    Rule("model.backbone.norm_eps", lambda c: c.model.backbone.norm == "none", "model.backbone.norm=none"),
    Rule("model.backbone.stride_in_1x1", _basic_blocks, "model.backbone.name={model.backbone.name}, which has no 1x1"),
    Rule("model.backbone.zero_init_last", _pretrained, "pretrained weights (model.weights, model.backbone.weights)"),
    Rule("model.backbone.avg_down", lambda c: not c.model.backbone.residual, "model.backbone.residual=False"),
    Rule(
        "model.backbone.deformable_stages",
        lambda c: c.model.backbone.deformable_stages and c.model.backbone.deformable == "none",
        NO_DEFORMABLE,
    ),
    Rule("model.backbone.deformable_groups", lambda c: c.model.backbone.deformable == "none", NO_DEFORMABLE),
    Rule(
        "model.backbone.deformable",
        lambda c: not c.model.backbone.deformable_stages,
        "model.backbone.deformable_stages=[]",
    ),
    Rule("model.fpn.channels", _without_fpn, "model.neck={model.neck}"),
    Rule("model.fpn.norm", _without_fpn, "model.neck={model.neck}"),
    Rule(
        "model.box.norm",
        lambda c: c.model.box and c.model.box.trunk != "4conv1fc",
        "model.box.trunk={model.box.trunk}, which has no convolutions of its own",
    ),
    Rule("model.box.width", lambda c: c.model.box and c.model.box.trunk == "res5", "model.box.trunk=res5"),
    Rule(
        "model.box.nms_threshold",
        lambda c: c.model.box and c.model.box.soft_sigma,
        "model.box.soft_sigma={model.box.soft_sigma}",
    ),
    Rule("model.box.min_size", lambda c: c.model.box and c.model.box.empty == "keep", "model.box.empty=keep"),
    *(Rule(f"model.box.{key}", lambda c: c.model.cascade, "model.cascade")
      for key in ("iou_threshold", "delta_weights", "class_agnostic")),
    Rule(
        "model.cascade.mask_heads",
        lambda c: c.model.cascade and c.model.mask is None,
        "model.mask=null",
    ),
    Rule(
        "model.box.weight_standardization",
        lambda c: c.model.box and c.model.box.trunk != "4conv1fc",
        "model.box.trunk={model.box.trunk}, which has no convolutions of its own",
    ),
    Rule(
        "model.num_classes",
        lambda c: _rpn_alone(c) and c.model.num_classes != 1,
        f"{RPN_ALONE}, whose proposals have no class",
    ),
    Rule("data.repeat_threshold", _rpn_alone, f"{RPN_ALONE}, to which all classes are one"),
    *(Rule(key, _rpn_alone, RPN_ALONE)
      for key in ("model.pool.sampling_ratio", "model.pool.aligned", "model.rpn.pre_nms_train", "model.rpn.post_nms_train",
                  "train.head_lr")),
    Rule("model.fpn.weight_standardization", _without_fpn, "model.neck={model.neck}"),
    Rule("model.mask.norm", lambda c: c.model.mask and not c.model.mask.num_convs, "model.mask.num_convs=0"),
    Rule(
        "model.mask.weight_standardization",
        lambda c: c.model.mask and not c.model.mask.num_convs,
        "model.mask.num_convs=0",
    ),
    Rule("model.keypoint.norm", _no_keypoint_convolutions, "model.keypoint.num_convs=0"),
    Rule("model.keypoint.width", _no_keypoint_convolutions, "model.keypoint.num_convs=0"),
    Rule("model.head.loss_beta", lambda c: c.model.head.box_loss == "giou", "model.head.box_loss=giou"),
    Rule("data.root", lambda c: _named_elsewhere(c) and not c.data.synthetic, NAMED),
    Rule("data.synthetic", _named_elsewhere, NAMED),
    Rule("data.voc_origin", lambda c: c.data.format not in ("auto", "voc"), "data.format={data.format}"),
    Rule("data.classification", lambda c: not _classifier(c), "model.kind={model.kind}"),
    *(Rule(key, _classifier, "model.kind={model.kind}")
      for key in ("data.min_size", "data.max_size", "data.format", "data.negatives", "data.pixel_range", "data.pad_multiple",
                  "data.limit", "model.input.resize", "model.input.keep_ratio")),
    Rule("data.max_size", lambda c: not c.model.input.keep_ratio, "model.input.keep_ratio=False"),
    Rule("data.split_seed", lambda c: not c.data.val_fraction, "without data.val_fraction"),
    Rule("data.mask_size", lambda c: "masks" not in c.model.outputs, "without model.mask"),
    Rule("data.keypoint_flip_pairs", lambda c: "keypoints" not in c.model.outputs, "without model.keypoint"),
    Rule("data.keypoint_sigmas", lambda c: "keypoints" not in c.model.outputs, "without model.keypoint"),
    *(Rule(key, lambda c: c.model.backbone.own and c.model.backbone.frozen_stages == 5, "model.backbone.frozen_stages=5")
      for key in ("train.backbone_lr", "train.layer_decay")),
    Rule("train.momentum", lambda c: c.train.optimizer != "sgd", "train.optimizer={train.optimizer}"),
    Rule("train.milestones", lambda c: c.train.schedule != "multistep", "train.schedule={train.schedule}"),
    Rule(
        "train.milestones",
        lambda c: c.train.schedule == "multistep" and min(c.train.milestones, default=0) >= c.train.max_iters,
        "train.max_iters={train.max_iters}, which ends before the first",
    ),
    Rule("train.warmup_factor", lambda c: not c.train.warmup_iters, "train.warmup_iters=0"),
    Rule(
        "train.keep",
        lambda c: c.train.keep > 1 and c.train.checkpoint_every >= c.train.max_iters,
        "train.checkpoint_every={train.checkpoint_every} and train.max_iters={train.max_iters}, which give one checkpoint",
    ),
    Rule("train.best_metric", lambda c: not c.train.eval_every, NO_EVALUATION),
    Rule("train.patience", lambda c: not c.train.eval_every, NO_EVALUATION),
    Rule(
        "train.patience",
        lambda c: c.train.eval_every and c.train.patience and c.train.patience >= -(-c.train.max_iters // c.train.eval_every),
        "train.max_iters={train.max_iters} and train.eval_every={train.eval_every}, which give no more evaluations than that",
    ),
)  # fmt: skip


def warnings_of(given: Config, config: Config) -> list[str]:
    """A line for each key that was set to a value other than its default and changes nothing.

    given: as the user has set it. config: the same, completed from weights and data.
    """
    return [
        f"warning: {rule.key}={_shown(value)} has no effect {_because(rule, config)}"
        for rule in RULES
        if (value := _set_value(given, rule.key)) is not None and rule.idle(config)
    ]


def notes_of(config: Config) -> list[str]:
    """A line on the defaults that change because there are no pretrained weights."""
    b = config.model.backbone
    if b.weights != "none" or config.model.weights is not None:
        return []
    followed = {"norm": b.norm, "frozen_stages": b.frozen_stages}
    told = [f"{key}={value}" for key, value in followed.items() if key not in b.model_fields_set]
    return [f"model.backbone.weights=none: nothing is pretrained, hence {' and '.join(told)}"] if told else []


def _set_value(config: Config, key: str) -> Any:
    """The value of a key that was set to something other than its default; None otherwise."""
    section: Any = config
    *parents, name = key.split(".")
    for parent in parents:
        section = getattr(section, parent, None)
        if not isinstance(section, BaseModel):
            return None
    if name not in type(section).model_fields:  # a key of another kind of model
        return None
    value = getattr(section, name)
    default = type(section).model_fields[name].get_default(call_default_factory=True)
    return value if name in section.model_fields_set and value != default else None


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "{…}"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def _because(rule: Rule, config: Config) -> str:
    reason = rule.because.format(model=config.model, data=config.data, train=config.train)
    return reason if reason.startswith("without ") else f"with {reason}"
