"""The images that an annotation tool's file names, found below a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from resdet.data.formats.common import all_files, image_sizes
from resdet.data.formats.names import NameIndex
from resdet.data.images import images_among
from resdet.errors import UserError

UPLOAD_HASH = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio's, before the name of an uploaded file


def located(
    names: Iterable[str], folder: Path, source: Path, problems: list[str], remarks: Counter[str]
) -> Iterator[tuple[Path, tuple[int, int], str]]:
    """(file, (H, W), name) of each name whose image is below `folder` and readable; the others become `problems`.

    A name is a path, which finds a file as `NameIndex` has it, or a URL, whose longest end that names a file counts.
    """
    index = NameIndex(path.relative_to(folder).as_posix() for path in images_among(all_files(folder)))
    files: dict[Path, str] = {}
    for name in names:
        try:
            file = folder / _find(index, name, remarks)
        except UserError as error:
            problems.append(f"{source}: {error}")
            continue
        if file in files:
            problems.append(f"{source}: {files[file]!r} and {name!r} are the same image, {file}")
        else:
            files[file] = name
    for (file, name), size in zip(files.items(), image_sizes(list(files), problems), strict=True):
        if size is not None:
            yield file, size, name


def _find(index: NameIndex, name: str, remarks: Counter[str]) -> str:
    paths = [[part for part in path.split("/") if part not in ("", ".", "..")] for path in _paths_of(name)]
    ends = sorted(("/".join(parts[k:]) for parts in paths for k in range(len(parts))), key=lambda end: -end.count("/"))
    ends += [UPLOAD_HASH.sub("", parts[-1]) for parts in paths if parts and UPLOAD_HASH.match(parts[-1])]
    for end in ends:
        try:
            return index.find(end, remarks)
        except UserError as error:
            if "may be" in str(error):
                raise
    return index.find(ends[-1] if ends else name, remarks)


def _paths_of(name: str) -> list[str]:
    """The paths that an address may mean, or Label Studio's /data/upload/… and /data/local-files/?d=…; [] for a plain path.

    What a storage such as s3:// calls its files is written as it is, so "#", "?" and "%" may be parts of the name.
    """
    try:
        address = urlsplit(name)
    except ValueError:  # such as an unfinished IPv6 address
        return []
    if address.query and (local := parse_qs(address.query).get("d")):
        return [local[0]]
    if "://" not in name:
        return [name, unquote(name)] if name.startswith("/data/") else []
    given = name.partition("://")[2].partition("/")[2]
    return list(dict.fromkeys([given, unquote(given), unquote(address.path)]))
