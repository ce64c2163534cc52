"""What a build will do before it does it: columns that exist, stages done already, a forecast of time and memory."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.attached import attached_schema, is_anywhere
from curate.measuring import WORKER_BYTES, index_digest, measure_digest, part_path, shard_signature, vector_name
from curate.pool import Share
from curate.recipe import Column, Expression, PoolPaths, Recipe, ResolvedStage, VectorName, parse_recipe
from curate.rehearsal import rehearse
from curate.stages import DECISION, MEASURE, STAGES
from curate.timing import density, timed
from manifests.errors import Refusal
from manifests.publish import published_digest
from manifests.schema import is_truth
from manifests.shards.columns import column_of, sidecar_schema, types_of
from manifests.shards.index import INDEX_SCHEMA
from manifests.shards.pool_yaml import PoolDescription, Shard, open_pool

INDEX_COLUMNS = ("uid", "key", "label", "label_name", "caption", "source_uid")
Types = dict[str, tuple[pa.DataType, ...]]  # column -> the types that it may turn out to have
SCALARS = (pa.string(), pa.int64(), pa.float64(), pa.bool_())  # what a top-level scalar of `.json` members becomes: which, only all rows tell


def measures_of(recipe: Recipe, device: bool) -> tuple[ResolvedStage, ...]:
    """The measures of a recipe (the index apart) that need a device, or those that do not."""
    return tuple(s for s in recipe.stages if s.kind == MEASURE and s.name != "measure.index" and STAGES[s.name].needs_device == device)


def measures_for(recipe: Recipe, path: str | None) -> list[ResolvedStage]:
    """The measures that the pool (None: all) or an evaluation pool needs: those whose columns or vectors a stage that reads the pool reads."""
    if path is None:
        return [s for s in recipe.stages if s.kind == MEASURE and s.name != "measure.index"]
    wanted: set[str] = set()
    for stage in recipe.stages:
        if path in stage.reads(PoolPaths):
            wanted |= {*stage.reads(Column), *stage.reads(VectorName)}
    measures = [s for s in recipe.stages if s.kind == MEASURE and s.name != "measure.index"]
    return [s for s in measures if wanted & {*s.writes, *([vector_name(s)] if s.name == "measure.vectors" else [])}]


def pool_columns(pool: PoolDescription, every: bool = False) -> Types:
    """The pool's own columns as `pool.yaml`, attachments and the first sidecar of each source (`every`: of each shard) tell them, without reading a tar."""
    found: Types = {name: (INDEX_SCHEMA.field(name).type if name in INDEX_SCHEMA.names else pa.string(),) for name in INDEX_COLUMNS}
    found |= dict.fromkeys(pool.columns, SCALARS)
    sources = {shard.source: shard for shard in reversed(pool.shards)}
    schemas = [schema for shard in (pool.shards if every else sources.values()) if (schema := sidecar_schema(shard.sidecar)) is not None]
    beside = {name for schema in schemas for name in schema.names}
    found |= {column: (kind,) for name, kind in types_of(schemas).items() if (column := column_of(name, beside))}
    for entry in pool.attached:
        if entry.get("kind") != "vectors":
            found |= {field.name: (field.type,) for field in attached_schema(pool, entry["name"]) or ()}
    return found


def check_columns(recipe: Recipe, pool: PoolDescription, known: Mapping[str, pa.DataType] | None = None) -> None:
    """Every column, vector column and encoder of the recipe exists where it is read, each expression can be asked of columns of these types, and no decision
    refuses its parameters or files.

    Raises `Refusal` before any work, with the recipe's line. Where the types that are known at a glance do not fit, all sidecars are asked before it is refused.
    known    the pool's own columns with their types, where they are known already: nothing of the pool is opened then, and no decision asked, as a replay
             begins with them and says better what it cannot do
    """
    if known is not None:
        return _check(recipe, pool, {name: (kind,) for name, kind in known.items()}, rehearsed=False)
    columns = pool_columns(pool)
    without_value = {name.lower() for name, kinds in columns.items() if kinds == (pa.null(),)}  # in the first shard: a later one tells the type
    if without_value & _asked_of(recipe):
        columns = pool_columns(pool, every=True)
    try:
        _check(recipe, pool, columns)
    except Refusal as refusal:
        if refusal.slug not in ("unknown-column", "bad-sql"):
            raise
        columns = pool_columns(pool, every=True)
        _check(recipe, pool, (_peek(pool) if refusal.slug == "unknown-column" else {}) | columns)  # columns that only the tars' `.json` members tell


def _check(recipe: Recipe, pool: PoolDescription, known: Types, rehearsed: bool = True) -> None:
    from curate.encoders import parse
    from manifests.expression import bind

    known = dict(known)
    attached = {e["name"] for e in pool.attached if e.get("kind") == "vectors"}
    vectors = set(attached)
    for stage in recipe.stages:
        if "encoder" in stage.parameters:
            parse(stage.parameters["encoder"], f"{stage.place}: encoder")
        wanted = [*stage.reads(Column), *([stage.within] if stage.within else [])]
        for parameter, sql in stage.expressions():
            wanted += bind(sql, known, f"{stage.place}: {parameter}")
        for name in wanted:
            if is_truth(name):
                raise Refusal(
                    "truth-column", stage.place, f"reads {name!r}", "truth_* columns go to the ledger and the report; no stage may read them"
                )
            if name not in known:
                given = f"reads column {name!r}, which no earlier stage writes" + (": it is a vector column" if name in vectors else "")
                cure = _gone(name, pool) or _writer(name)
                raise Refusal("unknown-column", stage.place, given, f"known here: {', '.join(sorted(known))}", cure)
        for name in stage.reads(VectorName):
            if name not in vectors:
                given, have = f"reads vectors {name!r}, which no earlier stage writes", ", ".join(sorted(vectors)) or "none"
                cure = "Add `- measure.vectors: {encoder: …, as: NAME}` before it"
                raise Refusal("unknown-column", stage.place, given, f"earlier vectors: {have}", cure)
            if rehearsed and name in attached and not is_anywhere(pool, name):
                raise Refusal("unknown-column", stage.place, f"reads vectors {name!r}, of which there is no file", cure=_gone(name, pool))
        if rehearsed and stage.kind == DECISION and not stage.reads(Expression):
            rehearse(stage, known)
        known |= {name: (kind,) for name, kind in stage.writes.items()}
        if stage.name == "measure.vectors":
            vectors.add(vector_name(stage))


def attachments_read(recipe: Recipe, pool: PoolDescription) -> set[str]:
    """The attachments of a pool that a stage of the recipe reads."""
    wanted = {name.lower() for stage in recipe.stages for name in (*stage.reads(Column, VectorName), *([stage.within] if stage.within else []))}
    wanted |= _asked_of(recipe) if pool.attached else set()
    return {entry["name"] for entry in pool.attached if wanted & {name.lower() for name in entry.get("columns") or [entry["name"]]}}


def _asked_of(recipe: Recipe) -> set[str]:
    """The names, in small letters, that expressions of the recipe mention."""
    from manifests.expression import names_in

    return {name for stage in recipe.stages for parameter, sql in stage.expressions() for name in names_in(sql, f"{stage.place}: {parameter}")}


def _peek(pool: PoolDescription) -> Types:
    """The columns of the first shard of each source, read in full. A whole number may meet a fraction in a later shard."""
    from curate.frame import INDEX_ONLY
    from manifests.shards.index import index_shard

    first = {shard.source: shard for shard in reversed(pool.shards)}
    types = types_of(index_shard(shard).table.schema for shard in first.values())
    return {name: (kind, pa.float64()) if kind == pa.int64() else (kind,) for name, kind in types.items() if name not in INDEX_ONLY}


def _gone(column: str, pool: PoolDescription) -> str:
    """What to do about a column of an attachment whose files are not there."""
    names = [entry["name"] for entry in pool.attached if column in (entry.get("columns") or ())]
    return f"pool.yaml has it as attached, but attached/{names[0]} holds no file of it: bring them back, or attach it again" if names else ""


def _writer(column: str) -> str:
    """Which measure would write a missing column."""
    import importlib

    for name, stage in STAGES.items():
        if stage.kind == MEASURE and column in getattr(importlib.import_module(f"curate.{name}"), "WRITES", {}):
            return f"Add `- {name}:` before it"
    return ""


def evaluation_paths(recipe: Recipe) -> list[str]:
    """The evaluation pools that any stage reads, in order."""
    return list(dict.fromkeys(path for stage in recipe.stages for path in stage.reads(PoolPaths)))


def evaluation_names(paths: list[str]) -> dict[str, str]:
    """Path -> a name unique among evaluation pools."""
    names: dict[str, str] = {}
    for path in paths:
        name = base = re.sub(r"[^A-Za-z0-9_-]", "_", open_pool(path).name) or "pool"  # it names a folder of the run
        number = 2
        while name in names.values():
            name, number = f"{base}-{number}", number + 1
        names[path] = name
    return names


def cached_digests(root: Path, pool: PoolDescription, recheck: bool = False) -> dict[str, str]:
    """Shard id -> input digest, for shards whose size and time are those that the cache saw."""
    if recheck:
        return {}
    seen = {url: entry for url, entry in cached_shards(root).items() if entry["classes"] == list(pool.classes)}
    return {s.id: seen[s.url]["digest"] for s in pool.shards if s.url in seen and seen[s.url]["signature"] == shard_signature(s)}


def cached_shards(root: Path) -> dict[str, Any]:
    """`cache/shards.json`: what was seen of each shard, by its URL; empty where there is none."""
    try:
        return dict(json.loads((root / "cache" / "shards.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


@dataclass(frozen=True)
class Forecast:
    """One line of `--dry-run`: a stage, how many of its parts stand, seconds and bytes expected."""

    stage: str
    kind: str
    done: int
    parts: int
    seconds: float | None
    memory: int | None

    def plain(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(self.__dict__)


def forecast(
    recipe: Recipe, pool: PoolDescription, root: Path, workers: int, device: str, memory: int, *, beside: dict[str, int] | None = None,
    anew: bool = False, reuse: Sequence[Path] = (),
) -> tuple[int, list[Forecast]]:  # fmt: skip
    """(rows, one line a stage): what is done, and what the rest will take, from a timed sample of the first shard; evaluation pools first.

    Rows are counted where the index stands, else estimated from what the first shard's samples take.
    beside      rows of earlier generations that each decision sees beside those of the pool
    anew        no decision stands
    reuse       other runs whose parts will serve
    """
    seconds, measured_dims, held = timed(recipe, pool, device)
    dims = _attached_dims(pool) | measured_dims
    lines, tests = [], {}
    for path, name in evaluation_names(evaluation_paths(recipe)).items():
        folders = [folder / "evaluations" / name for folder in (root, *reuse)]
        tests[path], found = _measure_lines(measures_for(recipe, path), open_pool(path), folders, workers, (seconds, held), f"{name}: ")
        lines += found
    folders = [root, *reuse]
    rows, measures = _measure_lines(measures_for(recipe, None), pool, folders, workers, (seconds, held))
    by_name = {line.stage: line for line in measures}
    unchanged = [0 if anew else _unchanged(recipe, folder) for folder in folders]
    lines.append(by_name["measure.index"])
    for number, stage in enumerate(recipe.stages, 1):
        if stage.kind == MEASURE:
            lines += [by_name[stage.id]] if stage.id != "measure.index" else []
            continue
        there = [
            sum(part_path(f, stage.id, s).exists() for s in pool.shards) if number <= same else 0 for f, same in zip(folders, unchanged, strict=True)
        ]
        seconds_of, needed = _decision_cost(stage, rows + (beside or {}).get(stage.id, 0), dims, memory, tests, device)
        stands = max(there)
        took = 0.0 if stands == len(pool.shards) else seconds_of() if seconds_of else None
        lines.append(Forecast(stage.id, stage.kind, stands, len(pool.shards), took, needed))
    return rows, lines


def _measure_lines(
    stages: list[ResolvedStage],
    pool: PoolDescription,
    folders: list[Path],
    workers: int,
    measured: tuple[dict[str, float], dict[str, int]],
    prefix: str = "",
) -> tuple[int, list[Forecast]]:
    """(rows, a line for the index and each measure) of a pool whose parts may lie in several folders, the run's own first."""
    seconds, held = measured
    known = {name: given for folder in reversed(folders) for name, given in cached_digests(folder, pool).items()}
    rows = next((found for folder in folders for found, counted in [_rows(pool, folder, known)] if counted), None)
    if rows is None:
        rows = _rows(pool, folders[0], known)[0]
    lines = []
    for stage in [None, *stages]:
        name = stage.id if stage else "measure.index"
        done = sum(any(_stands(folder, name, stage, s, known) for folder in folders) for s in pool.shards)
        alone = stage is not None and STAGES[stage.name].needs_device
        per_row, left = seconds.get(name), 1 - done / max(len(pool.shards), 1)
        took = None if per_row is None else per_row * rows * left / (1 if alone else max(workers, 1))
        needed = held.get(name, 0) + WORKER_BYTES if alone else workers * WORKER_BYTES
        lines.append(Forecast(prefix + name, MEASURE, done, len(pool.shards), took, needed))
    return rows, lines


def needs_of(recipe: Recipe, pool: PoolDescription, root: Path, memory: int) -> tuple[int, list[tuple[str, int | None]]]:
    """(rows, (stage, bytes) of each decision that does not stand, as if all rows reached it), from headers and footers alone.

    Rows are counted where the index stands; else at least so many. Bytes are None where the width of the vectors shows only when they are measured.
    """
    rows, counted = _rows(pool, root, cached_digests(root, pool))
    rows, dims, unchanged = rows if counted else int(0.8 * rows), _known_dims(recipe, pool, root), _unchanged(recipe, root)
    needs, tests = [], {}
    for path, name in evaluation_names(evaluation_paths(recipe)).items():
        each, folder = open_pool(path), root / "evaluations" / name
        count, is_counted = _rows(each, folder, cached_digests(folder, each))
        tests[path] = count if is_counted else int(0.8 * count)
    for number, stage in enumerate(recipe.stages, 1):
        stands = number <= unchanged and all(part_path(root, stage.id, s).exists() for s in pool.shards)
        if stage.kind != MEASURE and not stands:
            needs.append((stage.id, _decision_cost(stage, rows, dims, memory, tests)[1]))
    return rows, needs


def _known_dims(recipe: Recipe, pool: PoolDescription, root: Path) -> dict[str, int]:
    """Vector column -> values a row, as attachments, vectors that stand and specs tell it: no encoder is opened."""
    from curate.encoders import parse
    from manifests.vectors.store import Vectors

    dims = _attached_dims(pool)
    for stage in recipe.stages:
        if stage.name != "measure.vectors":
            continue
        name, spec = vector_name(stage), parse(stage.parameters["encoder"])
        files = sorted((root / "vectors" / name).rglob("*.arrow"))[:1]
        if files:
            dims[name] = Vectors.open(files).dim
        elif spec.kind == "pixels":
            dims[name] = 3 * int(spec.model) ** 2
    return dims


def _attached_dims(pool: PoolDescription) -> dict[str, int]:
    dims = {e["name"]: int(re.sub(r"\D", "", str((e.get("columns") or {}).get(e["name"], "")).removeprefix("float16")) or 0) for e in pool.attached}
    return {name: dim for name, dim in dims.items() if dim}


def _unchanged(recipe: Recipe, root: Path) -> int:
    """How many stages from the first one on are those that the run in `root` was made with."""
    path = root / "recipe.yaml"
    if not path.exists():
        return 0
    before = parse_recipe(path.read_text(encoding="utf-8"), str(path))
    same = [a.plain() == b.plain() and before.seed == recipe.seed for a, b in zip(recipe.stages, before.stages, strict=False)]
    return same.index(False) if False in same else len(same)


def _stands(root: Path, name: str, stage: ResolvedStage | None, shard: Shard, known: dict[str, str]) -> bool:
    given = known.get(shard.id)
    if given is None:
        return False
    wanted = index_digest(given) if stage is None else measure_digest(stage, given)
    return published_digest(part_path(root, name, shard)) == wanted


def _rows(pool: PoolDescription, root: Path, known: dict[str, str]) -> tuple[int, bool]:
    counted = 0
    for shard in pool.shards:
        path = part_path(root, "measure.index", shard)
        if shard.id not in known or published_digest(path) is None:  # not there, or damaged
            break
        counted += pq.read_metadata(path).num_rows
    else:
        return counted, True
    sizes = [(shard_signature(s)[0] or [0])[0] or 0 for s in pool.shards]
    first = next((shard for shard, held in zip(pool.shards, sizes, strict=True) if held), None)
    return (int(sum(sizes) * density(first)) if first else 0), False


def _decision_cost(
    stage: ResolvedStage, rows: int, dims: dict[str, int], memory: int, tests: Mapping[str, int] | None = None, device: str = "cpu"
) -> tuple[Callable[[], float] | None, int | None]:
    """What tells the seconds of a decision (rates are measured when it is asked), and its bytes: vector work by the arithmetic of `manifests.vectors.forecast`, the rest by 200 bytes and 2 microseconds a row.

    tests    the rows of each evaluation pool, by path
    device   where `dedup.all_pairs` compares; what the others gain from one is not counted
    """
    from manifests.vectors import forecast as work
    from manifests.vectors.hamming import seconds

    names = stage.reads(VectorName)
    known = [dims[name] for name in names if name in dims]
    if stage.name == "dedup.copies":
        by_vector, by_hash = work.copies(rows, known, stage.parameters["k"], memory), len(stage.parameters["hashes"])
        searched = lambda: by_vector.seconds() + by_hash * seconds(rows, 8 * rows, stage.parameters["max_distance"], 64)
        return (searched, by_vector.memory + work.bit_codes(rows, 8 * rows)) if len(known) == len(names) else (None, None)
    if stage.name == "leakage.images":
        verified, k = stage.parameters["min_copied"] is not None, stage.parameters["k"]
        each = [work.leaks(rows, (tests or {}).get(path, rows), known, k, verified) for path in stage.reads(PoolPaths)]
        told = len(known) == len(names)
        return (lambda: sum(w.seconds() for w in each), max((w.memory for w in each), default=0)) if told else (None, None)
    if "max_distance" in stage.parameters:  # a search of hashes; how many rows have a candidate, whose thumbnails are read, shows only then
        base = 8 * rows if stage.parameters.get("turned") else rows
        return lambda: seconds(rows, base, stage.parameters["max_distance"], 64) + 2e-6 * rows, work.bit_codes(rows, base) + 200 * rows
    if stage.name == "reduce.information":
        return None, None  # pairs of the groups, whose sizes show only then
    if not names:
        return lambda: 2e-6 * rows, 200 * rows
    if not known or not rows:
        return None, None
    dim = known[0]
    keep = stage.parameters.get("keep")
    kept = keep.of(rows) if isinstance(keep, Share) else rows
    found = {
        "dedup.all_pairs": lambda: work.pairs(rows, dim, stage.parameters["max_edges"], memory),
        "dedup.semantic": lambda: work.inside_clusters(rows, dim, stage.parameters["clusters"]),
        "dedup.semdedup": lambda: work.inside_clusters(
            rows, dim, stage.parameters["clusters"] or max(1, round(rows**0.5)), stage.parameters["iterations"], 256, visits=0
        ),
        "dedup.mutual": lambda: work.neighbours(rows, rows, dim, stage.parameters["num_neighbours"]),
        "reduce.redundancy": lambda: work.cover(rows, kept, dim, memory),
        "reduce.density": lambda: work.clustered(rows, dim, stage.parameters["clusters"]),
        "reduce.prototypes": lambda: work.clustered(rows, dim, stage.parameters["clusters"]),
        "reduce.hierarchical": lambda: work.clustered(
            rows, dim, stage.parameters["clusters"][0], stage.parameters["resampling"], stage.parameters["nearest"][0], is_sought=True
        ),
        "select.kcenter": lambda: work.farthest(rows, kept, dim),
        "select.facility_location": lambda: work.facility(rows, kept, dim, memory),
    }.get(stage.name, lambda: work.neighbours(rows, rows, dim, stage.parameters.get("k", 20)))()
    rounds = stage.parameters.get("rounds", 1)
    place = device if stage.name == "dedup.all_pairs" else "cpu"
    return lambda: rounds * found.seconds(work.measured_on(place)), found.memory


__all__ = ["Expression", "Forecast", "check_columns", "evaluation_names", "evaluation_paths", "forecast", "measures_of"]
