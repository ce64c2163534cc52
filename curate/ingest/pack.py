"""Pack samples into WebDataset tars with a Parquet beside each: the one layout that every pool made by keepset has.

POOL/pool.yaml            classes, columns and their types
POOL/ingest.json          where it came from, what was taken, what was left out and why
POOL/shards/00000.tar     members KEY.jpg KEY.txt KEY.cls of each sample, bytes untouched, fixed mtime and owner
POOL/shards/00000.parquet one row a sample in the order of the tar: key, then the sample's own columns
POOL/shards/sizes.json    samples a tar, as open_clip reads it
POOL/cache/ingest/        what the source looked like when a shard was packed; safe to delete, then everything is packed again
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.digest import digest
from manifests.errors import Refusal
from manifests.progress import Progress
from manifests.publish import locked, publish, publish_json, publish_table, published_digest, read_object
from manifests.shards.columns import INGEST_FAULT, RESERVED
from manifests.shards.pool_yaml import write_pool_yaml
from manifests.shards.read import place_of

LAYOUT = 1  # raised when the same samples would be packed into other bytes
NAMED = 3  # samples or files of a kind that a summary names
INDEXED = ("key", "caption", "uid", "source_uid", "label", "label_name")  # sidecar columns that go into columns of the index
NAMES = (RESERVED | {"text", INGEST_FAULT}) - {"uid", "source_uid"}  # not for a pool's own columns; its uids become source_uid
SAFE_KEY = re.compile(rb"(?!__)[A-Za-z0-9_-]{1,90}")
MAGIC = (  # first bytes of the pictures that are recognised without an extension
    (re.compile(rb"\xff\xd8\xff"), "jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"GIF8[79]a"), "gif"),
    (re.compile(rb"BM....\0\0\0\0", re.DOTALL), "bmp"),
    (re.compile(rb"II\*\0|MM\0\*"), "tif"),
)


class Unreadable(Exception):
    """A sample whose bytes cannot be had; the text says why. The sample stays, empty, so that it is counted and quarantined."""


@dataclass
class Samples:
    """What a reader found, one entry a sample, in the order in which it is packed.

    keys        unique; each matches [A-Za-z0-9_-]+
    read        bytes of sample i as they are; raises `Unreadable`
    stamps      what betrays a change of sample i without reading it (path, size, mtime)
    suffixes    extension of sample i's image member; None = by its first bytes
    columns     the samples' own columns
    labels      class number, or None where a sample has none
    counts      what was left out, and why; goes into the summary as it is
    """

    keys: Sequence[str]
    read: Callable[[int], bytes]
    stamps: Sequence[Any]
    suffixes: Sequence[str | None]
    columns: pa.Table
    labels: Sequence[int | None] | None = None
    captions: Sequence[str | None] | None = None
    classes: tuple[str, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)


def picture_suffix(head: bytes) -> str | None:
    """The extension that the first bytes of a file ask for; None where they are no picture's."""
    return next((suffix for magic, suffix in MAGIC if magic.match(head)), None)


def text_of(path: bytes) -> str:
    """A path as text: bytes that are not UTF-8 are written `\\xe9`."""
    return path.decode("utf-8", "backslashreplace")


def keys_of(paths: Sequence[bytes]) -> list[str]:
    """A key for each path that helps its owner to find the file again: `cat/0001.jpg` becomes `cat_0001`.

    A path with other characters than letters, digits, `_`, `-`, `/`, or whose plain key another path shares, gets those
    replaced by `_` and ten hex digits of its SHA-256 added. No key depends on a sample's position.
    """
    plain = [re.sub(rb"\.[A-Za-z0-9]{1,8}$", b"", path).replace(b"/", b"_") for path in paths]
    often = Counter(plain)
    keys = [p.decode() if SAFE_KEY.fullmatch(p) and often[p] == 1 else _hashed(p, path) for p, path in zip(plain, paths, strict=True)]
    taken = Counter(keys)
    if max(taken.values(), default=1) > 1:  # a plain key that looks like another path's hashed one
        keys = [_hashed(p, path) if taken[k] > 1 else k for k, p, path in zip(keys, plain, paths, strict=True)]
    assert len(set(keys)) == len(keys), "the same path stands twice"
    return keys


def _hashed(plain: bytes, path: bytes) -> str:
    text = re.sub(r"^_+", "_", re.sub(r"[^A-Za-z0-9_-]", "_", plain.decode("utf-8", "replace")))[:79]
    return f"{text}-{hashlib.sha256(path).hexdigest()[:10]}"


def pack(
    samples: Samples, to: Path, *, source: str, samples_per_shard: int = 10_000, licence: str | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Write `samples` as a pool in folder `to` and return the summary that also stands in `ingest.json`.

    Guarantee   the same samples give the same tars and the same Parquet, byte for byte. A shard whose samples look as they did when it was
                packed is left alone; a killed run goes on after its last whole shard. Every sample becomes a row, readable or not.
    source      what the samples came from, as the user named it
    Errors      [empty-pool] no sample; [bad-value] the folder holds something else; [run-locked]; [disk-full]
    """
    if samples_per_shard < 1:
        raise Refusal("bad-value", "--samples-per-shard", f"{samples_per_shard} is not a count", "1 or more")
    if not len(samples.keys):
        noted = f" ({'; '.join(told(samples.counts))})" if samples.counts else ""
        raise Refusal("empty-pool", source, f"holds no picture{noted}", "a pool has at least one sample")
    claim(to, source)
    with locked(to):
        return _pack(samples, to, source, samples_per_shard, licence, quiet)


def _pack(samples: Samples, to: Path, source: str, per_shard: int, licence: str | None, quiet: bool) -> dict[str, Any]:
    total = len(samples.keys)
    count = -(-total // per_shard)
    width = max(5, len(str(count - 1)))
    packed, size, faults = 0, 0, 0
    named: list[dict[str, Any]] = []
    sizes: dict[str, int] = {}
    with Progress("ingest", total, quiet=quiet) as progress:
        for number in range(count):
            rows = range(number * per_shard, min((number + 1) * per_shard, total))
            name = f"{number:0{width}d}"
            made, tar_bytes, unreadable = _shard(samples, rows, to, name, progress)
            packed, size, faults = packed + made, size + tar_bytes, faults + unreadable
            if unreadable and len(named) < NAMED:
                named += _unreadable(to / "shards" / f"{name}.parquet", rows.start)
            sizes[f"{name}.tar"] = len(rows)
    publish_json(to / "shards" / "sizes.json", sizes)
    pattern = f"shards/{{{0:0{width}d}..{count - 1:0{width}d}}}.tar" if count > 1 else f"shards/{0:0{width}d}.tar"
    columns = {f.name: str(f.type) for f in samples.columns.schema}
    write_pool_yaml(
        to, name=to.resolve().name, sources=[{"name": "shards", "shards": pattern}], classes=samples.classes,
        columns={**columns, INGEST_FAULT: "string"}, licence=licence, source=source,
    )  # fmt: skip
    _remove_beyond(to, set(sizes))
    labelled = sum(label is not None for label in samples.labels) if samples.labels is not None else 0
    summary = {
        "source": source, "samples": total, "shards": count, "shards_packed": packed, "bytes": size, "unreadable": faults,
        **({"first_unreadable": named[:NAMED]} if named else {}), "labelled": labelled, "classes": len(samples.classes), **samples.counts,
    }  # fmt: skip
    publish_json(to / "ingest.json", {**summary, "place": source_place(source), "finished": True})
    return summary


def _unreadable(sidecar: Path, start: int) -> list[dict[str, Any]]:
    """The first samples of a shard that could not be read: row of the pool, path (else key), why."""
    columns = [c for c in ("key", "path", INGEST_FAULT) if c in pq.read_schema(sidecar).names]
    table = pq.read_table(sidecar, columns=columns)
    rows = pc.indices_nonzero(pc.is_valid(table[INGEST_FAULT])).to_pylist()[:NAMED]
    found = table.take(rows).to_pylist()
    return [{"row": start + i, "name": row.get("path") or row["key"], "fault": row[INGEST_FAULT]} for i, row in zip(rows, found, strict=True)]


def told(counts: dict[str, Any]) -> list[str]:
    """What a summary notes, a line an entry, for a reader: `skipped: txt 3, hidden 1`."""
    return [f"{name.replace('_', ' ')}: {_plainly(value)}" for name, value in counts.items()]


def _plainly(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({item})" if isinstance(item, str) and " " in item else f"{name} {_plainly(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(item, dict) for item in value) else ", ").join(_plainly(item) for item in value)
    return "none" if value is None else str(value)


def claim(to: Path, source: str) -> None:
    """Refuse a folder that holds anything but a pool from the same source; mark it before the first shard."""
    note, place = to / "ingest.json", source_place(source)
    if note.exists():
        earlier = read_object(note)
        before, there = earlier.get("source"), earlier.get("place")
        is_gone = not (there and os.path.exists(there))  # then pool and source may have gone elsewhere together
        is_moved = before is not None and place == source_place(before) and is_gone
        if place != there and not is_moved:
            given = f"holds a pool made from {there if before == source else before}" if before else "holds an ingest.json that cannot be read"
            raise Refusal("bad-value", str(to), given, f"a new folder, or the pool of {source}", "Give another --to, or remove that folder")
        return
    if to.exists() and (not to.is_dir() or any(p.name != ".lock" for p in to.iterdir())):
        raise Refusal("bad-value", str(to), "is not empty and is no pool that `curate ingest` made", "a new or empty folder", "Give another --to")
    publish_json(note, {"source": source, "place": place, "finished": False})


def source_place(source: str) -> str:
    """Where a source lies, however it is written: `small`, `small/` and `./small` are one. What is no path on this machine stays as it is."""
    return source if source.startswith("torchvision:") else place_of(source)


def _shard(samples: Samples, rows: range, to: Path, name: str, progress: Progress) -> tuple[bool, int, int]:
    """Pack `rows` as shard `name` unless it is there: (was packed, bytes of the tar, unreadable samples)."""
    tar, sidecar, memory = to / "shards" / f"{name}.tar", to / "shards" / f"{name}.parquet", to / "cache" / "ingest" / f"{name}.json"
    columns = samples.columns.slice(rows.start, len(rows)).combine_chunks()
    looks = [[samples.keys[i], samples.stamps[i], samples.suffixes[i], [[e, b.hex()] for e, b in _text_members(samples, i)]] for i in rows]
    seen = digest(LAYOUT, looks, _table_digest(columns))
    earlier = read_object(memory)
    if (
        earlier.get("seen") == seen
        and published_digest(sidecar) == earlier.get("made")
        and tar.exists()
        and tar.stat().st_size == earlier.get("bytes")
    ):
        progress.advance(len(rows))
        return False, earlier["bytes"], earlier.get("unreadable", 0)
    members: list[list[str]] = []
    faults: list[str | None] = []

    def write(file: IO[bytes]) -> None:
        for i in rows:
            fault = None
            try:
                data = samples.read(i)
            except Unreadable as error:
                data, fault = b"", str(error)
            faults.append(fault)
            suffix = samples.suffixes[i] or picture_suffix(data[:16]) or "jpg"
            for ending, body in ((suffix, data), *_text_members(samples, i)):
                members.append([f"{samples.keys[i]}.{ending}", hashlib.sha256(body).hexdigest()])
                file.write(_header(members[-1][0], len(body)) + body + bytes(-len(body) % 512))
            progress.advance()
        file.write(bytes(1024))

    memory.unlink(missing_ok=True)  # from here until the end the tar may be newer than what is remembered of it
    publish(tar, write)
    table = columns.add_column(0, "key", pa.array([samples.keys[i] for i in rows], pa.string())).append_column(
        INGEST_FAULT, pa.array(faults, pa.string())
    )
    made = digest(LAYOUT, members, _table_digest(table))
    publish_table(sidecar, table, made)
    unreadable = sum(fault is not None for fault in faults)
    publish_json(memory, {"seen": seen, "made": made, "bytes": tar.stat().st_size, "unreadable": unreadable})
    return True, tar.stat().st_size, unreadable


def _text_members(samples: Samples, i: int) -> list[tuple[str, bytes]]:
    label = samples.labels[i] if samples.labels is not None else None
    caption = samples.captions[i] if samples.captions is not None else None
    found = [("txt", caption.encode("utf-8", "replace"))] if caption is not None else []
    return found + ([("cls", str(label).encode())] if label is not None else [])


def _header(name: str, size: int) -> bytes:
    header = tarfile.TarInfo(name)  # mtime 0, mode 0644, owner 0: the same bytes whenever and by whomever it is packed
    header.size = size
    return header.tobuf(tarfile.PAX_FORMAT)


def _table_digest(table: pa.Table) -> str:
    """SHA-256 over the values of `table` in Arrow's stream form."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as stream:
        stream.write_table(table.replace_schema_metadata(None).combine_chunks())
    return hashlib.sha256(sink.getbuffer()).hexdigest()


def _remove_beyond(to: Path, keep: set[str]) -> None:
    """Remove shards of an earlier, larger ingest of the same source: `pool.yaml` no longer names them."""
    for tar in sorted((to / "shards").glob("*.tar")):
        if tar.name not in keep and re.fullmatch(r"\d+\.tar", tar.name):
            (to / "cache" / "ingest" / f"{tar.stem}.json").unlink(missing_ok=True)
            tar.with_suffix(".parquet").unlink(missing_ok=True)
            tar.unlink()


def own_columns(table: pa.Table, taken: set[str]) -> tuple[pa.Table, dict[str, Any]]:
    """The columns of `table` outside `taken` that a sidecar can hold, and notes on those that were renamed or left out.

    A name that keepset uses itself gets `pool_` before it. Lists of numbers are left out (`curate attach` takes vectors);
    other nested values become JSON text.
    """
    kept: dict[str, pa.ChunkedArray] = {}
    notes: dict[str, Any] = {}
    for name in table.column_names:
        if name in taken:
            continue
        values = table.column(name)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if _is_vector(values.type) or pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
            notes.setdefault("columns_left_out", {})[name] = str(values.type)
            continue
        if pa.types.is_nested(values.type):
            values = pa.chunked_array(
                [pa.array([None if v is None else json.dumps(v, ensure_ascii=False, default=str) for v in values.to_pylist()], pa.string())]
            )
        free = name if name not in NAMES else f"pool_{name}"
        if free != name:
            notes.setdefault("columns_renamed", {})[name] = free
        kept[free] = values
    return pa.table(kept) if kept else pa.table({"": pa.nulls(table.num_rows)}).select([]), notes


def _is_vector(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return listed and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))
