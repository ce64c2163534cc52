"""reduce.prototypes against its rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.pool import Share
from curate.reduce.prototypes import REASONS, prototypes
from manifests.errors import Refusal
from manifests.vectors.partition import partition
from manifests.vectors.store import Vectors
from tests.pools import assert_lawful
from tests.strategies import noisy_unit_vectors, unit_pool


def by_definition(distance, group, fixed, budget, floor, end):
    """Kept rows, rows being in uid order: floors filled in rounds, then the best of all."""
    better = -distance if end == "hard" else distance
    kept = np.flatnonzero(fixed).tolist()
    least = int(floor * budget / max(len(set(group)), 1))
    while len(kept) < budget:
        left = [r for r in range(len(group)) if r not in kept]
        count = {g: sum(group[r] == g for r in kept) for g in group}
        first = {g: min((r for r in left if group[r] == g), key=lambda r: (better[r], r), default=None) for g in set(group)}
        short = [r for g, r in first.items() if r is not None and count[g] < least]
        kept.append(min(short, key=lambda r: (count[group[r]], better[r], r)) if short else min(left, key=lambda r: (better[r], r)))
    return sorted(kept)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 9999),
    k=st.sampled_from([1, 3, 9]),
    share=st.sampled_from([0.1, 0.4, 0.8, 1.0]),
    end=st.sampled_from(["hard", "easy"]),
    floor=st.sampled_from([0.0, 0.5, 1.0]),
    by=st.sampled_from([None, "label"]),
)
def test_prototypes_is_the_rule(seed, k, share, end, floor, by):
    rng, n = np.random.default_rng(seed), 40
    z, uid, fixed = noisy_unit_vectors(seed, n, 6, 6, 0.3), rng.permutation(n), rng.random(n) < 0.15
    label = rng.choice(["cat", "dog", "eel"], n, p=[0.8, 0.15, 0.05])
    pool = unit_pool(z, uid, {"label": label.tolist()}, fixed=fixed)
    options = {"vectors": "z", "keep": Share(fraction=share), "clusters": k, "end": end, "floor": floor, "by": by}

    got = prototypes(pool, **options)

    budget, by_uid = max(Share(fraction=share).of(n), int(fixed.sum())), np.argsort(uid)
    cluster, cosine, _ = partition(Vectors.of(z[by_uid]), k, rng=pool.rng("clusters"))
    group = (label[by_uid] if by else cluster).tolist()
    kept = by_definition(1 - cosine, group, fixed[by_uid], budget, floor, end)
    assert np.flatnonzero(got.keep[by_uid]).tolist() == kept
    assert_lawful(pool, got, REASONS)
    assert got.columns["prototypes_cluster"][by_uid].tolist() == cluster.tolist()
    assert got.columns["prototypes_distance"][by_uid].tolist() == (1 - cosine).tolist()
    dropped = ~got.keep
    assert got.score[dropped].tolist() == got.columns["prototypes_distance"][dropped].tolist()
    known = dropped & ~np.isnan(got.threshold)
    if end == "hard":
        assert (got.score[known] <= got.threshold[known]).all()
    else:
        assert (got.score[known] >= got.threshold[known]).all()

    at = rng.permutation(n)
    moved = prototypes(unit_pool(z[at], uid[at], {"label": label[at].tolist()}, fixed=fixed[at]), **options)
    assert moved.keep.tolist() == got.keep[at].tolist()
    np.testing.assert_array_equal(moved.threshold, got.threshold[at])


def test_the_threshold_would_have_been_enough():
    """A row is kept with the threshold's distance and a smaller uid, in its class or overall."""
    z = noisy_unit_vectors(5, 60, 6, 6, 0.4)
    label = ["a"] * 50 + ["b"] * 10
    got = prototypes(unit_pool(z, np.arange(60), {"label": label}), vectors="z", keep=Share(count=20), clusters=4, by="label", floor=1.0)
    assert got.keep[:50].sum() == got.keep[50:].sum() == 10  # the rare class is kept whole
    distance = got.columns["prototypes_distance"]
    assert got.threshold[:50].min() == got.threshold[:50].max() == distance[:50][got.keep[:50]].min()


def test_where_protected_rows_leave_too_little_for_all_floors_every_class_gets_its_first_row():
    """Eight of ten places are protected; by distance alone both rows of the wide class would take what is left of the floors."""
    z = np.concatenate([np.repeat(np.eye(8)[:1], 20, 0), noisy_unit_vectors(1, 20, 8, 1, 0.4), np.repeat(np.eye(8)[5:6], 20, 0)])
    label, fixed = ["a"] * 20 + ["wide"] * 20 + ["c"] * 20, np.arange(60) < 8
    for end in ("hard", "easy"):
        got = prototypes(
            unit_pool(z, np.arange(60), {"label": label}, fixed=fixed), vectors="z", keep=Share(count=10), clusters=3, by="label", end=end, floor=1.0
        )
        assert [got.keep[i : i + 20].sum() for i in (0, 20, 40)] == [8, 1, 1]


def test_all_identical_one_row_no_row_and_more_clusters_than_rows():
    same = np.full((30, 4), 0.5)
    got = prototypes(unit_pool(same, np.arange(30)[::-1]), vectors="z", keep=Share(count=4))
    assert np.flatnonzero(got.keep).tolist() == [26, 27, 28, 29] and (got.score[:26] == 0).all()
    assert prototypes(unit_pool(same[:1], [0]), vectors="z", keep=Share(fraction=0.1)).keep.all()
    assert len(prototypes(unit_pool(same[:0], []), vectors="z", keep=Share(count=3)).keep) == 0
    got = prototypes(unit_pool(np.eye(4), np.arange(4)), vectors="z", keep=Share(count=2), clusters=999, end="easy")
    assert got.keep.tolist() == [True, True, False, False] and got.reason == "too_hard"


@pytest.mark.parametrize("bad", [{"clusters": 0}, {"floor": -0.1}, {"floor": 1.1}])
def test_bad_values_are_refused(bad):
    with pytest.raises(Refusal, match=r"reduce.prototypes: clusters .*\[bad-value\]"):
        prototypes(unit_pool(np.eye(4), np.arange(4)), vectors="z", keep=Share(count=2), **bad)


def test_more_than_the_memory_holds_is_refused():
    with pytest.raises(Refusal, match=r"reduce.prototypes: needs .*\[does-not-fit\]"):
        prototypes(unit_pool(np.eye(4), np.arange(4), memory=10 << 20), vectors="z", keep=Share(count=2))


def test_a_floor_is_not_a_row_short_for_want_of_a_binary_fraction():
    """0.29 of 100 is 29 of each class, though 0.29 * 100 is a little less in floating point."""
    angle = np.concatenate([np.linspace(0, 0.01, 600), np.linspace(2, 2.1, 100)])
    z, group = np.stack([np.cos(angle), np.sin(angle)], 1), np.repeat([0, 1], [600, 100])
    assert int(0.29 * 200 / 2) == 28
    got = prototypes(
        unit_pool(z, np.arange(700), {"group": group}), vectors="z", keep=Share(count=200), by="group", floor=0.29, clusters=1, end="easy"
    )
    assert np.bincount(group[got.keep]).tolist() == [171, 29]
