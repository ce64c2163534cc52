"""keep.list: ids from the recipe and from every kind of file."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.keep.list import REASONS
from curate.keep.list import list as keep_list
from manifests.errors import Refusal
from tests.pools import assert_lawful, pool_of

KEYS = ["a", "b", "a", "c"]


def uid(place):
    return f"{place:032x}"


@settings(max_examples=30, deadline=None)
@given(chosen=st.sets(st.integers(0, 5)), listed=st.sampled_from(["keep", "drop"]), fixed=st.sets(st.integers(0, 4)))
def test_listed_rows_are_kept_or_dropped(chosen, listed, fixed):
    pool = pool_of(5, fixed=sorted(fixed))  # id 5 stands in no row: it changes nothing

    got = keep_list(pool, ids=[uid(i) for i in sorted(chosen)], listed=listed, reason="seen")

    assert got.keep.tolist() == [((i in chosen) == (listed == "keep")) or i in fixed for i in range(5)]
    assert got.columns["list_reason"].to_pylist() == ["seen" if i in chosen else None for i in range(5)]
    assert_lawful(pool, got, REASONS)


def test_a_key_stands_for_all_rows_that_carry_it():
    got = keep_list(pool_of(key=KEYS), ids=["a"], by="key", listed="drop")
    assert got.keep.tolist() == [False, True, False, True]
    assert got.reason == "listed"


def test_whole_numbers_are_ids_too():
    assert keep_list(pool_of(label=[3, 7]), ids=["7"], by="label").keep.tolist() == [False, True]


def _write(path):
    rows = [{"key": "b", "reason": "mark"}, {"key": "c", "reason": None}]
    if path.suffix == ".csv":
        path.write_text("key,reason\nb,mark\nc,\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("b\n\nc\n", encoding="utf-8")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".txt"])
def test_every_kind_of_file(tmp_path, suffix):
    path = tmp_path / f"ids{suffix}"
    _write(path)
    got = keep_list(pool_of(key=KEYS), file=str(path), by="key", listed="drop", reason="other")
    assert got.keep.tolist() == [True, False, True, False]
    assert got.columns["list_reason"].to_pylist() == [None, "other" if suffix == ".txt" else "mark", None, "other"]


def test_a_datacomp_subset(tmp_path):
    np.save(tmp_path / "subset.npy", np.array([(0, 1), (2**63, 5)], dtype="u8,u8"))
    sources = ["0" * 31 + "1", "8" + "0" * 30 + "5", "f" * 32]
    assert keep_list(pool_of(source_uid=sources), file=str(tmp_path / "subset.npy"), by="source_uid").keep.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("name", "text", "slug"),
    [
        ("missing.csv", None, "no-such-file"),
        ("ids.csv", "colour\nred\n", "bad-value"),
        ("ids.jsonl", "[1]\n", "bad-value"),
        ("ids.jsonl", "{", "bad-value"),
        ("ids.parquet", "no parquet", "bad-value"),
        ("ids.npy", "no array", "bad-value"),
        ("ids.docx", "x", "bad-value"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, text, slug):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(Refusal) as refusal:
        keep_list(pool_of(key=KEYS), file=str(tmp_path / name), by="key")
    assert refusal.value.slug == slug


def test_a_pickle_is_never_opened(tmp_path):
    np.save(tmp_path / "ids.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(Refusal, match="bad-value"):
        keep_list(pool_of(key=KEYS), file=str(tmp_path / "ids.npy"))


def test_no_ids_at_all_is_refused():
    with pytest.raises(Refusal, match="neither ids nor file"):
        keep_list(pool_of(key=KEYS))
