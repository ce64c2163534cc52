"""One SELECT over a run, in a DuckDB that can read the run's own tables and nothing else."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.audit.visible import number, rows_of_text, visible
from manifests.errors import Refusal
from manifests.leaks import leak_files, leak_stages, leaks_sql
from manifests.replays import standing_replays
from manifests.run import Run, open_run, reading

if TYPE_CHECKING:
    import duckdb

RESERVED_VIEWS = {"ledger", "samples", "identity", "verdicts", "scores", "evaluations", "replays", "leaks"}


def query(
    run: Path | str, sql: str, *, limit: int | None = 1000, cell: int | None = 2000, seconds: float = 60.0, memory: str | None = None
) -> pa.Table:
    """The rows that one SELECT gives, as an Arrow table.

    Views       `ledger`; one view a stage, named as the stage with `_` for `.` (`dedup_perceptual`: uid and the stage's own columns);
                `samples` (the ledger with every measure's columns beside it); `edges_<stage>`; `evaluations` (pool, uid, key);
                `leaks` (every evaluation sample that is hit, by whom, how close: stage, pool, test, uid, reason, score, threshold, …);
                `verdicts` and `scores` of the evidence; `replays` (the run at other limits, where they were folded).
    Guarantee   reads the run's own files and nothing else: no other file, no network, no setting can be changed, exactly one statement.
    sql         one SELECT (or FROM, WITH, VALUES, DESCRIBE, SUMMARIZE); a semicolon may end it
    limit       rows given back at most; None = all. Where rows were cut, the table's metadata holds `keepset.cut`
    cell        characters of a text given back at most; None = all
    seconds     the query is interrupted after this time
    memory      DuckDB's memory limit, such as "4GiB"; default half of the machine, at most 4 GiB; it spills to a temporary folder
    Cost        10 M rows: counts and histograms 0.03 to 0.3 s, one uid 0.02 s, text search 2 s
    Errors      `Refusal` [bad-sql]: no single SELECT, unknown names, forbidden files, too slow
    """
    with connect(open_run(run), memory=memory) as connection:
        return select(connection, sql, limit=limit, cell=cell, seconds=seconds)


def text(table: pa.Table) -> str:
    """The rows as an aligned table for a terminal."""
    rows = [[visible(name) for name in table.column_names]]
    rows += [[number(value) for value in row.values()] for row in _plain(table)]
    right = frozenset(
        i for i, kind in enumerate(table.schema.types) if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )
    lines = rows_of_text(rows, right=right, indent="") if rows[0] else []
    count = f"{table.num_rows:,} row{'' if table.num_rows == 1 else 's'}"
    cut = (table.schema.metadata or {}).get(b"keepset.cut")
    return "\n".join([*lines, f"({count}{'; there are more, raise --limit' if cut else ''})"])


@contextmanager
def connect(run: Run, memory: str | None = None) -> "Iterator[duckdb.DuckDBPyConnection]":
    """A sandboxed connection with the run's views. It spills to a temporary folder that is removed afterwards."""
    import tempfile

    import duckdb

    with tempfile.TemporaryDirectory(prefix="keepset-query-") as spill:
        settings: dict[str, Any] = {"threads": min(os.cpu_count() or 1, 8), "memory_limit": memory or _half_of_memory(), "temp_directory": spill}
        connection = duckdb.connect(":memory:", config=settings)
        try:
            with reading(run):
                allowed = _make_views(connection, run)
            connection.execute(f"SET allowed_paths={_literal(allowed)}")
            connection.execute("SET python_enable_replacements=false")
            connection.execute("SET enable_external_access=false")
            connection.execute("SET lock_configuration=true")
            yield connection
        finally:
            connection.close()


def select(
    connection: "duckdb.DuckDBPyConnection", sql: str, *, limit: int | None = None, cell: int | None = None, seconds: float = 60.0
) -> pa.Table:
    """Run one SELECT on a connection of `connect`; see `query`."""
    import duckdb

    _check_one_select(sql)
    timer = threading.Timer(seconds, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        reader = connection.sql(sql).to_arrow_reader(1024)
        batches, count, cut = [], 0, False
        for batch in reader:
            room = None if limit is None else limit - count
            if room is not None and batch.num_rows > room:
                batch, cut = batch.slice(0, room), True
            batches.append(_capped(batch, cell))
            count += batch.num_rows
            if cut:
                break
        schema = batches[0].schema if batches else reader.schema
    except duckdb.InterruptException as error:
        raise Refusal(
            "bad-sql", "query", f"ran longer than {seconds:g} s", cure="Ask for less, or call `manifests.query` with more seconds"
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise Refusal(
            "bad-sql", "query", "needs more memory than it may have", cure="Ask for less, or call `manifests.query` with more memory"
        ) from error
    except (duckdb.Error, RuntimeError) as error:
        raise Refusal("bad-sql", "query", visible(_first_lines(error), 500), "views: " + ", ".join(_views(connection))) from error
    finally:
        timer.cancel()
    table = pa.Table.from_batches(batches, schema=schema)
    return table.replace_schema_metadata({"keepset.cut": "yes"}) if cut else table


def view_name(stage: str) -> str:
    """The view of a stage: its id with `_` for everything that is no letter or digit."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", stage)
    return f"{name}_" if name.lower() in RESERVED_VIEWS else name


def _check_one_select(sql: str) -> None:
    import duckdb

    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise Refusal("bad-sql", "query", visible(_first_lines(error), 500), "one SELECT") from error
    if len(statements) != 1:
        raise Refusal("bad-sql", "query", f"holds {len(statements)} statements", "exactly one SELECT")
    if statements[0].type != duckdb.StatementType.SELECT:
        raise Refusal("bad-sql", "query", f"is a statement of type {statements[0].type.name}", "exactly one SELECT")


def _make_views(connection: "duckdb.DuckDBPyConnection", run: Run) -> list[str]:
    """Create the views; returns the files that they may read."""
    ledger = [str(f.resolve()) for f in run.ledger_files()]
    if not ledger:
        raise Refusal("broken-record", str(run.path), "holds no ledger", cure="Run the same `curate build` again")
    allowed, names = list(ledger), set(RESERVED_VIEWS)
    grown = len(run.generations) > 1  # further pools may have further columns
    _view(connection, "ledger", f"SELECT * FROM {_files(ledger, grown)}")
    shards = shard_order(ledger)
    beside, taken = [], {c.lower() for c in _columns(ledger, grown)}
    for stage in run.stages:
        files = [str(run.part(stage.id, shard).resolve()) for shard in shards]
        name = view_name(stage.id)
        if name.lower() in names or not files or not all(os.path.isfile(f) for f in files):
            continue
        columns = [c for c in _columns(files, grown) if c.lower() != "uid"]
        names.add(name.lower())
        allowed += files
        _view(
            connection,
            name,
            f"SELECT l.uid, p.* FROM (SELECT uid FROM ledger) l POSITIONAL JOIN (SELECT {_names(columns)} FROM {_files(files, grown)}) p",
        )
        own = [c for c in columns if c.lower() not in taken | {"members", "fault", "suffix"}]
        if stage.kind == "measure" and own:
            taken |= {c.lower() for c in own}
            beside.append(f"POSITIONAL JOIN (SELECT {_names(own)} FROM {_files(files, grown)})")
    _view(connection, "samples", f"SELECT * FROM ledger {' '.join(beside)}")
    with_tests = {stage.id: leak_files(run, stage) for stage in leak_stages(run)}  # they stand in `leaks`
    for stage in run.stages:
        edges = [str(f.resolve()) for f in run.edges(stage.id)]
        if edges and not with_tests.get(stage.id):
            allowed += edges
            _view(connection, f"edges_{view_name(stage.id)}", f"SELECT * FROM {_files(edges)}")
    allowed += _make_evaluations(connection, run)
    leaks, read = leaks_sql(run)
    if leaks:
        allowed += [str(f.resolve()) for f in read]
        _view(connection, "leaks", leaks)
    replays = [str(f.resolve()) for f in standing_replays(run)]
    if replays:
        allowed += replays
        _view(connection, "replays", f"SELECT * FROM {_files(replays)}")
    for name in ("verdicts", "scores"):
        found = [str(f.resolve()) for f in sorted(run.path.glob(f"evidence/*/{name}.parquet"))]
        if found:
            allowed += found
            folder = "parse_filename(parse_dirpath(filename)) AS folder"
            _view(connection, name, f"SELECT * EXCLUDE (filename), {folder} FROM read_parquet({_literal(found)}, union_by_name=true, filename=true)")
    return allowed


def _make_evaluations(connection: "duckdb.DuckDBPyConnection", run: Run) -> list[str]:
    """The view `evaluations`: pool, uid, key of every sample of every evaluation pool."""
    selects, allowed = [], []
    for name in run.evaluations:
        base = run.evaluation(name).path / "parts"
        identity = [str(f.resolve()) for f in sorted((base / "identity").glob("*/*.parquet"))]
        index = [str(f.resolve()) for f in sorted((base / "measure.index").glob("*/*.parquet"))]
        if identity and len(identity) == len(index):
            allowed += identity + index
            literal = name.replace("'", "''")
            selects.append(
                f"SELECT '{literal}' AS pool, i.uid, x.key FROM (SELECT uid FROM {_files(identity)}) i POSITIONAL JOIN (SELECT key FROM {_files(index)}) x"
            )
    if selects:
        _view(connection, "evaluations", " UNION ALL ".join(selects))
    return allowed


def shard_order(ledger: list[str]) -> list[str]:
    """The shards that have rows, in the ledger's order."""
    seen: dict[str, None] = {}
    for file in ledger:
        column = pq.read_table(file, columns=["shard"])["shard"]
        for chunk in column.chunks:
            values = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
            seen.update(dict.fromkeys(pc.unique(values).to_pylist()))
    return [shard for shard in seen if shard is not None]


def _view(connection: "duckdb.DuckDBPyConnection", name: str, body: str) -> None:
    import duckdb

    try:
        connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {body}')
    except duckdb.Error as error:
        raise Refusal(
            "broken-record",
            "query",
            f"the files behind `{name}` cannot be read: {visible(_first_lines(error), 200)}",
            cure="See what is wrong with `manifests verify`",
        ) from error


def _files(files: list[str], differ: bool = False) -> str:
    return f"read_parquet({_literal(files)}{', union_by_name=true' if differ else ''})"


def _columns(files: list[str], differ: bool) -> list[str]:
    """The columns of files that are alike, or of all of them together."""
    return list(dict.fromkeys(name for file in (files if differ else files[:1]) for name in pq.read_schema(file).names))


def _literal(files: list[str]) -> str:
    return "[" + ", ".join("'" + f.replace("'", "''") + "'" for f in files) + "]"


def _names(columns: list[str]) -> str:
    return ", ".join('"' + c.replace('"', '""') + '"' for c in columns)


def _views(connection: "duckdb.DuckDBPyConnection") -> list[str]:
    return [row[0] for row in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal ORDER BY 1").fetchall()]


def _capped(batch: pa.RecordBatch, cell: int | None) -> pa.RecordBatch:
    if cell is None:
        return batch
    columns = [pc.utf8_slice_codeunits(c, 0, cell) if pa.types.is_string(c.type) or pa.types.is_large_string(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _plain(table: pa.Table) -> Iterator[dict[int, Any]]:
    columns = [column.to_pylist() for column in table.columns]
    for i in range(table.num_rows):
        yield {j: column[i] for j, column in enumerate(columns)}


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3] if line.strip() and not line.startswith("LINE"))


def _half_of_memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{min(total // 2, 4 << 30) >> 20}MiB"
