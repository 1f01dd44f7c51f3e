"""Their keys, one by one -> our keys: the rules that a table of keys is made of, and the account of what became of each key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pydantic import BaseModel

from resdet.config import Config, parse_config
from resdet.config.io import expanded_size
from resdet.errors import UserError, listed
from resdet.migration.expressions import MAX_VALUES, Symbol, Unknown

Leaves = Mapping[str, Any]  # dotted key of theirs -> value
Convert = Callable[[Any, Leaves], Any]
KEYED_BY_TYPE = ("pipeline", "transforms", "param_scheduler", "custom_hooks", "augmentations")


class Kind(Enum):
    """What became of a key."""

    WARNING = "not (fully) converted, though they affect the results"
    TAKEN = "converted"
    SAME = "equal to the default, or without effect in resdet"
    UNKNOWN = "unknown"


class Row(NamedTuple):
    """One key of theirs. ours: our keys and values that it became. note: why, for people."""

    kind: Kind
    key: str
    value: Any
    ours: dict[str, Any]
    note: str = ""


class NotTaken(Exception):
    """A value without a full counterpart here, though it affects the results; the message says what to do.

    taken: our keys and values that come closest, if any.
    """

    def __init__(self, message: str, taken: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.taken = taken or {}


class NotBuilt(Exception):
    """A value that asks for an architecture that resdet does not have. Of several, only the lowest level is reported."""

    def __init__(self, message: str, level: int = 1) -> None:
        super().__init__(message)
        self.level = level


@dataclass(frozen=True)
class Rule:
    """convert: (value, all leaves) -> our keys and values, with a note. from_default: fill in the tool's default, too."""

    convert: Callable[[Any, Leaves], tuple[dict[str, Any], str]]
    from_default: bool = True


Table = Mapping[str, Rule]  # patterns of their keys, several in one separated by spaces; the first that fits counts


def take(ours: str, convert: Convert | None = None, *, from_default: bool = True) -> Rule:
    """The value, converted, becomes that of our key. from_default=False: for keys that do not affect the results."""
    return Rule(lambda v, all_: ({ours: convert(v, all_) if convert else v}, ""), from_default)


def sets(convert: Callable[[Any, Leaves], dict[str, Any]], note: str = "", *, from_default: bool = True) -> Rule:
    """The value decides several of our keys, or different ones."""
    return Rule(lambda v, all_: (convert(v, all_), note), from_default)


def only(*accepted: Any, instead: str = "") -> Rule:
    """resdet computes as with the accepted values; any other is a warning."""

    def convert(value: Any, _: Leaves) -> tuple[dict[str, Any], str]:
        if not any(_equal(value, one) for one in accepted):
            raise NotTaken(instead or f"in resdet always {' or '.join(map(repr, accepted))}")
        return {}, ""

    return Rule(convert)


def builds(*accepted: Any, level: int = 1) -> Rule:
    """A part of the architecture that is one of these here. level: 0 the detector, 1 its parts, 2 what follows from these."""

    def convert(value: Any, _: Leaves) -> tuple[dict[str, Any], str]:
        if not any(_equal(value, one) for one in accepted):
            raise NotBuilt(f"resdet supports {' or '.join(map(repr, accepted))}", level)
        return {}, ""

    return Rule(convert)


def no_effect(note: str = "") -> Rule:
    return Rule(lambda *_: ({}, note), from_default=False)


def where(condition: Callable[[Leaves], bool], rule: Rule, note: str) -> Rule:
    """`rule` where it applies; elsewhere the key has no effect."""
    return Rule(lambda v, all_: rule.convert(v, all_) if condition(all_) else ({}, note), rule.from_default)


def leaves(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Nested values by dotted keys; entries of lists of dicts by number, those of pipelines by their type."""
    if expanded_size(dict(values), {}) > MAX_VALUES:
        raise UserError(f"{source}: expands to more than {MAX_VALUES} values, which no config has")
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any, named: bool) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner, str(key) in KEYED_BY_TYPE)
        elif type(value) in (list, tuple) and any(isinstance(entry, dict) for entry in value):
            seen: dict[str, int] = {}
            for number, entry in enumerate(value):
                kind = _type_of(entry) if named else None
                seen[kind or ""] = seen.get(kind or "", 0) + 1
                again = f"#{seen[kind]}" if kind and seen[kind] > 1 else ""
                walk(f"{prefix}.{kind or number}{again}", entry, named)
        else:
            last = prefix.rpartition(".")[2]
            found[prefix] = value.name if isinstance(value, Symbol) and last in ("type", "_target_") else value

    try:
        walk("", dict(values), False)
    except RecursionError:
        raise UserError(f"{source}: nested too deeply for a config") from None
    return found


def _type_of(entry: Any) -> str | None:
    kind = entry.get("type", entry.get("_target_")) if isinstance(entry, dict) else None
    return kind.name if isinstance(kind, Symbol) else kind if isinstance(kind, str) else None


def find(all_: Leaves, pattern: str, default: Any = None) -> Any:
    """The value of the first key that fits the pattern."""
    return next((value for key, value in all_.items() if fnmatchcase(key, pattern)), default)


def account(
    given: Leaves, defaults: Leaves, table: Table, source: str, always: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[list[Row], dict[str, Any], dict[str, Any]]:
    """-> (a row for every given key and for defaults that matter, our nested values that differ from our defaults, those of
    `always` among them by dotted key).

    defaults: the tool's own, of keys that are not given. always: our nested values of what the tool has no keys for.
    names: what keys are called in the file, where that is something else.
    Raises one `UserError` for all that resdet does not build.
    """
    rules = [(pattern, rule) for patterns, rule in table.items() for pattern in patterns.split()]
    everything = {**given, **{key: value for key, value in defaults.items() if key not in given}}
    rows: list[Row] = []
    missing: list[tuple[int, str]] = []
    for key, value in everything.items():
        rule = next((rule for pattern, rule in rules if fnmatchcase(key, pattern)), None)
        try:
            rows += [
                row._replace(key=names.get(key, key)) for row in _judge(key, value, rule, everything, key in given)
            ]
        except NotBuilt as error:
            default = "" if key in given else " (the default)"
            missing.append((error.level, f"{names.get(key, key)}={_short(value)}{default}: {error}"))
    if missing:
        lowest = min(level for level, _ in missing)
        problems = [problem for level, problem in missing if level == lowest]
        reasons = {problem.partition(": ")[2]: problem for problem in reversed(problems)}  # of several keys, the first
        problems = [problem for problem in problems if problem in reasons.values()]
        raise listed(f"{source}: asks for parts that resdet does not support:", problems)
    return _settled(rows, source, flat(always))


def _judge(key: str, value: Any, rule: Rule | None, everything: Leaves, is_given: bool) -> list[Row]:
    """The row of one key; none for a default that changes nothing."""
    note = "" if is_given else "their default"
    if rule is None:
        return [Row(Kind.UNKNOWN, key, value, {})] if is_given else []
    if not (is_given or rule.from_default):
        return []
    if isinstance(value, Unknown):
        if not rule.from_default:
            return [Row(Kind.SAME, key, value, {})]
        return [Row(Kind.WARNING, key, value, {}, "computed by code, which is not run")]
    try:
        ours, why = rule.convert(value, everything)
    except NotTaken as error:
        return [Row(Kind.WARNING, key, value, error.taken, ", ".join(filter(None, (str(error), note))))]
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
        return [Row(Kind.WARNING, key, value, {}, "the value does not have the form used in the tool's own configs")]
    note = ", ".join(filter(None, (why, note)))
    return [Row(Kind.TAKEN if ours else Kind.SAME, key, value, ours, note)] if ours or is_given else []


def _settled(rows: list[Row], source: str, always: dict[str, Any]) -> tuple[list[Row], dict[str, Any], dict[str, Any]]:
    """Rows whose values are our defaults anyway become `SAME`; the rest is the config to write."""
    set_by_rows = {ours: value for row in rows for ours, value in row.ours.items()}
    taken = always | set_by_rows
    absent = tuple(f"{key}." for key, value in taken.items() if value is None)
    taken = {key: value for key, value in taken.items() if not key.startswith(absent)}
    config = parse_config(nested(taken), source)
    kind = {"kind": config.model.kind}
    plain = parse_config({"model": kind}, source)  # our defaults for this kind of model
    theirs, default = flat(config.model_dump(mode="json")), flat(plain.model_dump(mode="json"))
    default["model.kind"] = Config().model.kind
    for name in type(config.model).model_fields:  # sections that are not there by default
        section = getattr(config.model, name)
        if default.get(f"model.{name}", "") is None and isinstance(section, BaseModel):
            default |= {f"model.{name}.{k}": v for k, v in type(section)().model_dump(mode="json").items()}
    order = {key: number for number, key in enumerate(theirs)}
    kept = {
        key: _plain(taken[key])
        for key in sorted(taken, key=lambda k: order.get(k, len(order)))
        if theirs.get(key, {}) != default.get(key, {})
    }
    result = []
    for row in rows:
        if row.kind is Kind.TAKEN and not row.ours.keys() & kept.keys():
            if "their default" in row.note:
                continue
            row = row._replace(kind=Kind.SAME)
        result.append(row)
    return (
        result,
        nested(kept),
        {key: value for key, value in kept.items() if key in always.keys() - set_by_rows.keys()},
    )


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """ "a.b" keys -> dicts in dicts."""
    result: dict[str, Any] = {}
    for key, value in dotted.items():
        *parents, last = key.split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        if value != {}:
            node[last] = value
        else:
            node.setdefault(last, {})
    return result


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        found |= inner
    return found


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _equal(a: Any, b: Any) -> bool:
    """Lists and tuples of the same numbers are equal; True is not 1."""
    return bool(_plain(a) == _plain(b)) and isinstance(a, bool) == isinstance(b, bool)


def _short(value: Any, limit: int = 70) -> str:
    text = value.text if isinstance(value, Unknown) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
