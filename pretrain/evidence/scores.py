"""The score table: one row for each test sample of each run; read, checked to the last row, and folded into arrays."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.errors import Refusal
from pretrain.evidence.intervals import MIN_CLUSTERS, sum_clusters

SCHEMA = pa.schema(
    [
        ("objective", pa.string()),  # null: the arm is the same under every objective (untrained, raw pixels)
        ("arm", pa.string()),
        ("draw", pa.int64()),  # which random subset; null for arms that are not drawn
        ("run", pa.int64()),
        ("task", pa.string()),
        ("sample_uid", pa.string()),
        ("cluster", pa.string()),  # null: the sample stands for itself
        ("value", pa.float64()),
    ]
)
RUN_COLUMNS = ("objective", "arm", "draw", "run", "task")


@dataclass(frozen=True)
class Task:
    """One task's samples: `uids` in the order of every array, `cluster` of each (or None), `units` = clusters or samples."""

    name: str
    uids: tuple[str, ...]
    cluster: tuple[str, ...] | None

    @property
    def units(self) -> int:
        return len(set(self.cluster)) if self.cluster else len(self.uids)


@dataclass(frozen=True)
class ArmScores:
    """One arm under one objective: `runs` as (draw, run), and for each task its (S, units) scores."""

    runs: tuple[tuple[int | None, int], ...]
    values: dict[str, NDArray[np.float64]]

    def by_draw(self) -> "ArmScores":
        """Draws as units: the runs of one draw averaged (a draw is what was sampled, further seeds on it are not fresh ones)."""
        draws = list(dict.fromkeys(draw for draw, _ in self.runs))
        if len(draws) == len(self.runs):
            return self
        rows = [[i for i, (d, _) in enumerate(self.runs) if d == draw] for draw in draws]
        values = {task: np.stack([y[r].mean(0) for r in rows]) for task, y in self.values.items()}
        return ArmScores(tuple((draw, 0) for draw in draws), values)


@dataclass(frozen=True)
class Scores:
    """A checked score table: tasks in name order, and objective -> arm -> scores."""

    tasks: tuple[Task, ...]
    arms: dict[str, dict[str, ArmScores]]


def read_scores(path: Path) -> pa.Table:
    """The table at `path`, columns cast to `SCHEMA`; `Refusal` [no-such-file] or [bad-scores] where that cannot be."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError as error:
        raise Refusal("no-such-file", str(path), "is not there", "a Parquet file of scores") from error
    except pa.ArrowInvalid as error:
        raise Refusal("bad-scores", str(path), "is not a Parquet file", "columns " + ", ".join(SCHEMA.names)) from error
    return conform(table, str(path))


def conform(table: pa.Table, where: str) -> pa.Table:
    """`table` with exactly the columns of `SCHEMA`; objective, draw and cluster may be absent (null)."""
    columns = []
    for field in SCHEMA:
        if field.name in table.column_names:
            try:
                columns.append(table[field.name].combine_chunks().cast(field.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise Refusal("bad-scores", where, f"column {field.name} is {table[field.name].type}", f"it is {field.type}") from error
        elif field.name in ("objective", "draw", "cluster"):
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            raise Refusal("bad-scores", where, f"has no column {field.name!r}", "columns " + ", ".join(SCHEMA.names))
    table = pa.table(columns, schema=SCHEMA)
    for name in ("arm", "run", "task", "sample_uid", "value"):
        bad = np.flatnonzero(pc.is_null(table[name]).to_numpy())
        if len(bad):
            raise Refusal(
                "bad-scores", f"{where}: row {bad[0]}", f"{name} is null ({_row(table, int(bad[0]))})", "only objective, draw, cluster may be"
            )
    value = table["value"].to_numpy()
    bad = np.flatnonzero(~np.isfinite(value))
    if len(bad):
        raise Refusal("bad-scores", f"{where}: row {bad[0]}", f"value is {value[bad[0]]} ({_row(table, int(bad[0]))})", "a finite number")
    if not table.num_rows:
        raise Refusal("bad-scores", where, "holds no rows", "one row for each test sample of each run")
    return table


def _row(table: pa.Table, i: int) -> str:
    row = table.slice(i, 1).to_pylist()[0]
    return ", ".join(f"{name} {row[name]}" for name in ("objective", "arm", "draw", "run", "task", "sample_uid") if row[name] is not None)


def fold(table: pa.Table, where: str, objectives: Sequence[str] | None = None) -> Scores:
    """The checked arrays of a conformed table.

    Every run must have scored every sample of every task exactly once.  `objectives` orders the result (default: as in the table).
    Errors      `Refusal` [bad-scores] naming the row: a sample twice in one run, a sample missing, a foreign sample, a cluster that
                changes from run to run, fewer than ten clusters, one sample only.
    """
    runs, run_of_row = _codes(table, RUN_COLUMNS)
    task_names = sorted(set(table["task"].to_pylist()))
    tasks, matrices = [], {}
    for name in task_names:
        rows = np.flatnonzero(pc.equal(table["task"], name).to_numpy())
        task, matrix, members = _fold_task(table, rows, run_of_row[rows], name, runs, where)
        tasks.append(task)
        matrices[name] = dict(zip(members, matrix, strict=True))
    arms = _by_arm(runs, task_names, matrices, where)
    everywhere = arms.pop(None, {})
    names = [o for o in (objectives or [str(o) for o in arms]) if o in arms]
    missing = [o for o in objectives or [] if o not in arms]
    if missing:
        raise Refusal("bad-scores", where, f"holds nothing of objective {missing[0]!r}", f"objectives there: {', '.join(map(str, arms)) or 'none'}")
    if not names:
        arms, names = {"": {}}, [""]
    return Scores(tuple(tasks), {name: {**arms[name], **everywhere} for name in names})


Run = tuple[str | None, str, int | None, int, str]  # objective, arm, draw, run, task


def _codes(table: pa.Table, columns: Sequence[str]) -> tuple[list[Run], NDArray[np.int64]]:
    """Distinct combinations of `columns` in order of first appearance, and the number of each row's."""
    code = np.zeros(table.num_rows, np.int64)
    for name in columns:
        encoded = pc.dictionary_encode(table[name], null_encoding="encode").combine_chunks()
        code = code * (len(encoded.dictionary) + 1) + encoded.indices.to_numpy(zero_copy_only=False)
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    found = table.take(pa.array(first[order])).select(list(columns)).to_pylist()
    return [tuple(row[c] for c in columns) for row in found], rank[inverse]  # type: ignore[misc]


def _fold_task(table: pa.Table, rows: NDArray[np.int64], run_of_row: NDArray[np.int64], name: str, runs: list[Run], where: str):  # type: ignore[no-untyped-def]
    """(Task, (runs, units) scores, the runs' numbers) of one task."""
    members, local = np.unique(run_of_row, return_inverse=True)
    uids, sample = _sorted_codes(table["sample_uid"].take(pa.array(rows)))
    cell = local * len(uids) + sample
    count = np.bincount(cell, minlength=len(members) * len(uids)).reshape(len(members), len(uids))
    if count.max() > 1:
        order = np.argsort(cell, kind="stable")
        at = int(rows[order[1:][cell[order][1:] == cell[order][:-1]]].min())
        raise Refusal(
            "bad-scores", f"{where}: row {at}", f"stands twice ({_row(table, at)})", "each run scores each sample once", "Is one run in it twice?"
        )
    if count.min() == 0:
        raise Refusal("bad-scores", *_hole(table, rows, cell, count, uids, [runs[m] for m in members], where))
    if len(uids) < 2:
        raise Refusal("bad-scores", where, f"task {name} has one sample", "two at least, ten thousand to see a point")
    matrix = np.empty(count.size)
    matrix[cell] = table["value"].take(pa.array(rows)).to_numpy()
    cluster = _clusters(table, rows, sample, uids, name, where)
    scores = matrix.reshape(count.shape)
    return Task(name, tuple(uids.tolist()), cluster), sum_clusters(scores, cluster) if cluster else scores, members


def _sorted_codes(column: pa.ChunkedArray) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Distinct texts in order, and each row's position among them: `np.unique` without sorting every row."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    names = encoded.dictionary.to_numpy(zero_copy_only=False).astype(str)
    order = np.argsort(names)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return names[order], rank[encoded.indices.to_numpy()]


def _hole(
    table: pa.Table, rows: np.ndarray, cell: np.ndarray, count: np.ndarray, uids: np.ndarray, runs: list[Run], where: str
) -> tuple[str, str, str]:
    """Words for the first sample that not every run has: foreign where fewer than half have it, else missing."""
    holders = count.sum(0)
    at = int(holders.argmin())
    if 2 * holders[at] <= len(runs):
        row = int(rows[np.flatnonzero(cell % len(uids) == at)[0]])
        lacking = len(runs) - int(holders[at])
        given = f"no such sample in {lacking} of {len(runs)} runs ({_row(table, row)})"
        return f"{where}: row {row}", given, "every run is scored on the same samples"
    run = runs[int(np.flatnonzero(count[:, at] == 0)[0])]
    words = ", ".join(f"{k} {v}" for k, v in zip(RUN_COLUMNS, run, strict=True) if v is not None)
    return where, f"sample {uids[at]} is missing in {words}", "every run is scored on the same samples; none is left out"


def _clusters(table: pa.Table, rows: np.ndarray, sample: np.ndarray, uids: np.ndarray, name: str, where: str) -> tuple[str, ...] | None:
    given = table["cluster"].take(pa.array(rows))
    if given.null_count == len(rows):
        return None
    if given.null_count:
        at = int(rows[np.flatnonzero(pc.is_null(given).to_numpy())[0]])
        raise Refusal(
            "bad-scores", f"{where}: row {at}", f"cluster is null ({_row(table, at)})", "a task names the cluster of all its samples or of none"
        )
    names = given.to_numpy(zero_copy_only=False).astype(str)
    first = np.empty(len(uids), names.dtype)
    first[sample[::-1]] = names[::-1]
    differs = np.flatnonzero(first[sample] != names)
    if len(differs):
        at = int(rows[differs[0]])
        raise Refusal(
            "bad-scores", f"{where}: row {at}", f"cluster is {names[differs[0]]}, elsewhere another ({_row(table, at)})", "one cluster a sample"
        )
    if len(set(names)) < MIN_CLUSTERS:
        at = int(rows[0])
        given_words = f"task {name} has {len(set(names))} clusters (first: {_row(table, at)}, cluster {names[0]})"
        raise Refusal("bad-scores", f"{where}: row {at}", given_words, f"at least {MIN_CLUSTERS}: fewer say nothing about the next cluster")
    return tuple(first.tolist())


def _by_arm(runs: list[Run], tasks: list[str], matrices: dict, where: str) -> dict[str | None, dict[str, ArmScores]]:
    """objective (or None) -> arm -> scores, runs sorted by (draw, run); every run must have every task."""
    found: dict[str | None, dict[str, dict[tuple[int | None, int], dict[str, np.ndarray]]]] = {}
    for number, (objective, arm, draw, run, task) in enumerate(runs):
        found.setdefault(objective, {}).setdefault(arm, {}).setdefault((draw, run), {})[task] = matrices[task][number]
    folded: dict[str | None, dict[str, ArmScores]] = {}
    for objective, of_arms in found.items():
        for arm, of_runs in of_arms.items():
            keys = sorted(of_runs, key=lambda k: (k[0] is not None, k[0] or 0, k[1]))
            for key in keys:
                lacking = [t for t in tasks if t not in of_runs[key]]
                if lacking:
                    words = f"objective {objective}, arm {arm}, draw {key[0]}, run {key[1]}"
                    raise Refusal("bad-scores", where, f"task {lacking[0]} is missing in {words}", "every run is scored on every task")
            values = {t: np.stack([of_runs[k][t] for k in keys]) for t in tasks}
            folded.setdefault(objective, {})[arm] = ArmScores(tuple(keys), values)
    return folded


def without(scores: Scores, hit: Mapping[str, Set[str]]) -> Scores | None:
    """`scores` without the samples in `hit` (task -> uids) and without the clusters that hold one; None where a task keeps fewer than two units."""
    tasks, kept = [], {}
    for task in scores.tasks:
        gone = np.isin(task.uids, sorted(hit.get(task.name, ())))
        names = np.array(task.cluster or task.uids)
        stays = ~np.isin(names, names[gone])
        first = np.array(list(dict.fromkeys(names.tolist())))  # one unit each, in this order
        units = ~np.isin(first, names[gone])
        if units.sum() < 2:
            return None
        factor = units.sum() / stays.sum() * (len(names) / len(first))  # a cluster's sum counts by how many clusters and samples there are
        kept[task.name] = units, factor
        tasks.append(Task(task.name, tuple(np.array(task.uids)[stays].tolist()), tuple(names[stays].tolist()) if task.cluster else None))
    arms = {
        objective: {name: ArmScores(arm.runs, {t: y[..., kept[t][0]] * kept[t][1] for t, y in arm.values.items()}) for name, arm in of_arms.items()}
        for objective, of_arms in scores.arms.items()
    }
    return Scores(tuple(tasks), arms)


def same_samples(tasks: Sequence[Task]) -> list[int]:
    """A number for each task; tasks on the same pictures (equal uids and clusters) share one."""
    numbers: dict[tuple, int] = {}
    return [numbers.setdefault((t.uids, t.cluster), len(numbers)) for t in tasks]
