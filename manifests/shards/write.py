"""Write the kept samples as WebDataset shards: members copied byte for byte, everything else about the tar fixed, so that a second run writes the same file."""

import json
import re
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import Refusal
from manifests.publish import publish, publish_json, publish_table, published_digest
from manifests.shards.read import ShardReader

__all__ = ["ShardTask", "layout", "shard_stands", "write_shard_task", "write_sizes", "written_keys"]

KEY = re.compile(r"(?!__)[A-Za-z0-9_-]+")
BLOCK = 512
GATHER = 1 << 20  # bytes that go to the disk at a time: few calls, and what was read is still in the cache when it is written
MEMBERS = 4096  # whose headers are made at a time
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
    beside, statistics = _besides(task.path)
    if shard_stands(task.path, task.digest):
        return task.rows.num_rows
    keys = written_keys(task.rows["key"].to_pylist(), task.rows["uid"].to_pylist())
    tar, offset, sample = _tar_of(task, keys)
    publish(task.path, lambda file: _write_tar(file, task, tar, offset, sample))
    _reopen(task.path, tar)
    count = task.rows.num_rows
    numbers = {"count": count, "successes": count, "failed_to_download": 0, "failed_to_resize": 0, "status_dict": {"success": count}}
    publish_json(statistics, {**numbers, "bytes": task.path.stat().st_size})
    publish_table(beside, _sidecar(task.rows, keys), task.digest)
    return count


def shard_stands(path: Path, digest: str) -> bool:
    """Are a tar, its statistics and its Parquet there, the tar as long as it was, the Parquet with this digest?"""
    beside, statistics = _besides(path)
    return published_digest(beside) == digest and path.exists() and _counted_bytes(statistics) == path.stat().st_size


def _besides(path: Path) -> tuple[Path, Path]:
    """A tar's Parquet and its statistics."""
    return path.with_suffix(".parquet"), path.with_name(f"{path.stem}_stats.json")


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


@dataclass(frozen=True)
class _Tar:
    """Where everything lies in an output tar.

    names    m names of members
    size     (m,) int64: their bytes
    blocks   (m,) int64: header blocks of each: 1, or more for names and sizes that USTAR cannot hold
    start    (m,) int64: the byte at which each payload begins
    """

    names: list[str]
    size: np.ndarray
    blocks: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, names: list[str], size: np.ndarray) -> "_Tar":
        blocks = np.ones(len(names), np.int64)
        if not _all_plain(names, size):
            blocks[:] = [len(_header(n, s)) // BLOCK for n, s in zip(names, size.tolist(), strict=True)]
        whole = blocks + -(-size // BLOCK)
        return cls(names, size, blocks, (np.cumsum(whole) - whole + blocks) * BLOCK)

    @property
    def end(self) -> int:
        """The byte behind the last member: two empty blocks follow."""
        return int(self.start[-1] + -(-self.size[-1] // BLOCK) * BLOCK) if len(self.start) else 0

    def heads(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(h, 512) uint8 header blocks of the members `first` to `stop`, (h,) int64 the block of the tar at which each lies."""
        blocks = self.blocks[first:stop]
        own = np.arange(blocks.sum()) - np.repeat(np.cumsum(blocks) - blocks, blocks)
        return _headers(self.names[first:stop], self.size[first:stop]), np.repeat(self.start[first:stop] // BLOCK - blocks, blocks) + own


def _tar_of(task: ShardTask, keys: list[str]) -> tuple[_Tar, np.ndarray, np.ndarray]:
    """The tar; (m,) int64 where each payload lies in its shard; (m,) int64 the sample of each member."""
    members = task.rows["members"].combine_chunks()
    suffix, offset, size = (members.flatten().field(name) for name in ("suffix", "offset", "size"))
    sample = np.repeat(np.arange(len(keys)), pc.list_value_length(members).to_numpy())
    names = [f"{keys[i]}.{end}" for i, end in zip(sample.tolist(), suffix.to_pylist(), strict=True)]
    return _Tar.of(names, size.to_numpy().astype(np.int64)), offset.to_numpy().astype(np.int64), sample


def _write_tar(file: IO[bytes], task: ShardTask, tar: _Tar, offset: np.ndarray, sample: np.ndarray) -> None:
    """Members that lie in their shard as they will lie here are read in one go, headers and all; then our headers and empty padding are put over that."""
    readers: OrderedDict[str, ShardReader] = OrderedDict()
    shards = task.rows["shard"].combine_chunks().dictionary_encode()
    shards = shards.chunk(0) if isinstance(shards, pa.ChunkedArray) else shards
    urls, shard = [task.urls[name] for name in shards.dictionary.to_pylist()], shards.indices.to_numpy()[sample]
    shift, stop = offset - tar.start, tar.start + tar.size
    new = np.ones(len(shift), bool)
    new[1:] = (shift[1:] != shift[:-1]) | (shard[1:] != shard[:-1])
    firsts = np.flatnonzero(new)
    runs = list(zip(tar.start[firsts].tolist(), stop[np.append(firsts[1:], len(shift))[: len(firsts)] - 1].tolist(), shift[firsts].tolist(), shard[firsts].tolist(), strict=True))  # fmt: skip
    view, at = np.empty((max(1, GATHER // BLOCK), BLOCK), np.uint8), 0
    for low, high, heads, places, ragged in _windows(tar, len(view)):
        room = view[: high - low]
        flat = memoryview(room.reshape(-1).data)
        while at < len(runs) and runs[at][0] < high * BLOCK:
            begin, end, by, number = runs[at]
            begin, until = max(begin, low * BLOCK), min(end, high * BLOCK)
            if until > begin:
                reader = _opened(readers, urls[number])
                if reader.read_into(flat[begin - low * BLOCK : until - low * BLOCK], begin + by) != until - begin:
                    given = f"ends before byte {until + by}"
                    raise Refusal("shard-differs", urls[number], given, "the shard that was indexed", "Bring it back, or build again")
            if end > high * BLOCK:
                break
            at += 1
        last = stop[ragged] // BLOCK - low
        room[last] *= _padding()[stop[ragged] % BLOCK]
        room[places - low] = heads
        file.write(flat)
    file.write(bytes(2 * BLOCK))
    for reader in readers.values():
        reader.close()


def _windows(tar: _Tar, height: int) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
    """(first block, end, header blocks, their places, members whose last block here is not full) of every stretch of at most `height` blocks."""
    for first in range(0, len(tar.start), MEMBERS):
        some = np.arange(first, min(first + MEMBERS, len(tar.start)))
        heads, places = tar.heads(first, some[-1] + 1)
        ragged = some[tar.size[some] % BLOCK > 0]
        last = (tar.start[ragged] + tar.size[ragged]) // BLOCK
        final = int((tar.start[some[-1]] + tar.size[some[-1]] - 1) // BLOCK + 1)
        for low in range(int(places[0]), final, height):
            high = min(low + height, final)
            head, end = np.searchsorted(places, [low, high]), np.searchsorted(last, [low, high])
            yield low, high, heads[slice(*head)], places[slice(*head)], ragged[slice(*end)]


@lru_cache(maxsize=1)
def _padding() -> np.ndarray:
    """(512, 512) uint8: row r keeps the first r bytes of a block."""
    return np.tri(BLOCK, BLOCK, -1, np.uint8)


def _opened(readers: "OrderedDict[str, ShardReader]", url: str) -> ShardReader:
    """The reader of `url`, the one used longest ago making room for it."""
    if url in readers:
        readers.move_to_end(url)
        return readers[url]
    if len(readers) >= OPEN_SHARDS:
        readers.popitem(last=False)[1].close()
    readers[url] = ShardReader(url, block=REMOTE_BLOCK)
    return readers[url]


def _all_plain(names: list[str], size: np.ndarray) -> bool:
    """Can USTAR hold these names and sizes?"""
    return "".join(names).isascii() and max(map(len, names), default=0) <= 100 and int(size.max(initial=0)) < 8**11


def _header(name: str, size: int) -> bytes:
    """The header block (or, for names and sizes that USTAR cannot hold, blocks) of a member."""
    if _all_plain([name], np.array([size])):
        return _plain_headers([name], np.array([size])).tobytes()
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _headers(names: list[str], size: np.ndarray) -> np.ndarray:
    """(h, 512) uint8: the header blocks of many members, one after the other."""
    if _all_plain(names, size):
        return _plain_headers(names, size)
    parts = [np.frombuffer(_header(n, s), np.uint8).reshape(-1, BLOCK) for n, s in zip(names, size.tolist(), strict=True)]
    return np.concatenate(parts)


def _plain_headers(names: list[str], size: np.ndarray) -> np.ndarray:
    """(m, 512) uint8 USTAR headers: mode 0644, owner 0, time 0."""
    head = np.tile(np.frombuffer(_template(), np.uint8), (len(names), 1))
    head[:, :100] = np.array(names, "S100").view(np.uint8).reshape(len(names), 100)
    head[:, 124:135] = 48 + (size[:, None] >> (3 * np.arange(10, -1, -1)) & 7)
    total = head.sum(1, dtype=np.int64)
    head[:, 148:154] = 48 + (total[:, None] >> (3 * np.arange(5, -1, -1)) & 7)
    head[:, 154:156] = 0, 32
    return head


@lru_cache(maxsize=1)
def _template() -> bytes:
    """A header without name, size and checksum (whose place holds blanks, as its sum asks)."""
    owner, zero = b"0000000\0", b"%011o\0" % 0
    return (
        bytes(100)
        + b"0000644\0"
        + owner * 2
        + bytes(11)
        + b"\0"
        + zero
        + b" " * 8
        + b"0"
        + bytes(100)
        + b"ustar\x0000"
        + bytes(64)
        + owner * 2
        + bytes(167)
    )


def _reopen(path: Path, tar: _Tar) -> None:
    """Read every header back from where it must be, and the two empty blocks and the end behind the last member."""
    found = 0
    with ShardReader(str(path)) as reader:
        whole = reader.payload(tar.end, 2 * BLOCK) == bytes(2 * BLOCK) and reader.size == tar.end + 2 * BLOCK
        bytes_there = np.frombuffer(reader.payload(0, reader.size), np.uint8)
        there = bytes_there[: len(bytes_there) // BLOCK * BLOCK].reshape(-1, BLOCK)
        for first in range(0, len(tar.names), MEMBERS):
            stop = min(first + MEMBERS, len(tar.names))
            heads, places = tar.heads(first, stop)
            same = np.zeros(len(places), bool)
            inside = places < len(there)
            same[inside] = (there[places[inside]] == heads[inside]).all(1)
            blocks = tar.blocks[first:stop]
            found += int(np.logical_and.reduceat(same, np.cumsum(blocks) - blocks).sum())
        del there, bytes_there
    if found != len(tar.names) or not whole:
        cure = "Run the same command again; if it happens twice, check the disk"
        given = f"holds {found} of the {len(tar.names)} members that were written" + ("" if whole else ", and another end")
        raise Refusal("broken-record", str(path), given, cure=cure)
