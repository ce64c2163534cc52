"""What a build will do before it does it: columns that exist, stages done already, a forecast of time and memory."""

import functools
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from curate.measuring import index_digest, measure_digest, part_path, shard_signature, vector_name
from curate.pool import Share
from curate.recipe import Column, Expression, PoolPaths, Recipe, ResolvedStage, VectorName, parse_recipe
from curate.stages import MEASURE, STAGES
from manifests.errors import Refusal
from manifests.publish import published_digest
from manifests.schema import is_truth
from manifests.shards.pool_yaml import PoolDescription, Shard, open_pool

INDEX_COLUMNS = ("uid", "key", "label", "label_name", "caption", "source_uid")
SAMPLE_ROWS = 64


def measures_of(recipe: Recipe, device: bool) -> tuple[ResolvedStage, ...]:
    """The measures of a recipe (the index apart) that need a device, or those that do not."""
    return tuple(s for s in recipe.stages if s.kind == MEASURE and s.name != "measure.index" and STAGES[s.name].needs_device == device)


def pool_columns(pool: PoolDescription) -> set[str]:
    """The pool's own columns as `pool.yaml`, attachments and the first sidecar of each source tell them, without reading a tar."""
    names = {*INDEX_COLUMNS, *pool.columns}
    for entry in pool.attached:
        names.update(entry.get("columns") or [entry["name"]])
    seen: set[str] = set()
    for shard in pool.shards:
        if shard.source in seen:
            continue
        seen.add(shard.source)
        handle, path = fsspec.core.url_to_fs(shard.sidecar)
        if handle.exists(path):
            with handle.open(path, "rb") as file:
                names.update(pq.read_schema(file).names)
    return names


def check_columns(recipe: Recipe, pool: PoolDescription) -> None:
    """Every column, vector column, expression and encoder of the recipe exists where it is read. Raises `Refusal` before any work."""
    known = pool_columns(pool)
    try:
        _check(recipe, pool, known)
    except Refusal as refusal:
        if refusal.slug != "unknown-column":
            raise
        _check(recipe, pool, known | _peek(pool))  # columns that only the tars' `.json` members tell


def _check(recipe: Recipe, pool: PoolDescription, known: set[str]) -> None:
    from curate.encoders import parse
    from manifests.expression import columns_of

    known = set(known)
    vectors = {e["name"] for e in pool.attached if e.get("kind") == "vectors"}
    for stage in recipe.stages:
        if "encoder" in stage.parameters:
            parse(stage.parameters["encoder"], f"{stage.id}: encoder")
        wanted = [*stage.reads(Column), *([stage.within] if stage.within else [])]
        for sql in [*stage.reads(Expression), *([stage.protect] if stage.protect else [])]:
            wanted += columns_of(sql, known, stage.id)
        for name in wanted:
            if is_truth(name):
                raise Refusal("truth-column", stage.id, f"reads {name!r}", "truth_* columns go to the ledger and the report; no stage may read them")
            if name not in known:
                given = f"reads column {name!r}, which no earlier stage writes"
                raise Refusal("unknown-column", stage.id, given, f"known here: {', '.join(sorted(known))}", _writer(name))
        for name in stage.reads(VectorName):
            if name not in vectors:
                given, have = f"reads vectors {name!r}, which no earlier stage writes", ", ".join(sorted(vectors)) or "none"
                cure = "Add `- measure.vectors: {encoder: …, as: NAME}` before it"
                raise Refusal("unknown-column", stage.id, given, f"earlier vectors: {have}", cure)
        known |= set(stage.writes)
        if stage.name == "measure.vectors":
            vectors.add(vector_name(stage))


def _peek(pool: PoolDescription) -> set[str]:
    """The columns of the first shard of each source, read in full."""
    from curate.frame import INDEX_ONLY
    from manifests.shards.index import index_shard

    first = {shard.source: shard for shard in reversed(pool.shards)}
    return {name for shard in first.values() for name in index_shard(shard).table.column_names} - INDEX_ONLY


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
    path = root / "cache" / "shards.json"
    if recheck or not path.exists():
        return {}
    try:
        cache = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    seen = {url: entry for url, entry in cache.items() if entry["classes"] == list(pool.classes)}
    return {s.id: seen[s.url]["digest"] for s in pool.shards if s.url in seen and seen[s.url]["signature"] == shard_signature(s)}


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


def forecast(recipe: Recipe, pool: PoolDescription, root: Path, workers: int, device: str, memory: int) -> tuple[int, list[Forecast]]:
    """(rows, one line a stage): what is done, and what the rest will take, from a timed sample of the first shard.

    Rows are counted where the index stands, else estimated from the first shard's bytes a sample.
    """
    known = cached_digests(root, pool)
    rows, counted = _rows(pool, root, known)
    seconds, dims = _timed(recipe, pool, device)
    lines = []
    unchanged = _unchanged(recipe, root)
    for number, (name, stage) in enumerate([("measure.index", None), *((s.id, s) for s in recipe.stages)]):
        kind = stage.kind if stage else MEASURE
        if stage is not None and kind != MEASURE:
            stands = sum(part_path(root, name, s).exists() for s in pool.shards) if number <= unchanged else 0
            took, memory_needed = _decision_cost(stage, rows, dims, memory)
            lines.append(Forecast(name, kind, stands, len(pool.shards), 0.0 if stands == len(pool.shards) else took, memory_needed))
            continue
        done = sum(_stands(root, name, stage, s, known) for s in pool.shards)
        left = 1 - done / max(len(pool.shards), 1)
        share = 1 if stage is not None and STAGES[stage.name].needs_device else max(workers, 1)
        per_row = seconds.get(name)
        lines.append(Forecast(name, kind, done, len(pool.shards), None if per_row is None else per_row * rows * left / share, 300 << 20))
    return rows, lines


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
        if shard.id not in known or not path.exists():
            break
        counted += pq.read_metadata(path).num_rows
    else:
        return counted, True
    sizes = [(shard_signature(s)[0] or [0])[0] or 0 for s in pool.shards]
    sample = _sample(pool.shards[0]) if pool.shards else []
    if not sample:
        return 0, False
    mean = sum(len(p) for p in sample) / len(sample) + 1024  # a member costs two header blocks and padding
    return int(sum(sizes) / mean), False


@functools.lru_cache(maxsize=1)
def _sample(shard: Shard) -> list[bytes]:
    """The payloads of the first samples of a shard."""
    from manifests.shards.index import index_shard
    from manifests.shards.read import ShardReader

    table = index_shard(shard).table.slice(0, SAMPLE_ROWS)
    with ShardReader(shard.url) as reader:
        return [bytes(reader.payload(r["offset"], r["size"])) for r in table.to_pylist() if r["fault"] is None]


def _timed(recipe: Recipe, pool: PoolDescription, device: str) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds a sample of each measure, timed on up to 64 samples of the first shard (the first one warms up); dimensions of each vector column."""
    from curate.pool import Batch

    sample = _sample(pool.shards[0]) if pool.shards else []
    found: dict[str, float] = {}
    dims = {e["name"]: int(re.sub(r"\D", "", str((e.get("columns") or {}).get(e["name"], "")).removeprefix("float16")) or 0) for e in pool.attached}
    dims = {name: dim for name, dim in dims.items() if dim}
    if not sample:
        return found, dims
    for stage in recipe.stages:
        if stage.kind != MEASURE:
            continue
        columns = stage.function(Batch(sample[:1], None, device), **stage.parameters)
        if stage.name == "measure.vectors":
            dims[vector_name(stage)] = columns["vectors"].shape[1]
        started = time.perf_counter()
        stage.function(Batch(list(sample), None, device), **stage.parameters)
        found[stage.id] = (time.perf_counter() - started) / len(sample)
    started = time.perf_counter()
    import hashlib

    for data in sample:
        hashlib.sha256(data).digest()
    found["measure.index"] = (time.perf_counter() - started) / len(sample) + 2e-5
    return found, dims


def _decision_cost(stage: ResolvedStage, rows: int, dims: dict[str, int], memory: int) -> tuple[float | None, int | None]:
    """Seconds and bytes of a decision: vector work by the arithmetic of `manifests.vectors.forecast`, the rest by 200 bytes and 2 microseconds a row."""
    from manifests.vectors import forecast as work

    names = stage.reads(VectorName)
    if not names:
        return 2e-6 * rows, 200 * rows
    dim = dims.get(names[0])
    if dim is None or not rows:
        return None, None
    keep = stage.parameters.get("keep")
    kept = keep.of(rows) if isinstance(keep, Share) else rows
    found = {
        "dedup.all_pairs": lambda: work.pairs(rows, dim, stage.parameters["max_edges"], memory),
        "reduce.redundancy": lambda: work.cover(rows, kept, dim, memory),
        "select.kcenter": lambda: work.farthest(rows, kept, dim),
        "select.facility_location": lambda: work.facility(rows, kept, dim, memory),
    }.get(stage.name, lambda: work.neighbours(rows, rows, dim, stage.parameters.get("k", 20)))()
    rounds = stage.parameters.get("rounds", 1)
    return rounds * found.seconds(), found.memory


__all__ = ["Expression", "Forecast", "check_columns", "evaluation_names", "evaluation_paths", "forecast", "measures_of"]
