"""manifests.vectors.copies: pairs inside cells, what a crowd needs, what equal rows share."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import Refusal
from manifests.star import star
from manifests.vectors import copies, forecast
from manifests.vectors.clusters import Cells, cells
from manifests.vectors.copies import limit_of, pairs_inside, rivals, spread, thinned, together, warn_of_many
from manifests.vectors.store import Vectors
from tests.strategies import exact_unit_vectors, noisy_unit_vectors


def scan(name, step, state, rounds):
    for _ in range(rounds):
        state = step(state)
    return state


def once(name, function):
    return function()


def in_cells(seed, n, recall=0.9):
    z = Vectors.of(noisy_unit_vectors(seed, n, 8, 6, 0.1))
    return z, cells(z, 7, uid_rank=np.arange(n), rng=np.random.default_rng(seed), floor=0.9, recall=recall, memory=1 << 30)[1]


def by_definition(z, found, floor):
    pairs = set()
    for home, guests in found.each():
        pairs |= {(min(i, j), max(i, j)) for i in home.tolist() for j in [*home.tolist(), *guests.tolist()] if i != j}
    a, b = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    score = z.cosine(a, z, b)
    return a[score >= floor], b[score >= floor], score[score >= floor]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), high=st.sampled_from([3, 256]), wide=st.sampled_from([9, 4096]), device=st.sampled_from(["cpu", "cpu:0"]))
def test_every_pair_of_a_cell_comes_once(seed, high, wide, device):
    z, found = in_cells(seed, 150)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "HIGH", high)
        patch.setattr(copies, "HIGH_THERE", high)
        patch.setattr(copies, "WIDE", wide)
        patch.setattr(copies, "TOGETHER", 2)
        got = pairs_inside(z, found, 0.93, 10**6, scan, device)
    for one, other in zip(got, by_definition(z, found, 0.93), strict=True):
        np.testing.assert_array_equal(one, other)


def test_more_pairs_than_the_limit_are_none():
    z, found = in_cells(0, 150)
    count = len(by_definition(z, found, 0.93)[0])
    assert pairs_inside(z, found, 0.93, count, scan) is not None and pairs_inside(z, found, 0.93, count - 1, scan) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "FEW", 0)
        assert pairs_inside(z, found, 0.93, 5, scan) is None
    assert limit_of(10, 16) == 1_000_000 and limit_of(10**6, 16) == 16 * 10**6


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_pairs_of_two_known_rows_are_left_out(seed, share):
    z, found = in_cells(seed, 150)
    known = np.random.default_rng(seed).random(150) < share
    a, b, score = by_definition(z, found, 0.93)
    new = ~(known[a] & known[b])
    for one, other in zip(pairs_inside(z, found, 0.93, 10**6, scan, known=known), (a[new], b[new], score[new]), strict=True):
        np.testing.assert_array_equal(one, other)
    home, nobody = found.home, np.empty(0, np.int64)
    rank = np.lexsort((np.arange(150), ~known))  # known rows come first in keeper order
    rank[rank] = np.arange(150)
    every = rivals(z, Cells(home, nobody, nobody), 0.93, rank)
    some = rivals(z, Cells(home, nobody, nobody), 0.93, rank, known)
    wanted = {(x, y, s) for x, y, s in zip(*(column.tolist() for column in every), strict=True) if not known[y]}
    assert set(zip(*(column.tolist() for column in some), strict=True)) == wanted


def test_pairs_that_outgrow_the_memory_are_refused_with_what_they_need():
    z, found = in_cells(0, 150)
    count = len(by_definition(z, found, 0.93)[0])
    needed = forecast.PAIR * 2 * count  # pairs across a border come twice at most
    assert pairs_inside(z, found, 0.93, 10**6, scan, memory=needed) is not None
    with pytest.raises(Refusal, match=r"dedup.semantic: some [\d,]+ pairs reach floor_cosine and need") as refused:
        pairs_inside(z, found, 0.93, 10**6, scan, memory=needed // 8, where="dedup.semantic")
    assert refused.value.slug == "does-not-fit"
    first, rank = np.repeat([0, 50], 50), np.arange(100)
    pairs = np.zeros(1, np.int64), np.full(1, 50), np.ones(1)
    total = 50 * 50 + 2 * 50 * 49 // 2
    assert len(spread(pairs, lambda: pairs, first, rank, 10**6, forecast.PAIR * total, "x")[0]) == total
    with pytest.raises(Refusal, match="4,950 pairs"):
        spread(pairs, lambda: pairs, first, rank, 10**6, forecast.PAIR * total - 1, "x")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), most=st.sampled_from([1, 3, 99]), high=st.sampled_from([5, 256]))
def test_a_thinned_crowd_gives_the_star_of_all_its_pairs(seed, most, high):
    z, found = in_cells(seed, 150)
    rng = np.random.default_rng(seed)
    fixed = rng.random(150) < 0.1
    rank = np.argsort(np.lexsort((rng.permutation(150), ~fixed)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "HIGH", high)
        patch.setattr(copies, "WIDE", 2 * high)
        thin = thinned(z, found, 0.95, rank, fixed, most, once)
    for one, other in zip(star(rank, [thin], fixed=fixed), star(rank, [by_definition(z, found, 0.95)], fixed=fixed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.bincount(thin[1], minlength=1).max() <= most and (rank[thin[0]] < rank[thin[1]]).all()


@settings(max_examples=25, deadline=None)
@given(z=exact_unit_vectors(min_size=2), high=st.integers(1, 5), data=st.data())
def test_the_rival_is_the_closest_earlier_row(z, high, data):
    n, v = len(z), Vectors.of(z)
    rank = np.array(data.draw(st.permutations(range(n))))
    home = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "HIGH", high)
        patch.setattr(copies, "WIDE", 2 * high)
        a, b, score = rivals(v, Cells(home, np.empty(0, np.int64), np.empty(0, np.int64)), 0.25, rank)
    want = {}
    for j in range(n):
        earlier = [(float(z[i] @ z[j]), -rank[i], i) for i in range(n) if home[i] == home[j] and rank[i] < rank[j] and z[i] @ z[j] >= 0.25]
        if earlier:
            want[j] = max(earlier)[2], max(earlier)[0]
    assert {int(y): (int(x), float(s)) for x, y, s in zip(a, b, score, strict=True)} == want


FIRST = np.array([0, 1, 0, 3, 1, 0])


def test_equal_rows_have_the_pairs_of_the_one_that_stands_for_them():
    pairs = np.array([0]), np.array([1]), np.array([0.9])
    a, b, score, equal, is_complete = spread(pairs, lambda: pairs, FIRST, np.arange(6), 10)
    got = {(min(x, y), max(x, y)): (s, e) for x, y, s, e in zip(a.tolist(), b.tolist(), score.tolist(), equal.tolist(), strict=True)}
    assert is_complete and len(a) == len(got)
    assert got == dict.fromkeys([(0, 1), (0, 4), (1, 2), (2, 4), (1, 5), (4, 5)], (0.9, False)) | dict.fromkeys(
        [(0, 2), (0, 5), (2, 5), (1, 4)], (1.0, True)
    )


def test_where_they_are_too_many_each_row_has_those_of_the_better_one():
    pairs = np.array([1]), np.array([0]), np.array([0.9])
    for given_pairs, limit in ((pairs, 9), (None, 100), (pairs, 1)):
        a, b, score, equal, is_complete = spread(given_pairs, lambda: pairs, FIRST, np.arange(6), limit)
        assert not is_complete
        got = sorted(zip(a.tolist(), b.tolist(), score.tolist(), equal.tolist(), strict=True))
        assert got == [(0, 1, 0.9, False), (0, 2, 1.0, True), (0, 4, 0.9, False), (0, 5, 1.0, True), (1, 4, 1.0, True)]


def test_equal_rows_stand_together_at_the_place_of_the_first():
    rank = np.array([3, 0, 1, 2, 4])
    assert together(rank, np.array([4, 0]), np.array([1, 2]), np.array([True, False])).tolist() == [4, 0, 2, 3, 1]


def test_the_warning_counts_all_but_equal_vectors():
    cosine = np.full(1000, 0.96)
    with pytest.warns(UserWarning, match=r"dedup.semantic: 0.95 drops 100% of 1000 rows: 0% stand at 0.97 or closer to what stays, 0% at 0.99"):
        warn_of_many("dedup.semantic", cosine, 0.95)
    with pytest.warns(UserWarning, match=r"drops 90% of 1000 rows: 90% stand at 0.97 or closer to what stays, 90% at 0.99, 10% have equal vectors"):
        warn_of_many(
            "dedup.semantic", np.select([np.arange(1000) < 100, np.arange(1000) < 900], [1.0, 0.995], np.nan), 0.95
        )  # an encoder that collapsed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_many("dedup.semantic", np.where(np.arange(1000) < 600, 1.0, np.nan), 0.95)
        warn_of_many("dedup.semantic", np.where(np.arange(1000) < 500, 0.96, np.nan), 0.95)
        warn_of_many("dedup.semantic", cosine[:99], 0.95)
        warn_of_many("dedup.semantic", np.empty(0), 0.95)
