"""Keep, or drop, the rows whose ids stand in a list."""

import builtins
import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from curate.pool import Column, FilePath, Pool, Verdicts
from manifests.errors import Refusal
from manifests.vectors.forecast import linear

REASONS = ("listed", "not_listed")
WRITES = {"list_reason": pa.string()}
GROWS = "equal"
forecast = linear
FILES = "a .csv, .jsonl, .parquet or .txt file of ids, or a DataComp subset (.npy, u8,u8)"
Reasons = dict[str, str | None]  # id -> the reason that the list gives for it


def list(
    pool: Pool,
    *,
    ids: builtins.list[str] | None = None,
    file: FilePath | None = None,
    by: Column = Column("uid"),  # noqa: B008
    listed: Literal["keep", "drop"] = "keep",
    reason: str | None = None,
) -> Verdicts:
    """Keep only the listed rows, or drop them: ids from the recipe, a file, or both.

    Decides     `listed: keep` drops the rows that are not listed ("not_listed"); `listed: drop` drops the listed ones ("listed"). An id that no live
                row carries changes nothing; an id that many rows carry (a key is unique only inside its shard) stands for all of them. Protected
                rows are kept. No score, no threshold, no witness.
    Source      none needed; the .npy form is that of DataComp (Gadre et al. 2023)
    ids         ids as text
    file        more ids. Parquet, CSV with a header or JSONL of objects: the column named as `by`, else `uid`, `key`, `source_uid` or `id`, and
                where present a column `reason`; .txt: one id a line; .npy: DataComp's subset form (dtype u8,u8), 32 hex digits each
    by          the column that holds the ids: uid, key, source_uid or any other column of text or whole numbers
    listed      what happens to the listed rows
    reason      why, in your own words; a reason in the file goes before it
    Writes      list_reason: string, the reason given for a listed row; null for the others
    Cost        the list in memory, one pass over `by`
    Errors      [bad-value] without ids or with a file that holds none, [no-such-file]
    """
    if ids is None and file is None:
        raise Refusal("bad-value", "keep.list", "has neither ids nor file", "give one of them, or both")
    reasons: Reasons = dict.fromkeys(ids or [])
    if file is not None:
        reasons.update(_read(Path(file), by))
    names = _names(pool, by)
    is_listed = np.fromiter((name in reasons for name in names), bool, len(pool))
    said = [(reasons[name] or reason) if hit else None for name, hit in zip(names, is_listed, strict=True)]
    keep = (is_listed if listed == "keep" else ~is_listed) | pool.fixed
    return Verdicts(keep=keep, reason="not_listed" if listed == "keep" else "listed", columns={"list_reason": pa.array(said, pa.string())})


def _names(pool: Pool, by: str) -> builtins.list[str]:
    if by == "uid":
        return [uid.decode() for uid in pool.uid.tolist()]
    return [str(value) for value in pool.column(by).tolist()]


def _read(path: Path, by: str) -> Reasons:
    """Ids of a list file with their reasons."""
    if not path.exists():
        raise Refusal("no-such-file", "keep.list: file", f"{str(path)!r} does not exist", FILES)
    try:
        if path.suffix == ".npy":
            return _read_subset(path)
        if path.suffix == ".txt":
            return dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return _from_rows(pq.read_table(path).to_pylist(), by, path)
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as text:
                return _from_rows(csv.DictReader(text), by, path)
        if path.suffix in (".jsonl", ".ndjson"):
            return _from_rows([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()], by, path)
    except (ValueError, pa.ArrowInvalid, csv.Error) as error:
        raise Refusal("bad-value", "keep.list: file", f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}", FILES) from error
    raise Refusal("bad-value", "keep.list: file", f"{str(path)!r} is of no kind that can be read", FILES)


def _read_subset(path: Path) -> Reasons:
    pairs = np.load(path, allow_pickle=False)
    if pairs.dtype != np.dtype("u8,u8"):
        raise ValueError(f"its dtype is {pairs.dtype}, not u8,u8")
    return dict.fromkeys(f"{high:016x}{low:016x}" for high, low in pairs.ravel().tolist())


def _from_rows(rows: Iterable[Any], by: str, path: Path) -> Reasons:
    found: Reasons = {}
    column: str | None = None
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"a line is {row!r}, not an object")
        if column is None:
            column = next((name for name in (by, "uid", "key", "source_uid", "id") if name in row), None)
            if column is None:
                raise Refusal(
                    "bad-value", "keep.list: file", f"{str(path)!r} has the columns {', '.join(map(str, row))}", f"one named {by!r} holds the ids"
                )
        if row.get(column) is not None:
            found[str(row[column])] = None if row.get("reason") in (None, "") else str(row["reason"])
    return found
