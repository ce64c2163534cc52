"""Where a run tells which evaluation samples are hit: the pairs of `leakage.images`, or, in a run that is older than these, each dropped row's witness alone."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests.changes import change
from manifests.errors import Refusal
from manifests.publish import EDGES_KEY
from manifests.run import Run, StageRecord

LIMITS = {
    "exact_leak": "max_rms",
    "near_leak": "max_rms",
    "copied_leak": "min_copied",
    "vector_leak": "min_cosine",
}  # reason -> its parameter; the surest first
EDGES = ("left", "top", "right", "bottom")
BOXES = tuple(f"{side}_{edge}" for side in "ab" for edge in EDGES)
MEASURED = ("difference", "copied", "cosine", "turn", "covered", *BOXES)


def leak_stages(run: Run) -> list[StageRecord]:
    """The stages that look for evaluation samples, in order."""
    return [stage for stage in run.stages if stage.name == "leakage.images"]


def leak_files(run: Run, stage: StageRecord) -> list[Path]:
    """The files of a stage's pairs with evaluation samples; none where the run is older than these, or they are gone."""
    return [file for file in run.edges(stage.id) if "pool" in pq.read_schema(file).names]


def require_leaks(run: Run) -> None:
    """Raise `Refusal` [broken-record] where a stage wrote pairs that are not there: without them only the closest test picture of each row is known."""
    for stage in leak_stages(run):
        part = next(iter(sorted((run.path / "parts" / stage.id).glob("*/*.parquet"))), None)
        wrote = part is not None and EDGES_KEY in (pq.read_schema(part).metadata or {})
        wanted = max(len(run.generations), 1) if wrote else 0
        if len(leak_files(run, stage)) < wanted:
            where = str(run.path / "edges" / stage.id)
            raise Refusal(
                "broken-record", where, "does not hold which test pictures are hit", cure="Run the same `curate build` again: it finds them anew"
            )


def leaks_sql(run: Run) -> tuple[str, list[Path]]:
    """The SELECT of the view `leaks`, and the files that it reads: one row a pair of a dropped sample and an evaluation sample that it shows.

    stage, pool, test (uid of the evaluation sample), uid, reason, score, threshold; what else was seen of the pair; is_complete: are all rows there that show this
    test picture (null: the run is older, and tells of each row its closest test picture alone)
    """
    selects, read = [], []
    for stage in leak_stages(run):
        files, name = leak_files(run, stage), stage.id.replace("'", "''")
        read += files
        if files:
            there = {column for file in files for column in pq.read_schema(file).names}
            seen = ", ".join(f'"{c}"::DOUBLE AS "{c}"' if c in there else f'NULL::DOUBLE AS "{c}"' for c in MEASURED)
            whens = " ".join(f"WHEN '{reason}' THEN {_number(stage.parameters.get(limit))}" for reason, limit in LIMITS.items())
            listed = ", ".join("'" + str(file.resolve()).replace("'", "''") + "'" for file in files)
            selects.append(
                f"SELECT '{name}' AS stage, pool, b AS test, a AS uid, reason, score, CASE reason {whens} END AS threshold, {seen}, is_complete "
                f"FROM read_parquet([{listed}], union_by_name=true) WHERE reason IS NOT NULL"
            )
        else:
            seen = ", ".join(f'NULL::DOUBLE AS "{c}"' for c in MEASURED)
            selects.append(
                f"SELECT '{name}' AS stage, witness_pool::VARCHAR AS pool, witness AS test, uid, drop_reason::VARCHAR AS reason, score, threshold, {seen}, "
                f"NULL::BOOLEAN AS is_complete FROM ledger WHERE drop_stage = '{name}' AND witness_pool IS NOT NULL"
            )
    return " UNION ALL ".join(selects), read


def _number(value: object) -> str:
    return f"{float(value)!r}::DOUBLE" if isinstance(value, int | float) else "NULL::DOUBLE"


def evaluation_sizes(run: Run) -> dict[str, int]:
    """Rows of each evaluation pool."""
    sizes = {}
    for name in run.evaluations:
        files = sorted((run.evaluation(name).path / "parts" / "identity").glob("*/*.parquet"))
        sizes[name] = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    return sizes


def what_happened(pair: dict[str, Any]) -> str:
    """What was done to a test picture that a row shows as a verified copy, in words."""
    shown, own = (_area(pair, side) for side in "ba")
    return change(int(pair["turn"]), shown, own, pair["covered"])


def _area(pair: dict[str, Any], side: str) -> float:
    left, top, right, bottom = (pair[f"{side}_{edge}"] for edge in EDGES)
    return (right - left) * (bottom - top)
