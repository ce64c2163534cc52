"""A pool cut into clusters, each row in one; clusters that nobody is in do not count."""

import numpy as np

from manifests.vectors.clusters import assign, kmeans
from manifests.vectors.store import Vectors


def partition(z: Vectors, k: int, *, rng: np.random.Generator, device: str = "cpu") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) int64 cluster of each row, (n,) float64 cosine to its centre, (m, d) float16 centres, m <= k: k-means, then `at_home`. Rows lie in uid order."""
    return at_home(z, kmeans(z, k, uid_rank=np.arange(len(z)), rng=rng, device=device), device)


def at_home(z: Vectors, centres: Vectors, device: str = "cpu") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row's nearest centre and the cosine to it; centres without rows are left out, the others numbered anew. Returns as `partition`."""
    cluster, cosine = assign(z, centres, device)
    used, cluster = np.unique(cluster, return_inverse=True)
    return cluster, cosine, centres.stored(used)
