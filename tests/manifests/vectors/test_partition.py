"""Every row in the cluster of its nearest centre, and no cluster without rows."""

import numpy as np

from manifests.vectors.clusters import kmeans
from manifests.vectors.partition import at_home, partition
from manifests.vectors.store import Vectors
from tests.strategies import noisy_unit_vectors


def test_each_row_is_at_its_nearest_centre():
    z = Vectors.of(noisy_unit_vectors(0, 200, 8, 5, 0.1))
    centres = kmeans(z, 12, uid_rank=np.arange(200), rng=np.random.default_rng(3))
    cluster, cosine, left = partition(z, 12, rng=np.random.default_rng(3))
    wide, at = z.take64(np.arange(200)), Vectors.of(left).take64(np.arange(len(left)))
    scores = wide @ at.T / np.sqrt((wide**2).sum(1)[:, None] * (at**2).sum(1))
    assert (scores.argmax(1) == cluster).all()
    np.testing.assert_allclose(scores.max(1), cosine, atol=1e-12)
    assert np.array_equal(left, at_home(z, centres)[2])


def test_clusters_without_rows_do_not_count():
    same = Vectors.of(np.full((9, 4), 0.5))
    cluster, cosine, left = partition(same, 5, rng=np.random.default_rng(0))
    assert cluster.tolist() == [0] * 9 and cosine.tolist() == [1] * 9 and len(left) == 1
    cluster, _, left = partition(Vectors.of(np.eye(4)), 99, rng=np.random.default_rng(0))
    assert sorted(cluster) == [0, 1, 2, 3] and len(left) == 4
    assert [len(x) for x in partition(Vectors.of(np.empty((0, 4))), 3, rng=np.random.default_rng(0))] == [0, 0, 0]
