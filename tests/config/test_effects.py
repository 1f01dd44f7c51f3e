"""Keys that change nothing beside others are told, where a person has set them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resdet.config import Config, dump_config, dump_settings, load_config, load_yaml, parse_config
from resdet.config.effects import RULES, notes_of, warnings_of
from resdet.errors import UserError

SHIPPED = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
PLACES = ["data.train.images=a", "data.train.annotations=a.json", "data.val.images=b", "data.val.annotations=b.json"]
IN_VAIN = {
    "model.backbone.weights=imagenet_v2": ["model.weights=x.pth"],
    "model.backbone.norm_eps=0.1": ["model.backbone.norm=none"],
    "model.backbone.stride_in_1x1=true": ["model.backbone.name=resnet34"],
    "model.backbone.zero_init_last=true": [],
    "model.backbone.avg_down=true": ["model.backbone.residual=false"],
    "model.backbone.deformable_stages=[c5]": [],
    "model.backbone.deformable_groups=2": [],
    "model.backbone.deformable=v2": ["model.backbone.deformable_stages=[]"],
    "model.fpn.channels=64": ["model.neck=c4"],
    "model.fpn.norm=gn": ["model.neck=c5"],
    "model.fpn.weight_standardization=true": ["model.neck=c5"],
    "model.num_classes=3": ["model.box=null"],
    "model.pool.sampling_ratio=0": ["model.box=null"],
    "model.pool.aligned=false": ["model.box=null"],
    "model.rpn.pre_nms_train=9": ["model.box=null"],
    "model.rpn.post_nms_train=9": ["model.box=null"],
    "data.repeat_threshold=0.1": ["model.box=null"],
    "train.head_lr=2": ["model.box=null"],
    "model.box.norm=gn": [],
    "model.box.weight_standardization=true": [],
    "model.box.width=64": ["model.neck=c4", "model.box.trunk=res5"],
    "model.box.nms_threshold=0.6": ["model.box.soft_sigma=0.5"],
    "model.box.min_size=3": ["model.box.empty=keep"],
    "model.box.iou_threshold=0.6": ["model.cascade={}"],
    "model.box.delta_weights=[1, 1, 1, 1]": ["model.cascade={}"],
    "model.box.class_agnostic=true": ["model.cascade={}"],
    "model.cascade.mask_heads=each": [],
    "model.mask.norm=gn": ["model.mask.num_convs=0"],
    "model.mask.weight_standardization=true": ["model.mask.num_convs=0"],
    "model.keypoint.norm=gn": ["model.keypoint.num_convs=0"],
    "model.keypoint.width=64": ["model.keypoint.num_convs=0"],
    "model.head.loss_beta=0.1": ["model.kind=retinanet", "model.head.box_loss=giou"],
    "data.root=r": PLACES,
    "data.synthetic={size: 64}": PLACES,
    "data.voc_origin=1": ["data.format=coco"],
    "data.max_size=2000": ["model.input.keep_ratio=false"],
    "data.classification={crop: 32}": [],
    **{
        key: ["model.kind=classifier"]
        for key in (
            "data.min_size=64",
            "data.format=coco",
            "data.negatives=0.1",
            "data.pixel_range=dtype",
            "data.pad_multiple=64",
            "data.limit=3",
            "model.input.resize=torch",
            "model.input.keep_ratio=false",
        )
    },
    "data.split_seed=3": [],
    "data.mask_size=28": [],
    "data.keypoint_flip_pairs=[[a, b]]": [],
    "data.keypoint_sigmas=[0.1]": [],
    "train.backbone_lr=0.1": ["model.backbone.frozen_stages=5"],
    "train.layer_decay=0.5": ["model.backbone.frozen_stages=5"],
    "train.momentum=0.5": ["train.optimizer=adamw"],
    "train.milestones=[5, 8]": ["train.schedule=cosine"],
    "train.milestones=[9, 12]": ["train.max_iters=9"],
    "train.warmup_factor=0.5": ["train.warmup_iters=0"],
    "train.keep=5": ["train.checkpoint_every=90000"],
    "train.best_metric=bbox_AP50": ["train.eval_every=0"],
    "train.patience=3": ["train.eval_every=0"],
    "train.patience=4": ["train.max_iters=8", "train.eval_every=2"],
}


def told(tmp_path: Path, *overrides: str, base: str = "") -> list[str]:
    path = tmp_path / "c.yaml"
    path.write_text(base)
    config = load_config(path, overrides)
    return warnings_of(config, config)


@pytest.mark.parametrize("vain", IN_VAIN)
def test_a_key_without_effect_is_told_and_one_with_effect_is_not(vain: str, tmp_path) -> None:
    (line,) = [
        line for line in told(tmp_path, vain, *IN_VAIN[vain]) if line.startswith(f"warning: {vain.split('=')[0]}=")
    ]
    assert re.search(" has no effect with(out)? [a-z]", line)
    assert "{" not in line.replace("{…}", "")
    assert told(tmp_path, *IN_VAIN[vain]) == []  # its default beside the same others
    useful = {
        "data.classification": ["model.kind=classifier"],
        "model.backbone.zero_init_last": ["model.backbone.weights=none"],
        "model.box.norm": ["model.box.trunk=4conv1fc"],
        "model.box.weight_standardization": ["model.box.trunk=4conv1fc"],
        "data.split_seed": ["data.val_fraction=0.2"],
        "data.mask_size": ["model.mask.num_convs=4"],
        "data.keypoint_flip_pairs": ["model.keypoint.num_convs=8"],
        "data.keypoint_sigmas": ["model.keypoint.num_convs=8"],
        "model.cascade.mask_heads": ["model.mask.num_convs=4"],
        "model.head.loss_beta": ["model.kind=retinanet"],
        "model.backbone.deformable_stages": ["model.backbone.deformable=v1"],
        "model.backbone.deformable_groups": ["model.backbone.deformable=v1"],
    }
    assert told(tmp_path, vain, *useful.get(vain.split("=")[0], [])) == []


def test_every_rule_of_the_table_is_tried() -> None:
    assert {rule.key for rule in RULES} == {vain.split("=")[0] for vain in IN_VAIN}


def test_the_words(tmp_path) -> None:
    assert told(tmp_path, "train.milestones=[5, 8]", "train.schedule=cosine") == [
        "warning: train.milestones=[5, 8] has no effect with train.schedule=cosine"
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_configs_and_what_a_run_writes_of_them_are_silent(path: Path) -> None:
    config = load_config(path)
    for again in (config, *(parse_config(load_yaml(dump(config))) for dump in (dump_config, dump_settings))):
        assert warnings_of(again, again) == []


def test_what_the_data_choose_counts_and_only_set_keys_are_told() -> None:
    given = parse_config({"auto": True, "train": {"patience": 3}})
    chosen = given.model_copy(deep=True)
    chosen.train.max_iters, chosen.train.eval_every, chosen.train.momentum = 1000, 100, 0.5
    chosen.train.optimizer = "adamw"
    assert warnings_of(given, chosen) == []
    chosen.train.eval_every = 500
    assert [line.split()[1] for line in warnings_of(given, chosen)] == ["train.patience=3"]


def test_defaults_that_follow_are_told() -> None:
    def notes(**backbone: object) -> list[str]:
        return notes_of(parse_config({"model": {"backbone": backbone}}))

    start = "model.backbone.weights=none: nothing is pretrained, hence "
    assert notes(weights="none") == [f"{start}norm=bn and frozen_stages=0"]
    assert notes(weights="none", norm="gn") == [f"{start}frozen_stages=0"]
    assert notes(weights="none", norm="bn", frozen_stages=0) == notes() == notes_of(Config()) == []


def test_the_older_name_of_the_share(tmp_path, caplog) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {split: 0.25}\n")
    assert load_config(path).data.val_fraction == 0.25
    assert "data.val_fraction" in caplog.text
    caplog.clear()
    assert load_config(path, ["data.split=null"]).data.val_fraction is None
    assert load_config(path, ["data.val_fraction=0.25"]).data.val_fraction == 0.25
    assert parse_config({"data": {"split": None}}).data.val_fraction is None
    with pytest.raises(UserError, match=r"data\.split=0\.25 is the older name of data\.val_fraction=0\.5"):
        load_config(path, ["data.val_fraction=0.5"])
