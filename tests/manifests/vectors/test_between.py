"""manifests.vectors.between: the nearest of another set and all pairs down to a floor, by all cosines; a round at a time, with ties and missing vectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.vectors import between
from manifests.vectors.between import close, nearest
from manifests.vectors.store import Vectors
from tests.manifests.test_hits import brute
from tests.manifests.vectors.test_copies import scan
from tests.strategies import exact_unit_vectors


@st.composite
def two_sets(draw):
    """Vectors of two sets with many ties, some of them missing, and the order of their uids."""
    sets = [draw(exact_unit_vectors(min_size=1, max_size=9)) for _ in range(2)]
    for z in sets:
        z[sorted(draw(st.sets(st.integers(0, len(z) - 1), max_size=2)))] = 0
    return [Vectors.of(z) for z in sets], [np.array(draw(st.permutations(range(len(z))))) for z in sets]


def cosines(z, base):
    """(n, m), -inf where one of the two is missing."""
    a, b = np.divmod(np.arange(len(z) * len(base)), len(base))
    found = z.cosine(a, base, b).reshape(len(z), len(base))
    return np.where((z.square > 0)[:, None] & (base.square > 0), found, -np.inf)


@settings(max_examples=150, deadline=None)
@given(given_sets=two_sets(), k=st.integers(1, 10), rounds=st.sampled_from([1, 2, 8192]))
def test_the_nearest_come_first_and_a_tie_goes_by_rank(given_sets, k, rounds):
    (z, base), (_, rank) = given_sets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(between, "QUERIES", rounds)
        score, row = nearest(z, base, k, rank, "nearest", scan)
    width = min(k, len(base))
    assert score.shape == row.shape == (len(z), width)
    every = cosines(z, base)
    for i in range(len(z)):
        order = [j for j in np.lexsort((rank, -every[i])) if every[i, j] > -np.inf][:width]
        there = row[i] >= 0
        assert (score[i, ~there] == -np.inf).all()
        assert there.sum() <= len(order)
        assert row[i, there].tolist() == order[: there.sum()] and score[i, there].tolist() == every[i, order[: there.sum()]].tolist()
        if (base.square > 0).all():  # a missing one may stand among the k, as vectors at a cosine below 0 do behind it
            assert there.sum() == len(order)


@settings(max_examples=150, deadline=None)
@given(given_sets=two_sets(), floor=st.sampled_from([-0.5, 0.0, 0.5, 1.0]), most=st.integers(1, 4), rounds=st.sampled_from([1, 2, 8192]))
def test_every_pair_down_to_the_floor_is_there_or_its_sample_is_cut(given_sets, floor, most, rounds):
    (z, base), ranks = given_sets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(between, "QUERIES", rounds)
        (u, v, distance, is_cut), mine, theirs = close(z, base, floor, (ranks[0], ranks[1]), most, "close", scan)
    every = cosines(z, base)[mine.first][:, theirs.first]
    pairs = {(a, b): -every[a, b] for a, b in np.argwhere(every >= floor).tolist()}
    recorded, cut = brute(pairs, mine.first_rank, theirs.first_rank, most)
    assert dict(zip(zip(u.tolist(), v.tolist(), strict=True), distance.tolist(), strict=True)) == {p: pairs[p] for p in recorded}
    assert set(np.flatnonzero(is_cut).tolist()) == cut
    for vectors, groups in ((z, mine), (base, theirs)):  # rows are one group exactly where their vectors are equal
        stored = vectors.stored(np.arange(len(vectors)))
        assert [[(a == b).all() for b in stored] for a in stored] == (groups.of[:, None] == groups.of).tolist()


def test_nothing_on_either_side_is_no_pair():
    z, none = Vectors.of(np.eye(4)), Vectors.of(np.empty((0, 4)))
    order = np.arange(4), np.arange(0)
    assert nearest(z, none, 3, order[1], "nearest", scan)[0].shape == (4, 0)
    assert len(close(z, none, 0.0, order, 5, "close", scan)[0][0]) == 0
    assert len(close(none, z, 0.0, order[::-1], 5, "close", scan)[0][0]) == 0
