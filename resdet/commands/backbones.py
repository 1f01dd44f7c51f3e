"""`resdet backbones`: the names that `model.backbone.name` takes, with what each costs and is worth."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import NamedTuple

from resdet.commands.common import guarded, parser_of
from resdet.errors import UserError

OURS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d",
    "resnext101_32x8d", "resnext101_64x4d",
)  # fmt: skip
NAME_WIDTH = 22
UNKNOWN = "-"


class Row(NamedTuple):
    """parameters in millions, gflops: multiply-adds in billions, maps: channels and strides, top1: of ImageNet, %."""

    name: str
    parameters: float
    gflops: float
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    top1: float | None
    licence: str


def main(arguments: Sequence[str] | None = None) -> int:
    """List backbones."""
    parser = parser_of(
        "backbones",
        "List backbones with their parameters (M), multiply-adds (G) at a size, channels and strides of their maps, the "
        "licence of the weights that `imagenet` loads, and their ImageNet top-1 where torchvision's table has it.",
    )
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN",
        help="of names, for example 'timm:convnext*' or '*resnet50*' (default: resdet's own)",
    )  # fmt: skip
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("H", "W"),
                        help="of the image for the multiply-adds (default: 224 224)")  # fmt: skip
    parser.add_argument("--limit", type=int, default=40, metavar="N", help="rows at most (default: 40)")
    args = parser.parse_args(arguments)
    if min(*args.size, args.limit) < 1:
        parser.error("--size and --limit must be above 0")

    def run() -> int:
        names = matching(args.patterns) if args.patterns else list(OURS)
        if not names:
            raise UserError(
                f"no backbone matches {' or '.join(args.patterns)}: quote patterns, for example 'timm:*vit*'"
            )
        print(f"{'':<{NAME_WIDTH}} {'M':>6} {'G':>6} {'channels':>18} {'strides':>7} {'top-1':>5} licence")
        for name in names[: args.limit]:
            try:
                print(line(measured(name, (args.size[0], args.size[1]))), flush=True)
            except UserError as error:
                why = str(error).removeprefix(f"model.backbone.name={name}: ")
                print(f"{name}\n{fill(why, 80, initial_indent='  ', subsequent_indent='  ')}", flush=True)
        if len(names) > args.limit:
            print(f"… and {len(names) - args.limit} more: narrow the pattern, or give --limit {len(names)}")
        if unmatched := [p for p in args.patterns if not any(matches(name, p) for name in names)]:
            raise UserError(f"no backbone matches {' or '.join(unmatched)}: see resdet backbones, or '*resnet50*'")
        if not args.patterns:
            print("Of the libraries: resdet backbones 'timm:convnext*', resdet backbones 'torchvision:*'")
        return 0

    return guarded(run)


def matching(patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern with or without their library; a name itself is one, with a tag too."""
    known = list(_known(any(not p.startswith(("torchvision:", "resn", "wide_")) for p in patterns)))
    found = [name for name in known if any(matches(name, p) for p in patterns)]
    tagged = [p for p in patterns if p.startswith("timm:") and "*" not in p and p not in found]
    return found + tagged


def matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.partition(":")[2], pattern)


def _known(with_timm: bool) -> Iterator[str]:
    import torchvision

    yield from OURS
    yield from (f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models))
    if with_timm:
        try:
            import timm
        except ImportError:
            raise UserError("timm's backbones need the extra: pip install 'resdet[timm]'") from None
        yield from (f"timm:{name}" for name in timm.list_models())


def measured(name: str, size: tuple[int, int]) -> Row:
    """Built without memory or computation, on torch's meta device. Raises `UserError`."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from resdet.config import parse_config
    from resdet.models.build import build_backbone

    config = parse_config({"model": {"backbone": {"name": name, "weights": "none"}}}).model
    height, width = (-(-side // 32) * 32 for side in size)
    with torch.device("meta"):
        backbone = build_backbone(config).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            backbone(torch.zeros(1, 3, height, width))
    parameters = sum(p.numel() for p in backbone.parameters())
    top1, licence = published(name)
    return Row(
        name, parameters / 1e6, counter.get_total_flops() / 2e9, tuple(backbone.channels.values()),
        tuple(backbone.strides.values()), top1, licence,
    )  # fmt: skip


def published(name: str) -> tuple[float | None, str]:
    """ImageNet top-1 in % and the licence of the weights that `imagenet` names; None and "-" where the library does not say."""
    import torchvision

    library, _, bare = name.rpartition(":")
    if library == "timm":
        import timm

        config = timm.models.get_pretrained_cfg(bare)
        return None, (config and config.license) or UNKNOWN
    if bare not in torchvision.models.list_models(module=torchvision.models):
        return None, UNKNOWN
    weights = getattr(torchvision.models.get_model_weights(bare), "IMAGENET1K_V1", None)
    if weights is None:
        return None, UNKNOWN
    return weights.meta["_metrics"]["ImageNet-1K"]["acc@1"], weights.meta.get("license", "bsd-3")


def line(row: Row) -> str:
    channels, strides = ("/".join(map(str, values)) for values in (row.channels, row.strides))
    strides = "4-32" if row.strides == (4, 8, 16, 32) else strides or "none"
    top1 = f"{row.top1:.1f}" if row.top1 else UNKNOWN
    name = row.name if len(row.name) <= NAME_WIDTH else f"{row.name}\n{'':<{NAME_WIDTH}}"
    gflops = f"{row.gflops:.2f}" if row.gflops < 10 else f"{row.gflops:.1f}"
    return (
        f"{name:<{NAME_WIDTH}} {row.parameters:>6.1f} {gflops:>6} {channels:>18} {strides:>7} {top1:>5} {row.licence}"
    )
