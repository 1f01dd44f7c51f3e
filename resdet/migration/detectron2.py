"""detectron2's configs: YAML with its `_BASE_` chain, read as data, and its defaults -> ours."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from resdet.config import load_yaml
from resdet.errors import UserError
from resdet.migration import detectron2_retinanet as retinanet
from resdet.migration import detectron2_semantic as semantic
from resdet.migration.conventions import DETECTRON2, OF_HEADS
from resdet.migration.detectron2_defaults import DEFAULTS
from resdet.migration.detectron2_keys import TABLE
from resdet.migration.expressions import Unknown
from resdet.migration.keys import (
    Leaves,
    account,
    leaves,
)
from resdet.migration.python_config import config_text, evaluate, merge
from resdet.migration.report import Migration


def migrate_yaml(path: Path) -> Migration:
    """A YAML file with its bases -> our config and the account of its keys. Raises `UserError`."""
    values, files = read_yaml(path)
    given = {key: _decoded(key, value) for key, value in leaves(values, str(path)).items()}
    bases = f" with {', '.join(file.name for file in files[1:])}" if files[1:] else ""
    return migrate(given, DEFAULTS, f"detectron2's config {path}{bases}")


def migrate(given: Leaves, defaults: Leaves, origin: str, names: Mapping[str, str] = MappingProxyType({})) -> Migration:
    """given, defaults: by the YAML's keys. names: of keys that the file calls something else."""
    architecture = given.get("MODEL.META_ARCHITECTURE", defaults.get("MODEL.META_ARCHITECTURE"))
    if architecture == "RetinaNet":
        table = {**retinanet.TABLE, **TABLE, **retinanet.TABLE}  # its rules come first
        numerics = {"model": retinanet.NUMERICS}
        return Migration(origin, *account(given, {**defaults, **retinanet.DEFAULTS}, table, origin, numerics, names))
    defaults = {**defaults, **semantic.DEFAULTS}
    if architecture == "SemanticSegmentor":
        table = {**semantic.ALONE, **TABLE, **semantic.ALONE}
        return Migration(origin, *account(given, defaults, table, origin, {"model": semantic.NUMERICS}, names))
    without = OF_HEADS if architecture == "ProposalNetwork" else ()
    always = {key: value for key, value in DETECTRON2.items() if key not in without}
    table = {**semantic.PANOPTIC, **TABLE}
    return Migration(origin, *account(given, defaults, table, origin, {"model": always}, names))


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """-> (the values of a file merged over its bases, the files). Raises `UserError`, for missing and circular bases, too."""
    if path.resolve() in above:
        chain = " -> ".join(p.name for p in (*above, path))
        raise UserError(f"{path}: its bases form a circle: {chain}")
    asked_by = above[-1] if above else None
    text = _without_tags(config_text(path, asked_by))
    try:
        values = load_yaml(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error or type(error).__name__}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `KEY: value` pairs, not a {type(values).__name__}")
    base = values.pop("_BASE_", None)
    if base is None:
        return values, [path]
    if not isinstance(base, str) or "://" in base:
        raise UserError(f"{path}: _BASE_={base!r} is not a file; put it beside this one and name it there")
    below, files = read_yaml(path.parent / Path(base).expanduser(), (*above, path.resolve()))
    return merge(below, values), [path, *files]


EVALUATED = "\0python "


def _without_tags(text: str) -> str:
    """Values that YAML would have Python compute (`!!python/object/apply:eval ["2 ** 7"]`) as marked strings."""
    return re.sub(r"!!python/\S+[ \t]*(.*)", lambda m: json.dumps(EVALUATED + m[1]), text)


def _computed(text: str) -> Any:
    """The value of an expression that is plain arithmetic; an `Unknown` for any other."""
    match = re.fullmatch(r"""\[\s*(["'])(.*)\1\s*\]\s*(#.*)?""", text)
    try:
        return evaluate(match[2]) if match else Unknown(text)
    except UserError:
        return Unknown(text)


def _decoded(key: str, value: Any) -> Any:
    """detectron2 reads strings that are Python literals as such: "(640, 672)" is a tuple."""
    if not isinstance(value, str):
        return value
    if value.startswith(EVALUATED):
        return _computed(value.removeprefix(EVALUATED))
    if isinstance(DEFAULTS.get(key), bool) and value.lower() in ("yes", "on", "no", "off"):
        return value.lower() in ("yes", "on")
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
