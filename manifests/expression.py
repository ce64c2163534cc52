"""One SQL expression over columns, sandboxed: which columns it reads, and what it says of every row.

An expression is a function of one row and of nothing else: no subquery, window, aggregate or star, no file, no clock, no chance. DuckDB parses and runs it.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
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
SANDBOX = {
    "enable_external_access": "false", "autoload_known_extensions": "false", "autoinstall_known_extensions": "false", "threads": "1",
    "memory_limit": "1GB",
}  # fmt: skip


def columns_of(sql: str, known: Iterable[str], where: str) -> list[str]:
    """The columns that `sql` reads, spelled as in `known`, each once, in the order of first mention.

    Names are matched as SQL does: without regard to case, an exact match first. `a.b` is field `b` of column `a`.

    sql      the expression
    known    names of the columns that exist
    where    who asks, for the message

    Raises `Refusal`: [bad-sql] for what is no expression, or one that looks beyond its row; [unknown-column]; [truth-column] for `truth_*`.
    """
    names = [name for name in known if not name.lower().startswith("truth_")]
    exact, folded = set(names), {name.lower(): name for name in reversed(names)}
    found: dict[str, None] = {}
    for node in _nodes(_parsed(sql, where)):
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
                    f"{'near it' if close else 'columns here'}: {', '.join(close or sorted(names)[:20]) or 'none'}",
                )  # fmt: skip
            found[name if name in exact else folded[name.lower()]] = None
        elif node["class"] not in NODES:
            raise Refusal("bad-sql", where, f"{sql!r} holds {_word(node['class'])}", ALLOWED)
    return list(found)


def evaluate(sql: str, table: pa.Table, where: str) -> pa.BooleanArray:
    """What `sql` says of each row of `table`, in its order: true, false or null.

    Nothing but the table is reachable: DuckDB runs without files, network, extensions and settings. Times are read in UTC.

    sql      the expression
    table    the columns, one row a sample
    where    who asks, for the message

    Raises `Refusal` as `columns_of`, and [bad-sql] where DuckDB cannot run it or it gives something else than a boolean.
    """
    import duckdb

    columns = columns_of(sql, table.column_names, where)
    rows = table.select(columns) if columns else pa.table({"row": pa.nulls(table.num_rows, pa.bool_())})
    with duckdb.connect(config=dict(SANDBOX)) as connection:
        connection.execute("SET TimeZone = 'UTC'" if _has_setting(connection, "TimeZone") else "SELECT 1")
        connection.register("live_rows", rows)
        connection.execute("SET lock_configuration = true")
        try:
            answer = connection.sql(f"SELECT (\n{sql}\n) AS verdict FROM live_rows").to_arrow_table().column("verdict")
        except duckdb.Error as error:
            raise Refusal("bad-sql", where, f"{sql!r} cannot be run: {str(error).splitlines()[0]}", ALLOWED) from error
    if pa.types.is_null(answer.type):
        answer = answer.cast(pa.bool_())
    if not pa.types.is_boolean(answer.type):
        raise Refusal("bad-sql", where, f"{sql!r} gives {answer.type}, not true or false", ALLOWED)
    assert len(answer) == len(table), "one answer a row"
    return pa.concat_arrays(answer.chunks) if answer.num_chunks else pa.array([], pa.bool_())


def _parsed(sql: str, where: str) -> dict[str, Any]:
    """The expression's syntax tree. It must parse both bare and in brackets, so that no bracket or clause of its own can close ours."""
    trees = [_serialised(text) for text in (f"SELECT {sql}\n", f"SELECT (\n{sql}\n) FROM live_rows")]
    for tree in trees:
        if tree["error"]:
            raise Refusal("bad-sql", where, f"{sql!r} is no SQL expression: {tree['error_message']}", ALLOWED)
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


def _allow_function(name: str, sql: str, where: str) -> None:
    if name.lower() not in _functions():
        raise Refusal("bad-sql", where, f"{sql!r} calls {name!r}, which is no function of one row", ALLOWED)


def _has_setting(connection: "DuckDBPyConnection", name: str) -> bool:
    return bool(connection.execute("SELECT count(*) FROM duckdb_settings() WHERE name = ?", [name]).fetchall()[0][0])


def _word(node: str) -> str:
    words = {"SUBQUERY": "a subquery", "WINDOW": "a window", "STAR": "a star", "PARAMETER": "a parameter", "LAMBDA": "a lambda"}
    return words.get(node, f"a {node.lower().replace('_', ' ')}")
