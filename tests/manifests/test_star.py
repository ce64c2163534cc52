"""manifests.star against the definition."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.star import first_kept, star


def by_definition(rank, pairs, fixed):
    """(keep, witness, score): the rule, row by row."""
    near = {(min(a, b), max(a, b)): s for a, b, s in pairs if a != b}
    n = len(rank)
    keep, witness, score = np.zeros(n, bool), np.full(n, -1), np.full(n, np.nan)
    for row in np.argsort(rank):
        found = [(near[min(a, row), max(a, row)], -rank[a], a) for a in range(n) if keep[a] and (min(a, row), max(a, row)) in near]
        if found and not fixed[row]:
            score[row], _, witness[row] = max(found)
        else:
            keep[row] = True
    return keep, witness, score


@st.composite
def graphs(draw):
    n = draw(st.integers(1, 9))
    weight = {p: draw(st.sampled_from([None, None, 0.5, 0.7, 0.9])) for p in [(a, b) for a in range(n) for b in range(a)]}
    pairs = [((a, b) if draw(st.booleans()) else (b, a)) + (s,) for (a, b), s in weight.items() if s is not None]
    pairs = draw(st.permutations(pairs + pairs[:2])) + [(0, 0, 1.0)]
    rank = np.array(draw(st.permutations(range(n))))
    return rank, pairs, rank < draw(st.sampled_from([0, 0, 2]))


def blocks(pairs, size):
    return [tuple(np.array(column) for column in zip(*pairs[i : i + size], strict=True)) for i in range(0, len(pairs), size)]


@settings(deadline=None)
@given(graph=graphs(), size=st.integers(1, 5))
def test_star_is_the_rule_for_any_order_of_pairs(graph, size):
    rank, pairs, fixed = graph
    for got, want in zip(star(rank, blocks(pairs, size), fixed=fixed), by_definition(rank, pairs, fixed), strict=True):
        np.testing.assert_array_equal(got, want)


@settings(deadline=None)
@given(graph=graphs())
def test_first_kept_is_the_same_walk(graph):
    rank, pairs, fixed = graph
    near = np.zeros((len(rank), len(rank)), bool)
    for a, b, _ in pairs:
        near[rank[a], rank[b]] = near[rank[b], rank[a]] = a != b
    order = np.argsort(rank)
    got = first_kept(near, np.ones(len(rank), bool), fixed[order])
    np.testing.assert_array_equal(got, by_definition(rank, pairs, fixed)[0][order])


def test_a_chain_is_cut_and_no_pairs_drop_nobody():
    rank = np.arange(3)
    keep, witness, _ = star(rank, [(np.array([0, 1]), np.array([1, 2]), np.array([0.9, 0.9]))])
    assert keep.tolist() == [True, False, True] and witness.tolist() == [-1, 0, -1]
    assert star(rank, [])[0].all()
