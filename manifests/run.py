"""Open a run: nothing is loaded before it is asked for. `run.json` is read here and nowhere else."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.audit.visible import visible
from manifests.errors import Refusal
from manifests.numbered import numbered
from manifests.schema import FORMAT
from manifests.shards.pool_yaml import PoolDescription, Shard, apart, joined, open_pool, recorded_pool
from manifests.shards.read import opened
from manifests.strict_yaml import read_yaml

if TYPE_CHECKING:
    from manifests.dataset import KeptSamples

PATH = "path"  # the column that `curate ingest` of a folder gives a pool: the file's name below the folder
SHAPE: dict[str, type] = {"pool": dict, "stages": list}  # what every record has, and every reader asks for


@dataclass(frozen=True)
class StageRecord:
    """One stage of a run, as `run.json` has it. `counts`: rows in, kept, dropped (reason -> n), unjudged, quarantined (fault -> n)."""

    id: str
    name: str
    kind: str
    version: int
    parameters: dict[str, Any]
    digest: str
    counts: dict[str, Any] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)  # of each generation, where there are several; `digest` is the last one's

    def digest_of(self, generation: int) -> str:
        """The digest of its parts in a generation, counted from 0."""
        return self.digests[generation] if self.digests else self.digest


@dataclass(frozen=True)
class Run:
    """A run's folder. Paths of parts, the ledger, lineage; bytes of samples are read from the pool they came from."""

    path: Path

    @functools.cached_property
    def info(self) -> dict[str, Any]:
        """`run.json`: lineage, digests, versions, seeds, counts."""
        return read_record(self.path / "run.json")

    @functools.cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return read_yaml((self.path / "recipe.yaml").read_bytes(), str(self.path / "recipe.yaml"), "bad-recipe")

    @functools.cached_property
    def pool(self) -> PoolDescription:
        """The pool that was curated; of a run that grew all its pools as one, each shard with its own URL."""
        pools = [record for generation in self.generations for record in generation["pools"]]
        return open_pool(self.info["pool"]["path"]) if len(pools) < 2 else joined(apart([recorded_pool(record) for record in pools]))

    @property
    def generations(self) -> list[dict[str, Any]]:
        """What each generation is: `pools`, the `inputs` of their shards, `counts`, its `ledger` files and its `shards`. Empty in runs that are older than this."""
        return self.info.get("generations", [])

    @property
    def sources(self) -> list[str]:
        """What each pool was made from, such as a folder, as its `pool.yaml` says; "" where it says nothing."""
        return [str(pool.get("source") or "") for generation in self.generations for pool in generation["pools"]]

    def generation_of(self, shard: str) -> int:
        """The generation, from 0, that a shard ("source/name") came with."""
        return self._generation_of.get(shard, 0)

    @functools.cached_property
    def _generation_of(self) -> dict[str, int]:
        if len(self.generations) < 2:
            return {}
        ends = [0]
        for generation in self.generations:
            ends.append(ends[-1] + len(generation["inputs"]))
        return {s.id: g for g in range(len(self.generations)) for s in self.pool.shards[ends[g] : ends[g + 1]]}

    @functools.cached_property
    def stages(self) -> list[StageRecord]:
        """The stages in the order of the recipe, measures included."""
        return [StageRecord(**stage) for stage in self.info["stages"]]

    @property
    def evaluations(self) -> dict[str, str]:
        """Name -> path of each evaluation pool."""
        return self.info.get("evaluations", {})

    def ledger_files(self) -> list[Path]:
        """The ledger's files in shard order."""
        return numbered(self.path / "ledger", ".parquet")

    def ledger(self, columns: list[str] | None = None) -> pa.Table:
        """The whole ledger (or `columns` of it) as one Arrow table, in shard order."""
        return pa.concat_tables([pq.read_table(f, columns=columns) for f in self.ledger_files()], promote_options="permissive")

    def part(self, stage: str, shard: str) -> Path:
        """The file of `stage` (its id; also `identity`) for `shard` ("source/name"); it need not exist."""
        return self.path / "parts" / stage / f"{shard}.parquet"

    def vectors(self, name: str, shard: str) -> Path:
        """The file of vector column `name` for `shard`."""
        return self.path / "vectors" / name / f"{shard}.arrow"

    def edges(self, stage: str) -> list[Path]:
        """The files of a pairwise decision's edges, one a generation."""
        return numbered(self.path / "edges" / stage, ".parquet")

    def evaluation(self, name: str) -> "Run":
        """The measures of evaluation pool `name`, laid out as a run's (no ledger)."""
        return Run(self.path / "evaluations" / name)

    def find(self, identity: str, columns: list[str] | None = None) -> dict[str, Any]:
        """The ledger row of a uid, a key, a file's `path` as the pool has it or seen from outside its folder, the first digits of a uid (8 or more), or the
        end of a path, such as a file's name.

        columns     those to read, of which the ledger need not have every one; default all

        Raises `Refusal` [no-such-sample] where none, or more than one, fits.
        """
        identity = identity.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")  # a name that is no UTF-8, as the pool spells it
        path = identity if "://" in identity else os.path.normpath(identity)  # a shell completes ./cat/1.jpg
        paths = [(PATH, "equal", each) for each in (path, *self._below(path))]
        for column, how, value in (("uid", "equal", identity), ("key", "equal", identity), *paths, ("uid", "prefix", identity), (PATH, "end", path)):
            if how == "prefix" and len(value) < 8:
                continue
            found = [row for file in self.ledger_files() for row in _rows(file, column, how, value, columns)]
            if len(found) == 1:
                return found[0]
            if found:
                told = PATH if how == "end" and all(row.get(PATH) for row in found) else "uid"
                names = ", ".join(visible(row[told], 200) for row in found[:5])
                raise Refusal("no-such-sample", str(self.path), f"{identity!r} fits {len(found)} samples", "name one", f"Their {told}s: {names}")
        ids, example = "a key, a uid, or the first 8 or more digits of one", next(filter(None, map(_a_path, self.ledger_files())), None)
        if example is None:
            raise Refusal("no-such-sample", str(self.path), f"no sample has the key or uid {identity!r}", ids)
        files = f"a path as the pool has it, such as {visible(example, 200)!r}, or the end of one"
        raise Refusal("no-such-sample", str(self.path), f"no sample has the key, uid or path {identity!r}", f"{ids}; {files}")

    def _below(self, path: str) -> list[str]:
        """What a path says below the folder that a pool was made from, where it goes through one of that name."""
        names = dict.fromkeys(os.path.basename(os.path.normpath(source)) for source in self.sources)
        return [below for name in names if name and (below := f"/{path}".partition(f"/{name}/")[2])]

    @functools.cached_property
    def has_paths(self) -> bool:
        """Does the ledger have the column `path`, where a pool made of files says what each was called?"""
        return any(_has_text(pq.read_schema(file), PATH) for file in self.ledger_files())

    def payload(self, shard: str, offset: int, size: int) -> bytes:
        """The bytes of a sample's image (or text) member, from the pool."""
        return bytes(opened(self._urls[shard]).payload(offset, size))

    @functools.cached_property
    def _urls(self) -> dict[str, str]:
        return {s.id: s.url for s in self.pool.shards}

    def evaluation_payload(self, name: str, uid: str) -> bytes | None:
        """The bytes of sample `uid` of evaluation pool `name`; None where it is not there."""
        pool = open_pool(self.evaluations[name])
        for shard in pool.shards:
            identity = pq.read_table(self.evaluation(name).part("identity", shard.id), columns=["uid"])
            row = pc.index(identity["uid"], uid).as_py()
            if row >= 0:
                index = pq.read_table(self.evaluation(name).part("measure.index", shard.id), columns=["offset", "size"]).slice(row, 1).to_pylist()[0]
                return bytes(opened(shard.url).payload(index["offset"], index["size"]))
        return None

    def shards(self) -> Iterator[Shard]:
        """The pool's shards in order."""
        return iter(self.pool.shards)

    def explain(self, identity: str) -> dict[str, Any]:
        """The life of one sample, as `manifests explain` tells it."""
        from manifests.audit.explain import explain

        return explain(self.path, identity)

    def dataset(self, transform: Any = None) -> "KeptSamples":
        """The kept samples as a map-style dataset for torch (see `manifests/dataset.py`)."""
        from manifests.dataset import KeptSamples

        return KeptSamples(self, transform)


def _rows(file: Path, column: str, how: str, value: str, columns: list[str] | None) -> list[dict[str, Any]]:
    """The rows whose `column` is `value` ("equal"), begins with it ("prefix"), or is a path whose last names it is ("end")."""
    schema = pq.read_schema(file)
    if not _has_text(schema, column):
        return []
    text = pc.field(column).cast(pa.string()) if pa.types.is_dictionary(schema.field(column).type) else pc.field(column)
    condition = text == value if how == "equal" else pc.starts_with(text, value.lower()) if how == "prefix" else pc.ends_with(text, f"/{value}")
    if not pq.read_table(file, columns=[column], filters=condition).num_rows:  # most files: one column of them is enough
        return []
    return pq.read_table(file, columns=columns and [name for name in columns if name in schema.names], filters=condition).to_pylist()


def _a_path(file: Path) -> str | None:
    """The first path that a file of the ledger has."""
    if not _has_text(pq.read_schema(file), PATH):
        return None
    values = (value for batch in pq.ParquetFile(file).iter_batches(1024, columns=[PATH]) for value in batch.column(0).to_pylist())
    return next(filter(None, values), None)


def _has_text(schema: pa.Schema, column: str) -> bool:
    if column not in schema.names:
        return False
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # a column of few words
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


@contextlib.contextmanager
def reading(run: Run) -> Iterator[None]:
    """Tables of a run are read here: one that is no Parquet file is refused [broken-record]."""
    try:
        yield
    except pa.ArrowException as error:
        given = f"a file of it cannot be read: {visible(error, 300).rstrip('.')}"
        raise Refusal("broken-record", str(run.path), given, cure=f"See what is wrong: manifests verify {run.path}") from error


def read_record(file: Path) -> dict[str, Any]:
    """What a `run.json` says. Raises `Refusal` [broken-record] where it is damaged, or of a newer format."""
    record = _record(file)
    if isinstance(record, str):
        raise Refusal("broken-record", str(file), record, cure="Run the same `curate build` again: it writes the record anew from what stands")
    return record


def is_record(file: Path) -> bool:
    """Is there a `run.json`, and whole? A build writes one that is damaged anew, but refuses [broken-record] one of a newer format."""
    return file.is_file() and not isinstance(_record(file), str)


def _record(file: Path) -> dict[str, Any] | str:
    """A `run.json`, or what is wrong with it."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"cannot be read: {visible(error, 200)}"
    if not isinstance(record, dict):
        return f"is no record of a run: it holds {visible(json.dumps(record), 40)}"
    number = record.get("format", 0)
    if not isinstance(number, int):
        return f"is of format {visible(json.dumps(number), 40)}"
    if number > FORMAT:
        raise Refusal(
            "broken-record", str(file.parent), f"is of format {number}", f"this keepset reads formats up to {FORMAT}", "Install a newer keepset"
        )
    wrong = [name for name, kind in SHAPE.items() if not isinstance(record.get(name), kind)]
    if wrong:
        return f"is no whole record of a run: {' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} not there, or something else"
    try:
        for stage in record["stages"]:
            StageRecord(**stage)
    except TypeError:
        return "is no whole record of a run: a stage lacks a field, or has one that no stage has"
    return record


def open_run(path: Path | str) -> Run:
    """Open the run in folder `path`. Raises `Refusal`: [no-such-file], [not-a-run], [broken-record] for a damaged record, or one of a newer format."""
    run = Run(Path(path))
    if not run.path.is_dir():
        raise Refusal("no-such-file", str(path), "is not a folder", "a run made by `curate build`")
    if not (run.path / "run.json").is_file():
        raise Refusal("not-a-run", str(path), "holds no run.json", "a finished run", "Finish it: run the same `curate build` again")
    run.info  # noqa: B018  (reads the record now: a damaged one is refused here)
    return run
