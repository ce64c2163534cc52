"""What a finished run holds in place of its pool: frames from its parts alone, and for each decision its pairs and what was seen. `curate/replaying.py` asks it."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.asking import Reader, Recorded, needed_columns
from curate.attached import attached_path
from curate.frame import Frame, identity_digests
from curate.measuring import SHARD_KEY, index_digest, part_path, sidecar_digest
from curate.plan import measures_for
from curate.pool import Edges
from curate.recipe import Recipe, ResolvedStage, VectorName
from curate.shard_cache import cached_inputs
from curate.stages import MEASURE, STAGES
from curate.verdict_parts import edges_path
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.publish import published_digest
from manifests.run import Run, StageRecord
from manifests.schema import EDGE
from manifests.shards.pool_yaml import PoolDescription, Shard, open_pool


@dataclass(frozen=True)
class Stored:
    """A finished run, the recipe that it was made by, its pool as its parts know it, the input digest of each shard, and where its generations begin."""

    run: Run
    recipe: Recipe
    pool: PoolDescription
    inputs: list[str]
    bounds: tuple[int, ...] = (0,)

    @cached_property
    def stages(self) -> dict[str, ResolvedStage]:
        """Its stages by id."""
        return {stage.id: stage for stage in self.recipe.stages}

    @cached_property
    def records(self) -> dict[str, StageRecord]:
        """What `run.json` says of each stage, by id."""
        return {record.id: record for record in self.run.stages}

    @cached_property
    def frame(self) -> Frame:
        """Its parts as they stand: the catalogue knows every column that any of its stages wrote."""
        frame = frame_of(self.run.path, self.pool, self.inputs, self.bounds)
        frame.catalog |= {name: stage.id for stage in self.recipe.stages for name in stage.writes}
        return frame

    def refusal(self, stage: str, what: str, allowed: str = "", cure: str = "") -> Refusal:
        """Why a stage cannot be replayed."""
        build = f"`curate build RECIPE --out RUN2 --reuse {self.run.path}` looks at the pool again where it must"
        return Refusal("not-replayable", f"{self.run.path}: {stage}", what, allowed, cure or build)


def with_attached(pool: PoolDescription, root: Path) -> PoolDescription:
    """The pool with those attachments that are still there: columns that are gone are unknown, and not null."""
    there = [e for e in pool.attached if any(attached_path(pool, f"attached/{e['name']}", shard, root).exists() for shard in pool.shards)]
    return replace(pool, attached=tuple(there))


def frame_of(root: Path, pool: PoolDescription, inputs: list[str], bounds: tuple[int, ...] = (0,)) -> Frame:
    """The frame of a measured pool from its parts; writes nothing. Raises `Refusal` [broken-record] where the uids are those of other shards."""
    if any(published_digest(part_path(root, "identity", s)) != d for s, d in zip(pool.shards, identity_digests(inputs), strict=True)):
        raise Refusal("broken-record", str(root / "parts" / "identity"), "was not made from these shards", cure="Run the same `curate build` again")
    counts = np.array([pq.read_metadata(part_path(root, "measure.index", shard)).num_rows for shard in pool.shards], np.int64)
    frame = Frame(root, pool, inputs, counts, bounds=bounds)
    frame.identify()
    frame.quarantine("measure.index")
    return frame


def described(root: Path, path: str, classes: tuple[str, ...], expected: str | None) -> tuple[PoolDescription, list[str]]:
    """A pool as the parts in `root` know it, and the input digest of each shard. The pool itself may be gone; it is asked for its `pool.yaml` at most.

    expected    the digest of all inputs, where the record has it: it tells the shards of the run from those that came or went since
    """
    try:
        pool = open_pool(path)
    except (Refusal, OSError):
        pool = PoolDescription(path, "", (), classes)
    parts = {f"{file.parent.name}/{file.stem}": file for file in (root / "parts" / "measure.index").glob("*/*.parquet")}
    mine = [shard for shard in pool.shards if shard.id in parts]
    all_parts = sorted(Shard(file.parent.name, file.stem, "") for file in parts.values())
    known = cached_inputs(root)
    for shards in (mine, all_parts):
        inputs = [known.get(published_digest(parts[s.id]) or "") or _reckoned(s, parts[s.id], classes) for s in shards]
        if shards and None not in inputs and expected in (None, digest(inputs)):
            return with_attached(replace(pool, shards=tuple(shards), classes=classes), root), [str(i) for i in inputs]
    cure = "Run the same `curate build` again: it looks at every shard and notes it"
    raise Refusal("broken-record", str(root), "does not tell from which shards its parts were made", "cache/shards.json", cure)


def _reckoned(shard: Shard, part: Path, classes: tuple[str, ...]) -> str | None:
    """The input digest from the part's footer and the sidecar, where the cache is lost; None where the part is of another sidecar."""
    inner = (pq.read_schema(part).metadata or {}).get(SHARD_KEY)
    if inner is None or not shard.url:
        return None
    found = digest(inner.decode(), sidecar_digest(shard), classes)
    return found if published_digest(part) == index_digest(found) else None


def check_measures(stored: Stored, recipe: Recipe) -> None:
    """Every measure of `recipe` is one of the run, with the same parameters and version. Raises `Refusal` [not-replayable]."""
    for stage in recipe.stages:
        if stage.kind != MEASURE:
            continue
        before = stored.stages.get(stage.id)
        if before is None:
            raise stored.refusal(
                stage.id, "was not measured in this run", f"its measures: {', '.join(s.id for s in stored.recipe.stages if s.kind == MEASURE)}"
            )
        if before.plain() != stage.plain():
            raise stored.refusal(
                stage.id, f"was measured with {before.plain()[before.name]}, not with {stage.plain()[stage.name]}", "the same parameters"
            )
        _check_version(stored, stage)


def _check_version(stored: Stored, stage: ResolvedStage) -> None:
    record, version = stored.records[stage.id], STAGES[stage.name].version
    if record.version != version:
        raise stored.refusal(stage.id, f"was made by version {record.version} of {stage.name}", f"this keepset has version {version}")


def evaluation_frames(stored: Stored, recipe: Recipe, root: Path, paths: list[str]) -> dict[str, Frame]:
    """The frame of each evaluation pool that `recipe` reads, from the run's parts in `root`."""
    names = {path: name for name, path in stored.run.evaluations.items()}
    frames: dict[str, Frame] = {}
    for path in paths:
        if path not in names:
            raise stored.refusal(path, "this evaluation pool was not measured in this run", f"its evaluation pools: {', '.join(names) or 'none'}")
        folder = root / "evaluations" / names[path]
        pool, inputs = described(folder, path, _classes(path), None)
        frames[path] = frame_of(folder, pool, inputs)
        for stage in measures_for(recipe, path):
            if any(published_digest(part_path(folder, stage.id, shard)) is None for shard in pool.shards):
                raise stored.refusal(stage.id, f"was not measured for the evaluation pool {path}")
            frames[path].add_measure(stage, recorded=True)
    return frames


def _classes(path: str) -> tuple[str, ...]:
    try:
        return open_pool(path).classes
    except (Refusal, OSError):
        return ()


def recorded_by(stored: Stored, asked: dict[str, str], whole: bool, seed: int) -> Recorded:
    """What the run answers for a stage that is decided anew, under the recipe's `seed`.

    asked    then says how: `folded` over pairs, which may be `folded, approximately`; its pairs `found anew` from vectors on the disk; or `decided` from columns
    whole    nothing approximate: the digests of a whole run say that a build gives the same
    """

    def answer(stage: ResolvedStage, rows: np.ndarray) -> tuple[Edges | None, Reader]:
        module = inspect.getmodule(stage.function)
        confirmed = getattr(module, "CONFIRMED", None)
        if confirmed is not None or not hasattr(module, "MOVES"):
            asked[stage.id] = "decided"
            return None, _refusing(stored, stage) if confirmed is None else _confirming(stored, stage, confirmed)
        refusal = _unfoldable(stored, stage, rows)
        if refusal is None:
            edges, is_complete = _edges_among(stored, stage, rows)
            why = "" if is_complete else "the run holds only a part of its pairs (see max_edges, max_hits)"
            why = why or _of_all_rows(stored, stage, rows, seed)
            if not why or not whole:
                asked[stage.id] = "folded, approximately" if why else "folded"
                return edges, _refusing(stored, stage)
            refusal = stored.refusal(stage.id, why, "an exact replay; without --out it is shown approximately")
        if not stage.reads(VectorName):
            raise refusal
        asked[stage.id] = "found anew"
        return None, _refusing(stored, stage, refusal)

    return answer


def _of_all_rows(stored: Stored, stage: ResolvedStage, rows: np.ndarray, seed: int) -> str:
    """Why the run would have found other pairs, where pairs follow from all rows together and not from two alone; or nothing."""
    module = inspect.getmodule(stage.function)
    if not getattr(module, "PAIRS_OF_ALL_ROWS", False):
        return ""
    before = stored.stages[stage.id]
    moved = [("within", before.within, stage.within), ("seed", stored.recipe.seed, seed)]
    moved += [("protect", before.protect, stage.protect)] if getattr(module, "PAIRS_BY_KEEPER", False) else []
    for name, then, now in moved:
        if then != now:
            return f"its pairs follow from all rows together, and they were found with {name} {then} where it is {now} now"
    fewer = int(_judged_then(stored, before).sum()) - len(rows)
    return f"its pairs follow from all rows together, and {fewer:,} of them do not come to it now" if fewer else ""


def _refusing(stored: Stored, stage: ResolvedStage, refusal: Refusal | None = None) -> Reader:
    def read(chosen: np.ndarray) -> Iterator[Any]:
        if not len(chosen):
            return iter(())
        given = f"would look at {len(chosen):,} pictures: its parameters, or the samples that come to it, are others than in the run"
        raise refusal or stored.refusal(stage.id, given, "what reads columns, vectors and pairs alone")

    return read


def _confirming(stored: Stored, stage: ResolvedStage, column: str) -> Reader:
    """In place of a picture, its group: two rows of one group were seen to be the same."""

    def read(rows: np.ndarray) -> Iterator[Any]:
        if not len(rows):
            return iter(())
        refusal = _unfoldable(stored, stage, rows[:0])
        if refusal is not None:
            raise refusal
        before = stored.stages[stage.id]
        if not before.parameters["confirm"]:
            raise stored.refusal(stage.id, "its copies were not confirmed in this run: pictures would have to be read", "confirm: false")
        mask = np.zeros(len(stored.frame.live), bool)
        mask[rows] = True
        table = stored.frame.read(stage.id, ["keep", before.columns[column]], mask)
        groups, order = table[before.columns[column]].to_pylist(), np.argsort(np.argsort(rows))
        if unseen := sum(g is None for g in groups):
            raise _unseen(stored, stage, unseen)
        return (groups[place].encode() for place in order)

    return read


def _unfoldable(stored: Stored, stage: ResolvedStage, rows: np.ndarray) -> Refusal | None:
    """Why the stored pairs do not serve for these rows and parameters. Raises it where the floor is passed: that is a matter of one number."""
    before = stored.stages.get(stage.id)
    if before is None or before.name != stage.name:
        pairwise = [s.id for s in stored.recipe.stages if hasattr(inspect.getmodule(s.function), "MOVES")]
        given = f"this run holds no pairs of a stage {stage.name} with this name"
        return stored.refusal(stage.id, given, f"stages with pairs: {', '.join(pairwise) or 'none'}")
    _check_version(stored, stage)
    refusal = _moved(stored, stage, before)
    if refusal is None and not (seen := _judged_then(stored, before)[rows] & _met(stored, stage, rows)).all():
        refusal = _unseen(stored, stage, int((~seen).sum()))
    return refusal


def _moved(stored: Stored, stage: ResolvedStage, before: ResolvedStage) -> Refusal | None:
    """Why parameters that have moved need other pairs. Raises it for a value beyond the stored floor."""
    moves: dict[str, str] = inspect.getmodule(stage.function).MOVES  # type: ignore[union-attr]
    new, old = (s.plain()[s.name] for s in (stage, before))
    for name, floor in moves.items():
        if new[name] is not None and old[name] is None and floor:
            return stored.refusal(stage.id, f"{name}: null → {new[name]!r} needs pairs that the run never looked for", f"{name}: null")
        if (
            floor
            and new[name] is not None
            and new[floor] == old[floor]
            and (new[name] > new[floor] if name.startswith("max_") else new[name] < new[floor])
        ):
            sign = "<=" if name.startswith("max_") else ">="
            given = f"{name}: {new[name]!r} lies beyond the pairs that the run holds"
            raise stored.refusal(stage.id, given, f"{name} {sign} {new[floor]!r}, its {floor}", f"Build once with another {floor}, then replay")
    for name in stage.parameters:
        if new[name] != old[name] and name not in moves:
            given = f"{name}: {old[name]!r} → {new[name]!r} needs other pairs than the run holds"
            return stored.refusal(stage.id, given, f"over its pairs may move: {', '.join(moves)}")
    if before.within and before.within != stage.within:
        given = f"within: {before.within} → {stage.within}: pairs across the groups were never looked at"
        return stored.refusal(stage.id, given, f"within: {before.within}")
    return None


def _unseen(stored: Stored, stage: ResolvedStage, count: int) -> Refusal:
    given = f"{count:,} samples come to it that did not when its pairs were found, so theirs were never looked at"
    cure = "Keep the stages before it as they dropped then, or move it first and build once; then any stage after it can go"
    return stored.refusal(stage.id, given, "the samples that came to it in the run, or fewer", cure)


def _judged_then(stored: Stored, before: ResolvedStage) -> np.ndarray:
    """(n,) bool: the rows that the run's stage judged: live, and with a value in every column that it needs."""
    judged = pc.is_valid(stored.frame.read(before.id, ["keep"])["keep"]).to_numpy().copy()
    names = list(dict.fromkeys(needed_columns(before)))
    if set(names) - set(stored.frame.catalog):
        return np.zeros(len(judged), bool)  # an attached column that is gone: nobody can tell
    values = stored.frame.columns(names, judged).columns if names else ()
    judged[judged] = np.logical_and.reduce([np.ones(int(judged.sum()), bool), *(pc.is_valid(column).to_numpy() for column in values)])
    return judged


def _met(stored: Stored, stage: ResolvedStage, rows: np.ndarray) -> np.ndarray:
    """Which of `rows` met all others of them: what this stage dropped in an earlier generation met no later sample."""
    if len(stored.bounds) == 1 or not len(rows):
        return np.ones(len(rows), bool)
    begins = stored.frame.starts[list(stored.bounds)]
    newest = begins[np.searchsorted(begins, rows[-1], side="right") - 1]
    return (rows >= newest) | stored.frame.read(stage.id, ["keep"])["keep"].fill_null(False).to_numpy()[rows]


def _edges_among(stored: Stored, stage: ResolvedStage, rows: np.ndarray) -> tuple[Edges, bool]:
    """The stored pairs of which both ends are among `rows` (ascending numbers in the pool), as places in `rows`; does the run hold all down to the floor?"""
    paths = [edges_path(stored.run.path, stage.id, generation) for generation in range(len(stored.bounds))]
    if any(published_digest(path) != stored.records[stage.id].digest_of(generation) for generation, path in enumerate(paths)):
        raise stored.refusal(stage.id, "the run holds no pairs of it, or others than its verdicts followed from")
    mask = np.zeros(len(stored.frame.live), bool)
    mask[rows] = True
    uid = stored.frame.read("identity", ["uid"], mask)["uid"].combine_chunks()
    table = pa.concat_tables([pq.read_table(path) for path in paths], promote_options="permissive")
    is_complete = "is_complete" not in table.column_names or pc.all(table["is_complete"]).as_py() is not False
    with_tests = "pool" in table.column_names  # the other end stands in an evaluation pool
    ends = [pc.index_in(table[name], value_set=uid) for name in ("a", "a" if with_tests else "b")]
    inside = pc.and_(*(end.is_valid() for end in ends))
    a, b = (end.filter(inside).to_numpy().astype(np.int64) for end in ends)
    table = table.filter(inside)
    seen = {name: _plain(table[name]) for name in table.column_names if name not in EDGE.names or (with_tests and name == "b")}
    return Edges(a, b, table["score"].to_numpy(), seen), is_complete


def _plain(values: pa.ChunkedArray) -> np.ndarray:
    found = values.to_numpy()
    return found.astype("U") if found.dtype == object else found
