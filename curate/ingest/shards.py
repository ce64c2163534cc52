"""Shards that exist already (webdataset, img2dataset, DataComp): only `pool.yaml` is written, nothing beside them."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.ingest.pack import INDEXED, NAMED, claim, source_place
from curate.ingest.table import KINDS
from manifests.errors import Refusal
from manifests.publish import publish_json
from manifests.shards.columns import RESERVED
from manifests.shards.index import IMAGES
from manifests.shards.pool_yaml import Shard, expand, open_pool, write_pool_yaml
from manifests.shards.read import found_at


def shards(source: str, *, to: Path, name: str | None = None, licence: str | None = None) -> dict[str, Any]:
    """Describe the tars of `source` (a folder, a URL with brace ranges, or several joined by `::`) as a pool in folder `to`.

    Each folder that holds tars becomes one source, named by its path. The columns and types of the Parquet files beside the tars are read
    from their footers: `uid` becomes the samples' source_uid, `key` joins. Where two shards give a column two types, the wider number or text stands.
    Rows that img2dataset failed to download are counted by their status; they have no sample.

    Errors      [no-such-file] no tar there; [bad-pool] two shards of one source share a name; [bad-value] `to` holds another pool
    """
    groups = _groups(source)
    listed = [{"name": group, "shards": urls if len(urls) > 1 else urls[0]} for group, urls in sorted(groups.items())]
    text = " ".join(url for urls in groups.values() for url in urls)
    if re.search(r"[{}]|::", text):
        raise Refusal("bad-pool", source, "a shard's name holds `{`, `}` or `::`", "names without them", "Rename that file")
    claim(to, source)
    columns, notes = _columns([Shard(group, Path(url).stem, url) for group, urls in groups.items() for url in urls])
    write_pool_yaml(to, name=name or to.resolve().name, sources=listed, columns=columns, licence=licence, source=source)
    pool = open_pool(to)
    beside = _tables(source)
    if beside:
        more = f" and {len(beside) - NAMED} more" if len(beside) > NAMED else ""
        notes["tables_left_out"] = f"{', '.join(beside[:NAMED])}{more}. Name one to ingest it, or `curate attach` it"
    metadata = list((Path(source) / "metadata").glob("*.parquet"))
    if metadata:  # DataComp keeps its scores apart from the shards
        notes["metadata"] = f"{len(metadata)} files under metadata: `curate attach` joins them by uid"
    summary: dict[str, Any] = {"source": source, "shards": len(pool.shards), "sources": len(groups), "columns": columns, **notes}
    publish_json(to / "ingest.json", {**summary, "place": source_place(source), "finished": True})
    return summary


def holds_tars(source: Path) -> bool:
    """Does a folder hold tars, in it or one level down, and no picture in either place?"""
    names = [p.suffix.lower()[1:] for p in _entries(source)]
    return "tar" in names and not IMAGES & set(names)


def _entries(source: Path) -> list[Path]:
    """What lies in a folder and one level down, hidden names left out, in the order of their names."""
    top = sorted(p for p in source.iterdir() if not p.name.startswith("."))
    return top + [
        p
        for folder in top
        if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK)
        for p in sorted(folder.iterdir())
        if not p.name.startswith(".")
    ]


def _tables(source: str) -> list[str]:
    """The tables in a folder of shards that are neither the Parquet beside a tar nor DataComp's metadata: nothing of them is taken."""
    if source.endswith(".tar") or "://" in source:
        return []
    found = [p for p in _entries(Path(source)) if p.is_file() and p.suffix.lower() in KINDS and p.parent != Path(source) / "metadata"]
    return [str(p.relative_to(source)) for p in found if p.suffix != ".parquet" or not p.with_suffix(".tar").exists()]


def _groups(source: str) -> dict[str, list[str]]:
    """Source name -> absolute URLs of its tars."""
    if not source.endswith(".tar") and "://" not in source:
        root = Path(source)
        found = [p for p in _entries(root) if p.suffix == ".tar" and p.is_file()]
        if not found:
            raise Refusal("no-such-file", source, "holds no tar", "a folder of WebDataset shards")
        groups: dict[str, list[str]] = {}
        for tar in found:
            below = "-".join(tar.parent.relative_to(root).parts) or root.resolve().name
            groups.setdefault(re.sub(r"[^A-Za-z0-9_.-]", "_", below), []).append(os.path.abspath(tar))
        return groups
    urls = expand(source)
    missing = [url for url in urls if not _exists(url)]
    if missing:
        raise Refusal("no-such-file", missing[0], f"is not there ({len(missing)} of {len(urls)} shards are missing)", "shards that exist")
    groups = {}
    for url in urls:
        parent = url.rsplit("/", 2)[-2] if url.count("/") > 1 else "shards"
        groups.setdefault(re.sub(r"[^A-Za-z0-9_.-]", "_", parent), []).append(url if "://" in url else os.path.abspath(url))
    return groups


def _exists(url: str) -> bool:
    return found_at(url) is not None


def _columns(found: list[Shard]) -> tuple[dict[str, str], dict[str, Any]]:
    """Column -> type over the sidecars, and what was noted: shards without one, rows, downloads that failed, types that differ."""
    types: dict[str, pa.DataType] = {}
    differ: dict[str, list[str]] = {}
    status: Counter[str] = Counter()
    rows = without = 0
    for shard in found:
        there = found_at(shard.sidecar)
        if there is None:
            without += 1
            continue
        handle, plain, _ = there
        with handle.open(plain, "rb") as file:
            try:
                parquet = pq.ParquetFile(file)
                rows += parquet.metadata.num_rows
                for field in parquet.schema_arrow:
                    types[field.name], mixed = _wider(types.get(field.name, pa.null()), field.type)
                    if mixed:
                        differ.setdefault(field.name, []).append(shard.id)
                if "status" in parquet.schema_arrow.names:
                    status.update(str(s) for s in parquet.read(["status"])["status"].to_pylist())
            except pa.ArrowInvalid as error:
                raise Refusal("bad-pool", shard.sidecar, "is no whole Parquet file", "the file that img2dataset wrote beside the tar") from error
    notes: dict[str, Any] = {"sidecar_rows": rows}
    if without:
        notes["shards_without_sidecar"] = without
    if status:
        notes["downloads"] = dict(sorted(status.items()))
    if differ:
        notes["columns_of_mixed_type"] = differ
    own = {
        f"pool_{name}" if name in RESERVED else name: str(kind) for name, kind in types.items() if name not in INDEXED and not name.startswith("__")
    }
    return own, notes


def _wider(a: pa.DataType, b: pa.DataType) -> tuple[pa.DataType, bool]:
    """The type that holds values of both, and whether that is text because they do not fit together."""
    if a == b or pa.types.is_null(b):
        return a, False
    if pa.types.is_null(a):
        return b, False
    if all(pa.types.is_integer(t) or pa.types.is_floating(t) for t in (a, b)):
        return (pa.float64() if pa.types.is_floating(a) or pa.types.is_floating(b) else pa.int64()), False
    return pa.string(), True
