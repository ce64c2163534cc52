"""The measured pool as decisions see it: which rows are live, where each column lies, how bytes are read back."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.attached import attached_digests, attached_path
from curate.measuring import measure_digest, part_path, readable_rows, vector_name, vector_path
from curate.recipe import ResolvedStage
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.publish import publish_table, published_digest, read_part
from manifests.schema import IDENTITY, is_truth
from manifests.shards.columns import types_of
from manifests.shards.pool_yaml import PoolDescription, Shard
from manifests.shards.read import ShardReader, opened
from manifests.vectors.store import Vectors, vectors_digest

INDEX_ONLY = {"suffix", "offset", "size", "content", "fault", "members"}  # columns of the index that no decision reads


@dataclass
class Lineage:
    """What one generation follows from: the digest of each stage over its own shards, and `chain`, that of everything that made its rows live or not."""

    digests: dict[str, str]
    chain: str


@dataclass
class Frame:
    """A pool measured into `root`. Rows are numbered from 0 in shard order over the whole pool.

    inputs      the input digest of each shard, in order
    counts      the rows of each shard, in order
    live        (n,) bool: rows that no stage so far has dropped or quarantined
    catalog     column -> id of the stage that writes it ("measure.index" for the pool's own; "attached/NAME" for attached ones)
    bounds      the shard with which each generation begins: the first with shard 0, each further one where `curate append` added shards
    lineage     one entry a generation; nothing in it depends on a later one
    """

    root: Path
    pool: PoolDescription
    inputs: list[str]
    counts: np.ndarray
    live: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    catalog: dict[str, str] = field(default_factory=dict)
    made: dict[str, list[str]] = field(default_factory=dict)  # vector column -> the digest of each shard's file
    bounds: tuple[int, ...] = (0,)
    lineage: list[Lineage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.starts = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        self.live = np.ones(int(self.starts[-1]), bool)
        for name in self._index_columns():
            self.catalog[name] = "measure.index"
        for number in range(len(self.bounds)):
            shards, _ = self.span(number)
            chain = digest("measure.index", [self.inputs[i] for i in shards])
            attached = attached_digests(self.pool, self.root, [self.shards[i] for i in shards])
            found = {f"attached/{entry['name']}": given for entry, given in zip(self.pool.attached, attached, strict=True)}
            self.lineage.append(Lineage({"measure.index": chain, **found}, chain))
        for entry in self.pool.attached:
            for name in entry.get("columns") or [entry["name"]]:
                self.catalog[name] = f"attached/{entry['name']}"

    def own_types(self) -> dict[str, pa.DataType]:
        """The pool's own columns, attached ones and `truth_*` included, with the type that `read` gives them."""
        found = {"uid": pa.string()}
        for stage in ("measure.index", *(f"attached/{entry['name']}" for entry in self.pool.attached)):
            paths = [path for shard in self.shards if (path := self._path(stage, shard)).suffix == ".parquet" and path.exists()]
            found |= types_of(pq.read_schema(path) for path in paths)
        return {name: kind for name, kind in found.items() if name not in INDEX_ONLY}

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each stage in the newest generation; a decision's carries those of the earlier ones."""
        return self.lineage[-1].digests

    @property
    def chain(self) -> str:
        """The newest generation's chain."""
        return self.lineage[-1].chain

    def span(self, generation: int) -> tuple[range, slice]:
        """The shards of a generation, as places in `shards`, and its rows."""
        first, last = self.bounds[generation], (*self.bounds, len(self.shards))[generation + 1]
        return range(first, last), slice(int(self.starts[first]), int(self.starts[last]))

    @property
    def shards(self) -> Sequence[Shard]:
        """The pool's shards in order."""
        return self.pool.shards

    def _index_columns(self) -> list[str]:
        names: dict[str, None] = {}
        for shard in self.shards:
            names.update(dict.fromkeys(pq.read_schema(part_path(self.root, "measure.index", shard)).names))
        return [n for n in names if n not in INDEX_ONLY and not is_truth(n)]

    def _path(self, stage: str, shard: Shard) -> Path:
        if stage.startswith("attached/"):
            return attached_path(self.pool, stage, shard, self.root)
        return part_path(self.root, stage, shard)

    def identify(self) -> None:
        """Publish `parts/identity`: uids, shard by shard in their order (the ordinal counts earlier equal rows). 8 bytes a row are held."""
        from manifests.shards.index import repeated_names, uids

        made_of = identity_digests(self.inputs)
        self.catalog["uid"] = "identity"
        self._note("identity", made_of)
        stands = [published_digest(part_path(self.root, "identity", s)) == d for s, d in zip(self.shards, made_of, strict=True)]
        if all(stands):
            return
        names = ["content", "key"]
        repeated = repeated_names(pq.read_table(part_path(self.root, "measure.index", s), columns=names) for s in self.shards)
        seen: dict[Any, Any] = {}
        for shard, part_digest, is_there in zip(self.shards, made_of, stands, strict=True):
            index = pq.read_table(part_path(self.root, "measure.index", shard), columns=names)
            uid, ordinal = uids(index, seen, repeated)
            if is_there:
                continue
            table = pa.table({"uid": pa.array(uid).cast(pa.string()), "ordinal": pa.array(ordinal, pa.int64())}, schema=IDENTITY)
            publish_table(part_path(self.root, "identity", shard), table, part_digest, bloom="uid")

    def add_measure(self, stage: ResolvedStage, recorded: bool = False) -> dict[str, int]:
        """Put a measure's columns into the catalogue and quarantine the rows that it found faulty; returns fault -> rows.

        recorded    take the digests that its parts carry: neither weights nor pool need be there to tell them
        """
        if recorded:
            made_of = [published_digest(part_path(self.root, stage.id, shard)) or "" for shard in self.shards]
        else:
            made_of = [measure_digest(stage, given) for given in self.inputs]
        self._note(stage.id, made_of)
        for name in stage.writes:
            self.catalog[name] = stage.id
        if stage.name == "measure.vectors":
            self.catalog[vector_name(stage)] = stage.id
            self.made[vector_name(stage)] = made_of
        return self.quarantine(stage.id)

    def _note(self, stage_id: str, made_of: list[str]) -> None:
        """Note the digests of a stage's parts, one a shard, in the lineage of each generation."""
        for number, lineage in enumerate(self.lineage):
            lineage.digests[stage_id] = digest(stage_id, [made_of[i] for i in self.span(number)[0]])

    def quarantine(self, stage_id: str) -> dict[str, int]:
        """Take the live rows with a fault of `stage_id` out of `live`; returns fault -> rows."""
        fault = self.read(stage_id, ["fault"])["fault"]
        faulty = pc.is_valid(fault).to_numpy() & self.live
        if not faulty.any():
            return {}
        for number, lineage in enumerate(self.lineage):
            rows = self.span(number)[1]
            if faulty[rows].any():
                lineage.chain = digest(lineage.chain, stage_id, (rows.start + np.flatnonzero(faulty[rows])).tolist())
        self.live &= ~faulty
        return _counted(fault.filter(pa.array(faulty)))

    def faults(self, stage_id: str) -> dict[str, int]:
        """Fault -> rows, of all rows in which a stage finds one."""
        return _counted(self.read(stage_id, ["fault"])["fault"].drop_null())

    def read(self, stage: str, columns: list[str], rows: np.ndarray | None = None, shards: range | None = None) -> pa.Table:
        """`columns` of a stage's parts for all rows (of `shards`), or for `rows` (n,) bool, in shard order. A shard without a column gives nulls."""
        tables: list[pa.Table] = []
        for number in shards if shards is not None else range(len(self.shards)):
            shard = self.shards[number]
            mask = None if rows is None else rows[self.starts[number] : self.starts[number + 1]]
            if mask is not None and not mask.any() and len(tables):
                continue
            table, count = read_part(self._path(stage, shard), columns), int(self.counts[number])
            table = pa.table({c: table[c] if c in table.column_names else pa.nulls(count) for c in columns})
            tables.append(table if mask is None else table.filter(pa.array(mask)))
        if not tables:
            return pa.table({c: pa.array([], pa.null()) for c in columns})
        return pa.concat_tables(tables, promote_options="permissive")

    def columns(self, names: list[str], rows: np.ndarray) -> pa.Table:
        """Columns by name, wherever they lie, for `rows` (n,) bool."""
        found: dict[str, pa.ChunkedArray] = {}
        for stage in dict.fromkeys(self.catalog[n] for n in names):
            mine = [n for n in names if self.catalog[n] == stage]
            table = self.read(stage, mine, rows)
            found.update({n: table[n] for n in mine})
        return pa.table({n: found[n] for n in names})

    def uid(self, rows: np.ndarray) -> np.ndarray:
        """(m,) `S32` uids of `rows`."""
        chunks = [chunk for chunk in self.read("identity", ["uid"], rows)["uid"].chunks if len(chunk)]
        found = [np.frombuffer(c.buffers()[2], np.uint8)[c.offset * 32 : (c.offset + len(c)) * 32].view("S32") for c in chunks]
        return np.concatenate(found) if found else np.zeros(0, "S32")

    def vectors(self, name: str) -> tuple[Vectors, np.ndarray]:
        """Vector column `name` of all rows that have one, and (n,) bool saying which rows these are.

        Raises `Refusal` [broken-record] where a measured shard with readable rows lacks its file, or has that of another encoder.
        """
        from manifests.vectors.store import valid_rows

        stage = self.catalog[name]
        paths, valid = [], np.zeros(int(self.starts[-1]), bool)
        position = np.full(int(self.starts[-1]), -1, np.int64)
        at = 0
        for number, shard in enumerate(self.shards):
            path = self._path(stage, shard) if stage.startswith("attached/") else vector_path(self.root, name, shard)
            if name in self.made and vectors_digest(path) != self.made[name][number]:
                if not readable_rows(self.root, shard):
                    continue
                what = "is not what its part was published with" if path.exists() else "is missing"
                raise Refusal("broken-record", str(path), what, "the vectors of its shard", "Run the same `curate build … --recheck`")
            if not path.exists() or path.suffix != ".arrow":
                continue
            span = slice(self.starts[number], self.starts[number + 1])
            valid[span] = valid_rows(path)
            position[span] = np.arange(at, at + self.counts[number])
            at += int(self.counts[number])
            paths.append(path)
        if not paths:
            raise Refusal("unknown-column", name, "holds no vectors at all", "one vector a live row")
        return Vectors.open(paths, rows=position[valid]), valid

    def vector_files(self) -> list[Path]:
        """The vector files that the measures so far have written."""
        return [p for name in self.made for s in self.shards if (p := vector_path(self.root, name, s)).exists()]

    @cached_property
    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        table = self.read("measure.index", ["offset", "size"])
        return table["offset"].to_numpy(), table["size"].to_numpy()

    def payload_reader(self, rows: np.ndarray) -> Callable[[np.ndarray], Iterator[Any]]:
        """A function from local indices into `rows` (global row numbers) to the bytes of these samples."""

        def read(chosen: np.ndarray) -> Iterator[Any]:
            offset, size = self._members
            open_shard, reader = -1, None
            for row in rows[chosen]:
                shard = int(np.searchsorted(self.starts, row, side="right")) - 1
                if shard != open_shard:
                    open_shard, reader = shard, self._open(shard)
                assert reader is not None
                yield reader.payload(int(offset[row]), int(size[row]))

        return read

    def _open(self, number: int) -> ShardReader:
        """The reader of a shard. Raises `Refusal` [no-such-file], which for a shard of an earlier generation says why it is needed."""
        try:
            return opened(self.shards[number].url, version=self.inputs[number])
        except Refusal as error:
            if error.slug != "no-such-file" or number >= self.bounds[-1]:
                raise
            given = "this shard of an earlier generation is missing, and new pictures are compared with those that it kept"
            raise Refusal("no-such-file", error.where, given, "appended runs read their older pools where they were", "Bring it back") from error


def _counted(faults: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in sorted(pc.value_counts(faults).to_pylist(), key=lambda item: item["values"])}


def identity_digests(inputs: list[str]) -> list[str]:
    """The digest of each shard's `parts/identity`: of all shards up to it, whose equal rows its ordinals count."""
    made_of, before = [], ""
    for given in inputs:
        before = digest("identity", 1, before, given)
        made_of.append(before)
    return made_of
