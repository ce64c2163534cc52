"""select.stratified: shares by largest remainder against brute force, floors, protection."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from curate.pool import Share
from curate.select.stratified import REASONS, shares, stratified
from manifests.errors import Refusal
from tests.pools import assert_lawful, pool_of


def largest_remainder(sizes, budget):
    """The textbook rule with fractions."""
    exact = [Fraction(budget * s, sum(sizes)) for s in sizes]
    quota = [int(e) for e in exact]
    spare = budget - sum(quota)
    for i in sorted(range(len(sizes)), key=lambda i: (-(exact[i] - quota[i]), i))[:spare]:
        quota[i] += 1
    return quota


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_without_floors_the_shares_are_the_textbook_rule(sizes, data):
    budget = data.draw(st.integers(1, sum(sizes)))
    assert shares(np.array(sizes), budget, np.zeros(len(sizes), int)).tolist() == largest_remainder(sizes, budget)


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), data=st.data())
def test_with_floors_the_rest_is_shared_by_the_others(sizes, data):
    floor = np.array([data.draw(st.integers(0, s)) for s in sizes])
    assume(floor.sum() >= 0)
    budget = data.draw(st.integers(max(1, int(floor.sum())), sum(sizes)))

    got = shares(np.array(sizes), budget, floor)

    assert got.sum() == budget
    assert (got >= floor).all()
    assert (got <= np.array(sizes)).all()
    above = got > floor  # the classes that share: none is more than one row off its share of what they hold together
    if above.any():
        exact = got[above].sum() * np.array(sizes)[above] / np.array(sizes)[above].sum()
        assert (abs(got[above] - exact) <= above.sum() + 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=16), data=st.data())
def test_verdicts(labels, data):
    size = len(labels)
    fixed = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=3)))
    order = data.draw(st.permutations(range(size)))
    count = data.draw(st.integers(1, size))
    pool = pool_of(label=labels, order=order, fixed=fixed)

    got = stratified(pool, keep=Share(count=count))

    assert got.keep.sum() == max(count, len(fixed))
    assert_lawful(pool, got, REASONS)
    at = data.draw(st.permutations(range(size)))
    moved = pool_of(label=[labels[i] for i in at], order=[order[i] for i in at], fixed=np.flatnonzero(pool.fixed[list(at)]))
    assert stratified(moved, keep=Share(count=count)).keep.tolist() == got.keep[list(at)].tolist()
    if not fixed:
        classes = sorted(set(labels))
        kept = [int(got.keep[[x == c for x in labels]].sum()) for c in classes]
        assert kept == largest_remainder([labels.count(c) for c in classes], count)


def test_a_floor_keeps_the_rare_class_and_small_classes_whole():
    labels = ["common"] * 97 + ["rare"] * 3
    assert stratified(pool_of(label=labels), keep=Share(count=10)).keep[97:].sum() == 0
    got = stratified(pool_of(label=labels), keep=Share(count=10), min_per_class=5)
    assert got.keep[97:].all()
    assert got.keep.sum() == 10


def test_floors_that_do_not_fit_are_refused():
    with pytest.raises(Refusal, match=r"min_per_class 4 needs 8 rows of 2 classes.*keep allows 6.*\[bad-value\]"):
        stratified(pool_of(label=["a"] * 9 + ["b"] * 9), keep=Share(count=6), min_per_class=4)


def test_one_class_is_a_random_sample():
    assert stratified(pool_of(label=["x"] * 30), keep=Share(fraction=0.5)).keep.sum() == 15
