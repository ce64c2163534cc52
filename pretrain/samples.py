"""A pool, a run or shards -> where each sample's picture lies, its uid, label and weight."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import Refusal

if TYPE_CHECKING:
    from manifests.shards.read import ShardReader


@dataclass(frozen=True)
class Samples:
    """Where each sample's picture lies; rows sorted by uid.

    uid         (n,) text of 32 hex digits; number: its first 8 bytes as int64, in the same order
    label       (n,) int64, -1 = none; num_classes counts the source's classes before `uids` restricts it
    weight      (n,) float64: expected visits a pass
    file, offset, size   which of `urls`, and the bytes of the picture in it
    """

    uid: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    file: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    urls: tuple[str, ...]
    num_classes: int
    number: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        heads = np.array([int(u[:16], 16) for u in self.uid.tolist()], np.uint64) ^ np.uint64(1 << 63)
        object.__setattr__(self, "number", heads.view(np.int64))

    def __len__(self) -> int:
        return len(self.uid)

    def take(self, rows: np.ndarray) -> "Samples":
        """The given rows, in the order of their uids."""
        rows = np.sort(rows)
        columns = {name: getattr(self, name)[rows] for name in ("uid", "label", "weight", "file", "offset", "size")}
        return replace(self, **columns)

    def digest(self) -> str:
        """64 hex digits over uids, labels and weights: what a training set is, wherever it lies."""
        found = hashlib.sha256(str(self.num_classes).encode())
        for column in (self.uid.astype("S32"), self.label, self.weight):
            found.update(np.ascontiguousarray(column).tobytes())
        return found.hexdigest()

    def payload(self, row: int) -> bytes:
        """The bytes of one sample's picture."""
        return bytes(shard_reader(self.urls[self.file[row]]).payload(int(self.offset[row]), int(self.size[row])))


def open_samples(data: list[str], uids: str | Path | None = None) -> Samples:
    """The samples of all sources in `data`, or those of them that the list `uids` names.

    data    pools (a folder with pool.yaml, or a shard URL), runs (a folder with a ledger: its kept rows, read from the pool) or a folder of written shards
    uids    a Parquet file with column `uid` and, optionally, `weight`; or a text file, one uid a line. A run's rows are then taken whatever their status
    Errors  [no-such-file], [no-such-sample] for a listed uid that is not there, [empty-pool], [bad-value] where two sources hold one uid
    """
    if not data:
        raise Refusal("bad-value", "data", "names no source", "a list of pools, runs or folders of shards")
    tables = [_open_source(str(source), every_row=uids is not None) for source in data]
    table = pa.concat_tables([t[0] for t in tables]).combine_chunks()
    table = table.take(pc.sort_indices(table, [("uid", "ascending")]))
    uid = table["uid"].to_numpy(zero_copy_only=False).astype("U32")
    twice = np.flatnonzero(uid[1:] == uid[:-1])
    if len(twice):
        raise Refusal("bad-value", "data", f"{len(twice)} samples stand in two sources, the first is {uid[twice[0]]}", "a uid may come only once")
    label = pc.fill_null(table["label"], -1).to_numpy().astype(np.int64)
    urls, file = np.unique(table["url"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    samples = Samples(
        uid, label, pc.fill_null(table["weight"], 1.0).to_numpy(), file.astype(np.int32), table["offset"].to_numpy(), table["size"].to_numpy(),
        tuple(urls.tolist()), max(t[1] for t in tables),
    )  # fmt: skip
    if uids is not None:
        samples = _restricted(samples, Path(uids))
    if not len(samples) or not samples.weight.sum() > 0:
        raise Refusal("empty-pool", ", ".join(map(str, data)), "holds no sample to train on", "at least one sample with a weight above 0")
    return samples


def _restricted(samples: Samples, path: Path) -> Samples:
    wanted, weight = _listed(path)
    wanted, first = np.unique(wanted, return_index=True)
    row = np.searchsorted(samples.uid, wanted).clip(max=max(len(samples) - 1, 0))
    missing = samples.uid[row] != wanted if len(samples) else np.ones(len(wanted), bool)
    if missing.any():
        raise Refusal(
            "no-such-sample",
            str(path),
            f"{int(missing.sum())} of {len(wanted)} uids are not in the data, the first is {wanted[missing][0]}",
            "uids of the data",
        )
    return replace(samples.take(row), weight=weight[first])


def _listed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(n,) U32 uids and (n,) float64 weights of a list, as it has them."""
    allowed = "a Parquet file with column uid, or a text file with one uid a line"
    if not path.is_file():
        raise Refusal("no-such-file", str(path), "is not a file", allowed)
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pa.table({"uid": pa.array(path.read_text("utf-8").split(), pa.string())})
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Refusal("bad-value", str(path), "cannot be read", allowed) from error
    if "uid" not in table.column_names:
        raise Refusal("unknown-column", str(path), "has no column uid", f"its columns: {', '.join(table.column_names)}")
    uid = table["uid"].cast(pa.string()).to_numpy(zero_copy_only=False).astype("U32")
    if "weight" not in table.column_names:
        return uid, np.ones(len(uid))
    kind = table["weight"].type
    weight = (
        pc.fill_null(table["weight"].cast(pa.float64()), 1.0).to_numpy()
        if any(f(kind) for f in (pa.types.is_integer, pa.types.is_floating, pa.types.is_null))
        else None
    )
    if weight is None or not (np.isfinite(weight) & (weight >= 0)).all():
        raise Refusal(
            "bad-value", f"{path}: weight", f"is {kind}" if weight is None else "has values that are no weights", "numbers from 0 up, or null for 1"
        )
    return uid, weight


def _open_source(source: str, every_row: bool) -> tuple[pa.Table, int]:
    """(uid, label, weight, url, offset, size) of one source, and how many classes it has."""
    folder = Path(source)
    if (folder / "ledger").is_dir():
        return _of_run(folder, every_row)
    if "://" not in source and folder.is_dir() and not (folder / "pool.yaml").is_file():
        table = _of_shards(folder)
        return table, _num_labels(table["label"])
    return _of_pool(source)


def _of_run(folder: Path, every_row: bool) -> tuple[pa.Table, int]:
    from manifests.run import open_run

    run = open_run(folder)
    ledger = run.ledger(["uid", "label", "weight", "shard", "offset", "size", "status"])
    wanted = pc.is_valid(ledger["offset"])
    if not every_row:
        wanted = pc.and_(wanted, pc.equal(ledger["status"].cast(pa.string()), "kept"))
    urls = {shard.id: shard.url for shard in run.pool.shards}
    num_classes = max(len(run.pool.classes), _num_labels(ledger["label"]))  # all rows count, kept or not: every arm sees the same classes
    ledger = ledger.filter(wanted)
    url = [urls[s] for s in ledger["shard"].cast(pa.string()).to_pylist()]
    return _source_table(ledger["uid"], ledger["label"], ledger["weight"], url, ledger["offset"], ledger["size"]), num_classes


def _num_labels(label: pa.ChunkedArray) -> int:
    top = pc.max(label).as_py()
    return 0 if top is None else top + 1


def _of_shards(folder: Path) -> pa.Table:
    """Written shards: NNNNN.tar beside NNNNN.parquet with uid, key, label and, optionally, weight."""
    from manifests.numbered import numbered
    from manifests.shards.index import index_shard
    from manifests.shards.pool_yaml import Shard

    tables = []
    tars = numbered(folder, ".tar")
    if not tars:
        raise Refusal("no-such-file", str(folder), "holds neither pool.yaml nor ledger nor *.tar", "a pool, a run or a folder of written shards")
    for tar in tars:
        sidecar = tar.with_suffix(".parquet")
        if not sidecar.is_file():
            raise Refusal(
                "no-such-file",
                str(sidecar),
                "is missing beside its tar",
                "written shards come with their Parquet",
                "Give the pool or the run instead",
            )
        named = pq.read_table(sidecar)
        index = index_shard(Shard(folder.name, tar.stem, str(tar))).table
        place = {key: i for i, key in enumerate(index["key"].to_pylist())}
        rows = [place.get(key, -1) for key in named["key"].to_pylist()]
        if -1 in rows:
            raise Refusal(
                "shard-differs",
                str(tar),
                f"lacks the key {named['key'][rows.index(-1)].as_py()!r} of its Parquet",
                "",
                "Run `manifests verify` on the run",
            )
        found = index.take(pa.array(rows, pa.int64()))
        weight = named["weight"] if "weight" in named.column_names else pa.nulls(len(named), pa.float64())
        tables.append(_source_table(named["uid"], named["label"], weight, [str(tar)] * len(named), found["offset"], found["size"]))
    return pa.concat_tables(tables)


def _of_pool(source: str) -> tuple[pa.Table, int]:
    from manifests.shards.index import TEXTS, index_shard, uids
    from manifests.shards.pool_yaml import open_pool

    pool = open_pool(source)
    tables, seen = [], dict[bytes, int]()
    for shard in pool.shards:
        index = index_shard(shard, classes=pool.classes).table
        named = pa.array(uids(index, seen)[0].astype("U32").tolist(), pa.string())  # every row counts, also those without a picture
        found = _source_table(named, index["label"], pa.nulls(len(index), pa.float64()), [shard.url] * len(index), index["offset"], index["size"])
        is_text = pc.is_in(pc.fill_null(index["suffix"], ""), value_set=pa.array(sorted(TEXTS)))
        tables.append(found.filter(pc.and_(pc.is_valid(index["offset"]), pc.invert(is_text))))
    table = pa.concat_tables(tables) if tables else _source_table(*[pa.nulls(0)] * 6)
    return table, max(len(pool.classes), _num_labels(table["label"]))


def _source_table(uid: pa.Array, label: pa.Array, weight: pa.Array, url: list[str] | pa.Array, offset: pa.Array, size: pa.Array) -> pa.Table:
    columns = {"uid": uid, "label": label, "weight": weight, "url": url, "offset": offset, "size": size}
    kinds = {"uid": pa.string(), "label": pa.int64(), "weight": pa.float64(), "url": pa.string(), "offset": pa.int64(), "size": pa.int64()}
    return pa.table({name: (pa.array(c) if isinstance(c, list) else c).cast(kinds[name]) for name, c in columns.items()})


def shard_reader(url: str) -> "ShardReader":
    """The open reader of a tar."""
    from manifests.shards.read import opened

    return opened(url, block=1 << 17)  # reads come in no order
