"""Spherical k-means: fitted on a sample, the same clusters for every row order, block shape and number of threads.

Centres are rounded to float16 after each step, so that assignments can be decided exactly like every other cosine (see `store`).
"""

import numpy as np

from manifests.vectors.neighbours import knn
from manifests.vectors.store import Vectors

BLOCK = 4096


def kmeans(z: Vectors, k: int, *, uid_rank: np.ndarray, rng: np.random.Generator, rounds: int = 20, sample: int = 256) -> Vectors:
    """At most k centres, (k, d) unit vectors.

    z          (n, d); an empty cluster gets the row that its centre fits worst
    uid_rank   (n,) int64: rows are drawn, and ties broken, by it
    rng        drawn from once, for the start: different rows
    rounds     steps of assigning and averaging at most; it ends early when nothing moves
    sample     rows a centre that it is fitted on; fewer rows are all used

    Cost       rounds * sample * k * k * d multiply-adds
    """
    n = len(z)
    k = min(k, n)
    by_uid = np.argsort(uid_rank, kind="stable")
    drawn = by_uid[np.sort(rng.permutation(n)[: min(n, sample * k)])]  # in uid order: sums do not depend on the row order
    some = Vectors.of(z.stored(drawn))
    centres = Vectors.of(some.stored(rng.permutation(len(some))[:k]))
    before = None
    for _ in range(rounds):
        cluster, cosine = assign(some, centres)
        if before is not None and (cluster == before).all():
            break
        before = cluster
        centres = Vectors.of(_means(some, cluster, cosine, k))
    return centres


def assign(z: Vectors, centres: Vectors) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 the centre with the highest cosine to each row, ties to the smaller number; (n,) float64 that cosine."""
    score, cluster = knn(z, centres, 1)
    return cluster[:, 0], score[:, 0]


def _means(z: Vectors, cluster: np.ndarray, cosine: np.ndarray, k: int) -> np.ndarray:
    """(k, d) float64: the mean direction of each cluster. Sums of float16 values are exact in float64."""
    sums = np.zeros((k, z.dim))
    for start in range(0, len(z), BLOCK):
        rows = slice(start, min(start + BLOCK, len(z)))
        member = np.zeros((k, rows.stop - start))
        member[cluster[rows], np.arange(rows.stop - start)] = 1
        sums += member @ z.stored(rows).astype(np.float64)
    length = np.sqrt((sums**2).sum(1))
    lost = np.flatnonzero(length < 1e-6)
    worst = np.lexsort((np.arange(len(z)), cosine))[: len(lost)]
    sums[lost] = z.take64(worst)
    length = np.sqrt((sums**2).sum(1))
    return sums / np.maximum(length, 1e-30)[:, None]
