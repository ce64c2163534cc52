"""reduce.density against its rule, with quotas by a quadratic programme."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from curate.pool import Share
from curate.reduce.density import REASONS, density
from manifests.errors import Refusal
from manifests.vectors.partition import partition
from manifests.vectors.store import Vectors
from tests.pools import assert_lawful
from tests.strategies import noisy_unit_vectors, unit_pool


def quotas_by_definition(z, cluster, centres, budget, fixed, temperature, neighbours, min_share):
    """The rule in plain steps; the shift by bisection."""
    v, c, k = Vectors.of(z), Vectors.of(centres), len(centres)
    distance = 1 - np.array([[v.cosine(np.array([i]), c, np.array([j]))[0] for j in range(k)] for i in range(len(z))])
    between = 1 - np.array([[c.cosine(np.array([i]), c, np.array([j]))[0] for j in range(k)] for i in range(k)])
    size = np.bincount(cluster)
    intra = np.array([distance[cluster == j, j].mean() for j in range(k)])
    inter = np.array([np.mean(sorted(np.delete(between[j], j))[:neighbours]) if k > 1 else 0 for j in range(k)])
    p = np.exp(intra * inter / temperature)
    target = p / p.sum() * budget
    low = np.array([max(min(min_share * budget / k, size[j] - 1), fixed[cluster == j].sum()) for j in range(k)])
    if low.sum() > budget:
        low = np.array([fixed[cluster == j].sum() for j in range(k)])
    shift = brentq(lambda s: np.clip(target + s, low, size).sum() - budget, -2 * len(z) - 2, 2 * len(z) + 2, xtol=1e-13)
    return np.clip(target + shift, low, size), distance[np.arange(len(z)), cluster]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    k=st.sampled_from([1, 2, 5, 12]),
    share=st.sampled_from([0.1, 0.4, 0.8, 1.0]),
    temperature=st.sampled_from([0.02, 0.5]),
    neighbours=st.sampled_from([1, 3, 20]),
    min_share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_density_is_the_rule(seed, k, share, temperature, neighbours, min_share):
    rng, n = np.random.default_rng(seed), 60
    z, uid, fixed = noisy_unit_vectors(seed, n, 6, 6, 0.3), rng.permutation(n), rng.random(n) < 0.1
    pool = unit_pool(z, uid, fixed=fixed)
    options = {
        "vectors": "z",
        "keep": Share(fraction=share),
        "clusters": k,
        "temperature": temperature,
        "neighbours": neighbours,
        "min_share": min_share,
    }

    got = density(pool, **options)

    budget = max(Share(fraction=share).of(n), int(fixed.sum()))
    assert got.keep.sum() == budget
    assert_lawful(pool, got, REASONS)
    by_uid = np.argsort(uid)
    cluster, _, centres = partition(Vectors.of(z[by_uid]), k, rng=pool.rng("clusters"))
    assert got.columns["density_cluster"][by_uid].tolist() == cluster.tolist()
    exact, distance = quotas_by_definition(z[by_uid], cluster, centres, budget, fixed[by_uid], temperature, neighbours, min_share)
    quota = np.array([got.columns["density_quota"][by_uid][cluster == j][0] for j in range(len(centres))])
    assert quota.sum() == budget
    assert (np.abs(quota - exact) < 1 + 1e-5).all()
    remainder = exact - np.floor(exact + 1e-6)
    up, down = quota > exact + 1e-5, quota < exact - 1e-5
    assert not (up.any() and down.any()) or remainder[up].min() >= remainder[down].max() - 1e-5
    for j in range(len(centres)):
        rows = np.flatnonzero(cluster == j)
        rows = rows[np.lexsort((rows, -distance[rows], ~fixed[by_uid][rows]))]
        kept = got.keep[by_uid][rows]
        assert kept.tolist() == [True] * quota[j] + [False] * (len(rows) - quota[j])
        np.testing.assert_allclose(got.score[by_uid][rows[quota[j] :]], distance[rows[quota[j] :]], atol=1e-12)
        free = [r for r in rows[: quota[j]] if not fixed[by_uid][r]]
        limit = got.threshold[by_uid][rows]
        assert np.isnan(limit).all() if not free else np.allclose(limit, distance[free].min())

    at = rng.permutation(n)
    moved = density(unit_pool(z[at], uid[at], fixed=fixed[at]), **options)
    assert moved.keep.tolist() == got.keep[at].tolist()
    assert moved.columns["density_quota"].tolist() == got.columns["density_quota"][at].tolist()


def test_a_crowd_gives_up_more_than_a_wide_cluster():
    rng = np.random.default_rng(1)
    crowd = np.eye(8)[0] + 0.01 * rng.normal(size=(300, 8))
    wide = np.eye(8)[1] + 0.5 * rng.normal(size=(100, 8))
    z = np.concatenate([crowd, wide])
    got = density(
        unit_pool(z / np.linalg.norm(z, axis=1, keepdims=True), np.arange(400)), vectors="z", keep=Share(count=100), clusters=2, temperature=0.1
    )
    assert got.keep[300:].sum() > 75 and got.columns["density_quota"].min() >= 25


def test_protected_rows_that_fill_the_budget_leave_nothing_else():
    z = noisy_unit_vectors(0, 40, 6, 4, 0.3)
    fixed = np.arange(40) < 30
    got = density(unit_pool(z, np.arange(40), fixed=fixed), vectors="z", keep=Share(count=5), clusters=4)
    assert got.keep.tolist() == fixed.tolist() and np.isnan(got.threshold).all()


def test_all_identical_one_row_no_row_and_more_clusters_than_rows():
    same = np.full((30, 4), 0.5)
    got = density(unit_pool(same, np.arange(30)[::-1]), vectors="z", keep=Share(count=4))
    assert np.flatnonzero(got.keep).tolist() == [26, 27, 28, 29] and (got.score[:26] == 0).all() and (got.columns["density_cluster"] == 0).all()
    assert density(unit_pool(same[:1], [0]), vectors="z", keep=Share(fraction=0.1)).keep.all()
    assert len(density(unit_pool(same[:0], []), vectors="z", keep=Share(count=3)).keep) == 0
    got = density(unit_pool(np.eye(4), np.arange(4)), vectors="z", keep=Share(count=2), clusters=999)
    assert got.keep.sum() == 2 and sorted(got.columns["density_cluster"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [{"clusters": 0}, {"temperature": 0.0}, {"neighbours": 0}, {"min_share": 1.5}])
def test_bad_values_are_refused(bad):
    with pytest.raises(Refusal, match=r"reduce.density: clusters .*\[bad-value\]"):
        density(unit_pool(np.eye(4), np.arange(4)), vectors="z", keep=Share(count=2), **bad)


def test_more_than_the_memory_holds_is_refused():
    with pytest.raises(Refusal, match=r"reduce.density: needs .* MiB; --memory allows 10 MiB.*\[does-not-fit\]"):
        density(unit_pool(np.eye(4), np.arange(4), memory=10 << 20), vectors="z", keep=Share(count=2))
