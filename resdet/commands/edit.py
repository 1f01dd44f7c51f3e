"""`resdet data convert|split|merge|sample|remap|dedupe`: datasets of any format in, datasets out."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from resdet.commands.datasets import (
    describe,
    describe_written,
    open_source,
    open_splits,
    refuse_without_objects,
    write,
)
from resdet.config import DataFormat
from resdet.errors import UserError
from resdet.writing import make_folder, refuse_overwriting

if TYPE_CHECKING:
    from resdet.data.formats.common import Source

VERBS = ("convert", "split", "merge", "sample", "remap", "dedupe")


def add_parsers(kinds: Any) -> None:
    """The verbs' own options, added to the subparsers of `resdet data`."""
    texts = {
        "convert": "convert any supported format to COCO, YOLO, Pascal VOC, labelme, label maps or COCO's panoptic format",
        "split": "split into train, val and test, stratified by class; groups of images stay together",
        "merge": "merge several datasets into one, joining classes by name",
        "sample": "draw a random subset of the images",
        "remap": "rename, merge or drop classes",
        "dedupe": "find near-duplicate images within a dataset or between two, and write it without them",
    }
    for verb in VERBS:
        sub = kinds.add_parser(verb, help=texts[verb], description=f"{texts[verb][0].upper()}{texts[verb][1:]}.")
        if verb == "merge":
            sub.add_argument("target", metavar="OUT.json", type=Path)
            sub.add_argument("source", metavar="SOURCE", type=Path, nargs="+")
        else:
            sub.add_argument("source", metavar="SOURCE", type=Path, help="a folder, a data.yaml, a COCO JSON, …")
        if verb == "dedupe":
            sub.add_argument(
                "other", metavar="OTHER", type=Path, nargs="?", help="find the images of SOURCE that OTHER also has"
            )
            sub.add_argument(
                "--output", metavar="OUT.json", type=Path, dest="target", help="write SOURCE without the duplicates"
            )
            sub.add_argument(
                "--bits", type=int, default=16, help="hash bits, of 256, in which duplicates may differ (default: 16)"
            )
        elif verb != "merge":
            target = {"split": "a folder", "sample": "a .json file"}.get(
                verb, "a .json file, or a folder for all splits"
            )
            sub.add_argument("target", metavar="OUT", type=Path, help=target)
        if verb == "convert":
            sub.add_argument(
                "--to", choices=("coco", "yolo", "voc", "labelme", "masks", "label_maps", "coco_panoptic"), default="coco",
                help="coco: JSON files; else OUT is a folder, to which the images are copied. masks: a PNG of objects for each "
                "image, label_maps: of classes, coco_panoptic: of segments (default: coco)",
            )  # fmt: skip
        if verb == "split":
            sub.add_argument("--val", type=float, default=0.2, help="fraction of the images (default: 0.2)")
            sub.add_argument("--test", type=float, default=0.0, help="fraction of the images (default: 0)")
            sub.add_argument(
                "--group", help="regular expression on file names; images with equal matches stay in one split"
            )
        if verb in ("split", "sample"):
            sub.add_argument("--seed", type=int, default=0)
        if verb == "sample":
            sub.add_argument("--count", type=int, required=True, help="how many images")
        if verb == "remap":
            sub.add_argument("--classes", metavar="MAP.yaml", type=Path, required=True,
                             help="`old: new` per line; classes with equal new names are merged, null drops")  # fmt: skip
        if verb != "merge":
            sub.add_argument("--images", metavar="FOLDER", type=Path,
                             help="image folder of a COCO JSON (default: found near it)")  # fmt: skip
        sub.add_argument("--format", choices=("auto", *get_args(DataFormat)), default="auto")
        sub.add_argument(
            "--split",
            dest="part",
            metavar="NAME",
            help="read this split of the source (default: every split if OUT can hold several, otherwise train)",
        )


def run(args: argparse.Namespace) -> None:
    """Do what the verb says. Raises `UserError`."""
    {
        "convert": convert, "split": split, "merge": merge, "sample": sample, "remap": remap, "dedupe": dedupe,
    }[args.kind](args)  # fmt: skip


def convert(args: argparse.Namespace) -> None:
    """A source as COCO JSON, or as the folder of another format, with all splits that this can hold."""
    if args.to == "coco":
        _write_splits(args, lambda source: source)
        return
    from resdet.data.coco import parse_coco
    from resdet.data.formats.write import WRITERS, refuse_clashes
    from resdet.runtime.console import console

    if args.target.suffix == ".json":
        raise UserError(f"{args.target}: --to {args.to} writes a folder, not a file")
    if args.target.resolve() == args.source.resolve():
        raise UserError(f"{args.target}: is the source itself; choose another folder")
    if args.to == "labelme":  # which has no splits
        sources = {"train": open_source(args.source, args.format, args.part, args.images)}
    else:
        sources = open_splits(args.source, args.format, args.part, args.images)
    of_pixels = args.to in ("label_maps", "coco_panoptic")
    for source in sources.values():  # raises for what the writers cannot take
        if not of_pixels:
            refuse_without_objects(source)
        parse_coco(source.content, source.images, source.path, source.origins)
        refuse_overwriting([args.target / image["file_name"] for image in source.content["images"]],
                           [source.images / image["file_name"] for image in source.content["images"]])  # fmt: skip
    refuse_clashes(list(sources.values()), args.to)
    make_folder(args.target)
    for name, source in sources.items():
        lost = WRITERS[args.to](source, args.target, name)
        (describe if of_pixels else describe_written)(f"written: {args.target} ({args.to}, {name})", source)
        for remark, count in lost.items():
            console.print(f"  {count} {remark}")


def _write_splits(args: argparse.Namespace, change: Callable[[Source], Source]) -> None:
    """OUT.json, of the split that is meant; or in a folder OUT a JSON for each split."""
    if args.target.suffix.lower() == ".json":
        write(change(open_source(args.source, args.format, args.part, args.images)), args.target)
        return
    changed = {k: change(s) for k, s in open_splits(args.source, args.format, args.part, args.images).items()}
    for name, source in changed.items():
        write(source, args.target / f"{name}.json")


def split(args: argparse.Namespace) -> None:
    """OUT/train.json, val.json and, if asked for, test.json, each with its share of every class."""
    from resdet.data.edit import held_out, image_ids, subset

    if not (0 < args.val < 1 and 0 <= args.test < 1 and args.val + args.test < 1):
        raise UserError(f"--val {args.val} and --test {args.test} must be fractions that leave images to train on")
    try:
        re.compile(args.group or "")
    except re.error as error:
        raise UserError(f"--group {args.group!r}: not a regular expression ({error})") from None
    source = open_source(args.source, args.format, args.part, args.images)
    parts: dict[str, Source] = {}
    rest = source
    for name, share in (("test", args.test), ("val", args.val / (1 - args.test))):
        if share:
            held = held_out(rest, share, args.group, args.seed)
            parts[name] = subset(rest, held)
            rest = subset(rest, image_ids(rest) - held)
    parts["train"] = rest
    if empty := [name for name, part in parts.items() if not part.content["images"]]:
        raise UserError(
            f"{source.path}: {len(source.content['images'])} images leave none for {' and '.join(empty)}: use other fractions"
            " or another --group"
        )
    for name, part in reversed(parts.items()):
        write(part, args.target / f"{name}.json")


def merge(args: argparse.Namespace) -> None:
    """All sources in one COCO JSON."""
    from resdet.data.merge import merge as merged

    write(merged([open_source(path, args.format, args.part) for path in args.source]), args.target)


def sample(args: argparse.Namespace) -> None:
    """Some images of one source."""
    from resdet.data.edit import sample as sampled

    if args.count < 1:
        raise UserError(f"--count {args.count}: must be at least 1")
    write(sampled(open_source(args.source, args.format, args.part, args.images), args.count, args.seed), args.target)


def remap(args: argparse.Namespace) -> None:
    """One source with other classes."""
    import yaml

    from resdet.config import load_yaml
    from resdet.data.edit import remap as remapped
    from resdet.data.formats.common import read_text

    try:
        names = load_yaml(text := read_text(args.classes))
        written = load_yaml(text, as_text=True)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{args.classes}: cannot be read as YAML ({error})") from None
    if not isinstance(names, dict) or any(isinstance(v, dict | list) for v in names.values()):
        raise UserError(f"{args.classes}: must hold `old: new` pairs, new null to drop a class")
    if len(names) != len(written):
        raise UserError(f"{args.classes}: two of the old names are the same number: quote them")
    if nameless := [old for old, new in names.items() if new is not None and not str(new).strip()]:
        raise UserError(f"{args.classes}: {nameless[0]!r} gets no name: write null to drop the class")
    dropped = [new is None for new in names.values()]
    changes = {old: None if drop else str(new) for (old, new), drop in zip(written.items(), dropped, strict=True)}
    _write_splits(args, lambda source: remapped(source, changes))


def dedupe(args: argparse.Namespace) -> None:
    """Print the images that look alike; with --output, write SOURCE without those that OTHER (or itself, earlier) has."""
    from rich.progress import Progress

    from resdet.data.duplicates import hash_files, near_duplicates
    from resdet.data.edit import image_ids, subset
    from resdet.runtime.console import console

    if not 0 <= args.bits <= 256:
        raise UserError(f"--bits {args.bits}: must be 0 to 256")
    source = open_source(args.source, args.format, args.part, args.images)
    other = open_source(args.other, args.format, None) if args.other else None
    hashes = []
    for each in [source, other] if other else [source]:
        files = [each.images / image["file_name"] for image in each.content["images"]]
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task("reading", total=len(files))
            found, problems = hash_files(files, partial(progress.advance, task))
        hashes.append(found)
        for problem in problems:
            console.print(f"warning: {problem}")
    pairs = near_duplicates(hashes[0], hashes[1] if other else None, args.bits)
    images, others = source.content["images"], (other or source).content["images"]
    for pair in pairs[:50]:
        console.print(
            f"  {images[pair.first]['file_name']} = {others[pair.second]['file_name']} ({pair.distance} bits)"
        )
    if len(pairs) > 50:
        console.print(f"  … and {len(pairs) - 50} more pairs")
    duplicates = {images[pair.first if other else pair.second]["id"] for pair in pairs}
    what = f"are also in {other.path}" if other else "duplicate an earlier one"
    console.print(f"{source.path}: {len(duplicates)} of {len(images)} images {what}")
    if args.target:
        if len(duplicates) == len(images):
            raise UserError(f"{args.target} is not written: no image would be left")
        write(subset(source, image_ids(source) - duplicates), args.target)
