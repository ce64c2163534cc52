"""labels.neighbours against the rule written out, on vectors where every tie is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.labels.neighbours import REASONS, neighbours
from curate.pool import Share
from tests.pools import assert_lawful, pool_of
from tests.strategies import exact_unit_vectors, noisy_unit_vectors


def nearest(z, order, row, voters, k):
    """The k voters nearest to `row` but itself: by cosine, ties to the smaller uid."""
    return sorted((v for v in voters if v != row), key=lambda v: (-float(z[row] @ z[v]), order[v]))[:k]


def by_the_book(z, labels, order, fixed, k, rounds):
    """(share of the last round or None) of each row."""
    voters = list(range(len(z)))
    for _ in range(rounds - 1):
        stay = []
        for row in range(len(z)):
            votes = [labels[v] for v in nearest(z, order, row, voters, k)]
            if row in fixed or not votes or votes.count(labels[row]) == max(votes.count(x) for x in votes):
                stay.append(row)
        voters = stay
    shares = []
    for row in range(len(z)):
        votes = [labels[v] for v in nearest(z, order, row, voters, k)]
        shares.append(votes.count(labels[row]) / len(votes) if votes else None)
    return shares


@settings(max_examples=80, deadline=None)
@given(z=exact_unit_vectors(max_size=12), data=st.data(), k=st.integers(1, 6), rounds=st.integers(1, 3))
def test_the_rule_to_the_last_tie(z, data, k, rounds):
    size = len(z)
    labels = data.draw(st.lists(st.sampled_from("abc"), min_size=size, max_size=size))
    order = data.draw(st.permutations(range(size)))
    fixed = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=2)))
    pool = pool_of(label=labels, vectors={"z": z}, order=order, fixed=fixed)

    got = neighbours(pool, vectors="z", k=k, rounds=rounds)

    want = by_the_book(z, labels, order, fixed, k, rounds)
    assert got.columns["neighbours_share"].to_pylist() == want
    assert got.keep.tolist() == [s is None or s >= 0.2 or i in fixed for i, s in enumerate(want)]
    assert_lawful(pool, got, REASONS)
    assert got.threshold == 0.2

    count = data.draw(st.integers(1, size))
    cut = neighbours(pool, vectors="z", k=k, rounds=rounds, keep=Share(count=count))
    ranked = sorted(range(size), key=lambda i: (i not in fixed, -(1.0 if want[i] is None else want[i]), order[i]))
    assert cut.keep.tolist() == [i in ranked[:count] or i in fixed or want[i] is None for i in range(size)]
    assert all(want[i] <= cut.threshold for i in np.flatnonzero(~cut.keep))


def test_a_label_among_strangers_goes_and_comes_back_in_the_second_round():
    # class b lies between two crowds of a: in round 1 its rows are outvoted one by one, but not where enough of them passed
    rng = np.random.default_rng(0)
    z = noisy_unit_vectors(3, 300, 16, 3, 0.2)
    truth = np.argmax(z @ noisy_unit_vectors(3, 3, 16, 3, 0).T, axis=1)
    labels = truth.copy()
    wrong = rng.random(300) < 0.3
    labels[wrong] = (labels[wrong] + 1) % 3
    got = neighbours(pool_of(label=labels, vectors={"z": z}), vectors="z", k=15)
    assert got.keep[wrong].mean() < 0.2
    assert got.keep[~wrong].mean() > 0.9


def test_one_sample_and_all_identical():
    assert neighbours(pool_of(label=[3], vectors={"z": np.ones((1, 4)) / 2}), vectors="z").keep.tolist() == [True]
    same = neighbours(pool_of(label=[1] * 50, vectors={"z": np.ones((50, 4)) / 2}), vectors="z")
    assert same.keep.all()
    assert same.columns["neighbours_share"].to_pylist() == [1.0] * 50
    assert same.score.tolist() == [1.0] * 50


def test_both_limits_hold_together():
    z = noisy_unit_vectors(1, 60, 8, 4, 0.3)
    labels = np.arange(60) % 3
    alone = neighbours(pool_of(label=labels, vectors={"z": z}), vectors="z", k=5, rounds=1, min_share=0.4)
    both = neighbours(pool_of(label=labels, vectors={"z": z}), vectors="z", k=5, rounds=1, min_share=0.4, keep=Share(count=5))
    assert both.keep.sum() == min(5, alone.keep.sum())
    assert not (both.keep & ~alone.keep).any()
    assert both.threshold >= 0.4


@pytest.mark.parametrize("seed", [0, 1])
def test_row_order_reaches_no_verdict(seed):
    rng = np.random.default_rng(seed)
    z, labels = noisy_unit_vectors(seed, 400, 8, 40, 0.05), rng.integers(0, 4, 400)
    order, at = rng.permutation(400), rng.permutation(400)
    a = neighbours(pool_of(label=labels, vectors={"z": z}, order=order), vectors="z", k=7)
    b = neighbours(pool_of(label=labels[at], vectors={"z": z[at]}, order=order[at]), vectors="z", k=7)
    assert b.keep.tolist() == a.keep[at].tolist()
    assert b.score.tolist() == a.score[at].tolist()
