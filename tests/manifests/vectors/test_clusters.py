"""manifests.vectors.clusters: the fixed point of k-means, whatever the row order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import Refusal
from manifests.vectors import clusters
from manifests.vectors.clusters import Cells, assign, cells, kmeans
from manifests.vectors.store import Vectors
from tests.strategies import exact_unit_vectors, noisy_unit_vectors


def rng():
    return np.random.default_rng(7)


def test_every_row_is_with_its_closest_centre_and_more_rounds_fit_better():
    z = noisy_unit_vectors(0, 300, 16, 6, 0.05)
    fit = []
    for rounds in (1, 3, 30):
        centres = kmeans(Vectors.of(z), 6, uid_rank=np.arange(300), rng=rng(), rounds=rounds)
        cluster, cosine = assign(Vectors.of(z), centres)
        cosines = z @ centres.take64(np.arange(6)).T
        np.testing.assert_allclose(cosines[np.arange(300), cluster], cosines.max(1), atol=2e-3)
        np.testing.assert_allclose(cosines.max(1), cosine, atol=2e-3)
        fit.append(cosine.sum())
    assert fit[0] < fit[1] <= fit[2]


def test_centres_are_the_mean_directions_of_their_rows():
    z = noisy_unit_vectors(1, 200, 8, 20, 0.5)
    v = Vectors.of(z)
    centres = kmeans(v, 5, uid_rank=np.arange(200), rng=rng(), rounds=100)
    cluster, _ = assign(v, centres)
    for c in range(5):
        mean = v.take64(np.flatnonzero(cluster == c)).sum(0)
        np.testing.assert_allclose(centres.take64(np.array([c]))[0], mean / np.linalg.norm(mean), atol=1e-3)


def test_row_order_and_blocks_do_not_matter():
    z, uid, order = noisy_unit_vectors(2, 250, 8, 30, 0.3), np.random.default_rng(0).permutation(250), np.random.default_rng(1).permutation(250)
    one = kmeans(Vectors.of(z), 9, uid_rank=uid, rng=rng(), sample=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "BLOCK", 7)
        two = kmeans(Vectors.of(z[order]), 9, uid_rank=uid[order], rng=rng(), sample=20)
    np.testing.assert_array_equal(one.stored(slice(0, 9)), two.stored(slice(0, 9)))


def test_identical_rows_and_more_centres_than_rows():
    same = Vectors.of(np.ones((5, 4)) / 2)
    assert (assign(same, kmeans(same, 3, uid_rank=np.arange(5), rng=rng()))[1] == 1).all()
    assert len(kmeans(same, 9, uid_rank=np.arange(5), rng=rng())) == 5


@settings(deadline=None)
@given(z=exact_unit_vectors(), centres=exact_unit_vectors(), block=st.integers(1, 5))
def test_ties_go_to_the_smaller_number(z, centres, block):
    v, c = Vectors.of(z), Vectors.of(centres)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "BLOCK", block)
        cluster, cosine = assign(v, c)
    want = z @ centres.T
    np.testing.assert_array_equal(cluster, want.argmax(1))
    np.testing.assert_array_equal(cosine, want.max(1))


def compared(found: Cells) -> set[tuple[int, int]]:
    pairs = set()
    for home, guests in found.each():
        for i in home.tolist():
            pairs |= {(min(i, j), max(i, j)) for j in [*home.tolist(), *guests.tolist()] if i != j}
    return pairs


@pytest.mark.parametrize("seed", range(3))
def test_two_rows_that_are_centres_lie_halfway_from_their_border_and_are_compared(seed):
    """Where the difference of a pair stands upright on the border both are as far from it as the reach is, to the last bit."""
    z = Vectors.of(noisy_unit_vectors(seed, 12, 8, 12, 0.0))
    a, b = np.triu_indices(12, 1)
    cosine = z.cosine(a, z, b)
    for floor in cosine.tolist():
        _, found = cells(z, 12, uid_rank=np.arange(12), rng=rng(), floor=floor, recall=1.0, memory=1 << 30)
        assert set(zip(a[cosine >= floor].tolist(), b[cosine >= floor].tolist(), strict=True)) <= compared(found)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), k=st.integers(1, 30), spread=st.sampled_from([0.02, 0.3, 2.0]), dim=st.sampled_from([2, 3, 8]), data=st.data())
def test_at_recall_one_no_pair_down_to_the_floor_is_lost(seed, k, spread, dim, data):
    """The floor is the cosine of a pair: it too is compared."""
    z = Vectors.of(noisy_unit_vectors(seed, 80, dim, 10, spread))
    a, b = np.triu_indices(80, 1)
    cosine = z.cosine(a, z, b)
    floor = float(np.sort(cosine)[-data.draw(st.integers(1, 400))])
    _, found = cells(z, k, uid_rank=np.arange(80), rng=rng(), floor=floor, recall=1.0, memory=1 << 30)
    assert set(zip(a[cosine >= floor].tolist(), b[cosine >= floor].tolist(), strict=True)) <= compared(found)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), recall=st.sampled_from([0.5, 0.9, 1.0]), block=st.integers(5, 50))
def test_the_order_of_rows_and_blocks_reach_no_cell(seed, recall, block):
    z, uid, order = noisy_unit_vectors(seed, 150, 6, 20, 0.2), np.random.default_rng(0).permutation(150), np.random.default_rng(1).permutation(150)
    some = {"rng": None, "floor": 0.9, "recall": recall, "memory": 1 << 30}
    _, one = cells(Vectors.of(z), 9, uid_rank=uid, **some | {"rng": rng()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "BLOCK", block)
        _, two = cells(Vectors.of(z[order]), 9, uid_rank=uid[order], **some | {"rng": rng()})
    np.testing.assert_array_equal(one.home[order], two.home)
    assert set(zip(one.visitor.tolist(), one.visited.tolist(), strict=True)) == set(
        zip(order[two.visitor].tolist(), two.visited.tolist(), strict=True)
    )


def test_more_recall_means_more_visits():
    z = Vectors.of(noisy_unit_vectors(0, 2000, 32, 60, 0.6))
    visits = [len(cells(z, 40, uid_rank=np.arange(2000), rng=rng(), floor=0.9, recall=r, memory=1 << 30)[1].visitor) for r in (0.5, 0.9, 0.99, 1.0)]
    assert visits == sorted(visits) and visits[0] < visits[-1]


def test_a_cluster_that_holds_everything_is_split(monkeypatch):
    z, fitted = Vectors.of(noisy_unit_vectors(0, 6000, 8, 1, 0.3)), []

    def one_for_all(rows, k, **more):
        fitted.append(k)
        mean = rows.take64(np.arange(len(rows))).sum(0)
        return Vectors.of(np.concatenate([mean[None] / np.linalg.norm(mean), -np.eye(8)[:7]])) if len(fitted) == 1 else kmeans(rows, k, **more)

    monkeypatch.setattr(clusters, "kmeans", one_for_all)
    centres, found = cells(z, 8, uid_rank=np.arange(6000), rng=rng(), floor=0.99, recall=1.0, memory=1 << 30)
    assert fitted[1] == 3 and len(centres) >= 11 and np.bincount(found.home).max() <= 4 * 6000 // 8 + 1024
    assert found.products() < 6000 * 5999 / 2


def test_rows_that_cannot_be_split_stay_together():
    """All but equal rows: float64 puts them all to one centre, however many there are."""
    same = Vectors.of(np.ones((6000, 4)) / 2)
    _, found = cells(same, 8, uid_rank=np.arange(6000), rng=rng(), floor=0.9, recall=0.99, memory=1 << 30)
    assert np.bincount(found.home).max() == 6000


def test_visits_that_outgrow_the_memory_are_refused():
    z = Vectors.of(noisy_unit_vectors(0, 500, 8, 500, 0.1))
    with pytest.raises(Refusal, match=r"clusters do not separate .*Give --memory"):
        cells(z, 40, uid_rank=np.arange(500), rng=rng(), floor=0.1, recall=1.0, memory=10_000)


def test_a_sought_start_has_a_row_of_every_clump_and_none_twice():
    """A row that equals a chosen one has no chance, so that far clumps of equal rows are all met; where only such rows are left, they come in turn."""
    z = np.repeat(np.eye(8), [400, 3, 1, 1, 2, 50, 1, 1], axis=0)
    v = Vectors.of(z[np.random.default_rng(0).permutation(len(z))])
    for seed in range(5):
        start = clusters._far_apart(v, 8, np.random.default_rng(seed), len(z))
        assert (v.take(start).sum(0) == 1).all()
    start = clusters._far_apart(v, 12, np.random.default_rng(0), len(z))
    assert len(set(start.tolist())) == 12


def test_a_sought_start_is_drawn_by_the_squared_distance():
    """Of a second row: half the squared distance, 1 - cosine, is its chance."""
    angle = np.array([0.0, 0.3, 0.6, 1.2, 1.5])
    v = Vectors.of(np.stack([np.cos(angle), np.sin(angle)], 1))
    seen = np.zeros((5, 5))
    for seed in range(4000):
        first, second = clusters._far_apart(v, 2, np.random.default_rng(seed), 5)
        seen[first, second] += 1
    apart = 1 - np.cos(angle[:, None] - angle)
    np.testing.assert_allclose(seen / seen.sum(1, keepdims=True), apart / apart.sum(1, keepdims=True), atol=0.04)
