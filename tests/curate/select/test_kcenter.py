"""select.kcenter against the rule."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.pool import Share
from curate.select import kcenter as module
from curate.select.kcenter import kcenter
from tests.strategies import exact_unit_vectors, noisy_unit_vectors, unit_pool


def gap(z, kept):
    """(n,) distance of every row to the nearest kept row, by the definition, in float64."""
    return np.array([min(np.linalg.norm(row - z[j]) for j in kept) for row in z])


def by_definition(z, uid, k, fixed=()):
    picks = sorted(fixed, key=lambda i: uid[i]) or [int(np.argmin(uid))]
    while len(picks) < k:
        far = gap(z, picks)
        picks.append(max(set(range(len(z))) - set(picks), key=lambda i: (far[i], -uid[i])))
    return picks


@settings(deadline=None)
@given(z=exact_unit_vectors(), data=st.data())
def test_kcenter_is_the_rule_to_the_last_tie(z, data):
    uid = data.draw(st.permutations(range(len(z))))
    k = data.draw(st.integers(1, len(z)))
    fixed = np.zeros(len(z), bool)
    fixed[data.draw(st.lists(st.integers(0, len(z) - 1), max_size=2))] = True
    picks = by_definition(z, uid, k, np.flatnonzero(fixed).tolist())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", data.draw(st.integers(1, 5)))
        got = kcenter(unit_pool(z, uid, fixed=fixed), vectors="z", keep=Share(count=k))

    assert [got.columns["kcenter_rank"].tolist().index(r) for r in range(len(picks))] == picks
    assert got.keep.sum() == len(picks) == max(k, fixed.sum())
    far = gap(z, picks)
    for i in np.flatnonzero(~got.keep):
        first = next(p for p in picks if np.linalg.norm(z[i] - z[p]) == far[i])
        assert got.witness[i] == first and got.score[i] == pytest.approx(far[i], abs=1e-12)
    if not fixed.any() and len(z) < 9:
        best = min(gap(z, c).max() for c in combinations(range(len(z)), k))
        assert got.threshold <= 2 * best + 1e-9


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), spread=st.sampled_from([1e-4, 0.1, 1.0]), groups=st.sampled_from([1, 8, 200]))
def test_rows_in_another_order_and_fewer_candidates_give_the_same(seed, spread, groups):
    z, rng = noisy_unit_vectors(seed, 200, 12, groups, spread), np.random.default_rng(seed)
    uid, order = rng.permutation(200), rng.permutation(200)
    one = kcenter(unit_pool(z, uid), vectors="z", keep=Share(fraction=0.3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", 9)
        two = kcenter(unit_pool(z[order], uid[order]), vectors="z", keep=Share(fraction=0.3))
    np.testing.assert_array_equal(one.columns["kcenter_rank"][order], two.columns["kcenter_rank"])
    np.testing.assert_array_equal(one.score[order], two.score)
    np.testing.assert_array_equal(one.witness[order], np.where(two.witness >= 0, order[two.witness], -1))
    assert one.threshold == two.threshold


def test_all_identical_one_row_and_more_than_there_are():
    same = kcenter(unit_pool(np.ones((9, 4)) / 2, range(9)[::-1]), vectors="z", keep=Share(count=3))
    assert same.keep.sum() == 3 and same.threshold == 0 and (same.score[~same.keep] == 0).all()
    assert same.columns["kcenter_rank"].tolist() == [-1] * 6 + [2, 1, 0]
    for n in (1, 4):
        got = kcenter(unit_pool(np.eye(4)[:n], range(n)), vectors="z", keep=Share(count=10))
        assert got.keep.all() and got.threshold == 0
