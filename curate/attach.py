"""Give a pool vectors, scores or columns that were made elsewhere, so that nobody computes them twice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.ingest.table import read_csv, read_json
from manifests.digest import digest, file_digest
from manifests.errors import Refusal, near
from manifests.progress import Progress
from manifests.publish import publish_table, published_digest
from manifests.shards.columns import RESERVED
from manifests.shards.index import index_shard, uids
from manifests.shards.pool_yaml import PoolDescription, Shard, open_pool, write_pool_yaml
from manifests.shards.read import local_path
from manifests.strict_yaml import read_yaml
from manifests.vectors.store import vectors_digest, write_vectors

VERSION = 1
IDS = ("uid", "source_uid", "key", "path")  # columns of a table that name samples, in the order in which they are tried


@dataclass
class _Given:
    """What a table holds: `rows` with its names and columns, and vectors in parts, one after another. `by_place`: row i belongs to the pool's row i."""

    files: list[Path]
    rows: pa.Table | None
    vectors: list[np.ndarray] | None = None
    by_place: bool = False


@dataclass
class _Place:
    """One shard: where its rows lie in the table, -1 where they do not."""

    shard: Shard
    digest: str
    at: np.ndarray


def attach(
    pool: str | Path,
    table: str | Path,
    *,
    name: str,
    key: str | None = None,
    vectors: str | None = None,
    columns: list[str] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Join a table, or vectors, to a pool's samples, and write what was joined beside `pool.yaml`, one file a shard, row i for sample i.

    table       CSV, JSON lines or Parquet with a name and columns; Parquet with a column of lists as vectors; `.npy`, row i for the pool's i-th sample
                (floats (n, d) are vectors, numbers (n,) or (n, 1) the column `name`); `.npz` with the Parquet of the same name beside it; a folder of such
                pairs (DataComp's metadata); a folder with `img_emb` and `metadata` (clip-retrieval)
    name        of the attachment, and of the vector column or of the one column of an `.npy`
    key         the table's column that names samples, or COLUMN=OTHER where the pool calls it OTHER. Default: the first of uid, source_uid, key, path
                that the table has. A `uid` is compared with the pool's source_uid where the pool has one
    vectors     which vectors: the array of an `.npz`, the list column of a Parquet, or `text_emb` of a clip-retrieval folder (default `img_emb`)
    columns     which columns; default all that the pool has not yet. Not together with vectors: an attachment is one or the other
    Vectors     are scaled to length one in float64 and kept as float16; one that is not finite, or zero, becomes null
    Columns     NaN and infinities become null
    Writes      POOL/attached/NAME/SOURCE/SHARD.parquet or .arrow, and an entry under `attached` in `pool.yaml`. The pool's shards may lie at a URL, its
                pool.yaml not; a pool that was copied to a URL with its `attached` is read there by every build
    Returns     matched, unmatched in the pool, unmatched in the table, null vectors, what was left out
    Cost        one pass over the shards' bytes (they give the rows' identity) and one over the table
    Errors      [bad-pool], [unknown-column], [no-such-file]; [bad-value]: a pool or a table at a URL, a name twice in the table, a name that stands for two
                samples, vectors that do not fit, no match at all
    """
    described, body = _pool(str(pool))
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in RESERVED:
        raise Refusal("bad-value", "--name", f"{name!r} cannot name a column", "letters, digits and `_`, and no name that keepset uses itself")
    given = _read(_here(str(table), "the table", "Fetch it first"), vectors, key, name)
    _refuse_ignored(given, str(table), key, vectors, columns)
    made = digest(VERSION, name, key, vectors, columns, [file_digest(f) for f in given.files])
    places, counts = _join(described, given, key, str(table), quiet)
    folder = Path(described.folder()) / "attached" / name
    if given.vectors is not None:
        kinds, notes = _write_vectors(folder, name, given.vectors, places, made)
    else:
        assert given.rows is not None
        wanted = [name] if given.by_place else columns
        option = "--name" if given.by_place else "--column"
        kinds, notes = _write_columns(folder, name, given.rows, wanted, places, made, described, key, option)
    entry = {"name": name, "kind": "columns" if given.vectors is None else "vectors", "columns": kinds}
    attached = [a for a in body.get("attached") or [] if a["name"] != name] + [entry]
    fields = {k: v for k, v in body.items() if k not in ("format", "attached")}
    write_pool_yaml(Path(described.folder()), **fields, attached=attached)
    for stale in folder.rglob("*.arrow" if given.vectors is None else "*.parquet"):  # an earlier attachment of this name and the other kind
        stale.unlink()
    return {"name": name, "kind": entry["kind"], "columns": kinds, **counts, **notes}


def _refuse_ignored(given: _Given, table: str, key: str | None, vectors: str | None, columns: list[str] | None) -> None:
    """Refuse options that mean nothing for this table: an option that is ignored is a wrong result."""
    if key and given.by_place:
        raise Refusal("bad-value", "--key", f"{key} was given, and {table} names no samples: its row i is the pool's i-th", cure="Leave it out")
    if columns and given.by_place:
        raise Refusal("bad-value", "--column", f"{', '.join(columns)} was given, and {table} has no names of columns", cure="Leave it out")
    if columns and given.vectors is not None:
        what = f"{', '.join(columns)} was given with vectors{f' ({vectors})' if vectors else ''}"
        cure = "Attach the columns by a second call, with another --name and without --vectors"
        raise Refusal("bad-value", "--column", what, "an attachment is vectors or columns", cure)


def _here(path: str, what: str, cure: str) -> Path:
    """A path on this machine. Raises `Refusal` [bad-value] for any other URL: what is read at one is not written there."""
    here = local_path(path)
    if here is None:
        raise Refusal("bad-value", path, f"{what} lies at a URL", "a path on this machine", cure)
    return Path(here)


def _pool(pool: str) -> tuple[PoolDescription, dict[str, Any]]:
    cure = "Attach where the pool lies, and copy pool.yaml and attached/ there; or describe its shards here: curate ingest 'URL/{00000..00009}.tar' --to POOL"
    described = open_pool(_here(pool, "the pool, beside whose pool.yaml the files are written,", cure))
    if not described.path.endswith((".yaml", ".yml")):
        raise Refusal("bad-pool", pool, "has no pool.yaml of its own", "a folder with pool.yaml", "Make one with `curate ingest SHARDS --to POOL`")
    return described, read_yaml(Path(described.path).read_bytes(), described.path, "bad-pool")


def _read(table: Path, vectors: str | None, key: str | None, name: str) -> _Given:
    if not table.exists():
        raise Refusal("no-such-file", str(table), "is not there", "a table, .npy, .npz or a folder of them")
    if table.is_dir():
        return _read_folder(table, vectors)
    kind = table.suffix.lower()
    if vectors is not None and kind in (".npy", ".csv", ".tsv", ".jsonl", ".ndjson"):
        given, allowed = f"{vectors} says nothing about a {kind}", "a column of lists in a Parquet, an array of an .npz"
        raise Refusal(
            "bad-value", "--vectors", given, allowed, "Leave it out: an .npy is taken whole" if kind == ".npy" else "Write the table as Parquet"
        )
    if kind == ".npy":
        return _npy(table, name)
    if kind == ".npz":
        return _read_folder(table.parent, vectors, [table.with_suffix(".parquet")], needs_vectors=True)
    if kind == ".parquet":
        return _parquet([table], vectors)
    names = {*IDS, *([key.partition("=")[0]] if key else [])}
    if kind in (".csv", ".tsv"):
        return _Given([table], read_csv(table, names))
    if kind in (".jsonl", ".ndjson"):
        return _Given([table], read_json(table, names))
    raise Refusal("bad-value", str(table), f"ends in {kind!r}", ".parquet, .csv, .jsonl, .npy, .npz or a folder")


def _npy(file: Path, name: str) -> _Given:
    """An array without names: vectors where it is wider than one, else the column `name`."""
    array = _array(file)
    if array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1):
        if array.dtype.kind not in "fiub":
            cure = "Give a CSV or Parquet with a name and columns"
            raise Refusal("bad-value", str(file), f"is an array of {array.dtype}", "numbers, true or false", cure)
        kind = np.result_type(array.dtype.newbyteorder("="), np.float32) if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
        values = np.ascontiguousarray(array.reshape(-1), np.float64 if kind.itemsize > 8 else kind)
        return _Given([file], pa.table({name: pa.array(values)}), by_place=True)
    return _Given([file], None, [array], by_place=True)


def _read_folder(folder: Path, vectors: str | None, parquets: list[Path] | None = None, needs_vectors: bool = False) -> _Given:
    if (folder / "metadata").is_dir() and list(folder.glob("*_emb")):
        return _clip_retrieval(folder, vectors or "img_emb")
    parquets = sorted(folder.glob("*.parquet")) if parquets is None else parquets
    gone = [str(p) for p in parquets if not p.exists()]
    if gone or not parquets:
        where, given = (gone[0], "is not there") if gone else (str(folder), "holds no Parquet")
        raise Refusal("no-such-file", where, given, "the Parquet that names the rows, beside the vectors")
    if vectors is None and not needs_vectors:
        return _parquet(parquets, None)
    parts, files = [], []
    for parquet in parquets:
        npz = parquet.with_suffix(".npz")
        if not npz.exists():
            return _parquet(parquets, vectors)
        with np.load(npz, allow_pickle=False) as arrays:
            chosen = vectors if vectors is not None else arrays.files[0] if len(arrays.files) == 1 else None
            if chosen not in arrays.files:
                raise Refusal(
                    "unknown-column",
                    str(npz),
                    f"has no array {chosen!r}" if chosen else "holds several arrays",
                    f"its arrays: {', '.join(arrays.files)}",
                    "Name one with --vectors",
                )
            parts.append(arrays[chosen])
        files += [npz, parquet]
    return _aligned(files, pa.concat_tables([pq.read_table(p) for p in parquets], promote_options="permissive"), parts, str(folder))


def _clip_retrieval(folder: Path, which: str) -> _Given:
    def number(path: Path) -> int:
        return int(re.sub(r"\D", "", path.stem.rsplit("_", 1)[-1]) or 0)

    vectors, names = sorted((folder / which).glob("*.npy"), key=number), sorted((folder / "metadata").glob("*.parquet"), key=number)
    if not vectors or [number(v) for v in vectors] != [number(n) for n in names]:
        raise Refusal("bad-value", str(folder), f"has {len(vectors)} files in {which} and {len(names)} in metadata", "the same numbers in both")
    rows = pa.concat_tables([pq.read_table(n) for n in names], promote_options="permissive")
    if "key" not in rows.column_names and "image_path" in rows.column_names:  # of shards, clip-retrieval writes the key there
        rows = rows.rename_columns(["key" if c == "image_path" else c for c in rows.column_names])
    return _aligned([*vectors, *names], rows, [_array(v) for v in vectors], str(folder))


def _parquet(files: list[Path], vectors: str | None) -> _Given:
    try:
        rows = pa.concat_tables([pq.read_table(f) for f in files], promote_options="permissive")
    except pa.ArrowInvalid as error:
        raise Refusal("bad-value", str(files[0]), f"is no whole Parquet file: {str(error).splitlines()[0]}", "Parquet") from error
    if vectors is None:
        return _Given(files, rows)
    if vectors not in rows.column_names:
        raise Refusal("unknown-column", str(files[0]), f"has no column {vectors!r}", f"its columns: {', '.join(rows.column_names)}")
    lists = rows[vectors].combine_chunks()
    width = pc.max(pc.list_value_length(lists)).as_py() or 0
    if pc.min(pc.list_value_length(lists)).as_py() != width:
        raise Refusal("bad-value", str(files[0]), f"the lists of {vectors!r} differ in length", "vectors of one length")
    filled = pc.fill_null(lists, pa.scalar([float("nan")] * width, lists.type)) if lists.null_count else lists
    return _aligned(files, rows.drop_columns([vectors]), [np.asarray(pc.list_flatten(filled)).reshape(-1, width)], str(files[0]))


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise Refusal("bad-value", str(path), f"is no array of numbers ({error})", "an (n, d) array of floats that numpy.save wrote") from error


def _aligned(files: list[Path], rows: pa.Table, parts: list[np.ndarray], where: str) -> _Given:
    if rows.num_rows != sum(len(p) for p in parts):
        raise Refusal("bad-value", where, f"{sum(len(p) for p in parts):,} vectors and {rows.num_rows:,} names", "one name a vector")
    return _Given(files, rows, parts)


def _join(pool: PoolDescription, given: _Given, key: str | None, where: str, quiet: bool) -> tuple[list[_Place], dict[str, int]]:
    """Where each sample lies in the table, and how many found a place."""
    ours = _identities(pool, key, quiet)
    bounds = np.cumsum([0] + [t.num_rows for _, _, t in ours])
    total = int(bounds[-1])
    if given.by_place or given.rows is None:
        count = given.rows.num_rows if given.rows is not None else sum(len(part) for part in given.vectors or [])
        if count != total:
            raise Refusal(
                "bad-value", where, f"has {count:,} rows", f"row i for sample i: the pool has {total:,}", "Give a Parquet that names the rows"
            )
        at, in_table = np.arange(total), total
    else:
        column, on = _names(given.rows, ours, key, where)
        mine = pa.chunked_array([c for _, _, t in ours for c in t[on].cast(pa.string()).chunks], pa.string())
        at, in_table = _look_up(mine, given.rows[column].cast(pa.string()).combine_chunks(), on, column, where), given.rows.num_rows
    matched = int((at >= 0).sum())
    counts = {"matched": matched, "unmatched_in_pool": total - matched, "unmatched_in_table": in_table - matched}
    return [_Place(s, d, at[a:b]) for (s, d, _), a, b in zip(ours, bounds[:-1], bounds[1:], strict=True)], counts


def _identities(pool: PoolDescription, key: str | None, quiet: bool) -> list[tuple[Shard, str, pa.Table]]:
    """Each shard, its digest, and the columns of its rows that a table can name them by."""
    found = []
    seen: dict[bytes, int] = {}
    wanted = dict.fromkeys([*IDS, *([_pool_column(key)] if key else [])])
    with Progress("attach", len(pool.shards), unit="shards", quiet=quiet) as progress:
        for shard in pool.shards:
            indexed = index_shard(shard, classes=pool.classes)
            columns = {name: indexed.table[name] for name in wanted if name in indexed.table.column_names}
            columns["uid"] = pa.chunked_array([pa.array(uids(indexed.table, seen)[0].astype("U32"), pa.string())])
            found.append((shard, indexed.digest, pa.table(columns)))
            progress.advance()
    return found


def _look_up(mine: pa.ChunkedArray, theirs: pa.Array, on: str, column: str, where: str) -> np.ndarray:
    """(n,) int64: the row of the table that names each sample, -1 where none does."""
    twice = [v["values"] for v in pc.value_counts(theirs.drop_null()).to_pylist() if v["counts"] > 1]
    if twice:
        raise Refusal("bad-value", where, f"{len(twice):,} names stand twice in {column!r}, the first {twice[0]!r}", "each name once")
    row = np.append(np.flatnonzero(theirs.is_valid().to_numpy(zero_copy_only=False)), -1)  # the last stands for "none"
    at = row[pc.fill_null(pc.index_in(mine, value_set=theirs.drop_null(), skip_nulls=True), -1).to_numpy()]
    found, often = np.unique(at[at >= 0], return_counts=True)
    if not len(found):
        examples = (
            f"a sample's is {mine[0].as_py()!r}, the table's first {theirs[0].as_py()!r}" if len(mine) and len(theirs) else "the table is empty"
        )
        raise Refusal("bad-value", where, f"no {column!r} of the table is the {on!r} of a sample", examples, "Name the columns with --key TABLE=POOL")
    if (often > 1).any():
        name = theirs[int(found[often > 1][0])].as_py()
        given = f"{name!r} is the {on!r} of {int(often.max())} samples ({int((often > 1).sum()):,} such names)"
        raise Refusal("bad-value", where, given, "a name for one sample", "Join by uid")
    return at


def _pool_column(key: str) -> str:
    return key.partition("=")[2] or key


def _names(rows: pa.Table, ours: Sequence[tuple[Shard, str, pa.Table]], key: str | None, where: str) -> tuple[str, str]:
    """The table's column that names samples, and the pool's column that it is compared with."""
    column = key.partition("=")[0] if key else next((c for c in IDS if c in rows.column_names), None)
    if column is None or column not in rows.column_names:
        given = f"has no column {column!r}" if column else "has no column that names samples"
        raise Refusal("unknown-column", where, given, f"its columns: {', '.join(rows.column_names)}", "Name one with --key COLUMN")
    on = _pool_column(key) if key else column
    if on == "uid" and any(t["source_uid"].null_count < t.num_rows for _, _, t in ours):
        on = "source_uid"
    if not all(on in t.column_names for _, _, t in ours):
        raise Refusal("unknown-column", where, f"the pool has no column {on!r}", f"{', '.join(IDS)} or a column of the pool", "Say --key TABLE=POOL")
    return column, on


def _write_vectors(folder: Path, name: str, parts: list[np.ndarray], places: list[_Place], made: str) -> tuple[dict[str, str], dict[str, int]]:
    shapes = {p.shape[1:] for p in parts}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1 or any(p.dtype.kind != "f" for p in parts):
        raise Refusal("bad-value", name, f"arrays of shape {sorted(p.shape for p in parts)[0]} and type {parts[0].dtype}", "(n, d) floats, one d")
    starts = np.cumsum([0] + [len(p) for p in parts])
    nulls = 0
    for place in places:
        path = folder / place.shard.source / f"{place.shard.name}.arrow"
        block = np.full((len(place.at), parts[0].shape[1]), np.nan)
        part = np.searchsorted(starts, place.at, side="right") - 1
        for p in np.unique(part[place.at >= 0]):
            here = np.flatnonzero((part == p) & (place.at >= 0))
            block[here] = parts[p][place.at[here] - starts[p]]
        length = np.sqrt(np.einsum("ij,ij->i", block, block))
        valid = np.isfinite(length) & (length > 0)
        nulls += int((~valid & (place.at >= 0)).sum())
        identity = digest(made, place.digest)
        if vectors_digest(path) != identity:
            block[~valid] = 0
            write_vectors(path, (block / np.where(valid, length, 1)[:, None]).astype(np.float16), valid, identity)
    matched = sum(int((place.at >= 0).sum()) for place in places)
    if matched and nulls == matched:
        raise Refusal(
            "bad-value",
            name,
            f"none of the {matched:,} vectors is of finite numbers and longer than zero",
            "vectors that can be scaled to length one",
        )
    return {name: f"float16[{parts[0].shape[1]}]"}, {"null_vectors": nulls, "scaled_to_length_one": True}  # type: ignore[dict-item]


def _write_columns(
    folder: Path, name: str, rows: pa.Table, wanted: list[str] | None, places: list[_Place], made: str, pool: PoolDescription, key: str | None,
    option: str,
) -> tuple[dict[str, str], dict[str, Any]]:  # fmt: skip
    elsewhere = {c: f"the attachment {a['name']} has a column of that name" for a in pool.attached if a["name"] != name for c in a["columns"]}
    elsewhere |= dict.fromkeys(pool.columns, "the pool has a column of that name")
    elsewhere |= dict.fromkeys(RESERVED, "keepset uses that name itself")
    names = {*IDS, *([key.partition("=")[0]] if key else [])}
    for column in wanted or []:
        if column not in rows.column_names:
            raise Refusal(
                "unknown-column",
                "--column",
                f"the table has no {column!r}",
                f"its columns: {', '.join(rows.column_names)}",
                near(column, rows.column_names),
            )
        if column in elsewhere:
            cure = "Give another one" if option == "--name" else "Rename it in the table"
            raise Refusal("bad-value", option, f"{column!r}: {elsewhere[column]}", "a new name", cure)
    left_out = {}
    kept = {}
    for column in wanted if wanted is not None else [c for c in rows.column_names if c not in names]:
        values = rows[column]
        if column in elsewhere:
            left_out[column] = elsewhere[column]
        elif pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
            left_out[column] = f"{values.type}: vectors are attached with --vectors"
        else:
            kept[column] = pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type)) if pa.types.is_floating(values.type) else values
    if not kept:
        raise Refusal("bad-value", name, f"no column is left to attach: {left_out or 'the table has none'}", "columns that the pool has not yet")
    kinds = pa.schema([(column, values.type) for column, values in kept.items()])
    table = pa.table({column: _in_one_piece(values) for column, values in kept.items()})
    for place in places:
        path = folder / place.shard.source / f"{place.shard.name}.parquet"
        identity = digest(made, place.digest)
        if published_digest(path) != identity:
            publish_table(path, table.take(pa.array(place.at, mask=place.at < 0)).cast(kinds), identity)
    return {f.name: str(f.type) for f in kinds}, {"columns_left_out": left_out} if left_out else {}


def _in_one_piece(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without its pieces: `take` puts them together anew each time, so that every shard would cost as much as the whole table.

    Text comes as `large_string`, of which more than 2 GiB fit into one piece.
    """
    return pa.chunked_array([(values.cast(pa.large_string()) if pa.types.is_string(values.type) else values).combine_chunks()])
