"""Bit depth and value range of a split's images -> one line, and `Finding`s."""

from __future__ import annotations

from resdet.config.data import RangeRule
from resdet.data.formats.common import Source
from resdet.data.pixels import PixelRange, decide_range, measure_depth, sample_of
from resdet.data.quality.report import Finding, Findings
from resdet.errors import UserError


def examine_depth(
    split: str, source: Source, given: RangeRule | PixelRange, channels: int
) -> tuple[str, list[Finding]]:
    """given, channels: `data.pixel_range` and `model.input.channels`, which the images have to fit."""
    found = Findings(split)
    names = [e["file_name"] for e in source.content["images"] if isinstance(e.get("file_name"), str)]
    files = [source.images / name for name in names if name and "\0" not in name]
    depth = measure_depth([files[k] for k in sample_of(len(files))], channels)
    if split == "train" and depth.deep and not depth.misfits and not depth.void:  # whose range the others take
        try:
            _, line = decide_range(given, depth, None)
            found.add("deep", line)
        except UserError as error:
            found.add("pixel-range", str(error))
    return str(depth), list(found.by_code.values())
