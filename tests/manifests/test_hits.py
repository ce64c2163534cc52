"""The bounded table of hits, by brute force over all pairs of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import hits
from manifests.hits import Groups, Way, closest, gathered, spread, together


def brute(pairs, row_rank, sample_rank, most):
    """{(row, sample)} that are recorded, and the samples of which a pair is not; `pairs`: (row, sample) -> distance."""
    recorded = set()
    for sample in {s for _, s in pairs}:
        recorded |= {(r, sample) for _, _, r in sorted((d, row_rank[r], r) for (r, s), d in pairs.items() if s == sample)[:most]}
    for row in {r for r, _ in pairs}:
        recorded.add((row, min((d, sample_rank[s], s) for (r, s), d in pairs.items() if r == row)[2]))
    return recorded, {s for r, s in pairs if (r, s) not in recorded}


@st.composite
def pools(draw):
    """Rows and samples with keys (equal ones are one group), uids in any order, distances of some pairs of groups with many ties."""
    rows, samples = draw(st.integers(0, 9)), draw(st.integers(0, 7))
    keys = [np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)), np.int64) for n in (rows, samples)]
    ranks = [np.array(draw(st.permutations(range(n))), np.int64) for n in (rows, samples)]
    left, right = (Groups.by(k, r) for k, r in zip(keys, ranks, strict=True))
    pairs = draw(
        st.dictionaries(st.tuples(st.integers(0, max(len(left) - 1, 0)), st.integers(0, max(len(right) - 1, 0))), st.integers(0, 3), max_size=20)
    )
    pairs = pairs if len(left) and len(right) else {}
    return left, right, pairs


@settings(max_examples=300, deadline=None)
@given(given_pools=pools(), most=st.integers(1, 4), blocks=st.integers(1, 4), at_once=st.sampled_from([1, 3, 1 << 21]), again=st.booleans())
def test_what_is_recorded_is_what_brute_force_records(given_pools, most, blocks, at_once, again):
    left, right, pairs = given_pools
    listed = [*pairs.items(), *((p, d + 1) for p, d in list(pairs.items())[::2] if again)]  # a pair may be found twice, the second time further away
    found = [np.array([(u, v, d) for (u, v), d in listed[i::blocks]], np.int64).reshape(-1, 3) for i in range(blocks)]
    before = hits.AT_ONCE
    try:
        hits.AT_ONCE = at_once
        some = gathered(((f[:, 0], f[:, 1], f[:, 2].astype(float)) for f in found[:1]), left, right, most)
        kept = gathered(((f[:, 0], f[:, 1], f[:, 2].astype(float)) for f in found[1:]), left, right, most, some)
        row, sample, pair, is_cut = spread(kept, left, right, most)
    finally:
        hits.AT_ONCE = before

    of_rows = {
        (r, s): d for (u, v), d in pairs.items() for r in np.flatnonzero(left.of == u).tolist() for s in np.flatnonzero(right.of == v).tolist()
    }
    recorded, cut = brute(of_rows, left.rank, right.rank, most)
    assert list(zip(row.tolist(), sample.tolist(), strict=True)) == sorted(recorded)
    assert set(np.flatnonzero(is_cut).tolist()) == cut
    assert kept[2][pair].tolist() == [of_rows[p] for p in sorted(recorded)]


def test_groups_are_named_by_their_smallest_uid_and_numbered_by_place():
    groups = Groups.by(np.array([7, 3, 7, 3, 1]), np.array([4, 3, 0, 2, 1]))
    assert groups.first.tolist() == [2, 3, 4]
    assert groups.of.tolist() == [0, 1, 0, 1, 2]
    assert groups.first_rank.tolist() == [0, 2, 1]


def test_a_row_keeps_its_closest_sample_though_the_sample_is_full():
    rank = np.arange(5)
    keep = closest(np.arange(5), np.zeros(5, np.int64), np.arange(5.0), rank, rank[:1], 2)
    assert keep.all()
    keep = closest(np.tile(np.arange(5), 2), np.repeat([0, 1], 5), np.repeat([1.0, 2.0], 5), rank, rank[:2], 2)
    assert keep.tolist() == [True] * 5 + [True] * 2 + [False] * 3


def test_ways_together_hold_each_pair_once_and_say_who_saw_it():
    left = right = Groups.by(np.arange(3), np.arange(3))
    none = np.zeros(3, bool)
    one = Way("one", (np.array([0, 2]), np.array([1, 1]), np.array([0.5, 0.1]), none), left, right)
    two = Way("two", (np.array([0]), np.array([1]), np.array([9.0]), np.array([False, True, False])), left, right)
    row, sample, is_complete, (first, second) = together([one, two], 3, 4)
    assert (row.tolist(), sample.tolist(), is_complete.tolist()) == ([0, 2], [1, 1], [False, False])
    assert (first[0].tolist(), first[1].tolist()) == ([0, 1], [0, 1])
    assert (second[0].tolist(), second[1].tolist()) == ([0], [0])


@pytest.mark.parametrize("rows", [0, 3])
def test_without_samples_nothing_is_recorded(rows):
    left, right = Groups.by(np.arange(rows), np.arange(rows)), Groups.by(np.arange(0), np.arange(0))
    pairs = gathered([], left, right, 3)
    row, sample, is_complete, _ = together([Way("one", pairs, left, right)], 0, 3)
    assert not len(row) and not len(sample) and not len(is_complete)
