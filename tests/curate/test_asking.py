"""A decision is asked group by group and its answers are joined once: equal to joining by hand, in time that grows with the rows; text beyond one array."""

import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate import asking
from curate.asking import _complete, _empty, _merge
from curate.pool import Edges, Verdicts
from curate.verdict_parts import _in_order, own_column, verdict_table

WRITES = {"size": pa.int64(), "note": pa.string(), "part": pa.float32()}


# What `_merge` asks of a stage: its own columns, as they are written.
stage = SimpleNamespace(columns={name: f"as_{name}" for name in WRITES}, writes={f"as_{name}": kind for name, kind in WRITES.items()})


def answer(rows: np.ndarray) -> Verdicts:
    """Verdicts that tell which rows they are of: the first of a group keeps, each other is dropped for it."""
    n = len(rows)
    edges = Edges(np.zeros(max(n - 1, 0), np.int64), np.arange(1, n), rows[1:] / 8, {"seen": rows[1:] * 2, "how": rows[1:].astype("U")})
    columns = {"size": np.full(n, n), "note": pa.chunked_array([[f"row {r}"] for r in rows], pa.string()), "part": rows / 2}
    return Verdicts(keep=np.arange(n) == 0, reason="second", score=rows / 4, witness=np.where(np.arange(n) == 0, -1, 0), columns=columns, edges=edges)


def merged(groups: list[np.ndarray], count: int) -> Verdicts:
    total = _empty(count)
    _complete(total, [_merge(total, answer(rows), rows, stage) for rows in groups])
    return total


@settings(deadline=None)
@given(group=st.lists(st.integers(-1, 5), min_size=1, max_size=30))
def test_groups_are_joined_as_by_hand(group):
    group = np.array(group)
    groups = [rows for number in range(6) if len(rows := np.flatnonzero(group == number))]
    found = merged(groups, len(group))
    first = {row: int(rows[0]) for rows in groups for row in rows.tolist()}
    assert found.keep.tolist() == [first.get(r, r) == r for r in range(len(group))]
    assert found.witness.tolist() == [first[r] if r in first and first[r] != r else -1 for r in range(len(group))]
    if groups:
        note, size = (_in_order(found.columns[name], len(group)).to_pylist() for name in ("note", "size"))
        assert note == [f"row {r}" if r in first else None for r in range(len(group))]
        assert size == [int((group == group[r]).sum()) if r in first else None for r in range(len(group))]
        pairs = [(int(rows[0]), r) for rows in groups for r in rows[1:].tolist()]
        assert list(zip(found.edges.a.tolist(), found.edges.b.tolist(), strict=True)) == pairs
        assert found.edges.score.tolist() == [r / 8 for _, r in pairs]
        assert found.edges.columns["seen"].tolist() == [2 * r for _, r in pairs]
        assert found.edges.columns["how"].tolist() == [str(r) for _, r in pairs]


def test_joining_many_groups_takes_time_as_their_rows_do():
    def seconds(count: int) -> float:
        groups = np.arange(4 * count).reshape(count, 4)
        answers = [answer(rows) for rows in groups]
        begun = time.process_time()
        total = _empty(4 * count)
        _complete(total, [_merge(total, part, rows, stage) for part, rows in zip(answers, groups, strict=True)])
        return time.process_time() - begun

    seconds(100)
    assert seconds(4000) < 8 * max(seconds(1000), 0.02)  # twice the four times of four times the rows; joined pair by pair it is 16


def huge(values: int) -> pa.ChunkedArray:
    """Three chunks of three texts, together more than 2 GiB, in memory that nobody touches."""
    many = 1 << 30
    offsets = pa.py_buffer(np.array([0, values, many - 2 * values, many - values], np.int32))
    chunk = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(np.zeros(many, np.uint8))])
    return pa.chunked_array([chunk, chunk, chunk])


def test_rows_of_text_beyond_two_gigabytes_are_taken():
    table = pa.table({"caption": huge(4), "number": np.arange(9)})
    found = asking._rows_of(table, np.array([0, 2, 3, 8]))
    assert found.to_pylist() == [{"caption": "\0" * 4, "number": n} for n in (0, 2, 3, 8)]


def test_an_own_column_of_text_beyond_two_gigabytes_stays_in_chunks():
    found = own_column(huge(4), pa.string())
    assert len(found) == 9
    assert found.num_chunks == 3


@pytest.mark.parametrize("rows_a_chunk", [1 << 25, 3])
def test_a_verdict_table_of_many_chunks_is_cut_into_shards(monkeypatch, rows_a_chunk):
    from curate import verdict_parts
    from manifests.rows import rows_of

    monkeypatch.setattr(verdict_parts, "ROWS_A_CHUNK", rows_a_chunk)
    uid = np.char.mod("%032x", np.arange(10)).astype("S32")
    total = merged([np.arange(0, 10, 2), np.arange(1, 10, 2)], 10)
    table = verdict_table(total, np.zeros(10, bool), uid, stage)
    whole = table.to_pylist()
    assert [r["witness"] for r in whole] == [None, None, *([uid[0].decode(), uid[1].decode()] * 4)]
    none = dict.fromkeys(table.column_names)
    assert rows_of(table.slice(4, 3), np.array([-1, 0, 1, -1, 2])).to_pylist() == [none, whole[4], whole[5], none, whole[6]]
    assert rows_of(table.slice(10, 0), np.array([-1, -1])).to_pylist() == [none, none]
