"""The rows of a shard: which members make a sample, where its payload lies, what identifies it, and what the pool says of it."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.shards.columns import INGEST_FAULT, from_json, join_sidecar
from manifests.shards.pool_yaml import Shard
from manifests.shards.read import ShardReader
from manifests.shards.walk import Member, walk

__all__ = ["FAULTS", "IMAGES", "INDEX_SCHEMA", "TEXTS", "Indexed", "Sample", "group", "index_shard", "repeated_names", "split_name", "uids"]

IMAGES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "pgm", "pbm"}
TEXTS = {"txt", "text"}
FAULTS = {
    "missing": "the payload is empty: `curate ingest` found no file there",
    "no_payload": "neither an image nor a text",
    "not_a_file": "a member is a link, a device, a pipe or sparse",
    "truncated": "the shard ends inside a member",
    "unreadable": "the payload is empty: `curate ingest` could not read the file; `ingest_fault` says why",
    "unsafe_name": "a member's name is absolute or leads out of its folder",
    "zero_bytes": "the payload is empty",
}
INDEX_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "suffix": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "content": pa.binary(32),
        "label": pa.int32(),
        "label_name": pa.string(),
        "caption": pa.string(),
        "source_uid": pa.string(),
        "fault": pa.string(),
        "members": pa.list_(pa.struct({"suffix": pa.string(), "offset": pa.int64(), "size": pa.int64()})),
    }
)


@dataclass(frozen=True)
class Indexed:
    """A shard's rows in tar order (`INDEX_SCHEMA`, then the user's own columns), its digest (64 hex digits), and what is wrong with the tar."""

    table: pa.Table
    digest: str
    damage: list[str]


@dataclass
class Sample:
    """Adjacent members with one key; `parts` are (suffix, member)."""

    key: str
    parts: list[tuple[str, Member]] = field(default_factory=list)
    suffixes: set[str] = field(default_factory=set)
    fault: str | None = None


def index_shard(shard: Shard, *, classes: Sequence[str] = ()) -> Indexed:
    """Walk a shard and give one row a sample, in tar order, without extracting anything.

    A sample is a run of neighbouring members with one key: the path up to the first dot of the base name (webdataset's rule). A key that
    comes again later, or a member that comes twice in a run, begins another sample. The payload is the first image member, else the first text
    member. Nothing is lost silently: a member that is no file, leads out of its folder or is cut off gives its row a fault (`FAULTS`);
    hidden files, names without an extension and what is wrong with the tar itself are listed in `damage`, with their place.

    content     SHA-256 over the payload members, image then text, each preceded by its length as 8-byte little-endian
    digest      SHA-256 over every member in tar order: length of name as 8-byte little-endian, name, size likewise, SHA-256 of its bytes
    label       a whole number in `.cls`, or the place in `classes` of the name there; null where there is none. `label_name` is that name
    caption     `.txt`, else `caption` or `text` of `.json` or of the sidecar; bytes that are no UTF-8 show as U+FFFD and are counted in `damage`
    source_uid  `source_uid`, else `uid`, of the sidecar or of `.json`
    further     columns of the Parquet beside the shard, joined by key (its n-th row of a key is the n-th sample of that key), and the
                top-level scalars of `.json` members; where both have a name the Parquet wins. A name that keepset uses itself
                (`manifests.shards.columns.RESERVED`) comes as `pool_<name>`. NaN becomes null
    fault       an empty payload is `zero_bytes`, unless the sidecar's `ingest_fault` tells of its row why it is empty: `missing`, or else `unreadable`
    key         bytes that are no UTF-8 show as `\\xNN`; a leading `./` goes
    Cost        one pass over the bytes (two SHA-256 of a payload); without hashing, some microseconds a member
    Errors      `Refusal` [no-such-file]
    """
    with ShardReader(shard.url) as reader:
        walked = walk(reader)
        samples, skipped = group(walked.members)
        rows = _Rows()
        for sample in samples:
            rows.add(sample, reader)
        digest = _shard_digest(walked.members, rows.hashes, reader)
    damage = [*walked.damage, *skipped, *rows.notes()]
    table = _name_faults(join_sidecar(rows.table(), shard.sidecar, from_json(rows.metadata), INDEX_SCHEMA))
    return Indexed(_name_labels(table, list(classes)), digest, damage)


def repeated_names(tables: Iterable[pa.Table]) -> set[int]:
    """The first 8 bytes of the hash of (content, key), as a number, of what may come more than once among all rows of index tables: for `uids`."""
    halves = [np.array([_half(_name(base)) for base in _bases(table)], np.uint64) for table in tables]
    found = np.concatenate(halves) if halves else np.zeros(0, np.uint64)
    del halves
    found.sort()
    return set(found[1:][found[1:] == found[:-1]].tolist())


def _bases(table: pa.Table) -> Iterator[bytes]:
    for content, key in zip(table["content"].to_pylist(), table["key"].to_pylist(), strict=True):
        yield content + key.encode()


def _name(base: bytes) -> bytes:
    return hashlib.sha256(base).digest()[:16]


def _half(name: bytes) -> int:
    return int.from_bytes(name[:8], "little")


def uids(table: pa.Table, seen: dict[bytes, int] | None = None, repeated: set[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(n,) `S32` uids of an index table, and (n,) int64 ordinals: how many earlier rows have the same content and key.

    uid = the first 16 bytes of SHA-256(content ‖ UTF-8 key ‖ ordinal as 8-byte little-endian), as 32 hex digits.
    seen        counts of what earlier shards held; is updated. Call it shard by shard in the pool's order
    repeated    `repeated_names` of all shards, where `seen` shall not grow with the rows that come once
    """
    seen = {} if seen is None else seen
    found, ordinals = np.empty(table.num_rows, "S32"), np.zeros(table.num_rows, np.int64)
    for row, base in enumerate(_bases(table)):
        name, ordinal = _name(base), 0
        if repeated is None or _half(name) in repeated:
            ordinal = seen.get(name, 0)
            seen[name] = ordinal + 1
        ordinals[row] = ordinal
        found[row] = hashlib.sha256(base + ordinal.to_bytes(8, "little")).hexdigest()[:32]
    return found, ordinals


def split_name(name: bytes) -> tuple[str, str, str | None]:
    """(key, suffix, fault) of a member's name; the suffix is empty where the name has none or is hidden (begins with a dot)."""
    text = name.decode("utf-8", "backslashreplace")
    while text.startswith("./"):
        text = text[2:]
    folder, slash, base = text.rpartition("/")
    stem, _, suffix = base.partition(".")
    unsafe = text.startswith("/") or ".." in folder.split("/")
    return folder + slash + stem, suffix.lower() if stem else "", "unsafe_name" if unsafe else None


def group(members: Iterable[Member]) -> tuple[list[Sample], list[str]]:
    """Samples in tar order, and a line for each sort of member that belongs to none."""
    samples: list[Sample] = []
    skipped: dict[str, list[Member]] = {}
    faulty: dict[str, list[Member]] = {}
    last = Sample("")
    for member in members:
        key, suffix, fault = split_name(member.name)
        if not suffix:
            base = member.name.rsplit(b"/", 1)[-1]
            skipped.setdefault("hidden" if base[:1] == b"." else "without an extension", []).append(member)
            continue
        if not samples or key != last.key or suffix in last.suffixes:
            last = Sample(key)
            samples.append(last)
        if member.kind:
            fault = "not_a_file"
            faulty.setdefault(f"a {member.kind}", []).append(member)
        elif fault:
            faulty.setdefault("named to lead out of its folder", []).append(member)
        elif member.missing:
            fault = "truncated"
        last.parts.append((suffix, member))
        last.suffixes.add(suffix)
        last.fault = last.fault or fault
    lines = [f"members that are {what}: {_some(those)}; not read" for what, those in skipped.items()]
    return samples, lines + [f"a member is {what}: {_some(those)}; the sample is set aside" for what, those in faulty.items()]


def _some(members: list[Member]) -> str:
    first = members[0]
    return f"{len(members)}, the first {first.name.decode('utf-8', 'backslashreplace')!r} at byte {first.offset}"


class _Rows:
    """Columns of the index as they grow."""

    def __init__(self) -> None:
        self.columns: dict[str, list] = {name: [] for name in INDEX_SCHEMA.names if name != "members"}
        self.metadata: list[bytes | None] = []
        self.hashes: dict[int, bytes] = {}  # member offset -> SHA-256 of its bytes
        self.starts, self.parts = [0], ([], [], [])  # type: tuple[list[int], tuple[list[str], list[int], list[int]]]
        self.not_utf8: list[str] = []

    def add(self, sample: Sample, reader: ShardReader) -> None:
        """Append the row of `sample`."""
        by_suffix = dict(sample.parts)
        image = _first(sample, IMAGES)
        text = _first(sample, TEXTS)
        body = reader.payload(text.offset, text.size) if text else None
        content, fault = hashlib.sha256(), sample.fault
        for member in (image, text):
            if member is not None and not member.kind:
                data = reader.payload(member.offset, member.size)
                content.update(member.size.to_bytes(8, "little"))
                content.update(data)
                self.hashes[member.offset] = hashlib.sha256(data).digest()
        payload = image or text
        usable = payload is not None and not payload.kind
        if payload is None:
            fault = fault or "no_payload"
        elif payload.size == 0:
            fault = fault or "zero_bytes"
        label, name = self._label(by_suffix.get("cls"), reader)
        caption = self._text(sample.key, bytes(body)) if body is not None else None
        meta = by_suffix.get("json")
        self.metadata.append(bytes(reader.payload(meta.offset, meta.size)) if meta else None)
        values = (
            sample.key,
            _suffix(sample, payload),
            payload.offset if usable and payload else None,
            payload.size if usable and payload else None,
            content.digest(),
            label,
            name,
            caption,
            None,
            fault,
        )
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        for suffix, member in sample.parts:
            if not member.kind:
                self.parts[0].append(suffix)
                self.parts[1].append(member.offset)
                self.parts[2].append(member.size)
        self.starts.append(len(self.parts[0]))

    def _label(self, member: Member | None, reader: ShardReader) -> tuple[int | None, str | None]:
        if member is None or not member.size:
            return None, None
        text = bytes(reader.payload(member.offset, min(member.size, 4096))).decode("utf-8", "replace").strip()
        number = text[1:] if text[:1] == "-" else text
        if number.isascii() and number.isdigit() and len(number) <= 10 and -(2**31) <= int(text) < 2**31:
            return int(text), None
        return None, text or None

    def _text(self, key: str, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.not_utf8.append(key)
            return data.decode("utf-8", "replace")

    def notes(self) -> list[str]:
        """What was noted on the way."""
        if not self.not_utf8:
            return []
        return [f"captions that are no UTF-8: {len(self.not_utf8)}, the first of {self.not_utf8[0]!r}; their bad bytes show as U+FFFD"]

    def table(self) -> pa.Table:
        """The columns as an Arrow table of `INDEX_SCHEMA`."""
        suffix, offset, size = (pa.array(part, kind) for part, kind in zip(self.parts, (pa.string(), pa.int64(), pa.int64()), strict=True))
        members = pa.ListArray.from_arrays(
            pa.array(self.starts, pa.int32()), pa.StructArray.from_arrays([suffix, offset, size], ["suffix", "offset", "size"])
        )
        arrays = [pa.array(values, INDEX_SCHEMA.field(name).type) for name, values in self.columns.items()]
        return pa.Table.from_arrays([*arrays, members.cast(INDEX_SCHEMA.field("members").type)], schema=INDEX_SCHEMA)


def _first(sample: Sample, suffixes: set[str]) -> Member | None:
    """The first member whose suffix is one of `suffixes`, else the first whose suffix ends in one (`img.v1.jpg`)."""
    for suffix, member in sample.parts:
        if suffix in suffixes:
            return member
    for suffix, member in sample.parts:
        if suffix.rpartition(".")[2] in suffixes:
            return member
    return None


def _suffix(sample: Sample, payload: Member | None) -> str | None:
    return next((suffix for suffix, member in sample.parts if member is payload), None)


def _name_faults(table: pa.Table) -> pa.Table:
    """Empty payloads of which ingest noted why they are empty are named so."""
    if INGEST_FAULT not in table.column_names or not pa.types.is_string(table[INGEST_FAULT].type):
        return table
    told = table[INGEST_FAULT]
    is_told = pc.and_(pc.fill_null(pc.equal(table["fault"], "zero_bytes"), False), pc.is_valid(told))
    if not pc.any(is_told).as_py():
        return table
    named = pc.if_else(pc.equal(told, "missing"), "missing", "unreadable")
    return table.set_column(table.schema.get_field_index("fault"), INDEX_SCHEMA.field("fault"), pc.if_else(is_told, named, table["fault"]))


def _name_labels(table: pa.Table, classes: list[str]) -> pa.Table:
    """Labels from names and names from labels, by the pool's list of classes."""
    if not classes:
        return table
    names, label, name = pa.array(classes, pa.string()), table["label"], table["label_name"]
    inside = pc.and_kleene(pc.greater_equal(label, 0), pc.less(label, len(classes)))
    named = pc.take(names, pc.if_else(inside, label, None))
    placed = pc.index_in(name, value_set=names)
    for column, values in (("label", pc.coalesce(label, placed)), ("label_name", pc.coalesce(name, named))):
        table = table.set_column(table.schema.get_field_index(column), INDEX_SCHEMA.field(column), values)
    return table


def _shard_digest(members: list[Member], hashes: dict[int, bytes], reader: ShardReader) -> str:
    whole = hashlib.sha256()
    for member in members:
        found = hashes.get(member.offset) if not member.kind else b"\0" * 32
        found = found or hashlib.sha256(reader.payload(member.offset, member.size)).digest()
        whole.update(len(member.name).to_bytes(8, "little") + member.name + member.size.to_bytes(8, "little") + found)
    return whole.hexdigest()
