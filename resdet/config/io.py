"""YAML text and `key.sub=value` overrides -> `Config`, and back. Every mistake is listed at once, with a suggestion."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from resdet.config.model import ModelConfig
from resdet.config.schema import Config
from resdet.errors import UserError, listed

logger = logging.getLogger("resdet")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: 1e-4 is a number, and only true and false are booleans."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+0123456789."),
)


class _TextLoader(yaml.SafeLoader):
    """Every scalar is the text that is written: 007, true, 1e3, null."""


_TextLoader.yaml_implicit_resolvers = {}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML too) and check everything.

    `path` may also name a shipped config: `configs/maskrcnn_r50.yaml` or `maskrcnn_r50`. Raises `UserError`.
    """
    file = find_config(path)
    try:
        values = load_yaml(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{file}: must hold `key: value` pairs, not a {type(values).__name__}")
    given: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        if key in given:
            raise UserError(f"{key} is given twice: {given[key]!r} and {override!r}")
        given[key] = override
        _apply(values, override)
    data = values.get("data")
    if isinstance(data, dict) and data.get("split") is not None:
        logger.warning("data.split, the share of images for validation, is now called data.val_fraction")
    return parse_config(values, source=str(path))


def load_yaml(text: str, *, as_text: bool = False) -> Any:
    """YAML 1.2 scalars, no Python objects, no aliases that expand to more than a file would hold. Raises `yaml.YAMLError`.

    as_text: scalars stay text as written, as class names must.
    """
    loader = (_TextLoader if as_text else _Loader)(text)
    try:
        node = loader.get_single_node()
        if doubled := list(_doubled_keys(node, "", set())):
            raise yaml.YAMLError("; ".join(doubled))
        value = loader.construct_document(node) if node else None
    finally:
        loader.dispose()
    if expanded_size(value, {}) > 1_000_000:
        raise yaml.YAMLError("its aliases expand to more than a million values")
    return value


def _doubled_keys(node: yaml.Node | None, path: str, seen: set[int]) -> Iterator[str]:
    """What appears twice in one mapping, each with its lines: YAML itself would silently keep the last."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            yield from _doubled_keys(entry, f"{path}[{number}]", seen)
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name = f"{path}.{key.value}" if path else str(key.value)
        line = key.start_mark.line + 1
        if name in lines:
            yield f"{name} appears twice (lines {lines[name]} and {line})"
        lines[name] = line
        yield from _doubled_keys(value, name, seen)


def expanded_size(value: Any, known: dict[int, float]) -> float:
    """How many values it expands to, an alias counted each time; infinite where one contains itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")  # while its own content is being counted
        entries = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(expanded_size(entry, known) for entry in entries)
    return known[id(value)]


def parse_config(values: dict[str, Any], source: str = "config") -> Config:
    """Nested values -> `Config`; raises one `UserError` that lists every mistake."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise listed(f"{source}: {error.error_count()} mistake(s):", [_explain(e) for e in error.errors()]) from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def dump_settings(config: Config) -> str:
    """What the user has set, as YAML: read again it means the same, and what is open stays open for `auto` and checkpoints."""
    return yaml.safe_dump(settings_of(config), sort_keys=False)


def settings_of(section: Config | ModelConfig) -> dict[str, Any]:
    """The keys that were set, or changed in place to values that the others do not imply, as JSON values.

    Raises `UserError` where keys that were changed in place contradict each other.
    """
    try:
        implied = type(section).model_validate(section.model_dump(exclude_unset=True))
    except ValidationError as error:
        raise listed("the config as it was changed:", [_explain(e) for e in error.errors()]) from None
    return _settings(section, implied)


def _settings(section: BaseModel, implied: BaseModel) -> dict[str, Any]:
    found: dict[str, Any] = {}
    whole = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value, other = getattr(section, name), getattr(implied, name)
        if isinstance(value, BaseModel):
            inner = _settings(value, other if isinstance(other, BaseModel) else type(value)())
            optional = type(None) in _members(field.annotation) and name in section.model_fields_set
            if inner or optional or field.get_default() is None:
                found[name] = inner
        elif isinstance(value, list) and value and all(isinstance(entry, BaseModel) for entry in value):
            found[name] = [entry.model_dump(mode="json", exclude_unset=True) for entry in value]
        elif name in section.model_fields_set or value != other:
            found[name] = whole[name]
    return found


def find_config(path: str | Path) -> Path:
    """The file at `path`, or the shipped config of that name. Raises `UserError` with near names."""
    path = Path(path)
    if path.is_file():
        return path
    here = Path(__file__).parents[1]
    shipped = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (shipped / relative, shipped / f"{relative}.yaml"):
        if not path.is_absolute() and candidate.is_file():
            return candidate
    names = sorted(str(p.relative_to(shipped)) for p in shipped.rglob("*.yaml"))
    near = difflib.get_close_matches(f"{path.stem}.yaml", names, n=1)
    hint = f"; did you mean configs/{near[0]}?" if near else ""
    raise UserError(f"config not found: {path}{hint}\nshipped: {', '.join(names)}")


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"override {override!r}: write it as key.sub=value, for example train.lr=0.01")
    try:
        value = _literal(key, text) or load_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value cannot be read: {error}") from None
    *parents, last = key.split(".")
    node = values
    for depth, parent in enumerate(parents, 1):
        child = node.get(parent)
        if isinstance(child, list):
            name = ".".join(parents[:depth])
            raise UserError(f"override {override!r}: {name} is a list: write it as a whole, {name}=[…]")
        if not isinstance(child, dict):
            child = node[parent] = {}
        node = child
    node[last] = value


def _literal(key: str, text: str) -> str | None:
    """The text itself where the key takes only a path or a name: `file #1` has no comment, and 2024 is a folder."""
    text = text.strip()
    plain = text and text[0] not in "'\"" and text not in ("null", "Null", "NULL", "~", "none")
    return text if plain and key in _textual(Config) else None


def _textual(section: type[BaseModel], prefix: str = "") -> set[str]:
    """The keys whose values are paths or names."""
    found: set[str] = set()
    for name, field in section.model_fields.items():
        kinds = _members(field.annotation) - {type(None)}
        if kinds <= {str, Path}:
            found.add(prefix + name)
        for inner in kinds:
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= _textual(inner, f"{prefix}{name}.")
    return found


def _members(annotation: Any) -> set[Any]:
    """The types that a field takes."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return {get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in members}


def _explain(error: Any) -> str:
    parts = [part for part in error["loc"] if not str(part).startswith("<")]  # without the tags of a union
    path = re.sub(r"\.(\d+)\b", r"[\1]", ".".join(map(str, parts)))
    if error["type"] == "union_tag_invalid":
        kinds = re.findall(r"<(\w+)>", error["ctx"]["expected_tags"])
        given = error["ctx"]["tag"].strip("<>")
        near = difflib.get_close_matches(given, kinds, n=1)
        return f"{path}.kind: must be one of {', '.join(kinds)}, got {given!r}" + (
            f"; did you mean {near[0]!r}?" if near else ""
        )
    if error["type"] == "extra_forbidden":
        kind = next((str(part).strip("<>") for part in error["loc"] if str(part).startswith("<")), None)
        return f"{path}: unknown key{_did_you_mean(path, kind)}"
    given = error.get("input")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message if not path or message.startswith(f"{path}.") else f"{path}: {message}"
    if error["type"] == "literal_error":
        near = difflib.get_close_matches(str(given), re.findall(r"'([^']+)'", error["ctx"]["expected"]), n=1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: must be a section ({{key: value}}), got {'null' if given is None else _shortened(given)}"
    if error["type"] in ("path_type", "string_type") and isinstance(given, int | float):
        message = f"{given} is read as a number; quote it if it is a path or a name"
        return f"{path}: {message}"
    return f"{path}: {message} (given: {_shortened(given)})"


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _did_you_mean(path: str, kind: str | None) -> str:
    """kind: of the model, if the key is inside it."""
    path = re.sub(r"\[\d+\]", "", path)
    known = list(_keys(Config, kind=kind))
    if path in _keys(Config):
        return f" for model.kind={kind}"
    parent, _, last = path.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    near = difflib.get_close_matches(last, siblings, n=1)
    if near:
        return f"; did you mean {siblings[near[0]]}?"
    elsewhere = [k for k in known if k.rpartition(".")[2] == last] or difflib.get_close_matches(path, known, n=1)
    return f"; did you mean {' or '.join(elsewhere[:2])}?" if elsewhere else ""


def _keys(section: type[BaseModel], prefix: str = "", kind: str | None = None) -> Iterator[str]:
    """All keys, dotted; of the kinds of models those of one, if it is given."""
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _members(field.annotation):
            if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
                continue
            if not (kind and issubclass(inner, ModelConfig) and inner.model_fields["kind"].default != kind):
                yield from _keys(inner, f"{prefix}{name}.", kind)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `over` in place of its own."""
    result = dict(base)
    for key, value in over.items():
        inner = base.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result
