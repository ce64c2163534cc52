"""One SQL expression over columns, sandboxed: which columns it reads, and what it says of every row.

An expression is a function of one row and of nothing else: no subquery, window, aggregate or star, no file, no clock, no chance. DuckDB parses and runs it.
"""

import contextlib
import difflib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from manifests.errors import Refusal

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ALLOWED = "one true-or-false expression over columns of the same row, such as \"blur > 80 AND label_name <> 'unknown'\""
NODES = {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE"}
MACROS = {"nullif", "list_sum", "list_avg", "list_min", "list_max", "list_count", "list_any_value", "list_append", "list_prepend"}  # of one row
OUTSIDE = {"age", "version", "make_type"}  # DuckDB calls them consistent, yet they ask the clock or the build
MOST_CHOICES = 64  # of types of an expression's columns that `bind` tries
NO_COLUMNS = pa.table({"row": pa.nulls(1, pa.bool_())})  # a row, for an expression that reads nothing
SANDBOX = {
    "enable_external_access": "false", "autoload_known_extensions": "false", "autoinstall_known_extensions": "false", "threads": "1",
    "memory_limit": "1GB",
}  # fmt: skip


def columns_of(sql: str, known: Iterable[str], where: str, cure: Callable[[str], str] = lambda _: "") -> list[str]:
    """The columns that `sql` reads, spelled as in `known`, each once, in the order of first mention.

    Names are matched as SQL does: without regard to case, an exact match first. `a.b` is field `b` of column `a`.

    sql      the expression
    known    names of the columns that exist
    where    who asks, for the message
    cure     of the name of a column that is not there: what would bring it, for the message

    Raises `Refusal`: [bad-sql] for what is no expression, or one that looks beyond its row; [unknown-column]; [truth-column] for `truth_*`.
    """
    names = [name for name in known if not name.lower().startswith("truth_")]
    exact, folded = set(names), {name.lower(): name for name in reversed(names)}
    found: dict[str, None] = {}
    for node in _nodes(_parsed(sql, where, names)):
        if node["class"] == "FUNCTION":
            _allow_function(node["function_name"], sql, where)
        elif node["class"] == "COLUMN_REF":
            name = node["column_names"][0]
            if name.lower().startswith("truth_"):
                raise Refusal(
                    "truth-column", where, f"{sql!r} reads {name!r}", "no stage may read what was planted", "Judge against it in the report"
                )
            if name not in exact and name.lower() not in folded:
                close = difflib.get_close_matches(name, names, n=3)
                raise Refusal(
                    "unknown-column", where, f"{sql!r} reads the unknown column {name!r}",
                    f"{'near it' if close else 'columns here'}: {', '.join(close or sorted(names)[:20]) or 'none'}", cure(name),
                )  # fmt: skip
            found[name if name in exact else folded[name.lower()]] = None
        elif node["class"] not in NODES:
            raise Refusal("bad-sql", where, f"{sql!r} holds {_word(node['class'])}", ALLOWED)
    return list(found)


def names_in(sql: str, where: str) -> set[str]:
    """The names that `sql` mentions as columns, in small letters, whether there are such columns or not. Raises `Refusal` [bad-sql]."""
    return {node["column_names"][0].lower() for node in _nodes(_parsed(sql, where)) if node["class"] == "COLUMN_REF"}


def evaluate(sql: str, table: pa.Table, where: str, rows: int | None = None) -> pa.BooleanArray:
    """What `sql` says of each row of `table`, in its order: true, false or null.

    Nothing but the table is reachable: DuckDB runs without files, network, extensions and settings. Times are read in UTC.

    sql      the expression
    table    the columns, one row a sample
    where    who asks, for the message
    rows     how many there are, where the table may have no columns (and then no length)

    Raises `Refusal` as `columns_of`, and [bad-sql] where DuckDB cannot run it or it gives something else than a boolean.
    """
    columns = columns_of(sql, table.column_names, where)
    count = table.num_rows if rows is None else rows
    asked = table.select(columns) if columns else pa.table({"row": pa.nulls(count, pa.bool_())})
    with _sandbox() as connection:
        return _answer(connection, sql, asked, where)


def bind(sql: str, types: Mapping[str, Sequence[pa.DataType]], where: str, cure: Callable[[str], str] = lambda _: "") -> list[str]:
    """Refuse an expression that no row could be asked, before there are rows; the columns that it reads, as `columns_of` gives them.

    It is asked of one row of nulls, so that DuckDB resolves every function, type and constant in it: `blur = 'high'` is refused as `caption > 3` is.
    What only a value shows, such as a text that is cast and is no number, comes out when the rows are there.

    sql      the expression
    types    column -> the types that it may turn out to have; most have one. The expression is refused only where every choice of types fails
    where    who asks, for the message
    cure     as for `columns_of`

    Raises `Refusal` as `evaluate`; [bad-sql] names the types.
    """
    columns = columns_of(sql, types, where, cure)
    if math.prod(len(types[name]) for name in columns) > MOST_CHOICES:
        return columns  # too little is known of its columns to say anything
    first: Refusal | None = None
    with _sandbox() as connection:
        for choice in itertools.product(*(types[name] for name in columns)):
            row = pa.table({name: pa.nulls(1, kind) for name, kind in zip(columns, choice, strict=True)}) if columns else NO_COLUMNS
            try:
                _answer(connection, sql, row, where)
                return columns
            except Refusal as refusal:
                first = first or refusal
    assert first is not None, "a column has at least one type"
    known = ", ".join(f"{name}: {' or '.join(str(kind) for kind in types[name])}" for name in columns)
    raise Refusal("bad-sql", where, f"{first.given} ({known})" if known else first.given, ALLOWED)


@contextlib.contextmanager
def _sandbox() -> "Iterator[DuckDBPyConnection]":
    """A connection that reaches nothing but the tables that are registered with it; times are read in UTC."""
    import duckdb

    with duckdb.connect(config=dict(SANDBOX)) as connection:
        connection.execute("SET TimeZone = 'UTC'" if _has_setting(connection, "TimeZone") else "SELECT 1")
        connection.execute("SET lock_configuration = true")
        yield connection


def _answer(connection: "DuckDBPyConnection", sql: str, rows: pa.Table, where: str) -> pa.BooleanArray:
    """What `sql`, whose columns are known to be allowed, says of each row."""
    import duckdb

    connection.register("live_rows", rows)
    try:
        answer = connection.sql(f"SELECT (\n{sql}\n) AS verdict FROM live_rows").to_arrow_table().column("verdict")
    except duckdb.Error as error:
        raise Refusal("bad-sql", where, f"{sql!r} cannot be run: {str(error).splitlines()[0].rstrip('.')}", ALLOWED) from error
    if pa.types.is_null(answer.type):
        answer = answer.cast(pa.bool_())
    if not pa.types.is_boolean(answer.type):
        raise Refusal("bad-sql", where, f"{sql!r} gives {answer.type}, not true or false", ALLOWED)
    assert len(answer) == len(rows), "one answer a row"
    return pa.concat_arrays(answer.chunks) if answer.num_chunks else pa.array([], pa.bool_())


def _parsed(sql: str, where: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """The expression's syntax tree. It must parse both bare and in brackets, so that no bracket or clause of its own can close ours.

    names    of columns, for the message: one that is also a word of SQL is written in double quotes
    """
    trees = [_serialised(text) for text in (f"SELECT {sql}\n", f"SELECT (\n{sql}\n) FROM live_rows")]
    for tree in trees:
        if tree["error"]:
            bare = {word.lower() for word in re.findall(r"\w+", re.sub(r"'[^']*'|\"[^\"]*\"", " ", sql))} & _reserved()
            column = next((name for name in names if name.lower() in bare), None)
            cure = f'{column!r} is also a word of SQL: write the column as "{column}"' if column else ""
            raise Refusal("bad-sql", where, f"{sql!r} is no SQL expression: {tree['error_message']}", ALLOWED, cure)
    for tree in trees:
        listed = tree["statements"][0]["node"].get("select_list", []) if len(tree["statements"]) == 1 else []
        if len(listed) != 1:
            raise Refusal("bad-sql", where, f"{sql!r} is more than one expression", ALLOWED)
    return trees[1]["statements"][0]["node"]["select_list"][0]


@lru_cache(maxsize=256)
def _serialised(text: str) -> dict[str, Any]:
    import duckdb

    with duckdb.connect(config=dict(SANDBOX)) as connection:
        try:
            row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchone()
        except duckdb.Error as error:
            return {"error": True, "error_message": str(error).splitlines()[0]}
    assert row is not None
    return json.loads(row[0])


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node of a syntax tree that has a class, parents first, left to right."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


@lru_cache(maxsize=1)
def _functions() -> frozenset[str]:
    """Names of the functions of one row that always give the same answer."""
    import duckdb

    with duckdb.connect(config=dict(SANDBOX)) as connection:
        rows = connection.execute(
            "SELECT function_name FROM duckdb_functions() WHERE function_type = 'scalar' GROUP BY 1 "
            "HAVING bool_or(stability = 'CONSISTENT') AND NOT bool_or(stability = 'VOLATILE')"
        ).fetchall()
    return frozenset(name for (name,) in rows) - OUTSIDE | MACROS


@lru_cache(maxsize=1)
def _reserved() -> frozenset[str]:
    """Words of SQL that name a column only in double quotes."""
    with _sandbox() as connection:
        return frozenset(
            word for (word,) in connection.execute("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'").fetchall()
        )


def _allow_function(name: str, sql: str, where: str) -> None:
    if name.lower() not in _functions():
        raise Refusal("bad-sql", where, f"{sql!r} calls {name!r}, which is no function of one row", ALLOWED)


def _has_setting(connection: "DuckDBPyConnection", name: str) -> bool:
    return bool(connection.execute("SELECT count(*) FROM duckdb_settings() WHERE name = ?", [name]).fetchall()[0][0])


def _word(node: str) -> str:
    words = {"SUBQUERY": "a subquery", "WINDOW": "a window", "STAR": "a star", "PARAMETER": "a parameter", "LAMBDA": "a lambda"}
    return words.get(node, f"a {node.lower().replace('_', ' ')}")
