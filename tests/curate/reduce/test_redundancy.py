"""reduce.redundancy against its rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.pool import Share
from curate.reduce import redundancy as module
from curate.reduce.redundancy import redundancy
from manifests.vectors.store import Vectors
from tests.strategies import exact_unit_vectors, noisy_unit_vectors, unit_pool


def star_at(cosine, order, threshold, fixed):
    kept = []
    for row in order:
        if fixed[row] or not any(cosine[row, e] >= threshold for e in kept):
            kept.append(row)
    return kept


def by_definition(z, uid, budget, fixed):
    """(kept rows, threshold): bisection on the grid, every walk in float64."""
    v = Vectors.of(z)
    a, b = np.divmod(np.arange(len(z) ** 2), len(z))
    cosine = v.cosine(a, v, b).reshape(len(z), len(z))
    order = np.lexsort((uid, ~fixed)).tolist()
    first = [next(p for p, e in enumerate(order) if (np.float16(z[e]) == np.float16(z[row])).all()) for row in order]
    order = [order[p] for p in np.argsort(first, kind="stable")]
    low, high = 0, 2**14 + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(star_at(cosine, order, middle / 2**13 - 1, fixed)) <= budget else (low, middle)
    kept = star_at(cosine, order, low / 2**13 - 1, fixed)
    dropped = sorted((row for row in order if row not in kept), key=lambda row: (max(cosine[row, e] for e in kept), order.index(row)))
    return kept + dropped[: budget - len(kept)], low / 2**13 - 1, cosine, order


def check(z, uid, keep, fixed, block):
    budget = max(keep.of(len(z)), int(fixed.sum()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        got = redundancy(unit_pool(z, uid, fixed=fixed), vectors="z", keep=keep)
    if budget == len(z):
        assert got.keep.all()
        return got
    kept, threshold, cosine, order = by_definition(z, uid, budget, fixed)
    assert np.flatnonzero(got.keep).tolist() == sorted(kept) and got.threshold == threshold
    for row in np.flatnonzero(~got.keep):
        best = max(cosine[row, e] for e in kept)
        assert got.score[row] == best >= threshold
        assert got.witness[row] == next(e for e in order if e in kept and cosine[row, e] == best)
    return got


@settings(deadline=None)
@given(z=exact_unit_vectors(), block=st.integers(1, 6), data=st.data())
def test_redundancy_is_the_rule_to_the_last_tie(z, block, data):
    uid = np.array(data.draw(st.permutations(range(len(z)))))
    fixed = np.isin(np.arange(len(z)), data.draw(st.lists(st.integers(0, len(z) - 1), max_size=2)))
    check(z, uid, Share(count=data.draw(st.integers(1, len(z)))), fixed, block)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), spread=st.sampled_from([1e-4, 0.05, 1.0]), groups=st.sampled_from([1, 20]), block=st.sampled_from([13, 4096]))
def test_blocks_and_row_order_reach_no_verdict(seed, spread, groups, block):
    z, rng = noisy_unit_vectors(seed, 80, 10, groups, spread), np.random.default_rng(seed)
    uid, order = rng.permutation(80), rng.permutation(80)
    one = check(z, uid, Share(fraction=0.4), rng.random(80) < 0.05, block)
    two = redundancy(unit_pool(z[order], uid[order], fixed=(np.random.default_rng(0).random(80) < 0)), vectors="z", keep=Share(fraction=0.4))
    three = redundancy(unit_pool(z, uid), vectors="z", keep=Share(fraction=0.4))
    np.testing.assert_array_equal(two.keep, three.keep[order])
    assert one.keep.sum() == two.keep.sum() == 32 and two.threshold == three.threshold


def test_prefer_all_identical_one_row_and_more_than_there_are():
    z = np.ones((6, 4)) / 2
    got = redundancy(unit_pool(z, range(6), {"num_pixels": np.array([1, 9, 1, 5, 1, 1])}), vectors="z", keep=Share(count=2), prefer=["num_pixels"])
    assert (
        np.flatnonzero(got.keep).tolist() == [1, 3]
        and got.threshold == 1
        and (got.score[~got.keep] == 1).all()
        and (got.witness[~got.keep] == 1).all()
    )
    assert redundancy(unit_pool(z[:1], [0]), vectors="z", keep=Share(fraction=0.1)).keep.all()
    assert redundancy(unit_pool(np.eye(4), range(4)), vectors="z", keep=Share(count=9)).keep.all()
    assert len(redundancy(unit_pool(np.zeros((0, 4)), []), vectors="z", keep=Share(count=9)).keep) == 0
