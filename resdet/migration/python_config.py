"""A config written in Python -> its values, without running it: literals, dict(...), arithmetic, names assigned before.

What else stands in such a file (functions, loops, calls, attributes of modules) becomes an `Unknown` with its source text.
mmengine's `_base_` files, and imports of neighbouring config files, are read in the same way.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, NamedTuple

from resdet.config.io import expanded_size
from resdet.errors import UserError
from resdet.migration.expressions import MAX_VALUES, Scope, Symbol, Unknown, shown, source_of

MAX_BYTES = 4_000_000
MAX_FILES = 100


class PythonConfig(NamedTuple):
    """values: by top-level name. skipped: statements that were not understood, by line. files: all that were read."""

    values: dict[str, Any]
    skipped: list[str]
    files: list[Path]


def parse_python(text: str, source: str = "config") -> PythonConfig:
    """Evaluate config text that stands alone. Raises `UserError` for what is not Python, or too large."""
    reader = _Reader(source, None, [], [])
    reader.read(text)
    return PythonConfig(reader.own, reader.skipped, [])


def evaluate(expression: str) -> Any:
    """One expression's value, or an `Unknown`."""
    return parse_python(f"value = ({expression})").values["value"]


def read_python(path: Path) -> PythonConfig:
    """Evaluate a config file together with its bases. Raises `UserError`, also for a base that is missing or circular."""
    files: list[Path] = []
    reader = _Reader(str(path), path, [], files)
    reader.read(config_text(path))
    return PythonConfig(reader.merged(), reader.skipped, files)


def config_text(path: Path, asked_by: Path | None = None) -> str:
    """The text of a config file of sensible size. Raises `UserError`."""
    by = f" (a base of {asked_by})" if asked_by else ""
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such config file{by}")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: has more than {MAX_BYTES // 1_000_000} MB, which no config has{by}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as text{by} ({error})") from None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` updated by `over` as mmengine does it: dicts entry by entry, unless `over` says `_delete_=True`."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, dict):
            fresh = {k: v for k, v in value.items() if k != "_delete_"}
            result[key] = merge(old if isinstance(old, dict) and not value.get("_delete_") else {}, fresh)
        else:
            result[key] = value
    return result


class _Reader(Scope):
    """One file's statements, in order. own: what it assigns itself. base: what its `_base_` files hold."""

    def __init__(self, source: str, path: Path | None, above: list[Path], files: list[Path]) -> None:
        super().__init__(source)
        self.path, self.files = path, files
        self.above = [*above, path.resolve()] if path else above
        if path:
            files.append(path)
        self.skipped: list[str] = []

    def read(self, text: str) -> None:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            raise UserError(f"{self.source}{where}: not Python that can be parsed ({_first_line(error)})") from None
        try:
            self._run(tree.body)
            self._bounded(self.own)
        except RecursionError:
            raise UserError(f"{self.source}: nested too deeply for a config") from None

    def merged(self) -> dict[str, Any]:
        result = merge(self.base, self.own)
        self._bounded(result)
        return {name: value for name, value in result.items() if name != "_base_"}

    def _bounded(self, value: Any) -> None:
        if expanded_size(value, {}) > MAX_VALUES:
            raise UserError(f"{self.source}: stands for more than {MAX_VALUES} values, which no config has")

    # ---- statements --------------------------------------------------------------------------------------------------

    def _run(self, statements: list[ast.stmt]) -> None:
        for node in statements:
            match node:
                case ast.Assign(targets=targets, value=expression):
                    value = self.value(expression)
                    for target in targets:
                        self._assign(target, value)
                case ast.AnnAssign(target=target, value=expression) if expression is not None:
                    self._assign(target, self.value(expression))
                case ast.AugAssign(target=target, op=op, value=expression):
                    self._assign(target, self.value(ast.BinOp(_loaded(target), op, expression)))
                case ast.Import(names=names):
                    self.imported |= {n.asname or n.name.split(".")[0]: Symbol(n.name) for n in names}
                case ast.ImportFrom():
                    self._import(node)
                case ast.With(items=[ast.withitem(context_expr=ast.Call(func=ast.Name(id="read_base")))], body=body):
                    self._read_base(body)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    self.own[name] = Unknown(f"{name}, defined by code")
                case ast.Expr(value=ast.Call(func=ast.Attribute(value=inner, attr="update" | "pop" as method)) as call):
                    if not self._changed(self.value(inner), method, call):
                        self._skip(node)
                case ast.Expr(value=ast.Constant()) | ast.Pass():  # a docstring
                    pass
                case _:
                    self._skip(node)
            if isinstance(node, ast.Assign) and "_base_" in self.own and not self.base:
                self._bases(self.own["_base_"])

    def _assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name):
                self.own[name] = value
            case ast.Attribute(value=inner, attr=key) | ast.Subscript(value=inner, slice=ast.Constant(value=key)):
                container: Any = self.value(inner)
                index_of_list = (
                    type(key) is int and isinstance(container, list) and -len(container) <= key < len(container)
                )
                if isinstance(container, dict) or index_of_list:
                    container[key] = value
                else:
                    self._skip(target)
            case _:
                self._skip(target)

    def _changed(self, container: Any, method: str, call: ast.Call) -> bool:
        """Do `container.update(...)` or `container.pop("key")` if it is a dict and the arguments are plain."""
        arguments, keywords = [self.value(a) for a in call.args], self.keywords(call.keywords)
        if not isinstance(container, dict):
            return False
        if method == "update" and all(isinstance(a, dict) for a in arguments[:1]) and len(arguments) <= 1:
            container.update(*arguments, **keywords)
            return True
        if method == "pop" and arguments and isinstance(arguments[0], str) and not keywords:
            container.pop(arguments[0], None)
            return True
        return False

    def _skip(self, node: ast.AST) -> None:
        """Note a statement that is not understood; what it assigns becomes unknown."""
        line = getattr(node, "lineno", 0)
        text = source_of(node)
        self.skipped.append(f"{self.source}, line {line}: {text}")
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                self.own[inner.id] = Unknown(text)

    # ---- other files -------------------------------------------------------------------------------------------------

    def _bases(self, names: Any) -> None:
        for name in names if isinstance(names, list | tuple) and not isinstance(names, Unknown) else [names]:
            if not isinstance(name, str) or self.path is None or "::" in name:
                raise UserError(
                    f"{self.source}: _base_={shown(name)} is not a file beside it; put that file there, or give the "
                    "whole config as mmdetection writes it into its work_dir"
                )
            values = self._other(self.path.parent / name)
            doubled = sorted(self.base.keys() & values.keys())
            if doubled:
                raise UserError(f"{self.source}: {', '.join(doubled)} stand(s) in more than one of its bases")
            self.base |= values

    def _other(self, path: Path) -> dict[str, Any]:
        if len(self.files) >= MAX_FILES:
            raise UserError(f"{self.source}: its bases are more than {MAX_FILES} files")
        if path.resolve() in self.above:
            chain = " -> ".join(p.name for p in [*self.above, path])
            raise UserError(f"{self.source}: its bases form a circle: {chain}")
        reader = _Reader(str(path), path, self.above, self.files)
        reader.read(config_text(path, self.path))
        self.skipped += reader.skipped
        return reader.merged()

    def _read_base(self, body: list[ast.stmt]) -> None:
        """mmengine's newer way to name bases: imports under `with read_base():`."""
        for node in body:
            if isinstance(node, ast.ImportFrom):
                values = self._neighbour(node)
                self.base = merge(self.base, values if node.names[0].name == "*" else self._named(node, values))
            else:
                self._skip(node)

    def _import(self, node: ast.ImportFrom) -> None:
        if not node.level:
            self.imported |= {n.asname or n.name: Symbol(n.name) for n in node.names}
        else:
            self.own |= self._named(node, self._neighbour(node))

    def _neighbour(self, node: ast.ImportFrom) -> dict[str, Any]:
        if self.path is None or not node.level:
            raise UserError(
                f"{self.source}: imports its base {node.module} from an installed package, which is not read; put that file "
                "beside it, or give the whole config as the tool writes it into its output folder"
            )
        folder = self.path.parents[min(node.level, len(self.path.parents)) - 1]
        return self._other(folder.joinpath(*(node.module or "").split(".")).with_suffix(".py"))

    @staticmethod
    def _named(node: ast.ImportFrom, values: dict[str, Any]) -> dict[str, Any]:
        return {n.asname or n.name: values.get(n.name, Unknown(n.name)) for n in node.names}


def _loaded(target: ast.expr) -> ast.expr:
    """`x` of `x += 1`, as it is read."""
    match target:
        case ast.Name(id=name):
            return ast.Name(name, ast.Load())
        case ast.Attribute(value=value, attr=attr):
            return ast.Attribute(value, attr, ast.Load())
        case ast.Subscript(value=value, slice=index):
            return ast.Subscript(value, index, ast.Load())
    return target


def _first_line(error: BaseException) -> str:
    return shown((str(error) or type(error).__name__).splitlines()[0])
