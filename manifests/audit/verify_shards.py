"""The part of `verify` that looks at written shards: how many samples, in which order, and (deep) whether each byte is the pool's."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.audit.visible import visible
from manifests.errors import Refusal
from manifests.run import Run

Finding = dict[str, str]
REBUILD = "run the same `curate build … --recheck`, it rewrites what does not match"
Member = tuple[str, int, int]  # suffix, offset, size


def uid_of(content: bytes, key: str, ordinal: int) -> str:
    """The identity of a sample, as DESIGN has it: 32 hex digits over content, key and ordinal."""
    return hashlib.sha256(content + key.encode("utf-8", "surrogateescape") + int(ordinal).to_bytes(8, "little")).hexdigest()[:32]


def check_shards(run: Run, ledger: pa.Table, deep: bool, checked: dict[str, int]) -> list[Finding]:
    """Findings about `shards/`: missing or surplus tars, counts, sidecars, `sizes.json`, and with `deep` every byte."""
    written = ledger.filter(ledger["out_shard"].is_valid())
    folder = run.path / "shards"
    there = {file.stem: file for file in folder.glob("*.tar")} if folder.is_dir() else {}
    if not there and (not written.num_rows or run.info.get("shards") == "planned"):
        return []  # a run without shards: nothing was written, nothing is promised
    found: list[Finding] = []
    by_shard = _by_shard(written)
    found += [_finding(there[name], "is not in the ledger", "remove it") for name in sorted(set(there) - set(by_shard))]
    sizes = _json(folder / "sizes.json")
    for name, rows in sorted(by_shard.items()):
        checked["shards"] += 1
        if name not in there:
            found.append(_finding(folder / f"{name}.tar", f"is missing ({len(rows):,} samples)"))
            continue
        found += _one(run, there[name], rows, written, sizes, deep, checked)
    kept = int(pc.sum(pc.equal(ledger["status"].cast(pa.string()), "kept")).as_py() or 0)
    if written.num_rows != kept:
        found.append(_finding(folder, f"{written.num_rows:,} samples have a place in the shards, {kept:,} were kept"))
    return found


def _finding(where: Path | str, what: str, cure: str = REBUILD) -> Finding:
    return {"slug": "shard-differs", "where": str(where), "what": what, "cure": cure, "severity": "error"}


def _by_shard(written: pa.Table) -> dict[str, np.ndarray]:
    """Rows of `written` in each output shard, in their order there."""
    names = pc.unique(written["out_shard"].cast(pa.string()))
    shard = pc.index_in(written["out_shard"].cast(pa.string()), value_set=names).to_numpy()
    order = np.lexsort((written["out_row"].to_numpy(), shard))
    ends = np.searchsorted(shard[order], np.arange(len(names) + 1))
    return {name: order[ends[number] : ends[number + 1]] for number, name in enumerate(names.to_pylist())}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _one(run: Run, file: Path, rows: np.ndarray, written: pa.Table, sizes: Any, deep: bool, checked: dict[str, int]) -> list[Finding]:
    found: list[Finding] = []
    try:
        samples = list(samples_of(file))
    except (tarfile.TarError, OSError, EOFError) as error:
        return [_finding(file, f"cannot be read: {visible(error, 160)}")]
    if file.stat().st_size % 512 or not _ends(file):
        found.append(_finding(file, "does not end as a tar does: it was cut short"))
    if len(samples) != len(rows):
        found.append(_finding(file, f"holds {len(samples):,} samples, the ledger says {len(rows):,}"))
    if sizes is not None and sizes.get(file.name, sizes.get(file.stem)) != len(rows):
        found.append(
            _finding(
                file.parent / "sizes.json",
                f"gives {file.name} {visible(sizes.get(file.name, sizes.get(file.stem)), 40)} samples, the ledger {len(rows):,}",
            )
        )
    try:
        beside = pq.ParquetFile(file.with_suffix(".parquet")).metadata.num_rows
        if beside != len(rows):
            found.append(_finding(file.with_suffix(".parquet"), f"has {beside:,} rows, the ledger says {len(rows):,}"))
    except (pa.ArrowException, OSError) as error:
        found.append(_finding(file.with_suffix(".parquet"), f"cannot be read: {visible(error, 160)}"))
    if deep and len(samples) == len(rows):
        found += _bytes(run, file, samples, rows, written, checked)
    return found


def samples_of(file: Path) -> Iterator[tuple[str, list[Member]]]:
    """(key, members) of each sample of a tar that keepset wrote; headers are read, bytes are skipped."""
    key: str | None = None
    members: list[Member] = []
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            name, _, suffix = member.name.partition(".")
            if key is not None and name != key:
                yield key, members
                members = []
            key = name
            members.append((suffix, member.offset_data, member.size))
    if key is not None:
        yield key, members


def _ends(file: Path) -> bool:
    """Two blocks of zeros end a tar."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        handle.seek(max(0, size - 1024))
        return handle.read() == bytes(1024)


def _bytes(
    run: Run, file: Path, samples: list[tuple[str, list[Member]]], rows: np.ndarray, written: pa.Table, checked: dict[str, int]
) -> list[Finding]:
    """Compare each member with the pool's, where the index says that it lies."""
    wrong: list[tuple[str, int, int]] = []
    lost: dict[str, str] = {}
    members: dict[str, list[Any]] = {}
    with open(file, "rb") as handle:
        for (_, mine), row in zip(samples, rows, strict=True):
            sample = written.slice(int(row), 1).select(["uid", "shard", "row", "offset", "size"]).to_pylist()[0]
            checked["samples"] += 1
            try:
                theirs = _members(run, sample, members)
                same = _same(run, handle, mine, sample["shard"], theirs)
            except (OSError, KeyError, IndexError, pa.ArrowException, Refusal) as error:
                lost[sample["shard"]] = visible(error, 160)
                continue
            if not same:
                wrong.append((sample["uid"], mine[0][1], mine[-1][1] + mine[-1][2]))
    found = [
        _finding(shard, f"cannot be read for comparison: {why}", "bring the pool back to where run.json says it is") for shard, why in lost.items()
    ]
    if wrong:
        first = wrong[0]
        found.append(_finding(file, f"bytes {first[1]}-{first[2]} differ from the pool ({len(wrong):,} samples, first {first[0]})"))
    return found


def _members(run: Run, sample: dict[str, Any], known: dict[str, list[Any]]) -> list[Member]:
    if sample["shard"] not in known:
        table = pq.read_table(run.part("measure.index", sample["shard"]))
        known[sample["shard"]] = table["members"].to_pylist() if "members" in table.column_names else [None] * table.num_rows
    given = known[sample["shard"]][sample["row"]]
    return [(m["suffix"], m["offset"], m["size"]) for m in given] if given else [("", sample["offset"], sample["size"])]


def _same(run: Run, handle: Any, mine: list[Member], shard: str, theirs: list[Member]) -> bool:
    """Each member that the pool has for this sample stands here with the same bytes; only a payload is known where the index lists none."""
    written = []
    for suffix, offset, size in mine:
        handle.seek(offset)
        written.append((suffix, handle.read(size)))
    pool = [(suffix, run.payload(shard, offset, size)) for suffix, offset, size in theirs]
    if pool and not pool[0][0]:
        return pool[0][1] in [body for _, body in written]
    return sorted(pool) == sorted(written)
