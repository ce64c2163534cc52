"""A table as samples: CSV, JSON lines or Parquet with a path or the bytes of a picture in each row, and any further columns."""

import csv
import io
import json
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.ingest.pack import SAFE_KEY, Samples, Unreadable, keys_of, own_columns
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.shards.index import IMAGES

KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
IMAGE = ("image", "path", "image_path", "filepath", "file_path", "file_name", "filename", "file", "img", "jpg", "png", "bytes")
CAPTION = ("caption", "text")
LABEL = ("label", "class", "category")
HEAD = 1 << 16  # characters of a CSV in which its first line is looked for


def table(source: Path, *, image: str | None = None, caption: str | None = None, label: str | None = None, key: str | None = None) -> Samples:
    """The rows of a table (or of a folder of tables of one kind, in the order of their names) as samples, in their order.

    image       column of paths (absolute, or relative to the table), of bytes, or of {bytes, path} as datasets on the Hub have it;
                default: the first of `image`, `path`, `file_name`, … that is there
    caption     column of captions; default `caption`, else `text`. They go into the `.txt` members
    label       column of labels; default `label`, `class` or `category`. Whole numbers stay; text becomes classes in byte order
    key         column of names; default: made from the path, else the row's number
    A row whose file is missing or unreadable stays: its member is empty, `ingest_fault` says why, and a run quarantines it.
    Delimiter   of a CSV the one of `,` `;` and tab that parts its first line into most columns, the comma where they are even; of a TSV the tab
    Writes      path, and every further column. Names that keepset uses itself get `pool_` before them; `uid` becomes source_uid
    Cost        columns other than pictures are held in memory
    Errors      [no-such-file]; [unknown-column]; [bad-value] links to the network, rows that do not parse, labels that are no labels
    """
    files = _files(source)
    known = _column_names(files[0])
    picture = _choose("--image", image, IMAGE, known, str(source))
    if picture is None:
        raise Refusal(
            "unknown-column",
            str(source),
            f"has no column of pictures; its columns: {', '.join(known)}",
            f"one of {', '.join(IMAGE)}",
            "Name it with --image COLUMN",
        )
    texts, labels = _choose("--caption", caption, CAPTION, known, str(source)), _choose("--label", label, LABEL, known, str(source))
    named = _choose("--key", key, ("key",), known, str(source))
    rows, stored = _read_tables(files, picture, {c for c in (picture, texts, labels, named) if c})
    paths = _paths(rows, picture, source)
    columns, notes = own_columns(rows, {c for c in (texts, labels, named, picture) if c})
    if any(paths):
        columns = columns.add_column(0, "path" if "path" not in columns.column_names else picture, pa.array(paths, pa.string()))
    numbers, classes = _labels(rows, labels, _class_names(files[0], labels), str(source))
    base = files[0].parent
    taken: dict[str, Any] = {"columns_taken": {"image": picture, "caption": texts, "label": labels, "key": named}}
    if files[0].suffix.lower() == ".csv" and (mark := delimiter(files[0])) != ",":
        taken["delimiter"] = "tab" if mark == "\t" else mark
    origin = digest([[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files])
    read = stored if stored is not None else lambda i: _read_path(base, paths[i])
    return Samples(
        keys=_keys(rows, named, paths),
        read=read,
        stamps=[[origin, i] if stored is not None else _stamp(base, paths[i]) for i in range(rows.num_rows)],
        suffixes=[_suffix(path) for path in paths],
        columns=columns,
        labels=numbers,
        captions=_as_text(rows[texts]).to_pylist() if texts else None,
        classes=classes,
        counts=taken | notes,
    )


def holds_tables(source: Path) -> bool:
    """Does a folder hold tables and nothing that looks like a picture?"""
    names = [p.suffix.lower() for p in source.iterdir() if p.is_file() and not p.name.startswith(".")]
    return (
        any(n in KINDS for n in names)
        and not any(n in (".jpg", ".jpeg", ".png", ".webp") for n in names)
        and not any(p.is_dir() for p in source.iterdir())
    )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    found = sorted(p for p in source.iterdir() if p.suffix.lower() in KINDS and not p.name.startswith("."))
    kinds = sorted({p.suffix.lower() for p in found})
    if len(kinds) > 1:
        raise Refusal("bad-value", str(source), f"holds tables of several kinds: {', '.join(kinds)}", "one kind", "Name one file")
    return found


def _choose(option: str, given: str | None, usual: Sequence[str], known: list[str], where: str) -> str | None:
    if given is not None and given not in known:
        raise Refusal("unknown-column", where, f"{option} {given}: there is no such column", f"its columns: {', '.join(known)}")
    return given if given is not None else next((name for name in usual if name in known), None)


def _column_names(file: Path) -> list[str]:
    if file.suffix.lower() == ".parquet":
        return _parquet(file).schema_arrow.names
    if file.suffix.lower() in (".csv", ".tsv"):
        with open(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
            return next(csv.reader(lines, delimiter=delimiter(file)), [])
    return list(dict.fromkeys(name for row in _json_rows(file) for name in row))


def delimiter(file: Path) -> str:
    """What parts the fields of a CSV or TSV; what stands in quotes parts none."""
    if file.suffix.lower() == ".tsv":
        return "\t"
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as lines:
        names = re.sub(r'"[^"]*"', "", lines.read(HEAD)).splitlines()
    return max(",;\t", key=names[0].count) if names else ","


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise Refusal("bad-value", str(file), "is no whole Parquet file", "a Parquet file") from error


def _read_tables(files: list[Path], picture: str, as_text: set[str]) -> tuple[pa.Table, Callable[[int], bytes] | None]:
    """All rows, and, where pictures are stored in Parquet, a function that reads those of one row (a row group at a time)."""
    if files[0].suffix.lower() != ".parquet":
        tables = [read_csv(f, as_text) if f.suffix.lower() in (".csv", ".tsv") else read_json(f, as_text) for f in files]
        return pa.concat_tables(tables, promote_options="permissive"), None
    kind = _parquet(files[0]).schema_arrow.field(picture).type
    nested = pa.types.is_struct(kind)
    if nested and "bytes" not in [kind.field(i).name for i in range(kind.num_fields)]:
        raise Refusal("bad-value", str(files[0]), f"the column {picture} is {kind}", "paths, bytes, or {bytes, path}")
    inside = nested or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if not (inside or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
        raise Refusal("bad-value", str(files[0]), f"the column {picture} is {kind}", "paths, bytes, or {bytes, path}")
    kept = [f"{picture}.path"] if nested and any(kind.field(i).name == "path" for i in range(kind.num_fields)) else [] if inside else [picture]
    opened = [_parquet(f) for f in files]
    wanted = [[n for n in f.schema_arrow.names if n != picture] + kept for f in opened]
    if not any(wanted):  # pictures alone; a table without columns forgets its rows
        return pa.table({"": pa.nulls(sum(f.metadata.num_rows for f in opened))}).select([]), _Stored(files, picture)
    rows = pa.concat_tables([f.read(names) for f, names in zip(opened, wanted, strict=True)], promote_options="permissive")
    return rows, _Stored(files, picture) if inside else None


class _Stored:
    """Pictures inside Parquet files: `stored(i)` gives the bytes of row i; the row group read last is kept."""

    def __init__(self, files: list[Path], column: str) -> None:
        self.column, self.starts, self.groups = column, [0], []
        for file in files:
            parquet = _parquet(file)
            for group in range(parquet.num_row_groups):
                self.groups.append((parquet, group))
                self.starts.append(self.starts[-1] + parquet.metadata.row_group(group).num_rows)
        self.held, self.values = -1, pa.chunked_array([], pa.binary())

    def __call__(self, row: int) -> bytes:
        group = bisect_right(self.starts, row) - 1
        if group != self.held:
            parquet, number = self.groups[group]
            values = parquet.read_row_group(number, columns=[self.column])[self.column]
            self.held, self.values = group, pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
        found = self.values[row - self.starts[group]].as_py()
        if found is None:
            raise Unreadable("missing")
        return found


def read_csv(file: Path, as_text: set[str]) -> pa.Table:
    from pyarrow import csv as arrow_csv

    data = file.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Refusal("bad-value", f"{file}:{line}", "is not UTF-8", "a table in UTF-8", "Save it as UTF-8, or convert it with iconv") from error
    convert = arrow_csv.ConvertOptions(
        column_types={c: pa.string() for c in as_text}, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True
    )
    parse = arrow_csv.ParseOptions(delimiter=delimiter(file), newlines_in_values=True)
    try:
        return arrow_csv.read_csv(
            io.BytesIO(data), read_options=arrow_csv.ReadOptions(use_threads=False), parse_options=parse, convert_options=convert
        )
    except pa.ArrowInvalid as error:
        raise Refusal("bad-value", str(file), f"does not parse: {str(error).splitlines()[0]}", "the same number of fields in every line") from error


def _json_rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise Refusal("bad-value", f"{file}:{number}", f"is not JSON: {error}", "one object a line") from error
        if not isinstance(row, dict):
            raise Refusal("bad-value", f"{file}:{number}", "is not an object", "one object a line")
        rows.append({_whole(name): _whole(value) if isinstance(value, str) else value for name, value in row.items()})
    return rows


def _whole(text: str) -> str:
    """`text` with half surrogates, which JSON can spell and UTF-8 cannot, replaced."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_json(file: Path, as_text: set[str]) -> pa.Table:
    rows = _json_rows(file)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if name in as_text and not all(v is None or isinstance(v, int) for v in values):
            values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # rows do not agree on the type: text holds them all
            columns[name] = pa.array([v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values], pa.string())
    return pa.table(columns)


def _as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    return values.cast(pa.string())


def _paths(rows: pa.Table, picture: str, source: Path) -> list[str | None]:
    """The path of each row's picture; None where it has none (the picture is inside the table, or the cell is empty)."""
    if picture not in rows.column_names:
        return [None] * rows.num_rows
    values = rows[picture]
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "path")
    paths = _as_text(values).to_pylist()
    first = next((p for p in paths if p), "")
    if re.match(r"https?://|s3://|gs://", first):
        raise Refusal(
            "bad-value",
            str(source),
            f"the column {picture} has links ({first[:60]})",
            "paths of files, or bytes",
            "Download them with img2dataset and ingest what it wrote",
        )
    return paths


def _keys(rows: pa.Table, named: str | None, paths: list[str | None]) -> list[str]:
    given = _as_text(rows[named]).to_pylist() if named else paths
    seen: set[str] = set()
    names = []
    for row, name in enumerate(given):
        if not name or name in seen:  # no name, or one file in two rows: both are samples
            name = f"{name}/{row:09d}" if name else f"{row:09d}"
        seen.add(name)
        names.append(name)
    if named and all(SAFE_KEY.fullmatch(n.encode()) for n in names):
        return names
    return keys_of([os.fsencode(n) for n in names])


def _labels(rows: pa.Table, column: str | None, names: tuple[str, ...], where: str) -> tuple[list[int | None] | None, tuple[str, ...]]:
    """Class numbers and class names. Whole numbers stay as they are; text is numbered in byte order."""
    if column is None:
        return None, ()
    values = rows[column]
    if pa.types.is_floating(values.type):
        values = values.cast(pa.int64()) if pc.all(pc.equal(values, pc.floor(values))).as_py() is not False else values.cast(pa.string())
    if pa.types.is_integer(values.type):
        numbers = values.to_pylist()
    elif pa.types.is_boolean(values.type) or pa.types.is_null(values.type) or not pa.types.is_nested(values.type):
        texts = _as_text(values).to_pylist()
        if not all(t is None or re.fullmatch(r"-?(0|[1-9]\d*)", t) for t in texts):
            classes = sorted({t for t in texts if t is not None}, key=lambda t: t.encode())
            place = {t: i for i, t in enumerate(classes)}
            return [None if t is None else place[t] for t in texts], tuple(classes)
        numbers = [None if t is None else int(t) for t in texts]
    else:
        raise Refusal("bad-value", where, f"the label column {column} is {values.type}", "text or whole numbers: one label a row")
    largest = max((abs(n) for n in numbers if n is not None), default=0)
    if largest >= 2**31:
        raise Refusal("bad-value", where, f"the label column {column} has {largest}", "labels that fit 32 bits", "Name the right column with --label")
    return numbers, names


def _class_names(file: Path, column: str | None) -> tuple[str, ...]:
    """Class names that a Hub data set keeps in its Parquet files."""
    if column is None or file.suffix.lower() != ".parquet":
        return ()
    described = (_parquet(file).schema_arrow.metadata or {}).get(b"huggingface")
    features = json.loads(described).get("info", {}).get("features", {}) if described else {}
    names = (features.get(column) or {}).get("names") or []
    return tuple(str(n) for n in names)


def _suffix(path: str | None) -> str | None:
    ending = (path or "").rpartition(".")[2].lower()
    return ending if ending in IMAGES else None


def _place(base: Path, path: str) -> bytes:
    return os.fsencode(path if os.path.isabs(path) else base / path)


def _stamp(base: Path, path: str | None) -> list[Any]:
    try:
        status = os.stat(_place(base, path or "\0"))
    except (OSError, ValueError):
        return [path, None, None]
    return [path, status.st_size, status.st_mtime_ns]


def _read_path(base: Path, path: str | None) -> bytes:
    if not path:
        raise Unreadable("missing")
    try:
        return Path(os.fsdecode(_place(base, path))).read_bytes()
    except FileNotFoundError as error:
        raise Unreadable("missing") from error
    except (OSError, ValueError) as error:
        raise Unreadable(os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "unreadable") from error
