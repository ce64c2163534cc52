"""Entropy and mutual information against scipy and scikit-learn, and whole numbers all the way."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import entropy as entropy_of
from sklearn.metrics import normalized_mutual_info_score

from manifests.images import Window
from manifests.information import _table, could_reach, entropy, grey_levels, shared, spread
from tests.bad_input.fixtures import encoded, picture, saved


def some_levels(seed: int, rows: int, pixels: int, most: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, most, pixels)
    return np.stack([np.where(rng.random(pixels) < rng.random(), base, rng.integers(0, most, pixels)) for _ in range(rows)]).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), rows=st.integers(1, 70), pixels=st.sampled_from([64, 100, 4096]), most=st.sampled_from([1, 2, 5, 64]))
def test_values_are_those_of_scipy_and_scikit_learn(seed, rows, pixels, most):
    levels = some_levels(seed, rows, pixels, most)
    sums = spread(levels)
    bits = entropy(sums, pixels)
    np.testing.assert_allclose(bits, [entropy_of(np.bincount(row), base=2) for row in levels], atol=1e-7)
    row, others = rows // 2, np.random.default_rng(seed).permutation(rows)
    found = shared(levels, sums, row, others)
    np.testing.assert_allclose(found, [normalized_mutual_info_score(levels[row], levels[i]) for i in others], atol=1e-7)
    assert found[others == row] == 1
    np.testing.assert_array_equal([shared(levels, sums, int(i), np.array([row]))[0] for i in others], found)
    for least in (0.1, 0.5, 0.9):
        assert (could_reach(sums, row, others, pixels, least) | (found < least)).all()


def test_pictures_of_one_grey_are_equal_to_each_other_and_tell_nothing_of_others():
    levels = np.stack([np.full(64, 3), np.full(64, 9), np.arange(64)]).astype(np.uint8)
    sums = spread(levels)
    assert shared(levels, sums, 0, np.arange(3)).tolist() == [1, 1, 0]
    assert entropy(sums, 64).tolist() == [0, 0, 6]
    assert shared(levels, sums, 0, np.arange(0)).tolist() == []


def test_the_table_is_rounded_from_exact_logarithms():
    found = _table(4096)
    assert found[[0, 1, 2, 4096]].tolist() == [0, 0, 2 << 32, 4096 * 12 << 32]
    assert all(abs(int(found[c]) - c * math.log2(c) * 2**32) <= 0.5 + 2e-15 * c * math.log2(c) * 2**32 for c in range(1, 4097))


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (200, 64), (40, 30)])
def test_levels_are_those_of_the_small_grey_picture(size):
    grey = Image.fromarray(picture(3)).convert("L").resize(size)
    levels, readable = grey_levels([saved(grey, "PNG"), b"", None, encoded(1)[:300]], 4, 64, None)
    assert readable.tolist() == [True, False, False, False]
    small = np.asarray(grey) if size == (64, 64) else levels[0].reshape(64, 64) * 4.0
    assert np.array_equal(levels[0], (small.ravel() // 4).astype(np.uint8))
    assert abs(levels[0].mean() * 4 + 1.5 - np.asarray(grey).mean()) < 1.5


def test_levels_of_sixteen_bits_come_through_the_window():
    values = np.repeat(np.arange(64, dtype=np.uint16)[None] * 10 + 1000, 64, 0)
    file = saved(Image.fromarray(values), "PNG")
    assert np.unique(grey_levels([file], 1, 64, Window(1315, 640))[0]).tolist() == list(range(64))
    assert len(np.unique(grey_levels([file], 1, 64, None)[0])) == 1
