"""One SELECT, over the run's own tables and nothing else."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from manifests.audit.query import RESERVED_VIEWS, connect, query, select, text, view_name
from manifests.cli import main
from manifests.errors import Refusal
from manifests.run import open_run


def test_views_are_aligned_with_the_ledger(run: Path) -> None:
    opened = open_run(run)
    for stage in opened.stages:
        parts = pa.concat_tables([pq.read_table(opened.part(stage.id, shard.id)) for shard in opened.shards()])
        seen = query(run, f"SELECT * FROM {view_name(stage.id)}", limit=None)
        assert seen["uid"].to_pylist() == opened.ledger(["uid"])["uid"].to_pylist()
        for name in parts.column_names:
            plain = parts[name].cast(parts[name].type.value_type) if pa.types.is_dictionary(parts[name].type) else parts[name]
            assert seen[name].to_pylist() == plain.to_pylist(), (stage.id, name)


def test_samples_hold_measures_beside_the_ledger(run: Path) -> None:
    rows = query(
        run,
        "SELECT count(*) AS n, count(s.blur) AS measured FROM samples s JOIN measure_quality q USING (uid) WHERE s.blur IS NOT DISTINCT FROM q.blur",
    ).to_pylist()
    quarantined = query(run, "SELECT count(*) AS n FROM ledger WHERE status = 'quarantined'")["n"][0].as_py()
    assert rows == [{"n": len(open_run(run).ledger()), "measured": len(open_run(run).ledger()) - quarantined}]


def test_edges_evaluations_and_verdicts_are_views(run: Path) -> None:
    assert query(run, "SELECT count(*) AS n FROM edges_dedup_perceptual WHERE score <= 6")["n"][0].as_py() >= 8
    assert query(run, "SELECT DISTINCT pool FROM evaluations")["pool"].to_pylist() == ["tests"]
    assert set(query(run, "SELECT DISTINCT word FROM verdicts")["word"].to_pylist()) <= {"better", "not worse", "worse", "cannot tell"}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "SELECT * FROM glob('/etc/*')", "COPY ledger TO '/tmp/keepset-out.csv'",
        "ATTACH '/tmp/keepset.db'", "INSTALL httpfs", "LOAD httpfs", "SET memory_limit='100GB'", "PRAGMA database_list", "EXPLAIN SELECT 1", "DROP VIEW ledger",
        "CREATE TABLE t AS SELECT 1", "DROP VIEW ledger; SELECT 1", "SELECT 1; SELECT 2", "", "SELEC 1", "SELECT nothing FROM ledger", "SELECT * FROM run",
        "CALL pragma_version()", "SELECT * FROM read_parquet('/tmp/*.parquet')",
    ],
)  # fmt: skip
def test_everything_but_one_select_is_refused(run: Path, sql: str) -> None:
    with pytest.raises(Refusal) as refused:
        query(run, sql)
    assert refused.value.slug == "bad-sql" and refused.value.exit_code == 2


def test_python_variables_are_out_of_reach(run: Path) -> None:
    secret = pa.table({"x": [1]})
    with pytest.raises(Refusal):
        query(run, "SELECT * FROM secret")
    assert secret.num_rows == 1
    assert query(run, "SELECT current_setting('python_enable_replacements') AS on")["on"].to_pylist() == [False]


@pytest.mark.parametrize("sql", ["FROM ledger", "WITH k AS (FROM ledger) SELECT count(*) FROM k", "VALUES (1)", "SELECT 1;", "DESCRIBE ledger"])
def test_other_spellings_of_select_run(run: Path, sql: str) -> None:
    assert query(run, sql).num_rows


def test_a_slow_query_is_stopped(run: Path) -> None:
    with pytest.raises(Refusal, match="longer than"):
        query(run, "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE (a.range * b.range) % 7 = 3", seconds=0.2)


def test_rows_and_cells_are_capped(run: Path) -> None:
    table = query(run, "SELECT uid, repeat('a', 5000) AS long FROM ledger", limit=10)
    assert table.num_rows == 10 and {len(v) for v in table["long"].to_pylist()} == {2000}
    assert "there are more" in text(table)
    whole = query(run, "SELECT uid FROM ledger LIMIT 10", limit=10)
    assert "there are more" not in text(whole) and "(10 rows)" in text(whole)


def test_a_missing_part_hides_only_its_view(run: Path, copied) -> None:
    broken = copied()
    open_run(broken).part("dedup.exact", "web/00000").unlink()
    assert query(broken, "SELECT 1 AS x FROM dedup_perceptual LIMIT 1")["x"].to_pylist() == [1]
    with pytest.raises(Refusal, match="dedup_exact"):
        query(broken, "SELECT * FROM dedup_exact")


def test_text_shows_no_control_characters(hostile_run: Path) -> None:
    page = text(query(hostile_run, "SELECT key, caption, label_name FROM ledger", limit=None))
    assert not [c for c in page if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069]


def test_json_spells_bytes_as_explain_does(run: Path) -> None:
    sql = "SELECT uid, content, phash, DATE '2026-03-01' AS day, TIMESTAMP '2026-03-01 04:05:06' AS at, 1.50::DECIMAL(9, 2) AS d FROM samples ORDER BY uid LIMIT 3"
    said = CliRunner().invoke(main, ["query", str(run), sql, "--json"])
    rows = json.loads(said.output)["rows"]
    for row in rows:
        life = json.loads(CliRunner().invoke(main, ["explain", str(run), row["uid"], "--json"]).output)
        columns = next(step["columns"] for step in life["stages"] if step["stage"] == "measure.perceptual_hash")
        assert row["content"] == life["sample"]["content"] and len(bytes.fromhex(row["content"])) == 32 and row["phash"] == columns.get("phash")
        assert (row["day"], row["at"], row["d"]) == ("2026-03-01", "2026-03-01T04:05:06", "1.50")
    assert len(rows) == 3 and "b'" not in said.output


def test_help_names_every_view(run: Path) -> None:
    said = CliRunner().invoke(main, ["query", "--help"]).output
    named = {line.split()[0] for line in said.splitlines() if re.match(r"  [A-Za-z_]+  ", line)}
    assert named >= RESERVED_VIEWS - {"identity"} | {"STAGE", "edges_STAGE"}
    has = {"ledger": {"label_name", "drop_reason", "weight"}, "samples": {"width", "blur", "phash"}, "dedup_perceptual": {"keep", "witness"}}
    for view, columns in has.items():
        assert columns <= set(query(run, f"SELECT * FROM {view} LIMIT 0").column_names) and all(c in said for c in columns)


def test_a_connection_is_locked(run: Path) -> None:
    with connect(open_run(run)) as connection:
        assert select(connection, "SELECT 1 AS one")["one"].to_pylist() == [1]
        with pytest.raises(Exception, match="locked|lock_configuration"):
            connection.execute("SET enable_external_access=true")
