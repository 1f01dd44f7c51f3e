"""Python expressions of a config -> their values, without running them: literals, dict(...), arithmetic, names before."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from resdet.errors import UserError

MAX_VALUES = 100_000  # a config has some hundreds
MAX_DIGITS = 300
MAX_STEPS = 1_000_000  # of evaluation
LAZY_CALLS = {"L", "LazyCall"}  # detectron2's: L(Class)(key=value)
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}  # fmt: skip


class Unknown(NamedTuple):
    """A value that could only be found by running code; `text` is its source."""

    text: str


class Symbol(NamedTuple):
    """A name that was imported, such as a class; `name` without its module."""

    name: str


def known(value: Any) -> Any:
    """`value` without its unknown entries; None for an unknown one."""
    if isinstance(value, dict):
        return {key: known(entry) for key, entry in value.items() if not isinstance(entry, Unknown)}
    if isinstance(value, list | tuple) and not isinstance(value, Unknown | Symbol):
        return [known(entry) for entry in value]
    return None if isinstance(value, Unknown | Symbol) else value


class Scope:
    """Names and what they stand for: assigned in the file, in its bases, imported.

    What only running code could tell is an `Unknown`; `value` raises `UserError` for text that takes too long to evaluate.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.own: dict[str, Any] = {}
        self.base: dict[str, Any] = {}
        self.imported: dict[str, Any] = {}
        self.steps = 0

    def value(self, node: ast.expr) -> Any:
        try:
            return self._evaluated(node)
        except UserError:
            raise
        except (ArithmeticError, TypeError, ValueError, LookupError):
            return Unknown(source_of(node))

    def _evaluated(self, node: ast.expr) -> Any:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise UserError(f"{self.source}: takes more than {MAX_STEPS} steps to evaluate, which no config does")
        match node:
            case ast.Constant(value=value):
                return Unknown(repr(value)) if isinstance(value, bytes | complex) or value is ... else value
            case ast.List(elts=entries):
                return self._entries(entries)
            case ast.Tuple(elts=entries):
                return tuple(self._entries(entries))
            case ast.Dict(keys=keys, values=values):
                result: dict[Any, Any] = {}
                for name, entry in zip(keys, values, strict=True):
                    result |= {self.value(name): self.value(entry)} if name else self.value(entry)
                return result
            case ast.Call(func=ast.Name(id="dict"), args=positional, keywords=keywords) if len(positional) <= 1:
                start = dict(self.value(positional[0])) if positional else {}
                return start | self.keywords(keywords)
            case ast.Call(func=ast.Call(func=ast.Name(id=lazy), args=[kind]), args=[], keywords=keywords) if (
                lazy in LAZY_CALLS
            ):
                return {"_target_": self.value(kind)} | self.keywords(keywords)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="OmegaConf"), attr="create"), args=[], keywords=[]):
                return {}
            case ast.Name(id="_base_"):
                return self.base
            case ast.Name(id=name):
                for scope in (self.own, self.base, self.imported):
                    if name in scope:
                        return scope[name]
                return Unknown(name)
            case ast.Attribute(value=inner, attr=name):
                container = self.value(inner)
                if isinstance(container, Symbol):
                    return Symbol(name)
                return container[name] if isinstance(container, dict) else Unknown(source_of(node))
            case ast.Subscript(value=inner, slice=index):
                container = self.value(inner)
                return (container if type(container) is dict else _plain_sequence(container))[self.value(index)]
            case ast.Set(elts=[ast.Set(elts=[ast.Attribute() as reference])]):  # {{_base_.key}}
                return self.value(reference)
            case ast.UnaryOp(op=op, operand=operand):
                return self._operated(op, self.value(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return self._operated(op, self.value(left), self.value(right))
            case ast.JoinedStr(values=parts):
                pieces = [self.value(part) for part in parts]
                if all(type(piece) in (str, int, float) for piece in pieces):
                    return _bounded_length("".join(map(str, pieces)))
            case ast.ListComp(
                elt=element, generators=[ast.comprehension(target=ast.Name(id=name), iter=source, ifs=[])]
            ):
                return self._each(element, name, self.value(source))
            case ast.FormattedValue(value=inner, conversion=-1, format_spec=None):
                return self.value(inner)
        return Unknown(source_of(node))

    def _each(self, element: ast.expr, name: str, values: Any) -> Any:
        """`[element for name in values]`"""
        hidden = self.own.get(name, self)
        found = []
        for value in _plain_sequence(values):
            self.own[name] = value
            found.append(self.value(element))
        self.own.pop(name, None)
        if hidden is not self:
            self.own[name] = hidden
        return found

    def _entries(self, nodes: list[ast.expr]) -> list[Any]:
        entries: list[Any] = []
        for node in nodes:
            entries += _plain_sequence(self.value(node.value)) if isinstance(node, ast.Starred) else [self.value(node)]
            _bounded_length(entries)
        return entries

    def keywords(self, keywords: list[ast.keyword]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for keyword in keywords:
            value = self.value(keyword.value)
            result |= {keyword.arg: value} if keyword.arg else value
        return result

    @staticmethod
    def _operated(op: ast.AST, *operands: Any) -> Any:
        """Raises `TypeError` for what is no plain arithmetic, `OverflowError` where the result would be huge."""
        plain = (bool, int, float, str, list) if len(operands) == 2 else (bool, int, float)
        if type(op) not in OPERATORS or not all(type(v) in (*plain, tuple) for v in operands):
            raise TypeError
        if isinstance(op, ast.Mod) and isinstance(operands[0], str):
            raise TypeError
        if isinstance(op, ast.Pow) and (abs(operands[0]) > 10**6 or abs(operands[1]) > 64):
            raise OverflowError
        sizes = [len(v) if isinstance(v, str | list | tuple) else 0 for v in operands]
        if isinstance(op, ast.Mult) and any(sizes):
            sizes = [max(sizes) * next((abs(v) for v in operands if isinstance(v, int)), 0)]
        if sum(sizes) > MAX_VALUES or any(isinstance(v, int) and abs(v) > 10**MAX_DIGITS for v in operands):
            raise OverflowError
        result = OPERATORS[type(op)](*operands)
        if isinstance(result, complex):
            raise TypeError
        return result


def _plain_sequence(value: Any) -> Any:
    """A list or tuple, rather than an `Unknown`. Raises `TypeError`."""
    if type(value) not in (list, tuple):
        raise TypeError
    return value


def _bounded_length(value: Any) -> Any:
    if len(value) > MAX_VALUES:
        raise OverflowError
    return value


def source_of(node: ast.AST) -> str:
    try:
        return shown(ast.unparse(node).splitlines()[0])
    except (RecursionError, ValueError, IndexError):
        return type(node).__name__


def shown(value: Any, limit: int = 80) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
