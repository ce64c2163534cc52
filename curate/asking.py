"""One decision is asked: about which rows, in which groups, beside which evaluation pools; and what the groups say is put together."""

import hashlib
import inspect
import io
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.budgets import Call, calls
from curate.frame import Frame
from curate.measuring import part_path
from curate.pool import Edges, Pool, Share, State, Verdicts
from curate.recipe import Column, Expression, PoolPaths, Preferred, ResolvedStage, VectorName
from curate.verdict_parts import own_column
from manifests.errors import Refusal
from manifests.memory import left
from manifests.publish import publish_bytes
from manifests.rows import chunks_joined, rows_of
from manifests.schema import is_truth

if TYPE_CHECKING:
    from manifests.vectors.store import Vectors

SCAN_SECONDS = 20.0  # how much work a crash may cost a long decision
IGNORES_PROTECT = ("leakage",)


@dataclass(frozen=True)
class Setting:
    """What a decision runs under: the recipe's seed, bytes of memory, the device, the evaluation pools by path."""

    seed: int
    memory: int
    device: str
    evaluations: dict[str, Frame]
    settled: int = 0  # generations, from the first on, that nothing may decide anew


Reader = Callable[[np.ndarray], Iterator[Any]]
# What a replay has in place of pictures: for a stage and the rows that it judges (numbers in the pool), the stored pairs among them (as places in these rows;
# None where the method looks for itself), and what answers, again to numbers in the pool, for their payloads.
Recorded = Callable[[ResolvedStage, np.ndarray], tuple[Edges | None, Reader]]


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


def needed_columns(stage: ResolvedStage) -> list[str]:
    """The columns without which a row is not judged: all that it reads but those that only say whom to keep."""
    found = [*stage.reads(Column), *([stage.within] if stage.within else [])]
    for name in stage.reads(Preferred):
        found.remove(name)  # once: another parameter may need it
    return found


def ignores_protection(stage: ResolvedStage) -> bool:
    """Such a stage judges each row by itself, whoever protects it: it looks at the new rows of a generation alone."""
    return stage.name.split(".")[0] in IGNORES_PROTECT


def verdicts_of(
    stage: ResolvedStage,
    frame: Frame,
    setting: Setting,
    asked: tuple[np.ndarray, np.ndarray, int, np.ndarray],
    scratch: Path,
    recorded: Recorded | None = None,
) -> tuple[Verdicts, np.ndarray]:
    """Verdicts over all live rows; rows with a null in a column that the stage reads are kept, unjudged.

    asked       the rows; their uids; how many of them, at their beginning, earlier generations kept; the rows that those dropped here
    """
    rows, uid, settled, gone = asked
    vectors = {}
    for name in stage.reads(VectorName):
        found, valid = frame.vectors(name)
        vectors[name] = (found, np.cumsum(valid) - 1, valid)
    has_all = [valid for _, _, valid in vectors.values()] if _needs_vectors(stage) else []
    table = frame.columns(read_columns(stage, frame), _mask(len(frame.live), rows))
    judged = _judged(stage, table, rows, has_all)
    fixed = np.arange(len(rows)) < settled
    if stage.protect and not ignores_protection(stage):
        from manifests.expression import evaluate

        fixed = fixed | evaluate(stage.protect, table, f"{stage.id}: protect", len(rows)).fill_null(False).to_numpy(zero_copy_only=False)
    chosen = np.flatnonzero(judged)
    inner = _rows_of(table, chosen)
    del table  # its text may be gigabytes
    total, memory = _empty(len(rows)), left(setting.memory)
    rests: list[_Rest] = []
    stored, answer = recorded(stage, rows[chosen]) if recorded else (None, None)
    evaluations = {path: _evaluation_pool(stage, setting.evaluations[path], setting, answer) for path in stage.reads(PoolPaths)}
    shares = calls(stage, _groups(stage, inner, len(chosen)), chosen < settled, _gone(stage, frame, gone, has_all))
    for (group, local, parameters), edges in zip(shares, _edges_of_groups(stored, shares, len(chosen)), strict=True):
        where = chosen[local]
        pool = Pool(
            uid[where], _rows_of(inner, local),
            {name: _vectors_of(*each, rows[where]) for name, each in vectors.items()},
            fixed=fixed[where], seed=setting.seed, stage=stage.id, group=group, memory=memory,
            keeper=Scratch(scratch / hashlib.sha256(group.encode()).hexdigest()[:16]), read_payloads=_of(answer, rows[where]) if answer else frame.payload_reader(rows[where]),
            evaluations=evaluations, device=setting.device, edges=edges, settled=where < settled,
        )  # fmt: skip
        rests.append(_merge(total, stage.function(pool, **parameters), where, stage))
    _complete(total, rests)
    assert total.unjudged is not None
    total.keep[:settled] = True  # whatever the method says: what an earlier generation kept stays
    return total, ~judged | total.unjudged


def _judged(stage: ResolvedStage, table: pa.Table, rows: np.ndarray, has_all: list[np.ndarray]) -> np.ndarray:
    """(n,) bool: the rows with a value in every column and vector column without which nothing can be said of them."""
    judged = np.ones(len(rows), bool)
    for name in needed_columns(stage):
        judged &= pc.is_valid(table[name]).to_numpy()
    for valid in has_all:
        judged &= valid[rows]
    return judged


def _needs_vectors(stage: ResolvedStage) -> bool:
    """Whether nothing can be said of a row without a vector; else it comes with a zero vector, which is near nothing."""
    return not getattr(inspect.getmodule(stage.function), "VECTORS_MAY_BE_MISSING", False)


def _vectors_of(vectors: "Vectors", place: np.ndarray, has: np.ndarray, rows: np.ndarray) -> "Vectors":
    return vectors.subset(place[rows]) if has[rows].all() else vectors.with_missing(place[rows], has[rows])


def _gone(stage: ResolvedStage, frame: Frame, rows: np.ndarray, has_all: list[np.ndarray]) -> np.ndarray:
    """The group of each judged row among those that earlier generations dropped here."""
    if not any(isinstance(value, Share) for value in stage.parameters.values()) or not len(rows):
        return np.zeros(0, object)
    table = frame.columns(list(dict.fromkeys(needed_columns(stage))), _mask(len(frame.live), rows))
    chosen = np.flatnonzero(_judged(stage, table, rows, has_all))
    return _groups(stage, _rows_of(table, chosen), len(chosen))


def _groups(stage: ResolvedStage, table: pa.Table, count: int) -> np.ndarray:
    """(n,) the value of `within` of each row as text, empty without `within`."""
    return np.array([str(v) for v in table[stage.within].to_pylist()], dtype=object) if stage.within else np.full(count, "", object)


def _of(answer: Reader, rows: np.ndarray) -> Reader:
    return lambda chosen: answer(rows[chosen])


def _edges_of_groups(edges: Edges | None, calls: list[Call], count: int) -> list[Edges | None]:
    """The pairs inside each group, as places in the group; a pair across two groups is none."""
    if edges is None:
        return [None] * len(calls)
    group, place = np.full(count, -1, np.int64), np.zeros(count, np.int64)
    for number, (_, local, _) in enumerate(calls):
        group[local], place[local] = number, np.arange(len(local))
    inside = np.flatnonzero((group[edges.a] == group[edges.b]) & (group[edges.a] >= 0))
    order = inside[np.argsort(group[edges.a[inside]], kind="stable")]
    ends = np.searchsorted(group[edges.a[order]], np.arange(len(calls) + 1))
    parts = [order[start:end] for start, end in itertools.pairwise(ends)]
    return [Edges(place[edges.a[p]], place[edges.b[p]], edges.score[p], {k: np.asarray(v)[p] for k, v in edges.columns.items()}) for p in parts]


def _rows_of(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """`rows` of a table that may have no columns (and then no length)."""
    return rows_of(table, rows) if table.column_names else table


def _mask(count: int, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[rows] = True
    return mask


def _evaluation_pool(stage: ResolvedStage, frame: Frame, setting: Setting, answer: Reader | None) -> Pool:
    names = stage.reads(Column)
    table = frame.columns(names, frame.live)
    valid = np.ones(table.num_rows, bool)
    for name in names:
        valid &= pc.is_valid(table[name]).to_numpy()
    rows = np.flatnonzero(frame.live)[valid]
    vectors = {}
    for name in stage.reads(VectorName):
        found, has = frame.vectors(name)
        rows = rows[has[rows]] if _needs_vectors(stage) else rows
        vectors[name] = (found, np.cumsum(has) - 1, has)
    kept = np.isin(np.flatnonzero(frame.live), rows)
    return Pool(
        frame.uid(_mask(len(frame.live), rows)),
        _rows_of(table, np.flatnonzero(kept)),
        {name: _vectors_of(*each, rows) for name, each in vectors.items()},
        stage=stage.id,
        memory=left(setting.memory),
        read_payloads=answer or frame.payload_reader(rows),
        name=frame.root.name,
    )


def _empty(count: int) -> Verdicts:
    return Verdicts(
        np.ones(count, bool), np.full(count, "", object), np.full(count, np.nan), np.full(count, np.nan), np.full(count, -1, np.int64),
        None, None, {}, np.full(count, np.nan, np.float32), np.zeros(count, bool),
    )  # fmt: skip


@dataclass(frozen=True)
class _Rest:
    """Of a group's verdicts what has no place in an array of all rows: its rows, its own columns and its pairs. All groups' are joined once, at the end."""

    rows: np.ndarray
    columns: dict[str, "pa.Array | pa.ChunkedArray"]
    edges: Edges | None


def _merge(total: Verdicts, part: Verdicts, where: np.ndarray, stage: ResolvedStage) -> _Rest:
    """Put a group's verdicts at its rows; local witnesses become rows of the whole. Returns what is yet to be joined."""
    total.keep[where] = part.keep
    total.reason[where] = part.reason  # type: ignore[index,call-overload]
    for name in ("score", "threshold", "weight", "unjudged"):
        if getattr(part, name) is not None:
            getattr(total, name)[where] = getattr(part, name)
    if part.witness is not None:
        assert total.witness is not None
        local = np.asarray(part.witness)
        total.witness[where] = np.where(local >= 0, where[np.maximum(local, 0)] if len(where) else -1, -1)
    for name in ("witness_uid", "witness_pool"):
        if getattr(part, name) is not None:
            if getattr(total, name) is None:
                setattr(total, name, np.full(len(total.keep), None, object))
            getattr(total, name)[where] = np.asarray(getattr(part, name), object)
    columns = {own: own_column(values, stage.writes[stage.columns[own]]) for own, values in part.columns.items()}
    edges = part.edges and Edges(where[part.edges.a], where[part.edges.b], part.edges.score, dict(part.edges.columns))
    return _Rest(where, columns, edges)


def _complete(total: Verdicts, rests: list[_Rest]) -> None:
    """Join what the groups have of their own: a column becomes a table of `row` and `value`, to be put in order where it is written."""
    for own in dict.fromkeys(name for rest in rests for name in rest.columns):
        having = [rest for rest in rests if own in rest.columns]
        arrays = [rest.columns[own] for rest in having]
        chunks = [chunk for array in arrays for chunk in (array.chunks if isinstance(array, pa.ChunkedArray) else [array])]
        rows = np.concatenate([rest.rows for rest in having])
        total.columns[own] = pa.table({"row": pa.array(rows, pa.int64()), "value": chunks_joined(chunks, arrays[0].type)})  # type: ignore[assignment]
    edges = [rest.edges for rest in rests if rest.edges is not None]
    if edges:
        columns = {name: np.concatenate([each.columns[name] for each in edges]) for name in edges[0].columns}
        a, b, score = (np.concatenate([getattr(each, end) for each in edges]) for end in ("a", "b", "score"))
        total.edges = Edges(a, b, score, columns)
