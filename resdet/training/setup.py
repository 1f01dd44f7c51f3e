"""Before a run: find and check data and weights, complete the config; all that is missing is reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from resdet.checkpoints.recognise import Recognised
from resdet.checkpoints.transfer import completed, starting_point
from resdet.class_names import few
from resdet.config import Config, ModelConfig, RCNNConfig, frozen_but_random, semantic_section, train_sources
from resdet.config.effects import notes_of, warnings_of
from resdet.data.auto import choose
from resdet.data.coco import Annotations
from resdet.data.label_maps import DrawnLabels
from resdet.data.pixels import decide_range, measure_depth, sample_of
from resdet.data.quality.advice import advise_anchors, resized_objects
from resdet.data.relabel import as_label_maps, as_objects, for_classes, refuse_other_labels, with_label_maps
from resdet.data.sources import Split
from resdet.data.splits import make_synthetic, missing_data, read_train_val
from resdet.data.torch_dataset import TorchDataset
from resdet.errors import UserError
from resdet.keypoints import flip_order
from resdet.models.backbones.libraries import require_known
from resdet.runtime.console import console
from resdet.training.classes import read_classes


class Inputs(NamedTuple):
    """The data and the pretrained weights of a run. val is None without evaluation, start None without weights."""

    train: Annotations
    val: Annotations | None
    start: Recognised | None


def prepare_inputs(
    config: Config,
    earlier: Recognised | None = None,
    *,
    check: bool = True,
    datasets: Mapping[Split, TorchDataset] | None = None,
) -> tuple[Config, Inputs]:
    """Find data and weights, check that they fit together, and complete the config from them.

    earlier: the checkpoint that a run resumes from; no other weights are loaded then. check: False if another process checks
    the data. datasets: used instead of the files that the config names. Raises one `UserError`.
    """
    given, datasets = config, datasets or {}
    splits: list[Split] = ["train", "val"] if config.train.eval_every else ["train"]
    if datasets and config.data.val_fraction:
        raise UserError("data.val_fraction splits files, not a dataset: pass val_dataset as well")
    start = find_inputs(config, [split for split in splits if split not in datasets], resumed=earlier is not None)
    found = earlier or start
    if found:
        config = with_architecture(config, found, resumed=earlier is not None)
    if "classes" in config.model.outputs:
        if datasets:
            raise UserError("model.kind=classifier: pictures are read from a folder, not from a dataset")
        train, val = read_classes(config.data, splits)
        return completed_by(given, with_num_classes(config, train)), Inputs(train, val, start)
    train, val = read_train_val(config, splits, datasets, check=check)
    config = with_pixel_range(config, train, found, resumed=earlier is not None)
    if "proposals" in config.model.outputs:
        train, val = as_objects(train), as_objects(val) if val else None
    if val:
        val, notes = for_classes(val, train.class_names, str(train.source), "the training set")
        for note in notes:
            console.print(note, markup=False)
    if "semantic" in config.model.outputs:
        config, train, val = with_semantic(config, train, val)
    for split in (train, val) if val else (train,):
        if config.model.limit and (note := crowded(split, *config.model.limit)):
            console.print(note, markup=False)
    if config.model.outputs != {"semantic"} and not len(train.images.labels):
        raise UserError(f"{train.source}: none of its {len(train.images)} images has an object to learn from")
    if config.auto:
        config = with_auto_settings(config, train, pretrained=found is not None)
    return completed_by(given, fitted(config, train, val)), Inputs(train, val, start)


def completed_by(given: Config, config: Config) -> Config:
    """The completed config; prints what it changed in the `given` one, and what in that has no effect."""
    for line in notes_of(given) + warnings_of(given, config):
        console.print(line)
    return config


def find_inputs(config: Config, from_files: list[Split], *, resumed: bool) -> Recognised | None:
    """The pretrained weights, None without any. Raises one `UserError` for all data and weights that are missing.

    from_files: the splits that are read from files. resumed: pretrained weights are not needed.
    """
    require_known(config.model.backbone.name)
    problems: list[str] = []
    if from_files and "classes" not in config.model.outputs:  # whose folders are looked for when they are read
        make_synthetic(config)
        problems += missing_data(config, from_files)
    start = None
    if not resumed:
        try:
            start = starting_point(config.model)
        except UserError as error:
            problems.append(str(error))
        else:
            problems += [] if start else frozen_but_random(config.model)  # of a config that was changed in place
    if problems:
        raise UserError("\n\n".join(problems))
    return start


def with_architecture(config: Config, found: Recognised, *, resumed: bool) -> Config:
    """The config with the architecture and numerics of a checkpoint."""
    model = completed(config.model, found)
    if not resumed and "fold_norm" not in config.model.model_fields_set:
        model.fold_norm = True  # training changes the weights by more than the last bit
    return config.model_copy(update={"model": model})


def with_auto_settings(config: Config, train: Annotations, *, pretrained: bool) -> Config:
    """The config with the settings that `auto` chooses from the data; prints each with its reason."""
    config, choices = choose(config.model_copy(deep=True), train, pretrained=pretrained)
    for choice in choices:
        console.print(f"auto: {choice.key} = {choice.value} ({choice.reason})")
    for line in advise_anchors(resized_objects(train, config.data, config.model.input.keep_ratio), config.model):
        console.print(f"auto: {line}")
    return config


def fitted(config: Config, train: Annotations, val: Annotations | None) -> Config:
    """The config with the classes and keypoints of the annotations; raises `UserError` if a head could not learn from them."""
    config = with_num_classes(config, train)
    if "masks" in config.model.outputs and not train.images.any_masks:
        raise UserError(
            f"{train.source}: no object has a segmentation, so a mask head cannot learn: "
            "set model.mask=null, which makes it a Faster R-CNN"
        )
    if "keypoints" in config.model.outputs:
        config = with_keypoints(config, train, val)
    return config


def with_keypoints(config: Config, train: Annotations, val: Annotations | None) -> Config:
    """The config with the keypoints of the annotations in `model.keypoint`; raises `UserError` if there are none."""
    assert isinstance(config.model, RCNNConfig)
    keypoint = config.model.keypoint
    assert keypoint
    for split in (train, val) if val else (train,):
        if split.skeleton is None:
            raise UserError(
                f'{split.source}: its categories do not list one set of keypoints ("keypoints": [names]), so a keypoint head '
                "cannot learn: set model.keypoint=null, or add the list"
            )
    assert train.skeleton
    if not (train.images.keypoints[..., 2] > 0).any():
        raise UserError(
            f"{train.source}: no object has a labelled keypoint, so a keypoint head cannot learn: set model.keypoint=null"
        )
    if val and val.skeleton and val.skeleton.names != train.skeleton.names:
        raise UserError(
            f"{train.source} and {val.source} list different keypoints: {few(train.skeleton.names)}; "
            f"{few(val.skeleton.names)}"
        )
    count, (names, edges) = len(train.skeleton.names), train.skeleton
    if keypoint.num_keypoints not in (None, count):
        raise UserError(
            f"model.keypoint.num_keypoints is {keypoint.num_keypoints}, but {train.source} lists {count} keypoints "
            f"({few(names)}): set it to {count}, or to null to take it from the file"
        )
    if config.data.flip or any(source.augmentations for source in train_sources(config.data)):
        order = flip_order(names, config.data.keypoint_flip_pairs)
        pairs = [f"{names[a]} - {names[b]}" for a, b in enumerate(order) if a < b]
        console.print(
            f"mirrored images swap the keypoints {few(pairs)}" if pairs else
            "warning: mirrored images swap no keypoints: if some are left and right, name them in "
            "data.keypoint_flip_pairs, or set data.flip=0",
            markup=False,
        )  # fmt: skip
    update = {"num_keypoints": count, "names": names, "skeleton": edges}
    model = config.model.model_copy(update={"keypoint": keypoint.model_copy(update=update)})
    return config.model_copy(update={"model": model})


def as_modelled(model: ModelConfig, annotations: Annotations) -> Annotations:
    """The annotations with the label maps, and of a model of pixels alone the classes, that the model learns from."""
    if "semantic" not in model.outputs:
        return annotations
    return with_label_maps(annotations) if semantic_section(model) else as_label_maps(annotations)


def with_semantic(
    config: Config, train: Annotations, val: Annotations | None
) -> tuple[Config, Annotations, Annotations | None]:
    """The splits with label maps, and the config with their classes in `model.semantic`, if it has that section. Raises
    `UserError` if they have none, or not the same classes."""
    section = semantic_section(config.model)
    train, val = as_modelled(config.model, train), as_modelled(config.model, val) if val else None
    assert train.label_maps
    names, ids = train.label_maps.names, train.label_maps.ids
    if isinstance(train.label_maps, DrawnLabels):
        console.print(f"{train.source}: label maps are drawn from the masks: {few(names)}", markup=False)
    if val:
        refuse_other_labels(val, names, str(train.source))
    if not section:
        return config, train, val
    if section.num_classes not in (None, len(names)):
        raise UserError(
            f"model.semantic.num_classes is {section.num_classes}, but {train.source} has {len(names)} classes of pixels "
            f"({few(names)}): set it to {len(names)}, or to null to take it from the data"
        )
    assert isinstance(config.model, RCNNConfig)
    update = {"num_classes": len(names), "names": names[1:], "category_ids": ids[1:]}
    model = config.model.model_copy(update={"semantic": section.model_copy(update=update)})
    return config.model_copy(update={"model": model}), train, val


def crowded(annotations: Annotations, key: str, limit: int) -> str:
    """A warning if images have more objects than the model detects, else "". key: the config key that sets the limit."""
    counts = annotations.images.counts
    more = int((counts > limit).sum())
    if not more:
        return ""
    most = counts.max()
    return (
        f"warning: {annotations.source}: {more} of {len(counts)} images have more objects, up to {most}, than the "
        f"{limit} detections per image that {key} keeps: set {key}={most}"
    )


def with_pixel_range(
    config: Config, annotations: Annotations, found: Recognised | None = None, *, resumed: bool = False
) -> Config:
    """The config with the `data.pixel_range` of images of more than 8 bits as numbers; prints it.

    found: the weights to start from. resumed: they are of the same run, so its range is kept. Raises `UserError`.
    """
    given, known = config.data.pixel_range, found.pixel_range if found else None
    if resumed:
        if isinstance(given, tuple) and given != known:
            before = list(known) if known else "8-bit images"
            raise UserError(
                f"data.pixel_range={list(given)}: the run was trained with {before}; resume without setting it"
            )
        return config.model_copy(update={"data": config.data.model_copy(update={"pixel_range": known or "auto"})})
    if annotations.read_image:  # 8-bit, always
        return config
    images = annotations.images
    depth = measure_depth([images[k].file for k in sample_of(len(images))], config.model.input.channels)
    decided, line = decide_range(given, depth, known)
    if line:
        console.print(line, markup=False)
    return config.model_copy(update={"data": config.data.model_copy(update={"pixel_range": decided or "auto"})})


def with_num_classes(config: Config, annotations: Annotations) -> Config:
    """The config with the annotations' number of classes; raises `UserError` if `model.num_classes` is set to another."""
    count = len(annotations.class_names)
    if "proposals" not in config.model.outputs and config.model.num_classes not in (None, count):
        maps = annotations.label_maps
        aside = "" if maps and maps.names == annotations.class_names else " (the background is not counted)"
        raise UserError(
            f"model.num_classes is {config.model.num_classes}, but {annotations.source} has {count} categories "
            f"({', '.join(annotations.class_names[:8])}{', …' if count > 8 else ''}): "
            f"set model.num_classes={count}{aside}, or null to take it from the file"
        )
    model = config.model.model_copy(update={"num_classes": count})
    return config.model_copy(update={"model": model})
