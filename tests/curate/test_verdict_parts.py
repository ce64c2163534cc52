"""Verdicts as columns, without a Python object a row: uids from their bytes, reasons, own columns in the order of the rows."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from curate import verdict_parts
from curate.verdict_parts import _in_order, _reasons, own_column, uid_column
from manifests.memory import private_bytes


def uids(count: int) -> np.ndarray:
    return np.char.mod("%032x", np.random.default_rng(0).permutation(count)).astype("S32")


@pytest.mark.parametrize("rows", [[], [-1, -1], [2, 0, -1, 1, 2], [0]])
def test_uids_of_rows_are_their_text_and_null_for_none(rows):
    uid = uids(3)
    found = uid_column(uid, np.array(rows, np.int64))
    assert found.type == pa.string()
    assert found.null_count == rows.count(-1)
    assert found.to_pylist() == [None if r < 0 else uid[r].decode() for r in rows]
    found.validate(full=True)


def test_more_uids_than_one_array_holds_come_in_chunks(monkeypatch):
    uid, rows = uids(10), np.array([3, -1, 0, 9, -1, 2, 2])
    whole = uid_column(uid, rows)
    monkeypatch.setattr(verdict_parts, "ROWS_A_CHUNK", 3)
    found = uid_column(uid, rows)
    assert found.num_chunks == 3
    assert found.to_pylist() == whole.to_pylist()


@pytest.mark.skipif(private_bytes() is None, reason="this system does not tell")
def test_a_million_witnesses_take_no_python_strings():
    uid = uids(1000)
    rows = np.random.default_rng(1).integers(-1, 1000, 1_000_000)
    before = private_bytes()
    found = uid_column(uid, rows)
    assert private_bytes() - before < 120 << 20  # 36 bytes each, and at work as many again; as strings it would be 130
    assert found[5].as_py() == (uid[rows[5]].decode() if rows[5] >= 0 else None)


def test_reasons_are_words_of_dropped_rows_alone():
    verdicts = SimpleNamespace(keep=np.array([True, False, False, True, False]), reason=np.array(["", "b", "a", "a", "b"], object))
    assert _reasons(verdicts).to_pylist() == [None, "b", "a", None, "b"]
    assert _reasons(verdicts).dictionary.to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        (np.array([1, 2]), pa.int32(), [1, 2]),
        (np.array([0.5, np.nan]), pa.float64(), [0.5, None]),
        (pa.array([0.5, None]), pa.float32(), [0.5, None]),
        (np.array([b"x", b"yy"]), pa.string(), ["x", "yy"]),
        (np.array(["x", "yy"]), pa.string(), ["x", "yy"]),
        (np.array(["x", None], object), pa.string(), ["x", None]),
        (pa.chunked_array([["x"], [None]]), pa.string(), ["x", None]),
        (np.array([True, False]), pa.bool_(), [True, False]),
    ],
)
def test_own_columns_of_any_kind_become_arrow(values, kind, wanted):
    found = own_column(values, kind)
    assert found.type == kind
    assert found.to_pylist() == wanted


def test_pieces_of_groups_come_in_the_order_of_rows():
    pieces = pa.table({"row": [4, 0, 2], "value": ["e", "a", "c"]})
    assert _in_order(pieces, 6).to_pylist() == ["a", None, "c", None, "e", None]
