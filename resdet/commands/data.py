"""`resdet data check|stats`: what is wrong with a dataset, its statistics; the verbs that write datasets are in `edit.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resdet.commands import edit
from resdet.commands.common import detector_config_of, guarded, parser_of
from resdet.commands.datasets import describe, refuse_sources
from resdet.config import Config, DataConfig, data_root, of_source
from resdet.errors import UserError
from resdet.writing import make_folder, write_json

if TYPE_CHECKING:
    from resdet.data.coco import Annotations
    from resdet.data.formats.common import Source

Split = Literal["train", "val"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, plot, convert, split, merge and clean datasets."""
    parser = parser_of("data", "Check a dataset, plot its statistics, convert, split, merge and clean it.")
    kinds = parser.add_subparsers(
        dest="kind", required=True, metavar="{check,stats,convert,split,merge,sample,remap,dedupe}"
    )
    look = kinds.add_parser("check", help="list what is wrong with the data, with examples and fixes")
    draw = kinds.add_parser("stats", help="plot class counts, object sizes and positions, image sizes")
    for sub in (look, draw):
        sub.add_argument("config")
        sub.add_argument("rest", nargs="*", metavar="key.sub=value")
        sub.add_argument(
            "--split", choices=("train", "val"), default="train", help="the split that --fix repairs or stats plots"
        )
    look.add_argument("--output", type=Path, help="folder for findings.json")
    look.add_argument("--fix", type=Path, metavar="OUT.json", help="write a repaired copy of the split")
    look.add_argument(
        "--drop", action="store_true", help="let --fix drop more than a tenth of the images, objects or masks"
    )
    draw.add_argument("--output", type=Path, required=True, help="folder for stats.png")
    edit.add_parsers(kinds)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args, extra = parser.parse_known_args(arguments)
    if any(word.startswith("-") for word in extra) or (extra and args.kind in edit.VERBS):
        parser.error(f"unknown option: {' '.join(extra)}")

    def run() -> int:
        if args.kind in edit.VERBS:
            edit.run(args)
            return 0
        args.overrides, output = args.rest + extra, args.output
        args.output = None
        config = detector_config_of(args)
        if args.kind == "stats":
            stats(config, output, args.split)
            return 0
        return 2 if check(config, output, args.fix, args.split, drop=args.drop) else 0

    return guarded(run)


def check(config: Config, output: Path | None, fix: Path | None, split: Split, *, drop: bool = False) -> int:
    """Look at everything, print the table, write findings.json into `output` and a repaired `split` to `fix`.

    drop: write the repaired split even if that drops more than a tenth of its images, objects or masks.
    -> the number of errors
    """
    from rich.progress import Progress

    from resdet.data.auto import as_trained
    from resdet.data.coco import parse_coco
    from resdet.data.quality.advice import examine_sizes
    from resdet.data.quality.categories import compare
    from resdet.data.quality.checks import examine, unusable
    from resdet.data.quality.depth import examine_depth
    from resdet.data.quality.files import inspect_files, leaks, with_file_sizes
    from resdet.data.quality.label_maps import inspect_label_maps
    from resdet.data.quality.repair import repair
    from resdet.data.quality.report import Findings
    from resdet.data.quality.summary import errors, report
    from resdet.data.sources import join_parts, open_parts
    from resdet.data.splits import require_data
    from resdet.runtime.console import console
    from resdet.training.setup import fitted

    require_data(config, ["train", "val"])
    train, val = open_parts(config.data, "train", tolerant=True), open_parts(config.data, "val", tolerant=True)
    sources: dict[str, Source] = train | val
    if fix and split not in sources:
        raise UserError(
            f"--fix repairs one dataset, but data.train lists {len(train)}: name one alone, as in "
            "data.train='{annotations: FILE.json}'"
        )
    if fix:
        refuse_sources(fix, list(sources.values()))
        make_folder(fix.parent)
    if output:
        make_folder(output)
    sources |= unused(config.data, sources)
    findings = unusable(sources)
    contents: dict[str, dict[bytes, str]] = {}
    pixels: dict[str, str] = {}
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        for name, source in sources.items():
            task = progress.add_task(f"looking at {name}", total=len(source.content["images"]))

            def tick(task: Any = task) -> None:
                progress.advance(task)

            found, contents[name] = inspect_files(
                name, source, decode=True, channels=config.model.input.channels, tick=tick
            )
            pixels[name], deep = examine_depth(name, source, config.data.pixel_range, config.model.input.channels)
            findings += examine(name, with_file_sizes(source, found)) + found + deep
            findings += inspect_label_maps(name, source)
    seen = [{digest: text for name in parts for digest, text in contents[name].items()} for parts in (train, val)]
    findings += leaks(*seen)
    alone = len(train) == len(val) == 1
    if alone:
        findings += compare(sources["train"], sources["val"])
    advice: list[str] = []
    if not errors(findings):
        whole = join_parts(config.data, train)
        held_out = join_parts(config.data, val)
        findings += [] if alone else compare(whole, held_out)
        read = parse_coco(whole.content, whole.images, whole.path)
        config = as_trained(config, read)
        try:
            if "semantic" not in config.model.outputs:  # whose classes come from label maps
                fitted(config, read, parse_coco(held_out.content, held_out.images, held_out.path))
        except UserError as error:
            misfit = Findings("train")
            misfit.add("model", str(error))
            findings += misfit.by_code.values()
        found, advice = examine_sizes(read, config.data, config.model)
        findings += found
    for name, source in sources.items():
        describe(f"{name}: {source.path}", source)
        console.print(f"  pixels: {pixels[name]}", markup=False)
    root = data_root(config.data)
    folders = {source.images for source in sources.values() if not source.images.is_relative_to(root)}
    report(findings, [root, *sorted(folders, reverse=True)])
    for line in advice:
        console.print(line)
    if output:
        listed = [{k: v for k, v in asdict(finding).items() if k != "items"} for finding in findings]
        write_json(output / "findings.json", {"findings": listed, "advice": advice}, indent=2)
        console.print(f"written: {output / 'findings.json'}")
    if fix:
        own = [f for f in findings if f.split == split]
        for finding in own:
            if finding.code in ("image-id", "category-id"):  # whose objects are they?
                raise UserError(f"{fix}: not written: {finding.what}: {finding.examples[0]}; {finding.fix} first")
        repaired = repair(sources[split], own)
        mended = ", ".join(f"{count} {code}" for code, count in sorted(repaired.done.items()) if count) or "nothing"
        if repaired.costs() and not drop:
            raise UserError(
                f"{fix}: not written: the repair would drop {' and '.join(repaired.costs())} of {split} ({mended}); "
                "correct the annotations by hand, or add --drop to accept the loss"
            )
        write_json(fix, repaired.content)
        console.print(f"written: {fix}: {split}, repaired: {mended}")
    return errors(findings)


def unused(data: DataConfig, sources: dict[str, Source]) -> dict[str, Source]:
    """The images of a Pascal VOC folder that neither split takes, which may become training data some day."""
    from resdet.data.edit import subset
    from resdet.data.sources import detected, read_whole

    given = data.train
    if isinstance(given, list):
        return {}
    data = of_source(data, given)
    found = detected(data, given)
    if data.val_fraction or found.format != "voc":
        return {}
    whole = read_whole(data, found, given.images, None)
    taken = {e["file_name"] for s in sources.values() for e in s.content["images"]}
    left = {e["id"] for e in whole.content["images"] if e["file_name"] not in taken}
    return {"unused": subset(whole, left)} if left else {}


def stats(config: Config, output: Path, split: Split) -> Path:
    """Plot class counts, object sizes and positions and image sizes of a split into `stats.png`."""
    from resdet.data.coco import parse_coco
    from resdet.data.sources import open_split
    from resdet.data.splits import require_data
    from resdet.runtime.console import console

    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plotting statistics needs matplotlib: pip install 'resdet[plots]'") from None
    require_data(config, [split])
    source = open_split(config.data, split)
    read = parse_coco(source.content, source.images, source.path, source.origins)
    make_folder(output)
    figure = Figure(figsize=(13, 8), layout="constrained")
    figure.suptitle(f"{read.source}: {read.summary()}", fontsize=10, wrap=True)
    _draw_stats(figure, read)
    figure.savefig(output / "stats.png", dpi=110)
    console.print(f"{read.summary()}\nwritten: {output / 'stats.png'}")
    return output / "stats.png"


def _draw_stats(figure: Any, read: Annotations) -> None:
    import numpy as np

    labels, boxes = read.images.labels, read.images.boxes
    sizes = np.repeat(read.images.sizes, read.images.counts, axis=0)
    blue = "#0072B2"
    (classes, positions), (areas, shapes) = figure.subplots(2, 2)
    counts = np.bincount(labels, minlength=len(read.class_names))
    order = np.argsort(-counts, kind="stable")[:30]
    classes.barh([read.class_names[k] for k in order][::-1], counts[order][::-1], color=blue)
    rest = len(counts) - len(order)
    classes.set(title=f"objects per class{f' (the first 30 of {len(counts)})' if rest else ''}", xlabel="objects")
    classes.tick_params(axis="y", labelsize=8 if len(order) < 25 else 6)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.maximum(sizes[:, ::-1], 1)
    density, _, _ = np.histogram2d(centres[:, 1], centres[:, 0], bins=24, range=[[0, 1], [0, 1]])
    positions.imshow(density, extent=(0, 1, 1, 0), cmap="Blues", aspect="auto")
    positions.set(title="object centres", xlabel="fraction of the width", ylabel="fraction of the height")
    sides = np.sqrt(np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1))
    areas.hist(sides, bins=np.geomspace(sides.min(initial=1e9), max(sides.max(initial=1), 2) * 1.01, 40), color=blue)
    areas.set(title="object size", xlabel="square root of the box area, pixels", ylabel="objects", xscale="log")
    for edge, name in ((32, "medium"), (96, "large")):  # as COCO's evaluation counts them
        areas.axvline(edge, color="#999999", linewidth=0.8)
        areas.annotate(f" {name}", (edge, 1), xycoords=("data", "axes fraction"), va="top", color="#666666", fontsize=8)
    shapes.scatter(read.images.sizes[:, 1], read.images.sizes[:, 0], s=12, alpha=0.4, color=blue, linewidths=0)
    shapes.set(title="image sizes", xlabel="width", ylabel="height", xlim=(0, None), ylim=(0, None))
    for axes in (classes, areas, shapes):
        axes.spines[["top", "right"]].set_visible(False)
