"""select.random: the right number, drawn by uid, nested, fair."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.pool import Share
from curate.select.random import REASONS, random
from tests.pools import assert_lawful, pool_of


@settings(max_examples=50, deadline=None)
@given(data=st.data(), size=st.integers(1, 14))
def test_size_protection_and_order(data, size):
    fixed = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    count = data.draw(st.integers(1, size))
    order = data.draw(st.permutations(range(size)))
    pool = pool_of(size, order=order, fixed=fixed)

    got = random(pool, keep=Share(count=count))

    assert got.keep.sum() == max(count, len(fixed))
    assert_lawful(pool, got, REASONS)
    at = np.array(data.draw(st.permutations(range(size))))
    again = random(pool_of(size, order=[order[i] for i in at], fixed=np.flatnonzero(pool.fixed[at])), keep=Share(count=count))
    assert again.keep.tolist() == got.keep[at].tolist()  # the draw goes with the uids, not with the rows
    assert set(np.flatnonzero(got.keep)) <= set(np.flatnonzero(random(pool, keep=Share(count=size)).keep))
    assert (got.weight == 1).all()


def test_a_smaller_sample_is_part_of_a_larger_one_and_seeds_differ():
    small, large = (random(pool_of(200), keep=Share(fraction=f)).keep for f in (0.2, 0.5))
    assert small.sum() == 40
    assert not (small & ~large).any()
    assert (random(pool_of(200, seed=1), keep=Share(fraction=0.2)).keep != small).any()
    assert (random(pool_of(200, stage="again"), keep=Share(fraction=0.2)).keep != small).any()


def test_every_row_has_the_same_chance():
    hits = sum(random(pool_of(20, seed=seed), keep=Share(count=5)).keep.astype(int) for seed in range(800))
    assert abs(hits - 200).max() < 5 * np.sqrt(800 * 0.25 * 0.75)  # five standard deviations


def test_one_sample_is_kept():
    assert random(pool_of(1), keep=Share(fraction=0.01)).keep.tolist() == [True]
