"""The measure pass: shard in, one aligned part a measure out. One task a shard; one decode serves all measures of the task."""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.pool import Batch, Columns, FilePath
from curate.recipe import ResolvedStage
from curate.stages import STAGES
from manifests.digest import digest, file_digest
from manifests.publish import publish_table, published_digest
from manifests.shards.pool_yaml import Shard
from manifests.shards.read import ShardReader
from manifests.vectors.store import vectors_digest

BATCH_ROWS = 64
SHARD_KEY, DAMAGE_KEY = b"keepset.shard", b"keepset.damage"


@dataclass(frozen=True)
class MeasureTask:
    """Everything that one shard needs: which parts to write under `root`, and on which device."""

    shard: Shard
    root: Path
    stages: tuple[ResolvedStage, ...]
    known: str | None  # the shard's input digest, where a cache vouches for it
    device: str = "cpu"
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What a task reports: rows, the shard's input digest, damage found in the tar, bytes read."""

    shard: str
    rows: int
    input_digest: str
    damage: tuple[str, ...]
    signature: list[Any] | None


def stage_key(stage: ResolvedStage, identity: str = "") -> dict[str, Any]:
    """What makes a stage's values: name, version, parameters, an encoder's identity, and the content of files that it is given."""
    files = {path: _digest_of(path, *(file_signature(path) or [0, 0])) for path in stage.reads(FilePath) if file_signature(path)}
    return {"stage": stage.name, "version": STAGES[stage.name].version, "parameters": stage.plain()[stage.name], "encoder": identity, "files": files}


def index_digest(input_digest: str) -> str:
    """The digest of `measure.index`'s part for a shard with this input digest."""
    return digest({"stage": "measure.index", "version": STAGES["measure.index"].version}, input_digest)


def measure_digest(stage: ResolvedStage, input_digest: str) -> str:
    """The digest of a measure's part for a shard with this input digest."""
    return digest(stage_key(stage, encoder_identity(stage)), input_digest)


def encoder_identity(stage: ResolvedStage) -> str:
    """What the weights are, for a measure that opens an encoder: told without loading it. Empty for any other measure."""
    if "encoder" not in stage.parameters:
        return ""
    from curate.encoders import weight_files

    files = weight_files(stage.parameters["encoder"])
    return digest([_digest_of(str(f), *(file_signature(str(f)) or [0, 0])) for f in files]) if files else "published"


@functools.lru_cache(maxsize=32)
def _digest_of(path: str, size: int, time: int) -> str:
    return file_digest(path)


def file_signature(url: str) -> list[Any] | None:
    """[size, mtime or ETag] of a file, or None where it is not there: what the cache trusts."""
    if "://" not in url:
        try:
            found = os.stat(url)
        except FileNotFoundError:
            return None
        return [found.st_size, found.st_mtime_ns]
    handle, path = fsspec.core.url_to_fs(url)
    try:
        info = handle.info(path)
    except FileNotFoundError:
        return None
    return [info.get("size"), str(info.get("ETag") or info.get("mtime") or info.get("LastModified") or "")]


def shard_signature(shard: Shard) -> list[Any]:
    """The signatures of a shard's tar and of its sidecar."""
    return [file_signature(shard.url), file_signature(shard.sidecar)]


def part_path(root: Path, stage: str, shard: Shard) -> Path:
    """Where the part of `stage` for `shard` lies under a run's (or an evaluation's) folder."""
    return root / "parts" / stage / shard.source / f"{shard.name}.parquet"


def vector_path(root: Path, name: str, shard: Shard) -> Path:
    """Where vector column `name` of `shard` lies."""
    return root / "vectors" / name / shard.source / f"{shard.name}.arrow"


def measure_shard(task: MeasureTask) -> Measured:
    """Write the parts of `task` that are not there with the right digest. Safe to repeat; other tasks never touch the same files."""
    signature = shard_signature(task.shard)  # before reading: a file that changes meanwhile is read again next time
    index_part = part_path(task.root, "measure.index", task.shard)
    known = task.known
    if known is None or published_digest(index_part) != index_digest(known):
        known = _index(task.shard, index_part, task.classes)
    schema = pq.read_schema(index_part)
    damage = tuple(json.loads((schema.metadata or {}).get(DAMAGE_KEY, b"[]")))
    missing = [s for s in task.stages if not measure_stands(task.root, s, task.shard, known)]
    rows = pq.read_metadata(index_part).num_rows
    if missing:
        _measure(task, missing, index_part, known)
    return Measured(task.shard.id, rows, known, damage, signature)


def measure_stands(root: Path, stage: ResolvedStage, shard: Shard, input_digest: str) -> bool:
    """Is a measure's part there with the digest that follows from its shard, and the vector file that belongs to it?"""
    wanted = measure_digest(stage, input_digest)
    if published_digest(part_path(root, stage.id, shard)) != wanted:
        return False
    if stage.name != "measure.vectors" or vectors_digest(vector_path(root, vector_name(stage), shard)) == wanted:
        return True
    return not readable_rows(root, shard)


def readable_rows(root: Path, shard: Shard) -> int:
    """The rows of a shard that its index finds no fault with; a shard without any has no vector file."""
    return pq.read_table(part_path(root, "measure.index", shard), columns=["fault"])["fault"].null_count


def _index(shard: Shard, path: Path, classes: tuple[str, ...]) -> str:
    from manifests.shards.index import index_shard

    indexed = index_shard(shard, classes=classes)
    found = digest(indexed.digest, _sidecar_digest(shard), classes)
    metadata = {**(indexed.table.schema.metadata or {}), SHARD_KEY: indexed.digest.encode(), DAMAGE_KEY: json.dumps(list(indexed.damage)).encode()}
    publish_table(path, indexed.table.replace_schema_metadata(metadata), index_digest(found))
    return found


def _sidecar_digest(shard: Shard) -> str:
    import hashlib

    if file_signature(shard.sidecar) is None:
        return ""
    with fsspec.open(shard.sidecar, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _measure(task: MeasureTask, stages: list[ResolvedStage], index_part: Path, known: str) -> None:
    index = pq.read_table(index_part, columns=["offset", "size", "caption", "fault"])
    rows = np.flatnonzero(pc.is_null(index["fault"]).to_numpy(zero_copy_only=False))
    offsets, sizes = index["offset"].to_numpy(), index["size"].to_numpy()
    captions = index["caption"].to_pylist()
    pieces: dict[str, list[Columns]] = {stage.id: [] for stage in stages}
    faults: dict[str, list[str | None]] = {stage.id: [] for stage in stages}
    with ShardReader(task.shard.url) as reader:
        for start in range(0, len(rows), BATCH_ROWS):
            chosen = rows[start : start + BATCH_ROWS]
            payloads = [reader.payload(int(offsets[i]), int(sizes[i])) for i in chosen]
            batch = Batch(payloads, [captions[i] for i in chosen], task.device)
            for stage in stages:
                batch.faults = [None] * len(batch)
                pieces[stage.id].append(stage.function(batch, **stage.parameters))
                faults[stage.id].extend(batch.faults)
            del batch, payloads
    for stage in stages:
        _publish(task, stage, pieces[stage.id], faults[stage.id], rows, index.num_rows, measure_digest(stage, known))


def _publish(
    task: MeasureTask, stage: ResolvedStage, pieces: list[Columns], faults: list[str | None], rows: np.ndarray, total: int, made_of: str
) -> None:
    """Scatter the batches' columns to the shard's rows (null where a row had a fault) and publish the part, vectors first."""
    fine = np.array([f is None for f in faults], bool)
    position = np.full(total, -1, np.int64)
    position[rows[fine]] = np.flatnonzero(fine)
    taken = pa.array(position, mask=position < 0)
    columns: dict[str, Any] = {}
    for own, name in stage.columns.items():
        columns[name] = _joined([p[own] for p in pieces], stage.writes[name]).take(taken)
    found: list[str | None] = [None] * total
    for place, fault in zip(rows, faults, strict=True):
        found[place] = fault
    columns["fault"] = pa.array(found, pa.string())
    if pieces and "vectors" in pieces[0] and "vectors" not in stage.writes:
        from manifests.vectors.store import write_vectors

        array = np.concatenate([np.asarray(p["vectors"]) for p in pieces])
        spread = np.zeros((total, array.shape[1]), np.float16)
        spread[rows[fine]] = array[fine]
        write_vectors(vector_path(task.root, vector_name(stage), task.shard), spread, position >= 0, made_of)
    publish_table(part_path(task.root, stage.id, task.shard), pa.table(columns), made_of)


def vector_name(stage: ResolvedStage) -> str:
    """The vector column that a measure writes: its `as`, else `vectors`."""
    return stage.id if stage.id != stage.name else "vectors"


def _joined(pieces: list[Any], kind: pa.DataType) -> pa.Array:
    """The batches of one column as one Arrow array of type `kind`."""
    if not pieces:
        return pa.array([], kind)
    if isinstance(pieces[0], pa.Array | pa.ChunkedArray):
        joined = pa.chunked_array(pieces).cast(kind).combine_chunks()
        return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
    array = np.concatenate([np.asarray(p) for p in pieces])
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(np.ascontiguousarray(array).tobytes())])
    return pa.array(array, kind)
