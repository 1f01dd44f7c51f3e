"""The train and val splits of a config: generated or found, checked, read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from resdet.config import Config, data_root, of_source, train_sources
from resdet.data.cache import cache_path, keep_index, load_index
from resdet.data.coco import Annotations, parse_coco
from resdet.data.formats.common import Source
from resdet.data.label_maps import LabelFiles
from resdet.data.quality.categories import compare
from resdet.data.quality.summary import check_annotations, check_before_training
from resdet.data.shapes import NOTE, ensure_shapes
from resdet.data.sources import Split, coco_paths, find_format, given_sources, join_parts, open_parts
from resdet.data.torch_dataset import TorchDataset, source_of
from resdet.errors import UserError
from resdet.runtime.console import console


def require_data(config: Config, splits: list[Split]) -> None:
    """Raises `UserError` if files of these splits are missing; generates a synthetic dataset first."""
    make_synthetic(config)
    if problems := missing_data(config, splits):
        raise UserError("\n\n".join(problems))


def make_synthetic(config: Config) -> None:
    """Generate the dataset of shapes if the config asks for it and it does not exist yet."""
    root, spec = data_root(config.data), config.data.synthetic
    if spec and ensure_shapes(root, spec):
        console.print(f"generated {spec.num_train} + {spec.num_val} images in {root}")
    elif spec and not (root / NOTE).is_file():
        console.print(f"{root} holds other data: data.synthetic is ignored")


def missing_data(config: Config, splits: list[Split]) -> list[str]:
    """A message with the missing files, where they were looked for and how to fix it; empty if there are none."""
    root = data_root(config.data)
    paths: list[Path] = []
    if config.data.val_fraction:  # val is then a part of train
        splits = ["train"]
    for name, given in chain(*(given_sources(config.data, split).items() for split in splits)):
        data = of_source(config.data, given)
        if find_format(data, given) == "coco":
            paths += coco_paths(data, given, name)
        else:
            paths.append(given.annotations or given.images or data_root(data))
    missing = [path for path in dict.fromkeys(paths) if not path.exists()]
    if not missing:
        return []
    own = config.data.root is None and all(given.annotations for given in train_sources(config.data))
    if own and config.data.val.annotations is None and all(path.is_relative_to(root) for path in missing):
        return [
            "data.train names its own files, data.val does not: set data.val.images and data.val.annotations, or hold out a "
            "part of train with data.val_fraction=0.2"
        ]
    origin = (
        f"data.root={root}" if config.data.root
        else f"$RESDET_DATASETS/coco = {root}" if "RESDET_DATASETS" in os.environ
        else f"{root} (data.root and $RESDET_DATASETS are not set)"
    )  # fmt: skip
    lines = ["The data was not found:", *(f"  missing:      {path}" for path in missing)]
    lines += [f"  looked in:    {origin}"] if any(path.is_relative_to(root) for path in missing) else []
    lines += [
        "  to fix:       get COCO 2017 (datasets/README.md has the commands), or point to a copy: data.root=/path/to/coco",
        "  your own:     data.train.images=FOLDER data.train.annotations=FILE.json, the same under data.val,",
        "                or data.root=FOLDER of Pascal VOC, YOLO or labelme files, or of Roboflow's COCO export;",
        "                without a validation split: data.val_fraction=0.2 holds out a fifth of train",
        "  without any:  python tools/train.py configs/quickstart.yaml generates its own and needs no download",
    ]
    return ["\n".join(lines)]


def read_split(config: Config, split: Split) -> Annotations:
    """The annotations of a split, checked; prints a summary. Raises `UserError`."""
    parts = open_parts(config.data, split)
    check_annotations(parts)
    return _parse(split, join_parts(config.data, parts))


def read_train_val(
    config: Config, splits: list[Split], datasets: Mapping[Split, TorchDataset], *, check: bool = True
) -> tuple[Annotations, Annotations | None]:
    """The annotations of train, from the cached index if there is one, and of val if it is in `splits`.

    datasets: used instead of files. check: False if another process checks them. Raises `UserError`.
    """
    index = cache_path(config.data, "train") if "train" not in datasets else None
    train = load_index(index)
    if train:
        console.print(f"train: {train.source}: {train.summary()} (checked and indexed before, in {index})")
        splits = [split for split in splits if split != "train"]
    sources = _open_checked(config, splits, datasets, check=check)
    if train is None:
        train = keep_index(_parse("train", sources["train"]), index)
    return train, _parse("val", sources["val"]) if "val" in sources else None


def _open_checked(
    config: Config, splits: list[Split], datasets: Mapping[Split, TorchDataset], *, check: bool
) -> dict[str, Source]:
    """The splits' sources, each checked on its own, then joined, then compared with the other split."""
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


def _parse(split: Split, source: Source) -> Annotations:
    """The annotations of an open source; prints a summary."""
    source.whole()
    read = parse_coco(source.content, source.images, source.path, source.origins, are_files=source.read_image is None)
    read.skipped += source.remarks
    read.skipped.update(source.readings.summary())
    read.parts, read.read_image = source.parts, source.read_image
    read.label_maps = LabelFiles(source.labels) if source.labels else None
    if split == "val":
        read.content = source.content
    console.print(f"{split}: {read.source}: {read.summary()}")
    for note in source.notes:
        console.print(f"  {note}")
    return read
