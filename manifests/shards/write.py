"""Write kept samples as WebDataset tars: members' bytes untouched, the same bytes on a second run, re-opened and counted."""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import Refusal
from manifests.publish import DIGEST_KEY, publish, publish_json, publish_table
from manifests.shards.read import ShardReader
from manifests.shards.walk import BLOCK, walk

__all__ = ["ShardTask", "layout", "tar_header", "write_shard_task", "write_sizes"]

SIZE_KEY = b"keepset.tar_size"
PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
FLUSH_BYTES, MAX_VECTORS = 8 << 20, 512  # what one writev takes: the kernel allows 1,024 buffers
END = bytes(2 * BLOCK)
RECORD = 20 * BLOCK  # tars end on a full record, as every tar program writes them


@dataclass(frozen=True)
class ShardTask:
    """One tar to write: `rows` in the order of writing (ledger columns and `members`), the input shards' urls by `source/name`, what it is made of."""

    path: Path
    rows: pa.Table
    urls: dict[str, str]
    digest: str


def layout(count: int, *, per_shard: int, seed: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where `count` kept rows go: (order, out_shard, out_row), int64 each.

    order       position in writing order -> row; a seeded permutation, or pool order where `seed` is None
    out_shard   row -> number of its shard; shards are of `per_shard` samples, the last of the rest
    out_row     row -> its place in that shard
    """
    order = np.arange(count) if seed is None else np.random.Generator(np.random.Philox(seed)).permutation(count)
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    return order.astype(np.int64), place // per_shard, place % per_shard


def write_shard_task(task: ShardTask) -> int:
    """Publish `task.path` and beside it NNNNN.parquet and NNNNN_stats.json, unless they stand already; returns the number of samples.

    Written keys are the pool's where they match [A-Za-z0-9_-]+ and are unique here, else the uid; the user's key stays in the column `pool_key`.
    Raises `Refusal`: [shard-differs] where the tar that was read again does not hold what was written.
    """
    side = task.path.with_suffix(".parquet")
    if _stands(task, side):
        return task.rows.num_rows
    keys = written_keys(task.rows["key"].to_pylist(), task.rows["uid"].to_pylist())
    publish(task.path, lambda file: _write_members(file, task, keys))
    _count(task.path, keys, task.rows["members"].to_pylist())
    size = task.path.stat().st_size
    stats = {"count": task.rows.num_rows, "bytes": size, "sources": len(set(task.rows["shard"].to_pylist()))}
    publish_json(task.path.with_name(f"{task.path.stem}_stats.json"), stats)
    table = task.rows.drop_columns(["members", "out_shard", "out_row", "offset", "size"])
    table = table.set_column(table.column_names.index("key"), "key", pa.array(keys)).append_column("pool_key", task.rows["key"])
    metadata = {**(table.schema.metadata or {}), SIZE_KEY: str(size).encode()}
    publish_table(side, table.replace_schema_metadata(metadata).unify_dictionaries(), task.digest)
    return task.rows.num_rows


def _stands(task: ShardTask, side: Path) -> bool:
    """Published last, so the sidecar's digest vouches for the tar, if the tar still has its size."""
    try:
        metadata = pq.read_schema(side).metadata or {}
        return metadata.get(DIGEST_KEY) == task.digest.encode() and int(metadata[SIZE_KEY]) == task.path.stat().st_size
    except (OSError, pa.ArrowInvalid, KeyError):
        return False


def written_keys(keys: list[str], uids: list[str]) -> list[str]:
    """The key of each sample in its shard: the pool's where it is plain and unique, else the uid."""
    counts: dict[str, int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    taken = set(uids)
    return [key if counts[key] == 1 and PLAIN_KEY.fullmatch(key) and key not in taken else uid for key, uid in zip(keys, uids, strict=True)]


def _write_members(file: IO[bytes], task: ShardTask, keys: list[str]) -> None:
    """All members of all samples, one header each, by scattered writes: no payload is copied in memory."""
    readers: dict[str, ShardReader] = {}
    file.flush()
    handle, waiting, held, total = file.fileno(), [], 0, 0
    for piece in _pieces(task, keys, readers):
        waiting.append(piece)
        held += len(piece)
        if held >= FLUSH_BYTES or len(waiting) >= MAX_VECTORS:
            total += _write_all(handle, waiting)
            waiting, held = [], 0
    total += _write_all(handle, waiting)
    end = END + bytes(-(total + len(END)) % RECORD)
    _write_all(handle, [end])
    for reader in readers.values():
        reader.close()


def _pieces(task: ShardTask, keys: list[str], readers: dict[str, ShardReader]) -> Iterator[Any]:
    for key, shard, members in zip(keys, task.rows["shard"].to_pylist(), task.rows["members"].to_pylist(), strict=True):
        if shard not in readers:
            readers[shard] = ShardReader(task.urls[shard])
        for member in members:
            size = member["size"]
            yield tar_header(f"{key}.{member['suffix']}", size)
            payload = readers[shard].payload(member["offset"], size)
            if len(payload) != size:
                raise Refusal("shard-differs", task.urls[shard], f"ends inside the sample {key!r} at byte {member['offset']}", "the shard that was indexed", "Build again with --recheck")
            if size:
                yield payload
            if size % BLOCK:
                yield bytes(BLOCK - size % BLOCK)


def _write_all(handle: int, buffers: list[Any]) -> int:
    """`os.writev` until everything is written; returns the bytes."""
    total = sum(len(b) for b in buffers)
    while buffers:
        done = os.writev(handle, buffers)
        while buffers and done >= len(buffers[0]):
            done -= len(buffers.pop(0))
        if buffers and done:
            buffers[0] = memoryview(buffers[0])[done:]
    return total


def tar_header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a plain file with fixed time, owner and mode; PAX where the name or the size does not fit."""
    stored = name.encode("utf-8", "surrogateescape")
    if len(stored) > 100 or size >= 1 << 33 or not stored.isascii():
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")
    head = stored.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" + b"0000000\0" + b"%011o\0" % size + b"00000000000\0"
    tail = b"0" + bytes(100) + b"ustar\00000" + bytes(32) + bytes(32) + b"0000000\0" + b"0000000\0" + bytes(155) + bytes(12)
    checksum = sum(head) + 8 * 32 + sum(tail)
    return head + b"%06o\0 " % checksum + tail


def _count(path: Path, keys: list[str], members: list[list[dict[str, Any]]]) -> None:
    """Open what was written again and compare its members, name by name and size by size."""
    expected = [(f"{key}.{m['suffix']}".encode("utf-8", "surrogateescape"), m["size"]) for key, some in zip(keys, members, strict=True) for m in some]
    with ShardReader(str(path)) as reader:
        found = walk(reader)
    if [(m.name, m.size) for m in found.members] != expected or found.damage:
        raise Refusal("shard-differs", str(path), f"{len(found.members)} members were read again, {len(expected)} were written", "they must be the same", "Run the same command again")


def write_sizes(path: Path, sizes: dict[str, int]) -> None:
    """`sizes.json`: tar name -> samples, as open_clip and DataComp read it."""
    publish_json(path, sizes)
