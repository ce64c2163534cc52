"""manifests.vectors.store: what is written is what is read, by any cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import Refusal
from manifests.vectors.store import ROW_BATCH, Vectors, float32_error, valid_rows, vectors_digest, write_vectors


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four shards (one empty, one longer than a record batch), and their rows together."""
    folder, rng = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0)
    arrays = [rng.normal(size=(n, 6)).astype(np.float16) for n in (ROW_BATCH + 5, 0, 3, 7)]
    paths = [folder / f"{i}.arrow" for i in range(4)]
    for path, array in zip(paths, arrays, strict=True):
        write_vectors(path, array, np.arange(len(array)) % 3 != 1, "made-of")
    return paths, np.concatenate(arrays)


def test_shards_come_back_in_order(shards):
    paths, whole = shards
    v = Vectors.open(paths)
    assert len(v) == len(whole) and v.dim == 6
    np.testing.assert_array_equal(v.stored(slice(0, len(v))), whole)
    np.testing.assert_array_equal(np.concatenate([block for _, block in v.blocks(999)]), whole.astype(np.float32))
    assert [s.stop - s.start for s, _ in v.blocks(10_000)] == [10_000, 10_000, len(v) - 20_000]


def test_nulls_and_digest(shards):
    paths, _ = shards
    assert valid_rows(paths[3]).tolist() == [True, False, True, True, False, True, True]
    assert vectors_digest(paths[1]) == "made-of" and vectors_digest(paths[0].with_name("absent")) is None


@settings(deadline=None)
@given(data=st.data())
def test_any_rows_in_any_order(shards, data):
    paths, whole = shards
    rows = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=30)))
    within = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10)), np.int64)
    v = Vectors.open(paths, rows)
    np.testing.assert_array_equal(v.take64(within), whole[rows[within]].astype(np.float64))
    np.testing.assert_array_equal(v.subset(within).take(np.arange(len(within))), whole[rows[within]].astype(np.float32))
    np.testing.assert_array_equal(v.stored(slice(1, 4)), whole[rows[1:4]])


def test_cosine_is_exact_and_one_for_equal_rows():
    z = np.random.default_rng(1).normal(size=(50, 300))
    v = Vectors.of(z / np.linalg.norm(z, axis=1, keepdims=True))
    a, b = np.divmod(np.arange(2500), 50)
    got = v.cosine(a, v, b)
    assert (got[a == b] == 1).all()
    np.testing.assert_array_equal(got, v.cosine(b, v, a))
    np.testing.assert_array_equal(got, v.cosine(a, v, b, at_once=7))
    wide = v.take64(np.arange(50))
    order = np.random.default_rng(2).permutation(300)
    np.testing.assert_array_equal(wide @ wide.T, wide[:, order] @ wide[:, order].T)  # exact, so no order matters
    assert np.abs(v.unit(slice(0, 50)) @ v.unit(slice(0, 50)).T - got.reshape(50, 50)).max() < float32_error(300)


def test_what_is_no_vector_file_is_refused(tmp_path):
    (tmp_path / "x.arrow").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="broken-record"):
        Vectors.open([tmp_path / "x.arrow"])
    for i, dim in enumerate((4, 8)):
        write_vectors(tmp_path / f"{i}.arrow", np.zeros((2, dim), np.float16), np.ones(2, bool), "")
    with pytest.raises(Refusal, match="4 and 8 values"):
        Vectors.open([tmp_path / "0.arrow", tmp_path / "1.arrow"])
