"""Before a run: data and weights are found and checked; all that is missing is reported at once, with the fix."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from resdet.checkpoints.recognise import Recognised
from resdet.checkpoints.transfer import completed, starting_point
from resdet.class_names import few
from resdet.config import Config, RCNNConfig, data_root, frozen_but_random, of_source, train_sources
from resdet.config.effects import notes_of, warnings_of
from resdet.data.auto import choose
from resdet.data.cache import cache_path, keep_index, load_index
from resdet.data.coco import Annotations, parse_coco
from resdet.data.formats.common import Source
from resdet.data.pixels import decide_range, measure_depth, sample_of
from resdet.data.quality.advice import advise_anchors, resized_objects
from resdet.data.quality.categories import compare
from resdet.data.quality.summary import check_annotations, check_before_training
from resdet.data.relabel import as_objects, for_classes
from resdet.data.shapes import NOTE, ensure_shapes
from resdet.data.sources import Split, coco_paths, find_format, given_sources, join_parts, open_parts
from resdet.data.torch_dataset import TorchDataset, source_of
from resdet.errors import UserError
from resdet.keypoints import flip_order
from resdet.runtime.console import console


class Inputs(NamedTuple):
    """What a run stands on. val is None without evaluation, start None without pretrained weights."""

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
    """Find data and weights, check that they fit the config, complete its model section by what they tell.

    earlier: the checkpoint that a run resumes from, in the place of other weights. check: False where another process has
    had the data checked. datasets: in the place of the files that the config names. Raises one `UserError`.
    """
    given, datasets = config, datasets or {}
    splits: list[Split] = ["train", "val"] if config.train.eval_every else ["train"]
    from_files = [split for split in splits if split not in datasets]
    if datasets and config.data.val_fraction:
        raise UserError("data.val_fraction holds out a part of files, not of a dataset: give val_dataset as well")
    problems: list[str] = []
    if from_files:
        make_synthetic(config)
        problems += missing_data(config, from_files)
    start = None
    if earlier is None:
        try:
            start = starting_point(config.model)
        except UserError as error:
            problems.append(str(error))
        else:
            problems += [] if start else frozen_but_random(config.model)  # of a config that was changed in place
    if problems:
        raise UserError("\n\n".join(problems))
    found = earlier or start
    if found:
        model = completed(config.model, found)
        if start and "fold_norm" not in config.model.model_fields_set:
            model.fold_norm = True  # training moves the weights by more than the last bit
        config = config.model_copy(update={"model": model})
    kept = cache_path(config.data, "train") if "train" not in datasets else None
    indexed = load_index(kept)
    sources = read_checked(config, splits[indexed is not None :], datasets, check=check)
    train = indexed or keep_index(parse_split("train", sources["train"]), kept)
    if indexed:
        console.print(f"train: {train.source}: {train.summary()} (checked and indexed before, in {kept})")
    config = with_pixel_range(config, train, found, resumed=earlier is not None)
    val = parse_split("val", sources["val"]) if "val" in sources else None
    del sources  # what a training needs of them is in `train` and `val`
    if "proposals" in config.model.outputs:
        train, val = as_objects(train), as_objects(val) if val else None
    if val:
        val, notes = for_classes(val, train.class_names, str(train.source), "the training set")
        for note in notes:
            console.print(note, markup=False)
    for split in (train, val) if val else (train,):
        if note := crowded(split, *config.model.limit):
            console.print(note, markup=False)
    if not len(train.images.labels):
        raise UserError(f"{train.source}: none of its {len(train.images)} images has an object to learn from")
    if config.auto:
        config, choices = choose(config.model_copy(deep=True), train, pretrained=found is not None)
        for choice in choices:
            console.print(f"auto: {choice.key} = {choice.value} ({choice.reason})")
        for line in advise_anchors(resized_objects(train, config.data), config.model):
            console.print(f"auto: {line}")
    config = with_num_classes(config, train)
    if "masks" in config.model.outputs and not train.images.any_masks:
        raise UserError(
            f"{train.source}: no object has a segmentation, so a mask head cannot learn: "
            "set model.mask=null, which makes it a Faster R-CNN"
        )
    if "keypoints" in config.model.outputs:
        config = with_keypoints(config, train, val)
    for line in notes_of(given) + warnings_of(given, config):
        console.print(line)
    return config, Inputs(train, val, start)


def with_keypoints(config: Config, train: Annotations, val: Annotations | None) -> Config:
    """The config with `model.keypoint` as the annotations have it; raises `UserError` where there is nothing to learn."""
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
            f"{train.source} and {val.source} list other keypoints: {few(train.skeleton.names)}; {few(val.skeleton.names)}"
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
            "warning: no keypoints change places in mirrored images: if some are left and right, name them in "
            "data.keypoint_flip_pairs, or set data.flip=0",
            markup=False,
        )  # fmt: skip
    update = {"num_keypoints": count, "names": names, "skeleton": edges}
    model = config.model.model_copy(update={"keypoint": keypoint.model_copy(update=update)})
    return config.model_copy(update={"model": model})


def read_checked(
    config: Config, splits: list[Split], datasets: Mapping[Split, TorchDataset], *, check: bool = True
) -> dict[str, Source]:
    """The annotations of splits, each source checked on its own before they are joined. Raises `UserError`."""
    channels = config.model.input.channels
    parts: dict[Split, dict[str, Source]] = {
        split: {split: source_of(datasets[split], split, channels)} if split in datasets
        else open_parts(config.data, split, tolerant=True)
        for split in splits
    }  # fmt: skip
    if check:
        check_before_training({name: source for split in splits for name, source in parts[split].items()})
    sources: dict[str, Source] = {
        split: parts[split][split] if split in datasets else join_parts(config.data, parts[split]) for split in splits
    }
    if check and len(splits) == 2:
        check_annotations({}, compare(sources["train"], sources["val"]))
    return sources


def crowded(annotations: Annotations, key: str, limit: int) -> str:
    """A warning if images have more objects than a model detects; else "". key: of the config, that sets the limit."""
    counts = annotations.images.counts
    more = int((counts > limit).sum())
    if not more:
        return ""
    most = counts.max()
    return (
        f"warning: {annotations.source}: {more} of {len(counts)} images have more objects, up to {most}, than the "
        f"{limit} detections of an image that {key} keeps: set {key}={most}"
    )


def with_pixel_range(
    config: Config, annotations: Annotations, found: Recognised | None = None, *, resumed: bool = False
) -> Config:
    """The config with `data.pixel_range` as numbers where images have more than 8 bits, told in one line.

    found: the weights to start from; resumed: those of the same run, whose range stays. Raises `UserError`.
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


def make_synthetic(config: Config) -> None:
    """Generate the quickstart's dataset where a config asks for it and it is not there yet."""
    root, spec = data_root(config.data), config.data.synthetic
    if spec and ensure_shapes(root, spec):
        console.print(f"generated {spec.num_train} + {spec.num_val} pictures in {root}")
    elif spec and not (root / NOTE).is_file():
        console.print(f"{root} holds something else: data.synthetic generates nothing there")


def require_data(config: Config, splits: list[Split]) -> None:
    """See that the data of these splits are there, the generated ones made if need be. Raises `UserError`."""
    make_synthetic(config)
    if problems := missing_data(config, splits):
        raise UserError("\n\n".join(problems))


def read_split(config: Config, split: Split) -> Annotations:
    """The checked annotations of a split, with one line about them."""
    parts = open_parts(config.data, split)
    check_annotations(parts)
    return parse_split(split, join_parts(config.data, parts))


def parse_split(split: Split, source: Source) -> Annotations:
    """The same, of annotations that have been opened."""
    source.whole()
    read = parse_coco(source.content, source.images, source.path, source.origins, are_files=source.read_image is None)
    read.skipped += source.remarks
    read.skipped.update(source.readings.summary())
    read.parts, read.read_image = source.parts, source.read_image
    if split == "val":
        read.content = source.content
    console.print(f"{split}: {read.source}: {read.summary()}")
    for note in source.notes:
        console.print(f"  {note}")
    return read


def with_num_classes(config: Config, annotations: Annotations) -> Config:
    """The config with `model.num_classes` as the annotations have it; raises `UserError` if it says otherwise."""
    count = len(annotations.class_names)
    if "proposals" not in config.model.outputs and config.model.num_classes not in (None, count):
        raise UserError(
            f"model.num_classes is {config.model.num_classes}, but {annotations.source} has {count} categories "
            f"({', '.join(annotations.class_names[:8])}{', …' if count > 8 else ''}): "
            f"set model.num_classes={count} (the background is not counted), or null to take it from the file"
        )
    model = config.model.model_copy(update={"num_classes": count})
    return config.model_copy(update={"model": model})


def missing_data(config: Config, splits: list[Split]) -> list[str]:
    """What a person needs to know when the data are not where the config says; empty if they are."""
    root = data_root(config.data)
    paths: list[Path] = []
    # A made split is a part of data.train.
    made: list[Split] = ["train"]
    for name, given in chain(
        *(given_sources(config.data, s).items() for s in (made if config.data.val_fraction else splits))
    ):
        data = of_source(config.data, given)
        if find_format(data, given) == "coco":
            paths += coco_paths(data, given, name)
        else:
            paths.append(given.annotations or given.images or data_root(data))
    missing = [path for path in dict.fromkeys(paths) if not path.exists()]
    if not missing:
        return []
    origin = (
        f"data.root={root}" if config.data.root
        else f"$RESDET_DATASETS/coco = {root}" if "RESDET_DATASETS" in os.environ
        else f"{root} (data.root and $RESDET_DATASETS are not set)"
    )  # fmt: skip
    lines = ["The data are not there:", *(f"  missing:      {path}" for path in missing), f"  looked in:    {origin}"]
    lines += [
        "  to fix:       get COCO 2017 (datasets/README.md has the commands), or point to a copy: data.root=/path/to/coco",
        "  your own:     data.train.images=FOLDER data.train.annotations=FILE.json, the same under data.val,",
        "                or data.root=FOLDER of Pascal VOC, YOLO or labelme files, or of Roboflow's COCO export;",
        "                without a validation split: data.val_fraction=0.2 holds out a fifth of train",
        "  without any:  python tools/train.py configs/quickstart.yaml generates its own and needs no download",
    ]
    return ["\n".join(lines)]
