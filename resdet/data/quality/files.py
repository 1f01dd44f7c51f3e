"""The image files of a split: present, intact, of the annotated size, and each only once -> `Finding`s."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import UnidentifiedImageError

from resdet.data.formats.common import Source
from resdet.data.images import decode_image, open_pillow, read_header
from resdet.data.pixels import is_void
from resdet.data.quality.report import Finding, Findings
from resdet.data.rules import IDS, is_size, leads_out
from resdet.errors import UserError


class Report(NamedTuple):
    """Of one file: the code and text of what is wrong ("" if nothing), an item for `repair`, and a digest of its content."""

    code: str
    text: str
    item: Any
    digest: bytes


def inspect_files(
    split: str, source: Source, *, decode: bool, channels: int | None = None, tick: Callable[[], object] = lambda: None
) -> tuple[list[Finding], dict[bytes, str]]:
    """Look at every listed image, in parallel. -> findings, and {digest of a content: name of an image that has it}.

    decode: also decode the pixels, which finds files that are cut off. channels: that a model takes. tick: called for each
    file.
    """
    found = Findings(split)
    entries = [e for e in source.content["images"] if isinstance(e.get("file_name"), str) and e["file_name"]]

    def look(entry: dict[str, Any]) -> Report:
        report = _look(source.images / entry["file_name"], entry, decode, channels)
        tick()
        return report

    digests: dict[bytes, str] = {}
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as pool:
        for entry, report in zip(entries, pool.map(look, entries), strict=True):
            name = str(entry["file_name"])
            if report.code:
                found.add(report.code, report.text, report.item)
            first = digests.get(report.digest)
            if first is not None and os.path.normpath(first) != os.path.normpath(name):
                found.add("same-image", f"{name} is {first}", entry.get("id"))
            elif report.digest:
                digests[report.digest] = name
    return list(found.by_code.values()), digests


def with_file_sizes(source: Source, findings: list[Finding]) -> Source:
    """The source with its files' sizes in the place of wrong ones, in which boxes may seem to leave their images."""
    sizes = {
        identity: size for f in findings if f.code == "file-size" for identity, size in f.items if type(identity) in IDS
    }
    images = []
    for entry in source.content["images"]:
        height, width = entry.get("height"), entry.get("width")
        if is_size(height, width) and type(entry.get("id")) in IDS:
            height, width = sizes.get(entry["id"], (height, width))
            entry = entry | {"height": height, "width": width}
        images.append(entry)
    return replace(source, content={**source.content, "images": images})


def leaks(train: dict[bytes, str], val: dict[bytes, str]) -> list[Finding]:
    """Images of equal content in both splits."""
    found = Findings("both")
    for digest in val.keys() & train.keys():
        found.add("leak", f"val {val[digest]} is train {train[digest]}")
    return list(found.by_code.values())


def _look(path: Path, entry: dict[str, Any], decode: bool, channels: int | None) -> Report:
    identity = entry.get("id")
    if "\0" in str(path) or leads_out(entry["file_name"]):
        return Report("file-outside", f"image {identity}: {entry['file_name']}", identity, b"")
    try:
        data = path.read_bytes()
    except OSError as error:
        link = f", a link to {os.readlink(path)}" if os.path.islink(path) else ""
        return Report("file-missing", f"image {identity}: {path} ({error.strerror}{link})", identity, b"")
    if not data:
        return Report("file-empty", f"image {identity}: {path}", identity, b"")
    try:
        header = read_header(data, path)
    except UserError as error:
        return Report("file-unreadable", str(error), identity, b"")
    digest = hashlib.blake2b(data, digest_size=16).digest()
    if why := header.misfit(channels or header.own_channels):
        return Report("channels", f"image {identity}: {path} {why}", identity, digest)
    if decode:
        try:
            if header.dtype == np.uint8 and not header.bands:
                with open_pillow(data) as image:  # which is stricter about a missing end than OpenCV
                    image.load()
            elif is_void(decode_image(data, path, header, header.own_channels)):
                return Report("file-void", f"image {identity}: {path}", identity, digest)
        except UserError as error:
            return Report("file-truncated", f"image {identity}: {error}", identity, digest)
        except UnidentifiedImageError:  # of a kind that Pillow does not know
            pass
        except (OSError, SyntaxError, ValueError) as error:
            return Report("file-truncated", f"image {identity}: {path} ({error})", identity, digest)
    size = (entry.get("height"), entry.get("width"))
    if size != header.upright_size and size == header.size:
        return Report("file-exif", f"image {identity}: {path}", identity, digest)
    if size != header.upright_size:
        actual = header.upright_size
        text = f"image {identity}: {path} is {actual[0]} x {actual[1]} (H x W), annotated {size[0]} x {size[1]}"
        return Report("file-size", text, (identity, actual), digest)
    if header.animated:
        return Report("file-animated", f"image {identity}: {path}", identity, digest)
    return Report("", "", None, digest)
