"""A function's signature is its configuration: types and defaults are checked from YAML, help and resolved copies are made from them."""

import ast
import importlib
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NewType, Union, get_args, get_origin

from manifests.errors import Refusal, near

Column = NewType("Column", str)  # the name of a column that an earlier stage or the pool writes
Preferred = NewType("Preferred", str)  # such a column, of numbers: the row with the larger value is the one to keep, and null is the least
VectorName = NewType("VectorName", str)  # the name of a vector column
Expression = NewType("Expression", str)  # a SQL expression over columns
FilePath = NewType("FilePath", str)  # a file whose content reaches the verdict, and so the digest
PoolPaths = NewType("PoolPaths", list)  # evaluation pools: folders with a pool.yaml


def parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """Name -> parameter of everything that configures `function`: its keyword-only parameters, annotations resolved to types."""
    found = inspect.signature(function).parameters
    own = {name: p for name, p in found.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    stub = types.SimpleNamespace(__annotations__={name: p.annotation for name, p in own.items()})
    hints = typing.get_type_hints(stub, globalns=inspect.unwrap(function).__globals__)
    return {name: p.replace(annotation=hints[name]) for name, p in own.items()}


def check(function: Callable, given: dict[str, Any], where: str, beside: tuple[str, ...] = ()) -> dict[str, Any]:
    """All parameters of `function` with `given` checked and the rest defaulted.

    beside    names that may stand beside them and that the caller has taken out of `given`: for messages
    Raises `Refusal`: [unknown-parameter] for a name it has not, [bad-value] for a value of another type or a missing one.
    """
    known = parameters(function)
    for name in given:
        if name not in known:
            cure = near(name, [*known, *beside])
            raise Refusal("unknown-parameter", where, f"has no parameter {name!r}", f"its parameters: {', '.join([*known, *beside]) or 'none'}", cure)
    resolved = {}
    for name, parameter in known.items():
        if name in given:
            resolved[name] = convert(given[name], parameter.annotation, f"{where}: {name}")
        elif parameter.default is inspect.Parameter.empty:
            raise Refusal("bad-value", where, f"{name!r} is missing", f"it takes {describe(parameter.annotation)}")
        else:
            resolved[name] = parameter.default
    return resolved


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`, or `Refusal` [bad-value]. Nothing is guessed: text is never a number, a bool is never an int."""
    asked, kind = kind, _plain(kind)
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(kind), where)
    if origin is Literal:
        if value in get_args(kind):
            return value
    elif origin in (list, tuple) or kind in (list, tuple):
        if isinstance(value, list | tuple):
            inner = (get_args(kind) or (Any,))[0]
            items = [convert(item, inner, f"{where}[{i}]") for i, item in enumerate(value)]
            return tuple(items) if (origin or kind) is tuple else items
    elif origin is dict or kind is dict:
        if isinstance(value, dict):
            return value
    elif hasattr(kind, "parse"):
        return value if isinstance(value, kind) else kind.parse(value, where)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            return float(value)
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is Any or isinstance(value, kind):
        return value
    shown = "null" if value is None else repr(value)
    names = [v for v in get_args(kind) if isinstance(v, str)] if origin is Literal else []
    raise Refusal("bad-value", where, f"{shown} was given", f"it takes {describe(asked)}", near(value, names))


def _convert_union(value: Any, kinds: tuple, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return convert(value, kind, where)
        except Refusal:
            continue
    raise Refusal("bad-value", where, f"{value!r} was given", f"it takes {' or '.join(describe(k) for k in kinds)}")


def _plain(kind: Any) -> Any:
    while hasattr(kind, "__supertype__"):
        kind = kind.__supertype__
    return kind


def describe(kind: Any) -> str:
    """A type for a reader: "a number", "one of far, near"."""
    if kind in (Column, Preferred, VectorName, Expression, PoolPaths, FilePath):
        return {
            FilePath: "a file",
            Column: "a column's name",
            Preferred: "a column of numbers",
            VectorName: "the name of a vector column",
            Expression: "a SQL expression",
            PoolPaths: "a list of pools",
        }[kind]
    origin = get_origin(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(v) for v in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(k) for k in get_args(kind))
    if origin in (list, tuple):
        return f"a list of {describe((get_args(kind) or (Any,))[0])}"
    if hasattr(kind, "allowed"):
        return kind.allowed
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "null",
        list: "a list",
        dict: "a mapping",
        Any: "anything",
    }
    return words.get(_plain(kind), getattr(kind, "__name__", str(kind)))


def plain_value(value: Any) -> Any:
    """A resolved parameter as JSON and YAML write it."""
    if hasattr(value, "plain"):
        return value.plain()
    if isinstance(value, list | tuple):
        return [plain_value(v) for v in value]
    return value


def load(name: str, package: str) -> Callable:
    """The function of method `name` ("dedup.exact" -> `curate/dedup/exact.py`, function `exact`)."""
    return getattr(importlib.import_module(f"{package}.{name}"), name.rsplit(".", 1)[-1])


def first_sentence(name: str, package: str) -> str:
    """The first docstring line of a method, read with `ast`: neither torch nor the method is imported."""
    path = Path(__file__).parent.parent / package / Path(*name.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    function = name.rsplit(".", 1)[-1]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == function:
            return (ast.get_docstring(node) or "").split("\n")[0]
    return (ast.get_docstring(tree) or "").split("\n")[0]
