"""Water-filling against a quadratic programme and against pouring one by one; whole numbers that add up."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize

from manifests.quotas import GRID, largest_remainder, level_fill, place_inside, rounded, water_fill


def problem(seed: int):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 9))
    high = rng.integers(1, 50, k)
    low = np.minimum(rng.integers(0, 10, k) * rng.random(k).round(2), high)
    target = rng.random(k) ** 3 * 60
    return target, low, high, low.sum() + rng.choice([0, 0.2, 0.7, 1]) * (high.sum() - low.sum())


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_shift_is_the_one_that_bisection_finds(seed):
    target, low, high, total = problem(seed)
    found = water_fill(target, low, high, total)
    assert found.sum() == pytest.approx(total)
    assert (found >= low).all() and (found <= high).all()
    if low.sum() < total < high.sum():
        shift = brentq(lambda s: np.clip(target + s, low, high).sum() - total, -200, 200, xtol=1e-12)
        np.testing.assert_allclose(found, np.clip(target + shift, low, high), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_it_solves_the_quadratic_programme(seed):
    target, low, high, total = problem(seed)
    start = low + (high - low) * ((total - low.sum()) / max((high - low).sum(), 1e-9))
    solved = minimize(
        lambda x: ((x - target) ** 2).sum() / 2, start, jac=lambda x: x - target, method="SLSQP", bounds=list(zip(low, high, strict=True)),
        constraints={"type": "eq", "fun": lambda x: x.sum() - total, "jac": np.ones_like}, options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    np.testing.assert_allclose(water_fill(target, low, high, total), solved.x, atol=1e-3)


def test_equal_targets_fill_to_one_level():
    sizes = np.array([100, 10, 5])
    assert water_fill(np.full(3, 40 / 3), np.zeros(3), sizes, 40).tolist() == [25, 10, 5]
    assert level_fill(np.zeros(3, int), sizes, 40, np.arange(3)).tolist() == [25, 10, 5]
    assert level_fill(np.zeros(5, int), np.array([5, 200, 50, 10, 300]), 100, np.arange(5)[::-1]).tolist() == [5, 28, 28, 10, 29]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_level_fill_is_pouring_one_by_one(seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 8))
    high = rng.integers(0, 30, k)
    low, turn = rng.integers(0, high + 1) * rng.integers(0, 2, k), rng.permutation(k)
    total = int(rng.integers(low.sum(), high.sum() + 1))
    poured = low.copy()
    while poured.sum() < total:
        open_ = np.flatnonzero(poured < high)
        poured[open_[np.lexsort((turn[open_], poured[open_]))[0]]] += 1
    assert level_fill(low, high, total, turn).tolist() == poured.tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1000), min_size=1, max_size=12), st.integers(1, 5000))
def test_rounded_keeps_the_sum_and_rounds_the_largest_remainders_up(parts, total):
    shares = np.array(parts) + 0.001
    shares *= total / shares.sum()
    found = rounded(shares, total)
    assert found.sum() == total
    assert (np.abs(found - shares) < 1 + 1e-6).all()
    up, down = shares - np.floor(shares), found > shares + 1e-6
    if down.any() and (found < shares - 1e-6).any():
        assert up[down].min() >= up[found < shares - 1e-6].max() - 2 / GRID


@settings(max_examples=300, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(any), data=st.data())
def test_largest_remainder_is_hamiltons_rule_in_fractions(sizes, data):
    everyone = sum(sizes)
    total = data.draw(st.integers(0, everyone))
    exact = [Fraction(total * size, everyone) for size in sizes]
    wanted = [int(share) for share in exact]
    for group in sorted(range(len(sizes)), key=lambda g: (wanted[g] - exact[g], g))[: total - sum(wanted)]:
        wanted[group] += 1
    assert largest_remainder(total * np.array(sizes), everyone, total).tolist() == wanted


def test_rounded_ties_go_to_the_first_and_last_bits_decide_nothing():
    assert rounded(np.array([1.5, 2.5, 0.5, 1.5]), 6).tolist() == [2, 3, 0, 1]
    assert rounded(np.array([3 - 1e-12, 2 + 1e-12, 1]), 6).tolist() == [3, 2, 1]
    assert rounded(np.array([]), 0).tolist() == []


def test_place_inside():
    group, key = np.array([1, 0, 1, 1, 0]), np.array([2, 5, 1, 2, 5])
    assert place_inside(group, key).tolist() == [1, 0, 0, 2, 1]
    assert place_inside(group, np.array([1, 1, 1, 0, 0]), key).tolist() == [2, 1, 1, 0, 0]
