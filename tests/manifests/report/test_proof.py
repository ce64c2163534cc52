"""The proof panel: what it says beside the words."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.audit.query import connect
from manifests.publish import publish_table
from manifests.report.panel import Inquiry, Panel
from manifests.report.proof import proof
from manifests.run import open_run


def panel(run: Path) -> Panel:
    opened = open_run(run)
    with connect(opened) as connection:
        return proof(Inquiry(opened, connection))


def with_leaks(run: Path, rates: dict[str | None, float]) -> Path:
    (path,) = run.glob("evidence/*/verdicts.parquet")
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        rate = rates.get(row["task"])
        told = {"clean_diff": row["diff"] - 0.001, "clean_lo": row["lo"] - 0.001, "clean_hi": row["hi"] - 0.001} if rate else {}
        row |= {"leakage_rate": rate, "clean_diff": None, "clean_lo": None, "clean_hi": None} | told
    publish_table(path, pa.Table.from_pylist(rows, schema=_schema(rows)), "leaks")
    return run


def _schema(rows: list[dict]) -> pa.Schema:
    found = pa.Table.from_pylist(rows).schema
    return pa.schema([pa.field(f.name, pa.float64() if f.type == pa.null() else f.type) for f in found])


def every_row(of: Panel) -> dict:
    return next(block for block in of.blocks if block["kind"] == "table")


def test_leaked_test_samples_are_told_with_the_difference_without_them(copied: Callable[[], Path]) -> None:
    found = panel(with_leaks(copied(), {None: 0.015, "pets": 0.03, "flowers": 0.0}))
    (text,) = [block["text"] for block in found.blocks if block["kind"] == "text"]
    assert text.startswith("Test samples that stand in the pool: 3.0 % of pets. An arm that drops them")
    whole = every_row(found)
    assert whole["head"][-2:] == ["test samples in the pool", "difference without them"]
    for row in whole["rows"]:
        rate, told = row[-2:]
        assert rate == {"all": "1.5 %", "pets": "3.0 %", "flowers": "–"}[row[3]]
        if row[3] == "flowers":
            assert told == "–"
        else:
            assert float(told.split()[0].replace("−", "-")) == pytest.approx(float(row[6].replace("−", "-")) - 0.1, abs=0.011)


@pytest.mark.parametrize("rates", [None, {}, {None: 0.0, "pets": 0.0}])
def test_nothing_is_said_of_leaks_where_there_are_none(copied: Callable[[], Path], rates: dict | None) -> None:
    run = copied()
    found = panel(run if rates is None else with_leaks(run, rates))
    assert not [block for block in found.blocks if block["kind"] == "text"] and len(every_row(found)["head"]) == 10


def test_a_single_task_is_told_as_the_suite(copied: Callable[[], Path]) -> None:
    (text,) = [block["text"] for block in panel(with_leaks(copied(), {None: 0.02})).blocks if block["kind"] == "text"]
    assert text.startswith("Test samples that stand in the pool: 2.0 %. An arm")
