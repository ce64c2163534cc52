"""The fold of all verdicts: one row for EVERY input sample, and the law that holds it: rows in = kept + dropped + quarantined."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import Refusal
from manifests.publish import publish, publish_table
from manifests.schema import DROPPED, KEPT, LEDGER, QUARANTINED, RESERVED
from manifests.shards.pool_yaml import Shard

ROWS_A_FILE = 1_000_000
PartPath = Callable[[str, Shard], Path]


def fold_shard(shard: Shard, stages: Sequence[tuple[str, str]], part: PartPath) -> pa.Table:
    """The ledger rows of one shard, from its parts alone; `out_shard` and `out_row` are left null.

    stages      (id, kind) in recipe order, kind "measure" or "decision"; the index comes first
    part        where the part of a stage for a shard lies
    """
    index = pq.read_table(part("measure.index", shard))
    count = index.num_rows
    status = np.full(count, KEPT, object)
    stage_of, reason = np.full(count, None, object), np.full(count, None, object)
    score, threshold = np.full(count, np.nan), np.full(count, np.nan)
    witness, witness_pool = np.full(count, None, object), np.full(count, None, object)
    weight = np.full(count, 1.0)
    for name, kind in stages:
        alive = status == KEPT
        if kind == "measure":
            fault = np.array(pq.read_table(part(name, shard), columns=["fault"])["fault"].to_pylist(), object)
            hit = alive & np.array([f is not None for f in fault], bool)
            status[hit], stage_of[hit], reason[hit] = QUARANTINED, name, fault[hit]
            continue
        table = pq.read_table(part(name, shard), columns=["keep", "reason", "score", "threshold", "witness", "witness_pool", "weight"])
        hit = alive & pc.equal(table["keep"], False).fill_null(False).to_numpy()
        status[hit], stage_of[hit] = DROPPED, name
        for target, column in ((reason, "reason"), (witness, "witness"), (witness_pool, "witness_pool")):
            target[hit] = np.array(table[column].to_pylist(), object)[hit]
        for numbers, column in ((score, "score"), (threshold, "threshold")):
            numbers[hit] = table[column].to_numpy()[hit]
        given = table["weight"].to_numpy()
        weight = np.where(alive & np.isfinite(given), given, weight)
    columns: dict[str, Any] = {
        "uid": pq.read_table(part("identity", shard), columns=["uid"])["uid"],
        "key": index["key"], "source_uid": _or_null(index, "source_uid"), "content": index["content"],
        "shard": [shard.id] * count, "row": np.arange(count, dtype=np.int32), "offset": index["offset"], "size": index["size"],
        "label": _or_null(index, "label"), "label_name": _or_null(index, "label_name"), "caption": _or_null(index, "caption"),
        "status": status.tolist(), "drop_stage": stage_of.tolist(), "drop_reason": reason.tolist(),
        "score": pa.array(score, mask=~np.isfinite(score)), "threshold": pa.array(threshold, mask=~np.isfinite(threshold)),
        "witness": witness.tolist(), "witness_pool": witness_pool.tolist(),
        "weight": pa.array(weight, pa.float32(), mask=status != KEPT), "out_shard": [None] * count, "out_row": [None] * count,
    }  # fmt: skip
    table = pa.table({f.name: _column(columns[f.name], f.type) for f in LEDGER}, schema=LEDGER)
    for name in index.column_names:
        if name not in RESERVED:
            table = table.append_column(name, index[name])
    return table


def _or_null(table: pa.Table, name: str) -> Any:
    return table[name] if name in table.column_names else [None] * table.num_rows


def _column(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return values.cast(kind) if values.type != kind else values
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def write_ledger(folder: Path, tables: Iterator[pa.Table], kept: int, place: tuple[np.ndarray, np.ndarray], made_of: str) -> list[Path]:
    """Publish `ledger/NNNNN.parquet`: whole shards, up to 1 M rows a file.

    place       (out_shard, out_row), (kept,) int64 each: where every kept row goes, in pool order; empty where no shards are written
    """
    out_shard, out_row = place
    files: list[Path] = []
    waiting: list[pa.Table] = []
    rows = at = 0

    def flush() -> None:
        nonlocal rows
        path = folder / f"{len(files):05d}.parquet"
        publish_table(path, pa.concat_tables(waiting, promote_options="permissive").unify_dictionaries().combine_chunks(), made_of, bloom="uid")
        files.append(path)
        waiting.clear()
        rows = 0

    for table in tables:
        here = pc.equal(table["status"].cast(pa.string()), KEPT).to_numpy()
        count = int(here.sum())
        position = np.full(table.num_rows, -1, np.int64)
        position[here] = np.arange(at, at + count)
        at += count
        if len(out_shard):
            names = [f"{out_shard[p]:05d}" if p >= 0 else None for p in position]
            table = table.set_column(table.column_names.index("out_shard"), LEDGER.field("out_shard"), _column(names, LEDGER.field("out_shard").type))
            places = pa.array(np.where(position >= 0, out_row[np.maximum(position, 0)], 0), pa.int32(), mask=position < 0)
            table = table.set_column(table.column_names.index("out_row"), LEDGER.field("out_row"), places)
        if waiting and rows + table.num_rows > ROWS_A_FILE:
            flush()
        waiting.append(table)
        rows += table.num_rows
    if waiting or not files:
        waiting = waiting or [LEDGER.empty_table()]
        flush()
    assert at == kept
    for stale in set(folder.glob("*.parquet")) - set(files):
        stale.unlink()
    return files


def law(counts: dict[str, int], where: str) -> None:
    """Rows in = kept + dropped + quarantined. Raises `Refusal` [law-broken]."""
    if counts["rows"] != counts["kept"] + counts["dropped"] + counts["quarantined"]:
        raise Refusal(
            "law-broken",
            where,
            f"{counts['rows']} rows in, {counts['kept']} kept + {counts['dropped']} dropped + {counts['quarantined']} quarantined",
            "they must be equal",
        )


def write_selection(path: Path, identities: list[str]) -> None:
    """Publish the kept ids in DataComp's subset form: sorted, dtype u8,u8 (high and low half of 32 hex digits)."""
    halves = np.array([(int(i[:16], 16), int(i[16:], 16)) for i in identities], dtype=[("f0", "<u8"), ("f1", "<u8")])
    halves.sort(order=["f0", "f1"])
    publish(path, lambda file: np.lib.format.write_array(file, halves, allow_pickle=False))


def read_selection(path: Path) -> list[str]:
    """The ids of a subset file, 32 hex digits each, sorted."""
    return [f"{int(high):016x}{int(low):016x}" for high, low in np.load(path, allow_pickle=False)]
