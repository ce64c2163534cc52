"""The pool's own columns: top-level scalars of `.json` members, and the Parquet beside a shard, joined by key."""

import json
import math
from collections.abc import Callable, Container, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.errors import Refusal
from manifests.shards.read import found_at, reaching

__all__ = ["INGEST_FAULT", "RESERVED", "column_of", "from_json", "join_sidecar", "sidecar_schema", "types_of"]

LEDGER = (
    ("uid", "key", "source_uid", "content", "shard", "row", "offset", "size", "suffix", "members", "fault", "label", "label_name", "caption", "status")
    + ("drop_stage", "drop_reason", "score", "threshold", "witness", "witness_pool", "weight", "out_shard", "out_row")
)  # fmt: skip
MEASURES = (
    ("width", "height", "channels", "format", "blur", "brightness", "contrast", "entropy", "noise", "is_animated", "orientation", "num_pixels", "num_bytes")
    + ("bytes_hash", "pixels_hash", "phash", "phash256", "phash_views", "phash256_views", "phash_trimmed_views", "phash256_trimmed_views", "inner_pixels", "dhash")
)  # fmt: skip
RESERVED = frozenset(LEDGER + MEASURES)  # a column of the pool with such a name is called `pool_<name>`
INGEST_FAULT = "ingest_fault"  # column that `curate ingest` writes: why a sample's bytes could not be read; its member is then empty
READ = ("key", "caption", "uid", "source_uid", "label", "label_name")  # go into columns of the index, so are not repeated


def from_json(texts: list[bytes | None]) -> pa.Table:
    """(n rows) one column for each top-level scalar of the JSON objects; null where a row has none, or JSON that cannot be read.

    Whole numbers that meet fractions become float64, anything else that differs becomes text.
    """
    objects = [_object(text) for text in texts]
    names: dict[str, None] = {}
    for found in objects:
        names.update(dict.fromkeys(found))
    columns = {}
    for name in names:
        values = [found.get(name) for found in objects]
        kinds = {type(v) for v in values if v is not None}
        if kinds:
            columns[name] = _typed(values, kinds)
    return pa.table(columns) if columns else pa.table({"": pa.nulls(len(texts))}).select([])


def _object(text: bytes | None) -> dict[str, Any]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str | int | float | bool) and k} if isinstance(found, dict) else {}


def _typed(values: list[Any], kinds: set[type]) -> pa.Array:
    if kinds <= {int, float}:
        if kinds == {int} and all(v is None or -(2**63) <= v < 2**63 for v in values):
            return pa.array(values, pa.int64())
        return pa.array([None if v is None or not math.isfinite(v) else float(v) for v in values], pa.float64())
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    return pa.array(
        [None if v is None else (v if isinstance(v, str) else json.dumps(v)).encode("utf-8", "replace").decode() for v in values], pa.string()
    )


def join_sidecar(index: pa.Table, url: str, extra: pa.Table, schema: pa.Schema) -> pa.Table:
    """`index` with the pool's own columns appended: `extra` (row by row) and the Parquet at `url`, if there is one, by key.

    caption, source_uid, label and label_name are filled where the members gave none. Errors: `Refusal` [bad-pool] for a Parquet without `key`.
    """
    found = {name: extra[name] for name in extra.column_names}
    beside = _sidecar(index["key"], url)
    for name in beside.column_names:
        found[name] = beside[name]
    index = _fill(index, "caption", [found[n] for n in ("caption", "text") if n in found])
    index = _fill(index, "source_uid", [found[n] for n in ("source_uid", "uid") if n in found])
    index = _fill(index, "label", [found["label"]] if "label" in found and pa.types.is_integer(found["label"].type) else [])
    index = _fill(index, "label_name", [found[n] for n in ("label_name", "label") if n in found and not pa.types.is_integer(found[n].type)])
    assert index.schema.equals(schema), index.schema
    for name, values in found.items():
        column = column_of(name, found)
        if column is None:
            continue
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        index = index.append_column(column, values)
    return index


def column_of(name: str, beside: Container[str]) -> str | None:
    """The pool's column that a name of a sidecar or of `.json` members becomes, among the names `beside` it; None where it goes into the index or nowhere."""
    if name in READ or name.startswith("__") or not name or (name == "text" and "caption" not in beside):
        return None
    return f"pool_{name}" if name in RESERVED else name


def _fill(index: pa.Table, name: str, sources: list[pa.ChunkedArray]) -> pa.Table:
    kind = index.schema.field(name).type
    column = index[name]
    for source in sources:
        if pa.types.is_dictionary(source.type):
            source = source.cast(source.type.value_type)
        column = pc.coalesce(column, pc.cast(source, kind, safe=False))
    return index.set_column(index.schema.get_field_index(name), index.schema.field(name), column)


def _sidecar(keys: pa.ChunkedArray, url: str) -> pa.Table:
    """The Parquet's columns in the order of `keys`; nulls where it has no such key."""
    table = _asked(url, lambda parquet: parquet.read())
    if table is None:
        return pa.table({"": pa.nulls(len(keys))}).select([])
    if "key" not in table.column_names:
        raise Refusal("bad-pool", url, f"has no column `key`; its columns: {', '.join(table.column_names)}", "rows are joined to samples by key")
    places: dict[str, list[int]] = {}
    for row, key in enumerate(table["key"].cast(pa.string()).to_pylist()):
        places.setdefault(key, []).append(row)
    used: dict[str, int] = {}
    order: list[int | None] = []
    for key in keys.to_pylist():
        rows = places.get(key) or places.get(key.rsplit("/", 1)[-1])
        nth = used.get(key, 0)
        used[key] = nth + 1
        order.append(rows[min(nth, len(rows) - 1)] if rows else None)
    return table.take(pa.array(order, pa.int64()))


def sidecar_schema(url: str) -> pa.Schema | None:
    """The columns of the Parquet at `url` with their types, from its footer; None where it is not there. Raises `Refusal` as `join_sidecar`."""
    return _asked(url, lambda parquet: parquet.schema_arrow)


def types_of(schemas: Iterable[pa.Schema]) -> dict[str, pa.DataType]:
    """Column -> the type that holds it in all of `schemas`; of types that do not fit together the first."""
    found: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        try:
            pair = [pa.schema({field.name: kind}) for kind in (found.get(field.name, pa.null()), field.type)]
            found[field.name] = pa.unify_schemas(pair, promote_options="permissive").field(0).type
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            continue
    return found


def _asked(url: str, ask: Callable[[pq.ParquetFile], Any]) -> Any:
    """What `ask` finds in the Parquet at `url`; None where it is not there."""
    found = found_at(url)
    if found is None:
        return None
    store, plain, _ = found
    try:
        with reaching(url), store.open(plain, "rb") as file:
            return ask(pq.ParquetFile(file))
    except pa.ArrowInvalid as error:
        raise Refusal(
            "bad-pool", url, "is no whole Parquet file", "the columns of the samples of the shard beside it", "Write it again, or take it away"
        ) from error
