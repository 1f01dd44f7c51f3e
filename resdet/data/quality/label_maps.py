"""The label maps of a split -> `Finding`s."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from resdet.data.formats.common import Source
from resdet.data.kept import Kept
from resdet.data.label_maps import LabelFile, as_labels, read_values
from resdet.data.quality.report import Finding, Findings
from resdet.data.rules import size_of
from resdet.errors import UserError


def inspect_label_maps(split: str, source: Source) -> list[Finding]:
    """Read every label map, in parallel, unless all were read before and were right; those of ids were read with the
    annotations."""
    found = Findings(split)
    if source.labels is None:
        return []
    sizes = {entry.get("id"): size_of(entry) for entry in source.content["images"]}
    files = [(identity, file) for identity, file in source.labels.files.items() if identity in sizes and not file.ids]
    meaning = {id(file.values): file.values for _, file in files}  # mostly one for all
    also = f"{[sizes[identity] for identity, _ in files]} {[list(map(tuple, values)) for values in meaning.values()]}"
    kept = Kept("label_maps", source.path, [file.file for _, file in files], part=split, also=also)
    if kept.load():
        return []

    def look(item: tuple[int | str, LabelFile]) -> str:
        size = sizes[item[0]]
        if size is None:
            return ""  # reported with the images
        try:
            as_labels(item[1], read_values(item[1], size))
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as pool:
        for (identity, _), problem in zip(files, pool.map(look, files), strict=True):
            if problem:
                found.add("label-map", problem, identity)
    if not found.by_code:
        kept.keep("all right")
    return list(found.by_code.values())
