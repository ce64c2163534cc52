"""What a decision leaves on the disk: its verdict parts and its edges, one file of these a generation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.measuring import part_path
from curate.pool import Edges, Verdicts
from curate.recipe import ResolvedStage
from manifests.digest import digest
from manifests.publish import EDGES_KEY, publish_table, published_digest
from manifests.rows import column_rows
from manifests.schema import EDGE, VERDICT
from manifests.shards.pool_yaml import Shard

ROWS_A_CHUNK = 1 << 25  # of a column of uids: their bytes are counted in 32 bits


def edges_path(root: Path, stage_id: str, generation: int = 0) -> Path:
    """Where a decision's edges lie: one file a generation, of the pairs with a row of that generation."""
    return root / "edges" / stage_id / f"{generation:05d}.parquet"


def decision_stands(root: Path, stage_id: str, shards: Sequence[Shard], made_of: str, generation: int = 0) -> bool:
    """Are all parts of a decision for a generation's shards there with the digest that follows from `made_of`, and the edges that its parts speak of?"""
    paths = [part_path(root, stage_id, shard) for shard in shards]
    if any(published_digest(p) != digest(made_of, shard.id) for p, shard in zip(paths, shards, strict=True)):
        return False
    with_edges = any(EDGES_KEY in (pq.read_schema(p).metadata or {}) for p in paths[:1])
    return not with_edges or published_digest(edges_path(root, stage_id, generation)) == made_of


def verdict_table(verdicts: Verdicts, unjudged: np.ndarray, uid: np.ndarray, stage: ResolvedStage) -> pa.Table:
    """The verdict part's columns for the live rows; no Python object a row, but for witnesses of evaluation pools."""
    assert verdicts.witness is not None
    witness, own_pool = uid_column(uid, verdicts.witness), pa.nulls(len(uid), pa.string())
    if verdicts.witness_uid is not None and verdicts.witness_pool is not None:
        other = np.array([w is not None and w != "" and w == w for w in verdicts.witness_uid], bool)
        named = [w.decode() if isinstance(w, bytes) else str(w) for w in verdicts.witness_uid[other]]
        witness = pc.replace_with_mask(witness, pa.array(other), pa.array(named, pa.string()))
        own_pool = pa.array(verdicts.witness_pool, pa.string(), mask=~other)
    threshold = np.where(unjudged, np.nan, np.asarray(verdicts.threshold, np.float64))
    columns = {
        "keep": pa.array(verdicts.keep), "unjudged": pa.array(unjudged), "reason": _reasons(verdicts),
        "score": _numbers(verdicts.score, pa.float64()), "threshold": _numbers(threshold, pa.float64()),
        "witness": witness, "witness_pool": own_pool.dictionary_encode(),
        "weight": _numbers(verdicts.weight, pa.float32()),
    }  # fmt: skip
    table = pa.table(columns).cast(VERDICT)
    for own, name in stage.columns.items():
        values = _in_order(verdicts.columns[own], len(uid)) if own in verdicts.columns else pa.nulls(len(uid), stage.writes[name])
        table = table.append_column(name, values)
    return table


def uid_column(uid: np.ndarray, rows: np.ndarray) -> "pa.Array | pa.ChunkedArray":
    """The uids of `rows` as text, straight from their bytes; -1 = null. `uid` (n,) S32."""
    if len(rows) > ROWS_A_CHUNK:
        return pa.chunked_array([uid_column(uid, rows[start : start + ROWS_A_CHUNK]) for start in range(0, len(rows), ROWS_A_CHUNK)])
    there = rows >= 0
    offsets = np.concatenate([[0], np.cumsum(there) * 32]).astype(np.int32)
    buffers = [pa.py_buffer(np.packbits(there, bitorder="little")), pa.py_buffer(offsets), pa.py_buffer(uid[rows[there]])]
    return pa.Array.from_buffers(pa.string(), len(rows), buffers, null_count=int(len(rows) - there.sum()))


def _reasons(verdicts: Verdicts) -> pa.Array:
    """The reasons of the dropped rows as a dictionary column."""
    given, dropped = verdicts.reason, ~verdicts.keep
    words = sorted(set(given[dropped].tolist()))  # type: ignore[index,union-attr]
    code = np.zeros(len(dropped), np.int32)
    for number, word in enumerate(words):
        code[given == word] = number
    return pa.DictionaryArray.from_arrays(pa.array(code, mask=~dropped), pa.array(words, pa.string()))


def _numbers(values: Any, kind: pa.DataType) -> pa.Array:
    """Numbers as Arrow, null where they are not finite."""
    array = np.asarray(values, np.float64)
    return pa.array(array, kind, mask=~np.isfinite(array))


def own_column(values: Any, kind: pa.DataType) -> "pa.Array | pa.ChunkedArray":
    """A method's own column, numpy or Arrow, as Arrow of type `kind`."""
    is_arrow = isinstance(values, pa.Array | pa.ChunkedArray)
    if pa.types.is_floating(kind):
        return _numbers(values.to_numpy(zero_copy_only=False) if is_arrow else values, kind)
    if is_arrow:
        return values.cast(kind)
    return pa.array(values.astype("U") if values.dtype.kind == "S" else values, kind)  # Arrow would keep the zeros that fill up a short `S`


def _in_order(pieces: Any, count: int) -> pa.ChunkedArray:
    """The gathered pieces of a column (row, value) in the order of the rows; null where no piece has the row."""
    rows = pieces["row"].to_numpy()
    position = np.full(count, -1, np.int64)
    position[rows] = np.arange(len(rows))
    return column_rows(pieces["value"], position)


def newer(edges: Edges, first: int) -> Edges:
    """The pairs with a row from `first` on: those among older rows stand in an older generation's file."""
    a, b = np.asarray(edges.a, np.int64), np.asarray(edges.b, np.int64)
    new = np.flatnonzero((a >= first) | (b >= first))
    return Edges(a[new], b[new], np.asarray(edges.score)[new], {name: np.asarray(values)[new] for name, values in edges.columns.items()})


def publish_edges(path: Path, edges: Edges, uid: np.ndarray, made_of: str) -> None:
    """Publish pairs of rows as pairs of uids, in the order of these; pairs with evaluation samples in the order of row, pool and sample."""
    place = np.empty(len(uid), np.int64)  # in the order of uids
    place[np.argsort(uid, kind="stable")] = np.arange(len(uid))
    others = edges.columns.get("b")
    if others is None:
        order = np.lexsort((place[edges.b], place[edges.a])) if len(edges.a) else np.zeros(0, np.int64)
    else:
        order = np.lexsort((np.asarray(others), np.asarray(edges.columns["pool"]), place[edges.a]))
    columns = {
        "a": uid_column(uid, edges.a[order]),
        "b": uid_column(uid, edges.b[order]) if others is None else uid_column(np.asarray(others, "S32"), order),
        "score": pa.array(np.asarray(edges.score, np.float64)[order]),
    }
    table = pa.table(columns, schema=EDGE)
    for name, values in edges.columns.items():
        if name not in EDGE.names:
            given = np.asarray(values)[order]
            unseen = np.isnan(given) if given.dtype.kind == "f" else given == "" if given.dtype.kind == "U" else None
            table = table.append_column(name, pa.array(given, mask=unseen))
    publish_table(path, table, made_of)
