"""Open a run: nothing is loaded before it is asked for."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import Refusal
from manifests.schema import FORMAT
from manifests.shards.pool_yaml import PoolDescription, Shard, apart, joined, open_pool, recorded_pool
from manifests.shards.read import ShardReader
from manifests.strict_yaml import read_yaml

if TYPE_CHECKING:
    from manifests.dataset import KeptSamples


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
        return json.loads((self.path / "run.json").read_text(encoding="utf-8"))

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
        return sorted((self.path / "ledger").glob("*.parquet"))

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
        """The files of a pairwise decision's edges."""
        return sorted((self.path / "edges" / stage).glob("*.parquet"))

    def evaluation(self, name: str) -> "Run":
        """The measures of evaluation pool `name`, laid out as a run's (no ledger)."""
        return Run(self.path / "evaluations" / name)

    def find(self, identity: str, columns: list[str] | None = None) -> dict[str, Any]:
        """The ledger row of a uid, a unique uid prefix (8 digits or more), or a key.

        Raises `Refusal` [no-such-sample] where none, or more than one, fits.
        """
        for column, how in (("uid", "equal"), ("key", "equal"), ("uid", "prefix")):
            if how == "prefix" and len(identity) < 8:
                continue
            found = [row for file in self.ledger_files() for row in _rows(file, column, how, identity, columns)]
            if len(found) == 1:
                return found[0]
            if found:
                raise Refusal(
                    "no-such-sample",
                    str(self.path),
                    f"{identity!r} fits {len(found)} samples",
                    "name one",
                    "Their uids: " + ", ".join(r["uid"] for r in found[:5]),
                )
        raise Refusal(
            "no-such-sample", str(self.path), f"no sample has the key or uid {identity!r}", "a key, a uid, or the first 8 or more digits of one"
        )

    def payload(self, shard: str, offset: int, size: int) -> bytes:
        """The bytes of a sample's image (or text) member, from the pool."""
        return bytes(self._reader(shard).payload(offset, size))

    def _reader(self, shard: str) -> ShardReader:
        return _reader(self._urls[shard])

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
                return bytes(_reader(shard.url).payload(index["offset"], index["size"]))
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
    field = pc.field(column)
    condition = field == value if how == "equal" else pc.starts_with(field, value.lower())
    return pq.read_table(file, columns=columns, filters=condition).to_pylist()


@functools.lru_cache(maxsize=64)
def _reader(url: str) -> ShardReader:
    return ShardReader(url)


def open_run(path: Path | str) -> Run:
    """Open the run in folder `path`. Raises `Refusal`: [no-such-file], [not-a-run], [broken-record] for another format."""
    run = Run(Path(path))
    if not run.path.is_dir():
        raise Refusal("no-such-file", str(path), "is not a folder", "a run made by `curate build`")
    if not (run.path / "run.json").is_file():
        raise Refusal("not-a-run", str(path), "holds no run.json", "a finished run", "Finish it: run the same `curate build` again")
    if run.info.get("format", 0) > FORMAT:
        raise Refusal(
            "broken-record", str(path), f"is of format {run.info['format']}", f"this keepset reads formats up to {FORMAT}", "Install a newer keepset"
        )
    return run
