"""Vector columns: float16 on disk, one uncompressed Arrow IPC file a shard, memory-mapped and streamed; never gathered whole.

A float64 dot product of two stored vectors is *exact*: float16 values are multiples of 2^-24, so products are multiples of 2^-48 and
every partial sum of unit vectors stays below 2^5, which is within the 53 bits of a float64. So what float64 decides depends on no
block shape, thread or BLAS. A float32 product of d terms is off by at most `float32_error(d)`; what lies further off is decided by it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.errors import Refusal
from manifests.publish import DIGEST_KEY, publish

BLOCK = 4096  # rows of a block where nobody asks for another size
ROW_BATCH = 20_480  # rows of a record batch on disk


def float32_error(dim: int) -> float:
    """The most that a float32 dot product of two normalised vectors of `dim` values can be off (Higham's bound; 1e-4 at 1,670 values)."""
    return (dim + 8) * 2.0**-24


class Vectors:
    """Rows of a vector column in shard order: (n, d) float16, in memory or mapped from disk; `subset` copies nothing.

    len(v), v.dim    rows and values a row
    """

    def __init__(self, parts: Sequence[np.ndarray], dim: int, rows: np.ndarray | None = None) -> None:
        """`parts`: (n_i, d) float16 arrays; `rows`: which of their rows, counted through, and in which order (None = all)."""
        self._parts, self.dim = list(parts), dim
        self._starts = np.cumsum([0] + [len(p) for p in self._parts])
        self._rows = None if rows is None else np.asarray(rows, np.int64)
        self._square: np.ndarray | None = None
        self.held: tuple[str, Any] | None = None  # a device and its copy of the stored rows: see `products.held`

    @classmethod
    def of(cls, array: np.ndarray) -> "Vectors":
        """An (n, d) array in memory, rounded to float16."""
        array = np.ascontiguousarray(array, dtype=np.float16)
        assert array.ndim == 2, array.shape
        return cls([array], array.shape[1])

    @classmethod
    def open(cls, paths: Sequence[Path | str], rows: np.ndarray | None = None) -> "Vectors":
        """Map the files of a column, in shard order; `rows` picks some of their rows. Raises `Refusal` [broken-record]."""
        opened = [_map(Path(path)) for path in paths]
        dims = sorted({dim for _, _, dim in opened})
        if len(dims) > 1:
            raise Refusal(
                "broken-record", str(paths[0]), f"shards of one vector column have {' and '.join(map(str, dims))} values a row", "one width"
            )
        return cls([part for parts, _, _ in opened for part in parts], dims[0] if dims else 0, rows)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    def subset(self, rows: np.ndarray) -> "Vectors":
        """The rows `rows` (m,) int64, in that order, as a view."""
        rows = np.asarray(rows, np.int64)
        return Vectors(self._parts, self.dim, rows if self._rows is None else self._rows[rows])

    def with_missing(self, place: np.ndarray, is_there: np.ndarray) -> "Vectors":
        """The rows `place` (m,) int64, with a zero vector for those that are not `is_there` (m,) bool: of cosine 0 to everything."""
        whole = self if self._rows is None else Vectors.of(self.stored(slice(0, len(self))))
        return Vectors([*whole._parts, np.zeros((1, self.dim), np.float16)], self.dim, np.where(is_there, place, len(whole)))

    def stored(self, rows: np.ndarray | slice) -> np.ndarray:
        """(m, d) float16: the rows as they are stored (a copy unless they lie side by side in one part)."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            if self._rows is None:
                return self._run(start, stop)
            rows = self._rows[start:stop]
        else:
            rows = np.asarray(rows, np.int64)
            rows = rows if self._rows is None else self._rows[rows]
        return self._gather(rows)

    def _run(self, start: int, stop: int) -> np.ndarray:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            at, end = self._starts[first], min(stop, int(self._starts[first + 1]))
            pieces.append(self._parts[first][start - at : end - at])
            start, first = end, first + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, self.dim), np.float16)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        if len(self._parts) == 1:
            return self._parts[0][rows]
        found = np.empty((len(rows), self.dim), np.float16)
        part = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(part, kind="stable")
        bounds = np.searchsorted(part[order], np.arange(len(self._parts) + 1))
        for p in np.flatnonzero(np.diff(bounds)):
            here = order[bounds[p] : bounds[p + 1]]
            found[here] = self._parts[p][rows[here] - self._starts[p]]
        return found

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[slice, np.ndarray]]:
        """(slice of rows, (b, d) float32 block) over all rows in order, `size` rows a block."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.stored(rows).astype(np.float32)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(m, d) float32: the rows `rows` (m,) int64, in that order."""
        return self.stored(rows).astype(np.float32)

    def take64(self, rows: np.ndarray) -> np.ndarray:
        """(m, d) float64: the rows `rows` (m,) int64, in that order."""
        return self.stored(rows).astype(np.float64)

    @property
    def square(self) -> np.ndarray:
        """(n,) float64: squared length of each row, exact; computed once."""
        if self._square is None:
            parts = [np.einsum("ij,ij->i", wide, wide) for wide in (self.stored(s).astype(np.float64) for s in _slices(len(self), BLOCK))]
            self._square = np.concatenate(parts) if parts else np.empty(0)
        return self._square

    @square.setter
    def square(self, found: np.ndarray) -> None:
        """(n,) float64 from whoever has read the rows already: exact sums are the same on any machine."""
        self._square = found

    def unit(self, rows: np.ndarray | slice) -> np.ndarray:
        """(m, d) float32: the rows scaled to length one (stored ones are off by the rounding to float16)."""
        block = self.stored(rows).astype(np.float32)
        block *= (1 / np.sqrt(np.maximum(self.square[rows], 1e-30))).astype(np.float32)[:, None]
        return block

    def cosine(self, rows: np.ndarray, other: "Vectors", other_rows: np.ndarray, at_once: int = 1024) -> np.ndarray:
        """(m,) float64: the cosine of each pair (rows[i], other_rows[i]); the same number whoever asks, 1 exactly for equal rows."""
        found = np.empty(len(rows))
        for s in _slices(len(rows), at_once):
            dot = np.einsum("ij,ij->i", self.take64(rows[s]), other.take64(other_rows[s]))
            found[s] = normalised(dot, self.square[rows[s]], other.square[other_rows[s]])
        return found


def normalised(dot: np.ndarray, square: np.ndarray, other_square: np.ndarray) -> np.ndarray:
    """float64 cosine from exact dot products and squared lengths (which broadcast); in [-1, 1]."""
    return np.clip(dot / np.sqrt(np.maximum(square * other_square, 1e-60)), -1.0, 1.0)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def write_vectors(path: Path, array: np.ndarray, valid: np.ndarray, digest: str) -> None:
    """Publish one shard of a column: `array` (n, d) float16, `valid` (n,) bool (rows without a vector are null), `digest` in the schema."""
    array, valid = np.ascontiguousarray(array, np.float16), np.asarray(valid, bool)
    n, dim = array.shape
    mask = pa.py_buffer(np.packbits(valid, bitorder="little"))
    items = pa.array(array.reshape(-1), pa.float16())
    column = pa.Array.from_buffers(pa.list_(pa.float16(), dim), n, [mask], null_count=int(n - valid.sum()), children=[items])
    table = pa.table({"vector": column}).replace_schema_metadata({DIGEST_KEY: digest.encode()})

    def write(file: object) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=ROW_BATCH)

    publish(Path(path), write)


def valid_rows(path: Path) -> np.ndarray:
    """(n,) bool: which rows of a shard's file hold a vector."""
    return _map(Path(path))[1]


def vectors_digest(path: Path) -> str | None:
    """The digest that the file was published with; None where it is absent or no whole file."""
    try:
        with pa.memory_map(str(path)) as source:
            found = (pa.ipc.open_file(source).schema.metadata or {}).get(DIGEST_KEY)
    except (OSError, pa.ArrowInvalid):
        return None
    return found.decode() if found else None


def _map(path: Path) -> tuple[list[np.ndarray], np.ndarray, int]:
    """The mapped (n_i, d) float16 arrays of a file, which rows are valid, and d."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        kind = reader.schema.field("vector").type
        assert pa.types.is_fixed_size_list(kind) and pa.types.is_float16(kind.value_type), kind
        parts, valid = [], [np.empty(0, bool)]
        for i in range(reader.num_record_batches):
            column = reader.get_batch(i).column(0)
            items = np.frombuffer(column.buffers()[2] or b"", np.float16)
            first = column.offset * kind.list_size
            parts.append(items[first : first + len(column) * kind.list_size].reshape(len(column), kind.list_size))
            valid.append(column.is_valid().to_numpy(zero_copy_only=False))
    except (OSError, pa.ArrowInvalid, KeyError, AssertionError) as error:
        raise Refusal(
            "broken-record", str(path), f"is no vector file ({error})", cure="Run the same `curate build` again: it writes the file anew"
        ) from error
    return parts, np.concatenate(valid), kind.list_size
