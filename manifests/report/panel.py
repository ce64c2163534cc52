"""What a report is made of: panels that answer one question each, from SELECTs that are printed beside their numbers."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from manifests.audit.query import select, view_name
from manifests.run import Run

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Answer:
    """One SELECT and the rows that it gave."""

    name: str
    sql: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class Panel:
    """A question as heading, its answer as a sentence, then blocks (`chart`, `table`, `text`, `pictures`, `gallery`, `what_if`, `stops`) and the SQL behind them."""

    id: str
    short: str
    question: str
    answer: str
    blocks: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


class Inquiry:
    """Asks a run by SQL and remembers what was asked: `take` hands the answers since the last `take` to a panel."""

    def __init__(self, run: Run, connection: "duckdb.DuckDBPyConnection") -> None:
        self.run, self.connection = run, connection
        self.asked: list[Answer] = []
        self.decisions = [stage for stage in run.stages if stage.kind == "decision"]
        self.path = "path" if run.has_paths else "NULL"  # in SQL: what a sample was called as a file

    def ask(self, name: str, sql: str) -> list[dict[str, Any]]:
        """The rows of `sql`, noted under `name`."""
        table = select(self.connection, sql, seconds=600)
        rows: list[dict[str, Any]] = table.to_pylist()
        self.asked.append(Answer(name, sql, table.column_names, [[row[c] for c in table.column_names] for row in rows]))
        return rows

    def look_up(self, sql: str) -> list[dict[str, Any]]:
        """The rows of `sql`, which are pictures or text to show and no number: not noted."""
        rows: list[dict[str, Any]] = select(self.connection, sql, seconds=600).to_pylist()
        return rows

    def take(self) -> list[Answer]:
        """The answers since the last call."""
        taken, self.asked = self.asked, []
        return taken

    def schema(self, view: str = "samples") -> pa.Schema:
        """Names and types of a view's columns."""
        return select(self.connection, f'SELECT * FROM "{view}" LIMIT 0').schema

    def has(self, view: str) -> bool:
        """Is there such a view?"""
        return bool(self.connection.execute("SELECT count(*) FROM duckdb_views() WHERE view_name = ?", [view]).fetchall()[0][0])

    def view(self, stage: str) -> str | None:
        """The view of a stage, quoted; None where its parts are missing."""
        name = view_name(stage)
        return f'"{name}"' if self.has(name) else None


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def named(text: str) -> str:
    """A column as an SQL name."""
    return '"' + text.replace('"', '""') + '"'


def in_list(values: list[str]) -> str:
    """`('a', 'b')`; a list that holds nothing matches nothing."""
    return "(" + ", ".join(quoted(v) for v in values) + ")" if values else "(NULL)"
