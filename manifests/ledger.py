"""The fold of all verdicts: one row for EVERY input sample, and the law that holds it: rows in = kept + dropped + quarantined."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import Refusal
from manifests.publish import publish, publish_table, published_digest, read_part
from manifests.schema import DROPPED, KEPT, LEDGER, QUARANTINED, RESERVED
from manifests.shards.pool_yaml import Shard

ROWS_A_FILE = 1_000_000
FATES = (KEPT, DROPPED, QUARANTINED)
DECIDED = ("keep", "reason", "score", "threshold", "witness", "witness_pool", "weight")  # of a decision's part, what the fold reads
PartPath = Callable[[str, Shard], Path]


def fold_shard(shard: Shard, stages: Sequence[tuple[str, str]], part: PartPath) -> pa.Table:
    """The ledger rows of one shard, from its parts alone; `out_shard` and `out_row` are left null.

    stages      (id, kind) in recipe order, kind "measure" or "decision"; the index comes first
    part        where the part of a stage for a shard lies
    """
    path = part("measure.index", shard)
    index = read_part(path, [name for name in pq.read_schema(path).names if name in LEDGER.names or name not in RESERVED])
    count = index.num_rows
    status, stage_of = np.zeros(count, np.int8), np.full(count, -1, np.int32)  # places in FATES and in `stages`
    score, threshold, weight = np.full(count, np.nan), np.full(count, np.nan), np.full(count, 1.0)
    words: dict[str, Any] = {name: pa.nulls(count, pa.string()) for name in ("reason", "witness", "witness_pool")}
    for number, (name, kind) in enumerate(stages):
        alive = status == 0
        table = read_part(part(name, shard), ("fault",) if kind == "measure" else DECIDED)
        if kind == "measure":
            hit = alive & pc.is_valid(table["fault"]).to_numpy()
            status[hit], stage_of[hit] = FATES.index(QUARANTINED), number
            words["reason"] = _where(hit, table["fault"], words["reason"])
            continue
        hit = alive & pc.equal(table["keep"], False).fill_null(False).to_numpy()
        status[hit], stage_of[hit] = FATES.index(DROPPED), number
        words = {column: _where(hit, table[column], before) for column, before in words.items()}
        for numbers, column in ((score, "score"), (threshold, "threshold")):
            numbers[hit] = table[column].to_numpy()[hit]
        given = table["weight"].to_numpy()
        weight = np.where(alive & np.isfinite(given), given, weight)
    drop_stage = pa.array([name for name, _ in stages], pa.string()).take(pa.array(stage_of, mask=stage_of < 0))
    columns: dict[str, Any] = {
        "uid": read_part(part("identity", shard), ["uid"])["uid"],
        "key": index["key"], "source_uid": _or_null(index, "source_uid"), "content": index["content"],
        "shard": pa.repeat(pa.scalar(shard.id, pa.string()), count), "row": np.arange(count, dtype=np.int32), "offset": index["offset"], "size": index["size"],
        "label": _or_null(index, "label"), "label_name": _or_null(index, "label_name"), "caption": _or_null(index, "caption"),
        "status": pa.array(FATES, pa.string()).take(pa.array(status)), "drop_stage": drop_stage, "drop_reason": words["reason"],
        "score": pa.array(score, mask=~np.isfinite(score)), "threshold": pa.array(threshold, mask=~np.isfinite(threshold)),
        "witness": words["witness"], "witness_pool": words["witness_pool"],
        "weight": pa.array(weight, pa.float32(), mask=status != 0), "out_shard": pa.nulls(count, pa.string()), "out_row": pa.nulls(count, pa.int32()),
    }  # fmt: skip
    table = pa.table({f.name: _column(columns[f.name], f.type) for f in LEDGER}, schema=LEDGER)
    for name in index.column_names:
        if name not in RESERVED:
            table = table.append_column(name, index[name])
    return table


def _where(hit: np.ndarray, given: Any, before: Any) -> Any:
    """`given` as text where `hit`, else `before`."""
    return pc.if_else(pa.array(hit), given.cast(pa.string()).combine_chunks(), before) if hit.any() else before


def _or_null(table: pa.Table, name: str) -> Any:
    return table[name] if name in table.column_names else pa.nulls(table.num_rows)


def _column(values: Any, kind: pa.DataType) -> Any:
    values = values if isinstance(values, pa.ChunkedArray | pa.Array) else pa.array(values)
    if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(values.type):
        return values.cast(kind.value_type).dictionary_encode().cast(kind)  # words in the order in which they come
    return values.cast(kind) if values.type != kind else values


def ledger_stands(folder: Path, rows: Sequence[int], made_of: str, first: int) -> list[Path] | None:
    """The files that `write_ledger` would publish for shards of so many rows, where all are there with this digest; else None."""
    files: list[int] = []
    for count in rows:
        if files and files[-1] + count <= ROWS_A_FILE:
            files[-1] += count
        else:
            files.append(count)
    paths = [folder / f"{first + number:05d}.parquet" for number in range(len(files))]
    found = all(published_digest(p) == made_of and pq.read_metadata(p).num_rows == n for p, n in zip(paths, files, strict=True))
    return paths if files and found else None


def write_ledger(
    folder: Path, tables: Iterator[pa.Table], kept: int, place: tuple[np.ndarray, np.ndarray], made_of: str, first: int = 0
) -> list[Path]:
    """Publish `ledger/NNNNN.parquet`: whole shards, up to 1 M rows a file.

    place       (out_shard, out_row), (kept,) int64 each: where every kept row goes, in pool order; empty where no shards are written
    first       number of the first file: those before it hold the rows of earlier generations
    """
    out_shard, out_row = place
    files: list[Path] = []
    waiting: list[pa.Table] = []
    rows = at = 0

    def flush() -> None:
        nonlocal rows
        path = folder / f"{first + len(files):05d}.parquet"
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
            own, which = np.unique(out_shard[position[here]], return_inverse=True)
            place_of = np.full(table.num_rows, -1, np.int64)
            place_of[here] = which
            names = pa.array([f"{number:05d}" for number in own], pa.string()).take(pa.array(place_of, mask=~here))
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
        if not stale.stem.isdigit() or int(stale.stem) >= first:
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


def selected(ledger: Iterable[pa.Table]) -> np.ndarray:
    """(k,) `u8,u8`, sorted: the ids of the kept rows, as `selection.npy` has them. `source_uid` where every kept row has one of 32 hex digits and no two are
    equal, else `uid`.

    ledger   uid, source_uid and status, in tables one after the other
    Cost     32 bytes a kept row, and as many again while they are sorted; no object a row
    Errors   ValueError, TypeError where a uid is not 32 hex digits
    """
    own: list[np.ndarray] = []
    theirs: list[np.ndarray] | None = []
    for table in ledger:
        kept = table.filter(pc.equal(table["status"].cast(pa.string()), KEPT))
        own.append(_halves(kept["uid"]))
        as_ids = pc.match_substring_regex(kept["source_uid"], "^[0-9a-f]{32}$").fill_null(False)
        theirs = [*theirs, _halves(kept["source_uid"])] if theirs is not None and pc.all(as_ids).as_py() is not False else None
    found = _sorted(theirs or [])
    return found if len(found) and (found[1:] != found[:-1]).all() else _sorted(own)


def _halves(ids: pa.ChunkedArray) -> np.ndarray:
    """(n, 2) uint64: the high and the low half of 32 hex digits each."""
    texts = ("".join(chunk[start : start + 65536].to_pylist()) for chunk in ids.chunks for start in range(0, len(chunk), 65536))
    found = np.concatenate([np.frombuffer(bytes.fromhex(text), ">u8").astype("<u8") for text in texts] or [np.zeros(0, "<u8")])
    if len(found) != 2 * len(ids):
        raise ValueError("a uid is not 32 hex digits")
    return found.reshape(-1, 2)


def _sorted(halves: list[np.ndarray]) -> np.ndarray:
    numbers = np.concatenate([np.zeros((0, 2), "<u8"), *halves])
    return numbers[np.lexsort((numbers[:, 1], numbers[:, 0]))].view([("f0", "<u8"), ("f1", "<u8")])[:, 0]


def write_selection(path: Path, ids: "list[str] | np.ndarray") -> None:
    """Publish ids in DataComp's subset form: sorted, dtype u8,u8 (high and low half of 32 hex digits). `ids`: as `selected` gives them, or as text."""
    halves = ids if isinstance(ids, np.ndarray) else _sorted([_halves(pa.chunked_array([ids], pa.string()))])
    publish(path, lambda file: np.lib.format.write_array(file, halves, allow_pickle=False))


def read_selection(path: Path) -> list[str]:
    """The ids of a subset file, 32 hex digits each, sorted."""
    return [f"{int(high):016x}{int(low):016x}" for high, low in np.load(path, allow_pickle=False)]
