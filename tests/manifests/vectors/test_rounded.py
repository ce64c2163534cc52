"""A table of all pairs, a byte each: its bounds are never too low, and not far too high."""

import numpy as np
import pytest

from manifests.vectors import rounded
from manifests.vectors.rounded import Rounded, pieces, right_of
from manifests.vectors.store import Vectors, float32_error
from tests.strategies import noisy_unit_vectors


def table_of(z, best, weight, error):
    v = Vectors.of(z)
    return Rounded(np.ascontiguousarray(v.unit(slice(0, len(z))).T), weight.astype(np.float32), error, best)


def similarities(z):
    v = Vectors.of(z)
    a, b = np.divmod(np.arange(len(z) ** 2), len(z))
    return (1 + v.cosine(a, v, b).reshape(len(z), len(z))) / 2


@pytest.mark.parametrize("lift", [0.0, 3.0, 1000.0])  # the last: all cosines within 1e-5 of 1
@pytest.mark.parametrize("at_once", [5, 64])
def test_bounds_follow_every_move_and_are_never_too_low(lift, at_once, monkeypatch):
    monkeypatch.setattr(rounded, "AT_ONCE", at_once)
    monkeypatch.setattr(rounded, "STRIP", 96)
    monkeypatch.setattr(rounded, "WIDE", 128)
    n, rng = 500, np.random.default_rng(5)
    z = noisy_unit_vectors(5, n, 16, 60, 0.5) + lift * np.eye(16)[0]
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    z[40:50] = -z[:10]
    s, weight, best = similarities(z), rng.integers(1, 4, n).astype(np.float64), np.full(n, 0.0)
    for pick in (11, 12):
        best = np.maximum(best, s[pick])
    table = table_of(z, best, weight, float32_error(16))
    upper = table.gain.copy()
    for pick in (3, 70, 400, 41, 200, 11, 499, 0):
        was, best = best, np.maximum(best, s[pick])
        table.moved(np.flatnonzero(best > was), best, upper)
        assert not table.fresh.any()
        above = s > best[:, None]
        exact = weight @ np.maximum(s - best[:, None], 0)
        sharp, step = table._gains(np.arange(n), best), 1.1 / table.steps  # one step of a cosine up and one down, and what float32 may lose
        assert min((bound - exact).min() for bound in (table.gain, upper, sharp)) >= 0
        assert (table.gain - exact - step * (weight @ (s > best[:, None] - step))).max() < 1e-9
        assert (sharp - exact).max() < n * 2.0**-23 * exact.max() + 2 * weight.sum() * float32_error(16)
        for row in range(0, n, 7):
            assert np.isin(np.flatnonzero(above[:, row]), table.rows(row, best)).all()
        row = table.highest(best, upper)
        assert upper[row] == upper.max() and (table.fresh[row] or upper[row] <= 0)
        assert (upper - exact).min() >= 0


@pytest.mark.parametrize("off", [-0.9, 0, 0.9])  # of the error that is reckoned with
def test_products_as_bad_as_they_may_be(off):
    z, n, error, weight = noisy_unit_vectors(9, 300, 8, 90, 0.5), 300, 1e-2, np.ones(300, np.float32)
    unit, s = Vectors.of(z).unit(slice(0, n)), similarities(z)
    if off > 0:  # one more value: all cosines are too high by its square
        unit = np.concatenate([unit, np.full((n, 1), np.sqrt(off * error), np.float32)], 1)
    else:  # too short: the highest cosines are too low
        unit *= np.float32(np.sqrt(1 + off * error))
    best = np.maximum(s[3], s[200])
    table, exact = Rounded(np.ascontiguousarray(unit.T), weight, error, best), np.maximum(s - best[:, None], 0).sum(0)
    assert (table.gain - exact).min() >= 0 and (table._gains(np.arange(n), best) - exact).min() >= 0
    assert (table.gain - exact).max() < n * (error + 1.1 / table.steps)
    assert all(np.isin(np.flatnonzero(s[:, row] > best), table.rows(row, best)).all() for row in range(n))


def test_a_similarity_of_one_is_above_all_that_is_less():
    for lowest in np.linspace(0.01, 1.0, 300):  # each with another length of a step
        best = np.array([lowest, 1 - 2.0**-51])  # the last before 1 on the grid of two rows
        table = table_of(np.eye(4)[:2], best, np.ones(2), float32_error(4))
        assert 1 in table.rows(1, best) and table.gain[1] > 0


@pytest.mark.parametrize(("stop", "width", "strip"), [(1, 1, 1), (10, 3, 4), (1000, 512, 256), (5, 9, 2)])
def test_each_pair_of_rows_comes_once(stop, width, strip):
    seen = np.zeros((stop, stop), int)
    for first in range(0, stop, strip):
        i = slice(first, min(first + strip, stop))
        for j in right_of(i, stop, width):
            seen[i, j] += 1
            seen[j, i] += j != i
            assert j == i or j.stop - j.start <= width
    assert (seen == 1).all()
    assert [p.stop - p.start for p in pieces(7, 3)] == [2, 2, 3]
