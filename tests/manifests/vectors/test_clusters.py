"""manifests.vectors.clusters: the fixed point of k-means, whatever the row order."""

import numpy as np
import pytest

from manifests.vectors import clusters, neighbours
from manifests.vectors.clusters import assign, kmeans
from manifests.vectors.store import Vectors
from tests.strategies import noisy_unit_vectors


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
        patch.setattr(neighbours, "BASE", 4)
        patch.setattr(neighbours, "QUERIES", 11)
        two = kmeans(Vectors.of(z[order]), 9, uid_rank=uid[order], rng=rng(), sample=20)
    np.testing.assert_array_equal(one.stored(slice(0, 9)), two.stored(slice(0, 9)))


def test_identical_rows_and_more_centres_than_rows():
    same = Vectors.of(np.ones((5, 4)) / 2)
    assert (assign(same, kmeans(same, 3, uid_rank=np.arange(5), rng=rng()))[1] == 1).all()
    assert len(kmeans(same, 9, uid_rank=np.arange(5), rng=rng())) == 5
