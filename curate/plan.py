"""What a recipe needs of a pool: the measures that are read, columns that exist and can be asked, parameters and files that no decision refuses."""

import re
from collections.abc import Mapping

import pyarrow as pa

from curate.attached import attached_schema, is_anywhere
from curate.measuring import vector_name
from curate.recipe import Column, Expression, PoolPaths, Recipe, ResolvedStage, VectorName
from curate.rehearsal import rehearse
from curate.stages import DECISION, MEASURE, STAGES
from manifests.errors import Refusal
from manifests.schema import is_truth
from manifests.shards.columns import column_of, sidecar_schema, types_of
from manifests.shards.index import INDEX_SCHEMA
from manifests.shards.pool_yaml import PoolDescription, open_pool

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
    brings = lambda name: _gone(name, pool) or _writer(name)
    for stage in recipe.stages:
        if "encoder" in stage.parameters:
            parse(stage.parameters["encoder"], f"{stage.place}: encoder")
        wanted = [*stage.reads(Column), *([stage.within] if stage.within else [])]
        for parameter, sql in stage.expressions():
            wanted += bind(sql, known, f"{stage.place}: {parameter}", brings)
        for name in wanted:
            if is_truth(name):
                raise Refusal(
                    "truth-column", stage.place, f"reads {name!r}", "truth_* columns go to the ledger and the report; no stage may read them"
                )
            if name not in known:
                given = f"reads column {name!r}, which no earlier stage writes" + (": it is a vector column" if name in vectors else "")
                raise Refusal("unknown-column", stage.place, given, f"known here: {', '.join(sorted(known))}", brings(name))
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
