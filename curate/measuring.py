"""The measure pass: shard in, one aligned part a measure out. One task a shard; one decode serves all measures of the task."""

import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.engine_local import alone, tell
from curate.pool import Batch, Columns, FilePath, Look
from curate.recipe import ResolvedStage
from curate.stages import STAGES
from curate.unfinished import Unfinished
from manifests.digest import digest, remembered_digest
from manifests.errors import Refusal
from manifests.images import Undecodable, Window, header
from manifests.memory import enough, give_back, size
from manifests.publish import publish_table, published_digest
from manifests.shards.pool_yaml import Shard
from manifests.shards.read import ShardReader, found_at, reaching, store_of
from manifests.vectors.store import vectors_digest

BATCH_ROWS = 64
BATCH_BYTES = 96 << 20  # what the pictures of a batch may take while they are measured; a larger picture is a batch of its own
PIXEL_BYTES, JPEG_PIXEL_BYTES = 24, 6  # what measuring a picture takes at its peak for each pixel: by Pillow (the most is WebP), by libjpeg
LIBRARIES = 96 << 20  # what a worker holds before it has read anything
WORKER_BYTES = LIBRARIES + (160 << 20)  # the least to give to a worker: a batch, and freed memory that it keeps
CHANGED = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modify", "created")  # what stores call it
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
    share: int = 1 << 62  # bytes that a batch may take beside those of other workers
    room: int = 1 << 62  # bytes that a single picture may take while no other worker has such a one


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
    files = {path: remembered_digest(path) for path in stage.reads(FilePath) if file_signature(path)}
    return {"stage": stage.name, "version": STAGES[stage.name].version, "parameters": stage.plain()[stage.name], "encoder": identity, "files": files}


def index_digest(input_digest: str) -> str:
    """The digest of `measure.index`'s part for a shard with this input digest."""
    return digest({"stage": "measure.index", "version": STAGES["measure.index"].version}, input_digest)


def measure_digest(stage: ResolvedStage, input_digest: str, *, fetch: bool = False) -> str:
    """The digest of a measure's part for a shard with this input digest; `fetch` as in `encoder_identity`."""
    return digest(stage_key(stage, encoder_identity(stage, fetch=fetch)), input_digest)


def encoder_identity(stage: ResolvedStage, *, fetch: bool = False) -> str:
    """What the weights are, for a measure that opens an encoder: told without loading it. Empty for any other measure.

    fetch   published weights that are not on this machine are downloaded first; else no part carries the identity that is told of them
    """
    if "encoder" not in stage.parameters:
        return ""
    from curate.encoders import identity

    return identity(stage.parameters["encoder"], fetch=fetch)


def file_signature(url: str) -> list[Any] | None:
    """[size, mtime or ETag] of a file, or None where it is not there: what the cache trusts."""
    if "://" not in url:
        try:
            found = os.stat(url)
        except FileNotFoundError:
            return None
        return [found.st_size, found.st_mtime_ns]
    there = found_at(url)
    if there is None:
        return None
    info = there[2]
    return [info.get("size"), next((str(info[name]) for name in CHANGED if info.get(name)), "")]


def shard_signature(shard: Shard) -> list[Any]:
    """The signatures of a shard's tar and of its sidecar."""
    return [file_signature(shard.url), file_signature(shard.sidecar)]


def part_path(root: Path, stage: str, shard: Shard) -> Path:
    """Where the part of `stage` for `shard` lies under a run's (or an evaluation's) folder."""
    return root / "parts" / stage / shard.source / f"{shard.name}.parquet"


def vector_path(root: Path, name: str, shard: Shard) -> Path:
    """Where vector column `name` of `shard` lies."""
    return root / "vectors" / name / shard.source / f"{shard.name}.arrow"


def unfinished_path(root: Path, shard: Shard) -> Path:
    """Where lies what was measured of a shard that is not whole yet."""
    return root / "cache" / "unfinished" / shard.source / shard.name


def measure_shard(task: MeasureTask) -> Measured:
    """Write the parts of `task` that are not there with the right digest; tell the rows that are done. Safe to repeat; no other task touches the same files."""
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
    else:
        tell(rows)
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
    found = digest(indexed.digest, sidecar_digest(shard), classes)
    metadata = {**(indexed.table.schema.metadata or {}), SHARD_KEY: indexed.digest.encode(), DAMAGE_KEY: json.dumps(list(indexed.damage)).encode()}
    publish_table(path, indexed.table.replace_schema_metadata(metadata), index_digest(found))
    return found


def sidecar_digest(shard: Shard) -> str:
    import hashlib

    if file_signature(shard.sidecar) is None:
        return ""
    store, plain = store_of(shard.sidecar)
    with reaching(shard.sidecar), store.open(plain, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _measure(task: MeasureTask, stages: list[ResolvedStage], index_part: Path, known: str) -> None:
    index = pq.read_table(index_part, columns=["offset", "size", "caption", "fault"])
    rows = np.flatnonzero(pc.is_null(index["fault"]).to_numpy(zero_copy_only=False))
    unfinished = Unfinished(unfinished_path(task.root, task.shard), digest([measure_digest(stage, known) for stage in stages]))
    offsets, sizes = index["offset"].to_numpy(), index["size"].to_numpy()
    captions = index["caption"].to_pylist()
    pieces: dict[str, list[Columns]] = {stage.id: [] for stage in stages}
    faults: dict[str, list[str | None]] = {stage.id: [] for stage in stages}
    done = unfinished.restore(pieces, faults)
    tell(index.num_rows - len(rows) + done)
    with ShardReader(task.shard.url) as reader:
        for chosen, payloads, needed in _batches(reader, rows[done:], offsets, sizes):
            unfinished.save(pieces, faults)
            if needed <= task.share:
                _measure_batch(task, stages, payloads, [captions[i] for i in chosen], pieces, faults)
                tell(len(chosen))
                continue
            if needed > task.room:
                given = f"measuring this picture takes up to {size(needed)}"
                cure = f"Give --memory {enough(needed + WORKER_BYTES)} and --workers 1, or more"
                raise Refusal("does-not-fit", f"{task.shard.id}, row {chosen[0]}", given, f"--memory leaves {size(task.room)}", cure)
            with alone():
                _measure_batch(task, stages, payloads, [captions[i] for i in chosen], pieces, faults)
                give_back()
            tell(len(chosen))
    for stage in stages:
        _publish(task, stage, pieces[stage.id], faults[stage.id], rows, index.num_rows, measure_digest(stage, known, fetch=True))
    unfinished.remove()


def _batches(reader: ShardReader, rows: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[list[int], list[Any], int]]:
    """(rows, payloads, bytes that measuring them takes) in order: at most `BATCH_ROWS` rows and `BATCH_BYTES`, unless one picture alone takes more.

    Nothing but the headers and sizes decides, so that an encoder sees the same batches whatever the memory and the workers.
    """
    chosen: list[int] = []
    payloads: list[Any] = []
    held = most = 0  # bytes that stay while the batch lives; and that the dearest picture takes beside while it is decoded
    for row in rows.tolist():
        payload = reader.payload(int(offsets[row]), int(sizes[row]))
        stays, beside = _picture_bytes(payload)
        stays += len(payload) if reader.is_remote else 0
        if chosen and (len(chosen) == BATCH_ROWS or held + stays + max(most, beside) > BATCH_BYTES):
            yield chosen, payloads, held + most
            chosen, payloads, held, most = [], [], 0, 0
        chosen, payloads, held, most = [*chosen, row], [*payloads, payload], held + stays, max(most, beside)
    if chosen:
        yield chosen, payloads, held + most


def _picture_bytes(payload: Any) -> tuple[int, int]:
    """Bytes of the decoded picture, and of what decoding takes beside, by its header; 0 for a text and for what cannot be decoded."""
    try:
        found = header(payload)
    except Undecodable:
        return 0, 0
    is_plain = found.format == "jpeg" and found.channels < 4
    return 3 * found.width * found.height, ((JPEG_PIXEL_BYTES if is_plain else PIXEL_BYTES) - 3) * found.width * found.height


def _measure_batch(
    task: MeasureTask, stages: list[ResolvedStage], payloads: list[Any], texts: list[Any],
    pieces: dict[str, list[Columns]], faults: dict[str, list[str | None]],
) -> None:  # fmt: skip
    """Every stage's columns of a batch, appended to `pieces`, and its faults to `faults`. The decoded pixels go with the batch."""
    batch = Batch(payloads, texts, task.device, looks(stages))
    for stage in stages:
        batch.faults = [None] * len(batch)
        pieces[stage.id].append(stage.function(batch, **stage.parameters))
        faults[stage.id].extend(batch.faults)


def looks(stages: list[ResolvedStage]) -> dict[Window | None, list[Look]]:
    """What the measures ask of each picture, under each window: for `Batch`.

    In the order of their names, whatever the recipe's: `exact_hash` reads the whole picture and makes nothing beside it, so it comes before those that push it out of the cache.
    """
    found: dict[Window | None, dict[Look, None]] = {}
    for stage in sorted(stages, key=lambda stage: stage.name):
        if asked := getattr(inspect.getmodule(stage.function), "LOOKS", ()):
            found.setdefault(stage.parameters.get("window"), {}).update(dict.fromkeys(asked))
    return {window: list(asked) for window, asked in found.items()}


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
    if isinstance(pieces[0], pa.Array):
        joined = pa.chunked_array([p.cast(kind) if isinstance(p, pa.Array) else pa.array(p, kind) for p in pieces]).combine_chunks()
        return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined
    array = np.concatenate([np.asarray(p) for p in pieces])
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(np.ascontiguousarray(array).tobytes())])
    return pa.array(array, kind)
