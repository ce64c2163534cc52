"""Rows by number against plain lists, in any chunks; text beyond 2 GiB, in memory that is never touched."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import rows as module
from manifests.rows import chunks_joined, column_rows, joined, rows_of

KINDS = {
    "text": (pa.string(), lambda i: f"text {i}" * (i % 4)),
    "words": (pa.dictionary(pa.int32(), pa.string()), lambda i: "abc"[i % 3]),
    "bytes": (pa.binary(3), lambda i: b"%03d" % i),
    "list": (pa.list_(pa.string()), lambda i: ["x"] * (i % 3)),
    "members": (pa.list_(pa.struct([("suffix", pa.string()), ("offset", pa.int64())])), lambda i: [{"suffix": "jpg", "offset": i}]),
    "number": (pa.float64(), float),
}


def table_of(lengths: list[int]) -> pa.Table:
    """All kinds of columns in chunks of these lengths; every seventh value is null."""
    ends = np.cumsum([0, *lengths])
    columns = {
        name: pa.chunked_array([_column(kind, value, range(a, b)) for a, b in itertools.pairwise(ends)], kind)
        for name, (kind, value) in KINDS.items()
    }
    return pa.table(columns)


def _column(kind, value, numbers) -> pa.Array:
    values = [None if i % 7 == 6 else value(i) for i in numbers]
    return pa.array(values, kind.value_type).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values, kind)


def by_hand(table: pa.Table, rows: list[int]) -> list[dict]:
    whole, none = table.to_pylist(), dict.fromkeys(table.column_names)
    return [whole[row] if row >= 0 else none for row in rows]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6), most=st.sampled_from([20, 200, module.MOST]), data=st.data())
def test_rows_are_those_of_plain_lists_in_any_chunks(lengths, most, data):
    table, count = table_of(lengths), sum(lengths)
    rows = data.draw(st.permutations(range(count)))[: data.draw(st.integers(0, count))]
    rows = sorted(rows) if data.draw(st.booleans()) else rows
    for _ in range(data.draw(st.integers(0, 3))):
        rows.insert(data.draw(st.integers(0, len(rows))), -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST", most)
        for given_table in (table, joined(table)):
            found = rows_of(given_table, np.array(rows, np.int64))
            found.validate(full=True)
            assert found.schema == table.schema
            assert found.to_pylist() == by_hand(table, rows)
            assert most < 1 << 20 or all(column.num_chunks == 1 for column in found.columns)


def test_chunks_are_joined_up_to_what_an_array_holds(monkeypatch):
    chunks = [pa.array([1, 2], pa.int64()), pa.array([3], pa.int64()), pa.array([4, 5, 6, 7, 8], pa.int64()), pa.array([9], pa.int64())]
    monkeypatch.setattr(module, "MOST", 24)
    assert chunks_joined(chunks, pa.int64()).to_pylist() == list(range(1, 10))
    assert [len(chunk) for chunk in chunks_joined(chunks, pa.int64()).chunks] == [3, 5, 1]
    assert chunks_joined([], pa.string()).num_chunks == 1


def test_text_of_more_than_two_gigabytes_is_asked_for_its_rows():
    many = 1 << 30
    zeros = pa.py_buffer(np.zeros(many, np.uint8))  # the system gives it when it is touched
    offsets = pa.py_buffer(np.array([0, 4, many - 8, many - 4], np.int32))
    chunk = pa.Array.from_buffers(pa.string(), 3, [None, offsets, zeros])
    column = pa.chunked_array([chunk, chunk, chunk])
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        column.take(pa.array([0, 3]))
    assert column_rows(column, np.array([0, 2, 3, 8])).to_pylist() == ["\0" * 4] * 4
    assert column_rows(column, np.array([8, -1, 0])).to_pylist() == ["\0" * 4, None, "\0" * 4]
    assert joined(pa.table({"text": column})).column("text").num_chunks == 3
