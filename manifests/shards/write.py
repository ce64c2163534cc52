"""Write the kept samples as WebDataset shards: members copied byte for byte, everything else about the tar fixed, so that a second run writes the same file."""

import json
import re
import tarfile
from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import Refusal
from manifests.publish import publish, publish_json, publish_table, published_digest
from manifests.shards.read import ShardReader

__all__ = ["ShardTask", "layout", "write_shard_task", "write_sizes", "written_keys"]

KEY = re.compile(r"(?!__)[A-Za-z0-9_-]+")
BLOCK = 512
GATHER = 1 << 20  # bytes that go to the disk at a time
OPEN_SHARDS = 64  # shards of the pool held open, however many an output shard draws from
REMOTE_BLOCK = 1 << 18  # samples are drawn in no order, so a remote store is asked for little more than one
IN_TAR_ONLY = ("content", "shard", "row", "offset", "size", "suffix", "fault", "out_shard", "out_row", "members", "status")
FIRST = ("uid", "key", "source_uid", "label", "label_name", "caption", "weight")


@dataclass(frozen=True)
class ShardTask:
    """One output shard.

    path      NNNNN.tar; NNNNN.parquet and NNNNN_stats.json come beside it
    rows      the samples in their order: uid, key, shard (`source/name`), members, and what the Parquet is to hold
    urls      `source/name` -> URL of the pool's shard
    digest    of all that this shard is made from; stands in the Parquet's footer
    """

    path: Path
    rows: pa.Table
    urls: dict[str, str]
    digest: str


def layout(count: int, *, per_shard: int, seed: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where `count` kept rows go: (order, out_shard, out_row), each (count,) int64.

    order[k] is the kept row at place k of the output; out_shard and out_row say for each kept row in which shard, and where in it, it lies.
    per_shard   samples a shard; the last shard may hold fewer, none is empty
    seed        of the shuffle; None = the pool's order
    """
    order = np.arange(count) if seed is None else np.random.Generator(np.random.Philox(seed)).permutation(count)
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    return order, place // per_shard, place % per_shard


def written_keys(keys: list[str], uids: list[str]) -> list[str]:
    """The keys of one output shard: the pool's own where it is plain (letters, digits, `_`, `-`; not `__…`) and unique in the shard, else the uid."""
    count, taken = Counter(keys), set(uids)
    return [key if KEY.fullmatch(key) and count[key] == 1 and (key not in taken or key == uid) else uid for key, uid in zip(keys, uids, strict=True)]


def write_shard_task(task: ShardTask) -> int:
    """Publish the tar, its statistics, then its Parquet (whose digest says that all three are there), and return the number of samples.

    Present already with this digest: nothing is done. The tar has mode 0644, owner 0, time 0; members keep their bytes, extension and order. It is opened again
    and counted before the Parquet is published. The Parquet's `key` is the key in the tar; the user's own is in the ledger.

    Cost     about that of copying the members: one read, one write, one fsync a file
    Errors   `Refusal`: [shard-differs] where a shard of the pool is shorter than when it was indexed, [broken-record] where the tar read back
             is not what was written, [disk-full]
    """
    beside, statistics = task.path.with_suffix(".parquet"), task.path.with_name(f"{task.path.stem}_stats.json")
    if published_digest(beside) == task.digest and task.path.exists() and _counted_bytes(statistics) == task.path.stat().st_size:
        return task.rows.num_rows
    keys = written_keys(task.rows["key"].to_pylist(), task.rows["uid"].to_pylist())
    headers: list[tuple[bytes, int]] = []
    publish(task.path, lambda file: _write_tar(file, task, keys, headers))
    _reopen(task.path, headers)
    count = task.rows.num_rows
    numbers = {"count": count, "successes": count, "failed_to_download": 0, "failed_to_resize": 0, "status_dict": {"success": count}}
    publish_json(statistics, {**numbers, "bytes": task.path.stat().st_size})
    publish_table(beside, _sidecar(task.rows, keys), task.digest)
    return count


def write_sizes(path: Path, sizes: dict[str, int]) -> None:
    """Publish `sizes.json`: tar name -> samples, as open_clip and DataComp read it."""
    publish_json(path, dict(sorted(sizes.items())))


def _counted_bytes(statistics: Path) -> int | None:
    try:
        return json.loads(statistics.read_bytes())["bytes"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _sidecar(rows: pa.Table, keys: list[str]) -> pa.Table:
    """uid, key, source_uid, label, label_name, caption, weight, then the user's own columns; plain text instead of dictionaries."""
    own = [c for c in rows.column_names if c not in IN_TAR_ONLY and c not in FIRST]
    columns: dict[str, Any] = {}
    for name in [c for c in FIRST if c in rows.column_names] + own:
        values = pa.chunked_array([pa.array(keys, pa.string())]) if name == "key" else rows[name]
        columns[name] = values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
    return pa.table(columns)


def _write_tar(file: IO[bytes], task: ShardTask, keys: list[str], headers: list[tuple[bytes, int]]) -> None:
    """Write the tar and note each member's header and size."""
    readers: OrderedDict[str, ShardReader] = OrderedDict()
    out = _Gathered(file)
    members = task.rows["members"].combine_chunks()
    parts = zip(*(members.flatten().field(name).to_pylist() for name in ("suffix", "offset", "size")), strict=True)
    counts = pc.list_value_length(members).to_pylist()
    for key, shard, count in zip(keys, task.rows["shard"].to_pylist(), counts, strict=True):
        reader = _opened(readers, task.urls[shard])
        for suffix, offset, size in islice(parts, count):
            headers.append((_header(f"{key}.{suffix}", size), size))
            out.put(headers[-1][0])
            if out.take(reader, offset, size) != size:
                raise Refusal(
                    "shard-differs",
                    task.urls[shard],
                    f"ends before byte {offset + size}",
                    "the shard that was indexed",
                    "Bring it back, or build again",
                )
            out.put(bytes(-size % BLOCK))
    out.put(bytes(2 * BLOCK))
    out.flush()
    for reader in readers.values():
        reader.close()


class _Gathered:
    """A file that is written a megabyte at a time: large enough for few calls, small enough that what is read is still in the cache when it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.view, self.at = file, memoryview(bytearray(GATHER)), 0

    def put(self, data: bytes) -> None:
        """Append `data`, at most `GATHER` bytes."""
        if self.at + len(data) > GATHER:
            self.flush()
        self.view[self.at : self.at + len(data)] = data
        self.at += len(data)

    def take(self, reader: ShardReader, offset: int, size: int) -> int:
        """Append `size` bytes of `reader` from `offset` on; returns how many there were."""
        done = 0
        while done < size:
            if self.at == GATHER or (size - done <= GATHER < self.at + size - done):
                self.flush()
            some = min(size - done, GATHER - self.at)
            count = reader.read_into(self.view[self.at : self.at + some], offset + done)
            self.at, done = self.at + count, done + count
            if count < some:
                break
        return done

    def flush(self) -> None:
        """Hand what is gathered to the file."""
        self.file.write(self.view[: self.at])
        self.at = 0


def _opened(readers: "OrderedDict[str, ShardReader]", url: str) -> ShardReader:
    """The reader of `url`, the one used longest ago making room for it."""
    if url in readers:
        readers.move_to_end(url)
        return readers[url]
    if len(readers) >= OPEN_SHARDS:
        readers.popitem(last=False)[1].close()
    readers[url] = ShardReader(url, block=REMOTE_BLOCK)
    return readers[url]


def _header(name: str, size: int) -> bytes:
    """The header block (or, for names that USTAR cannot hold, blocks) of a member."""
    encoded = name.encode()
    if len(encoded) > 100 or not name.isascii() or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    before, after, checksum = _template()
    number = b"%011o\0" % size
    stored = checksum + sum(encoded) + sum(number)
    return b"".join((encoded, bytes(100 - len(encoded)), before, number, b"%011o\0" % 0, b"%06o\0 " % stored, after))


@lru_cache(maxsize=1)
def _template() -> tuple[bytes, bytes, int]:
    """What stands between name and size, what stands after the checksum, and the checksum without name and size."""
    before = b"0000644\0" + b"0000000\0" * 2
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\0" * 2 + bytes(167)
    return before, after, sum(before) + sum(b"%011o\0" % 0) + 8 * 0x20 + sum(after)


def _reopen(path: Path, headers: list[tuple[bytes, int]]) -> None:
    """Read every header back from where it must be, and the two empty blocks and the end behind the last member."""
    at, found = 0, 0
    with ShardReader(str(path)) as reader:
        for header, size in headers:
            found += reader.payload(at, len(header)) == header
            at += len(header) + -(-size // BLOCK) * BLOCK
        whole = reader.payload(at, 2 * BLOCK) == bytes(2 * BLOCK) and reader.size == at + 2 * BLOCK
    if found != len(headers) or not whole:
        cure = "Run the same command again; if it happens twice, check the disk"
        raise Refusal(
            "broken-record",
            str(path),
            f"holds {found} of the {len(headers)} members that were written" + ("" if whole else ", and another end"),
            cure=cure,
        )
