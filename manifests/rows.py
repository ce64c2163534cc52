"""Rows of Arrow tables by number, where a column may hold more text than one array can count: the offsets of text and lists have 32 bits."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

MOST = (1 << 31) - 1  # bytes of one array


def rows_of(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """`rows` (m,) int64 of a table, in this order and each once, -1 = nulls; types stay, and so do the words of dictionaries.

    Each chunk is asked for its own rows, and what comes back is joined: no more than that is copied, twice. Many questions to a table in many chunks ask `joined`.
    """
    return pa.table([column_rows(column, rows) for column in table.columns], schema=table.schema)


def column_rows(column: "pa.ChunkedArray | pa.Array", rows: np.ndarray) -> pa.ChunkedArray:
    """`rows_of` for one column: a single chunk wherever it fits into one."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if len(chunks) < 2:
        return pa.chunked_array([(chunks[0] if chunks else pa.nulls(0, column.type)).take(_places(rows))], column.type)
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
    told = np.maximum.accumulate(np.where(rows >= 0, np.arange(len(rows)), 0))  # a null stands beside the row before it
    chunk_of = np.minimum(np.searchsorted(starts, np.maximum(rows[told], 0), side="right"), len(chunks)) - 1
    order = None if (np.diff(chunk_of) >= 0).all() else np.argsort(chunk_of, kind="stable")
    asked = rows if order is None else rows[order]
    cuts = np.searchsorted(chunk_of if order is None else chunk_of[order], np.arange(len(chunks) + 1))
    pieces = []
    for number in np.flatnonzero(np.diff(cuts)):
        here = asked[cuts[number] : cuts[number + 1]]
        pieces.append(chunks[number].take(_places(np.where(here >= 0, here - starts[number], -1))))
    found = chunks_joined(pieces, column.type)
    if order is None:
        return found
    if found.num_chunks > 1:  # too much for one array in this order too
        half = len(rows) // 2
        return pa.chunked_array([*column_rows(column, rows[:half]).chunks, *column_rows(column, rows[half:]).chunks], column.type)
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    return pa.chunked_array([found.chunk(0).take(pa.array(place))], column.type)


def joined(table: pa.Table) -> pa.Table:
    """A table with as few chunks as its columns fit into."""
    return pa.table([chunks_joined(column.chunks, column.type) for column in table.columns], schema=table.schema)


def chunks_joined(chunks: Iterable[pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
    """Arrays one after the other, in as few chunks as they fit into; one chunk without rows where there are none."""
    together: list[list[pa.Array]] = []
    size = 0
    for chunk in chunks:
        if not together or size + chunk.nbytes > MOST:
            together.append([])
            size = 0
        together[-1].append(chunk)
        size += chunk.nbytes
    whole = [pa.concat_arrays(some) if len(some) > 1 else some[0] for some in together]
    return pa.chunked_array(whole or [pa.nulls(0, kind)], kind)


def _places(rows: np.ndarray) -> pa.Array:
    return pa.array(rows, pa.int64(), mask=rows < 0)
