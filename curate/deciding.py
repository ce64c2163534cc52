"""One decision over the live rows: `within`, `protect`, nulls, budget shares and publication happen here, never in a method."""

import hashlib
import inspect
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.frame import Frame
from curate.measuring import part_path, stage_key, vector_name
from curate.pool import Edges, Pool, Share, State, Verdicts
from curate.recipe import Column, Expression, PoolPaths, ResolvedStage, VectorName
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.publish import EDGES_KEY, publish_bytes, publish_table, published_digest
from manifests.schema import EDGE, VERDICT, is_truth
from manifests.shards.pool_yaml import Shard

SCAN_SECONDS = 20.0  # how much work a crash may cost a long decision
IGNORES_PROTECT = ("leakage",)


@dataclass(frozen=True)
class Setting:
    """What a decision runs under: the recipe's seed, bytes of memory, the device, the evaluation pools by path."""

    seed: int
    memory: int
    device: str
    evaluations: dict[str, Frame]


class Scratch:
    """Publishes the states of one decision's scans under `scratch/<digest>/`, by the one rule."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._last = folder, time.monotonic()

    def load(self, name: str) -> tuple[int, State] | None:
        """The newest published (round, state)."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as found:
            return int(found["round"]), tuple(found[f"a{i}"] for i in range(len(found.files) - 1))

    def save(self, name: str, round: int, state: State) -> None:
        """Publish the state after `round` rounds."""
        buffer = io.BytesIO()
        np.savez(buffer, round=np.int64(round), **{f"a{i}": a for i, a in enumerate(state)})  # type: ignore[arg-type]
        publish_bytes(self.folder / f"{name}.npz", buffer.getvalue())
        self._last = time.monotonic()

    def due(self) -> bool:
        """Has enough been done to be worth publishing?"""
        return time.monotonic() - self._last >= SCAN_SECONDS


def read_columns(stage: ResolvedStage, frame: Frame) -> list[str]:
    """The plain columns that a decision reads, expressions, `within` and `protect` included. Raises `Refusal` for unknown and truth columns."""
    from manifests.expression import columns_of

    where = stage.id
    names = list(stage.reads(Column))
    for sql in [*stage.reads(Expression), *([stage.protect] if stage.protect else [])]:
        for name in _refused_truth(columns_of(sql, [*frame.catalog, *truth_names(frame)], where), where):
            names.append(name)
    if stage.within:
        names.append(stage.within)
    known = set(frame.catalog)
    for name in _refused_truth(names, where):
        if name not in known:
            raise Refusal(
                "unknown-column",
                where,
                f"reads column {name!r}, which no earlier stage and no pool column provides",
                f"known: {', '.join(sorted(known))}",
            )
    return list(dict.fromkeys(names))


def truth_names(frame: Frame) -> list[str]:
    """The pool's `truth_*` columns, which nothing may read."""
    names: dict[str, None] = {}
    for shard in frame.shards:
        names.update(dict.fromkeys(n for n in pq.read_schema(part_path(frame.root, "measure.index", shard)).names if is_truth(n)))
    return list(names)


def _refused_truth(names: list[str], where: str) -> list[str]:
    for name in names:
        if is_truth(name):
            raise Refusal("truth-column", where, f"reads {name!r}", "truth_* columns go to the ledger and the report; no stage may read them")
    return names


def decision_digest(stage: ResolvedStage, frame: Frame, setting: Setting) -> str:
    """What a decision's verdict follows from: its parameters, the seed, what it reads, which rows are live, the evaluation pools."""
    reads = {name: frame.digests[frame.catalog[name]] for name in read_columns(stage, frame)}
    for name in stage.reads(VectorName):
        if name not in frame.catalog:
            vectors = [n for n, s in frame.catalog.items() if s.startswith("attached/") or s.startswith("measure.vectors") or n == vector_name_of(s)]
            raise Refusal(
                "unknown-column",
                stage.id,
                f"reads vectors {name!r}, which no earlier stage writes",
                f"earlier vectors: {', '.join(vectors) or 'none'}",
            )
        reads[name] = frame.digests[frame.catalog[name]]
    pools = {path: setting.evaluations[path].chain for path in stage.reads(PoolPaths)}
    return digest(stage_key(stage), stage.within, stage.protect, setting.seed, reads, pools, frame.chain)


def vector_name_of(stage_id: str) -> str:
    """The vector column of a `measure.vectors` stage with this id."""
    return "vectors" if stage_id == "measure.vectors" else stage_id


def decide(stage: ResolvedStage, frame: Frame, setting: Setting) -> dict[str, Any]:
    """Run a decision, or read it where its parts stand with the right digest; take its drops out of `frame.live`.

    Returns its counts: rows in, kept, dropped by reason, unjudged.
    """
    made_of = decision_digest(stage, frame, setting)
    part_digests = [digest(made_of, shard.id) for shard in frame.shards]
    paths = [part_path(frame.root, stage.id, shard) for shard in frame.shards]
    if not decision_stands(frame.root, stage.id, frame.shards, made_of):
        rows = np.flatnonzero(frame.live)
        verdicts, unjudged = _verdicts(stage, frame, setting, rows, frame.root / "scratch" / made_of[:32])
        _check(stage, verdicts, unjudged)
        table = _table(verdicts, unjudged, frame.uid(frame.live), stage)
        if verdicts.edges is None:
            edges_path(frame.root, stage.id).unlink(missing_ok=True)  # of other parameters
        else:
            table = table.replace_schema_metadata({EDGES_KEY: b"1"})
            _publish_edges(frame, stage, verdicts.edges, frame.uid(frame.live), made_of)
        position = np.full(len(frame.live), -1, np.int64)
        position[rows] = np.arange(len(rows))
        for number, (path, part_digest) in enumerate(zip(paths, part_digests, strict=True)):
            local = position[frame.starts[number] : frame.starts[number + 1]]
            publish_table(path, table.take(pa.array(local, mask=local < 0)), part_digest)
    return _fold(stage, frame, made_of)


def edges_path(root: Path, stage_id: str) -> Path:
    """Where a decision's edges lie."""
    return root / "edges" / stage_id / "00000.parquet"


def decision_stands(root: Path, stage_id: str, shards: Sequence[Shard], made_of: str) -> bool:
    """Are all parts of a decision there with the digest that follows from `made_of`, and the edges that its parts speak of?"""
    paths = [part_path(root, stage_id, shard) for shard in shards]
    if any(published_digest(p) != digest(made_of, shard.id) for p, shard in zip(paths, shards, strict=True)):
        return False
    with_edges = any(EDGES_KEY in (pq.read_schema(p).metadata or {}) for p in paths[:1])
    return not with_edges or published_digest(edges_path(root, stage_id)) == made_of


def _fold(stage: ResolvedStage, frame: Frame, made_of: str) -> dict[str, Any]:
    read = frame.read(stage.id, ["keep", "unjudged", "reason"])
    dropped = pc.equal(read["keep"], False).fill_null(False).to_numpy()
    live = int(frame.live.sum())
    reasons = pc.value_counts(read["reason"].cast(pa.string()).filter(pa.array(dropped))).to_pylist()
    frame.live &= ~dropped
    frame.digests[stage.id] = made_of
    frame.chain = digest(frame.chain, made_of)
    for name in stage.writes:
        frame.catalog[name] = stage.id
    by_reason = {item["values"]: item["counts"] for item in sorted(reasons, key=lambda item: item["values"])}
    return {"in": live, "kept": int(frame.live.sum()), "dropped": by_reason, "unjudged": int(pc.sum(read["unjudged"]).as_py() or 0)}


def _verdicts(stage: ResolvedStage, frame: Frame, setting: Setting, rows: np.ndarray, scratch: Path) -> tuple[Verdicts, np.ndarray]:
    """Verdicts over all live rows; rows with a null in a column that the stage reads are kept, unjudged."""
    names = read_columns(stage, frame)
    table = frame.columns(names, frame.live)
    judged = np.ones(len(rows), bool)
    needed = [*stage.reads(Column), *([stage.within] if stage.within else [])]
    for name in needed:
        judged &= pc.is_valid(table[name]).to_numpy()
    vectors = {}
    for name in stage.reads(VectorName):
        found, valid = frame.vectors(name)
        judged &= valid[rows]
        vectors[name] = (found, np.cumsum(valid) - 1)
    fixed = np.zeros(len(rows), bool)
    if stage.protect and stage.name.split(".")[0] not in IGNORES_PROTECT:
        from manifests.expression import evaluate

        fixed = evaluate(stage.protect, table, f"{stage.id}: protect").fill_null(False).to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero(judged)
    inner = _rows(table, chosen)
    total = _empty(len(rows))
    evaluations = {path: _evaluation_pool(stage, setting.evaluations[path], setting) for path in stage.reads(PoolPaths)}
    for group, local, parameters in _groups(stage, inner, len(chosen)):
        where = chosen[local]
        pool = Pool(
            frame.uid(_mask(len(frame.live), rows[where])), _rows(inner, local),
            {n: v.subset(place[rows[where]]) for n, (v, place) in vectors.items()},
            fixed=fixed[where], seed=setting.seed, stage=stage.id, group=group, memory=setting.memory,
            keeper=Scratch(scratch / hashlib.sha256(group.encode()).hexdigest()[:16]), read_payloads=frame.payload_reader(rows[where]),
            evaluations=evaluations, device=setting.device,
        )  # fmt: skip
        _merge(total, stage.function(pool, **parameters), where)
    assert total.unjudged is not None
    return total, ~judged | total.unjudged


def _rows(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """`rows` of a table that may have no columns (and then no length)."""
    return table.take(pa.array(rows)) if table.column_names else table


def _mask(count: int, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[rows] = True
    return mask


def _evaluation_pool(stage: ResolvedStage, frame: Frame, setting: Setting) -> Pool:
    names = stage.reads(Column)
    table = frame.columns(names, frame.live)
    valid = np.ones(table.num_rows, bool)
    for name in names:
        valid &= pc.is_valid(table[name]).to_numpy()
    rows = np.flatnonzero(frame.live)[valid]
    vectors = {}
    for name in stage.reads(VectorName):
        found, has = frame.vectors(name)
        rows = rows[has[rows]]
        vectors[name] = found.subset((np.cumsum(has) - 1)[rows])
    kept = np.isin(np.flatnonzero(frame.live), rows)
    return Pool(
        frame.uid(_mask(len(frame.live), rows)),
        _rows(table, np.flatnonzero(kept)),
        vectors,
        stage=stage.id,
        memory=setting.memory,
        read_payloads=frame.payload_reader(rows),
        name=frame.root.name,
    )


def _groups(stage: ResolvedStage, table: pa.Table, count: int) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """(group, local rows, parameters) of each call: one for all, or one a value of `within` in sorted order."""
    if not stage.within:
        return [("", np.arange(count), stage.parameters)]
    values = np.array([str(v) for v in table[stage.within].to_pylist()], dtype=object)
    names, inverse, sizes = (
        np.unique(values.astype(str), return_inverse=True, return_counts=True) if count else (np.array([], str), np.zeros(0, int), np.zeros(0, int))
    )
    shares = {
        name: _shared_out(value.count, sizes) for name, value in stage.parameters.items() if isinstance(value, Share) and value.count is not None
    }
    calls = []
    for number, name in enumerate(names):
        own = {**stage.parameters, **{p: Share(count=int(counts[number])) for p, counts in shares.items()}}
        calls.append((str(name), np.flatnonzero(inverse == number), own))
    return calls


def _shared_out(total: int, sizes: np.ndarray) -> np.ndarray:
    """`total` shared out over groups in proportion to their sizes, by largest remainder (ties: the earlier group)."""
    total = min(total, int(sizes.sum()))
    exact = total * sizes / max(sizes.sum(), 1)
    counts = np.floor(exact).astype(np.int64)
    order = np.lexsort((np.arange(len(sizes)), -(exact - counts)))
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def _empty(count: int) -> Verdicts:
    return Verdicts(
        np.ones(count, bool), np.full(count, "", object), np.full(count, np.nan), np.full(count, np.nan), np.full(count, -1, np.int64),
        np.full(count, None, object), np.full(count, None, object), {}, np.full(count, np.nan, np.float32), np.zeros(count, bool),
    )  # fmt: skip


def _merge(total: Verdicts, part: Verdicts, where: np.ndarray) -> None:
    """Put a group's verdicts at its rows; local witnesses become rows of the whole."""
    count = len(where)
    total.keep[where] = part.keep
    total.reason[where] = part.reason  # type: ignore[index,call-overload]
    for name in ("score", "threshold", "weight", "unjudged"):
        if getattr(part, name) is not None:
            getattr(total, name)[where] = getattr(part, name)
    if part.witness is not None:
        assert total.witness is not None
        local = np.asarray(part.witness)
        total.witness[where] = np.where(local >= 0, where[np.maximum(local, 0)] if count else -1, -1)
    for name in ("witness_uid", "witness_pool"):
        if getattr(part, name) is not None:
            getattr(total, name)[where] = np.asarray(getattr(part, name), object)
    for name, values in part.columns.items():
        whole = total.columns.setdefault(name, np.full(len(total.keep), None, object))
        whole[where] = np.asarray(values.to_pylist() if isinstance(values, pa.Array | pa.ChunkedArray) else values.tolist(), object)
    if part.edges is not None:
        edges = Edges(where[part.edges.a], where[part.edges.b], part.edges.score, dict(part.edges.columns))
        if total.edges is not None:
            old = total.edges
            joined = {k: np.concatenate([old.columns[k], edges.columns[k]]) for k in old.columns}
            edges = Edges(np.concatenate([old.a, edges.a]), np.concatenate([old.b, edges.b]), np.concatenate([old.score, edges.score]), joined)
        total.edges = edges


def _check(stage: ResolvedStage, verdicts: Verdicts, unjudged: np.ndarray) -> None:
    """Our own promises: reasons from the closed list, witnesses that this stage keeps, no score that is not finite on a dropped row."""
    dropped = ~verdicts.keep
    reasons = getattr(inspect.getmodule(stage.function), "REASONS", ())
    found = set(np.unique(verdicts.reason[dropped].astype(str)).tolist()) if dropped.any() else set()  # type: ignore[index,union-attr]
    assert not found - set(reasons), f"{stage.id} gives reasons {found - set(reasons)} that its REASONS do not list"
    assert verdicts.witness is not None
    named = verdicts.witness[dropped]
    assert verdicts.keep[named[named >= 0]].all(), f"{stage.id} names a witness that it drops"
    assert not unjudged[dropped].any()


def _table(verdicts: Verdicts, unjudged: np.ndarray, uid: np.ndarray, stage: ResolvedStage) -> pa.Table:
    """The verdict part's columns for the live rows."""
    text = np.char.decode(uid, "ascii").astype(object)
    witness = np.full(len(uid), None, object)
    assert verdicts.witness is not None and verdicts.witness_uid is not None and verdicts.witness_pool is not None
    has = verdicts.witness >= 0
    witness[has] = text[verdicts.witness[has]]
    other = np.array([w is not None and w != "" and w == w for w in verdicts.witness_uid], bool)
    witness[other] = [w.decode() if isinstance(w, bytes) else str(w) for w in verdicts.witness_uid[other]]
    own_pool = [pool if there else None for pool, there in zip(verdicts.witness_pool, other, strict=True)]
    reason = [None if kept else why for kept, why in zip(verdicts.keep, verdicts.reason, strict=True)]
    threshold = np.where(unjudged, np.nan, np.asarray(verdicts.threshold, np.float64))

    def number(values: Any, kind: pa.DataType) -> pa.Array:
        array = np.asarray(values, np.float64)
        return pa.array(array, kind, mask=~np.isfinite(array))

    columns = {
        "keep": pa.array(verdicts.keep), "unjudged": pa.array(unjudged), "reason": pa.array(reason, pa.string()).dictionary_encode(),
        "score": number(verdicts.score, pa.float64()), "threshold": number(threshold, pa.float64()),
        "witness": pa.array(witness.tolist(), pa.string()), "witness_pool": pa.array(own_pool, pa.string()).dictionary_encode(),
        "weight": number(verdicts.weight, pa.float32()),
    }  # fmt: skip
    table = pa.table(columns).cast(VERDICT)
    for own, name in stage.columns.items():
        kind, values = stage.writes[name], verdicts.columns.get(own)
        table = table.append_column(name, pa.nulls(len(uid), kind) if values is None else _own_column(values, kind))
    return table


def _own_column(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_floating(kind):
        array = np.array([np.nan if v is None else v for v in values], np.float64)
        return pa.array(array, kind, mask=~np.isfinite(array))
    plain = [v.decode() if isinstance(v, bytes) and pa.types.is_string(kind) else v for v in values]
    return pa.array(plain, kind)


def _publish_edges(frame: Frame, stage: ResolvedStage, edges: Edges, uid: np.ndarray, made_of: str) -> None:
    text = np.char.decode(uid, "ascii").astype(object)
    a, b = np.asarray(edges.a, np.int64), np.asarray(edges.b, np.int64)
    table = pa.table(
        {
            "a": pa.array(text[a].tolist(), pa.string()),
            "b": pa.array(text[b].tolist(), pa.string()),
            "score": pa.array(np.asarray(edges.score, np.float64)),
        },
        schema=EDGE,
    )
    for name, values in edges.columns.items():
        table = table.append_column(name, pa.array(values))
    order = np.lexsort((uid[b], uid[a])) if len(a) else np.zeros(0, np.int64)
    publish_table(edges_path(frame.root, stage.id), table.take(pa.array(order)), made_of)


__all__ = ["Setting", "decide", "decision_digest", "replace", "vector_name"]
