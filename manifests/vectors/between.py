"""Rows of one set and rows of another whose vectors are near: the nearest of each row, and all pairs down to a floor, in rounds that are not done twice.

A row without a vector, which is a zero vector here, is near nothing. The search itself, exact and the same everywhere, is in `neighbours`.
"""

import numpy as np

from manifests.hits import Groups, Pairs, gathered
from manifests.vectors.copies import Scan, State
from manifests.vectors.neighbours import knn, pairs_within
from manifests.vectors.store import Vectors
from manifests.vectors.tiles import equal_rows

QUERIES = 8192  # rows whose neighbours are sought in one round


def nearest(
    z: Vectors, base: Vectors, k: int, base_uid_rank: np.ndarray, name: str, scan: Scan, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) cosine and row of the nearest of `base`, best first, a tie by its rank (m,); fewer where it is small. -inf and -1 where a vector is missing.

    name, scan   of the rounds (`Pool.scan`)
    """
    width = min(k, len(base))

    def search(state: State) -> State:
        cosine, row, done = state
        some = np.arange(done[0], min(done[0] + QUERIES, len(z)))
        near, place = knn(z.subset(some), base, width, base_uid_rank=base_uid_rank, device=device)
        is_there = (z.square[some] > 0)[:, None] & (base.square[place] > 0)
        cosine[some], row[some] = np.where(is_there, near, -np.inf), np.where(is_there, place, -1)
        return cosine, row, done + len(some)

    start = np.full((len(z), width), -np.inf), np.full((len(z), width), -1, np.int64), np.zeros(1, np.int64)
    cosine, row, _ = scan(name, search, start, -(-len(z) // QUERIES) if width else 0)
    return cosine, row


def close(
    z: Vectors, base: Vectors, floor: float, ranks: tuple[np.ndarray, np.ndarray], most: int, name: str, scan: Scan, device: str = "cpu"
) -> tuple[Pairs, Groups, Groups]:
    """The recorded pairs with a cosine of at least `floor`, of groups of equal vectors, and these groups; the distance is the cosine below zero.

    ranks        (n,) and (m,) int64: the order of the uids of both sets
    most         rows that are recorded of each row of `base`: see `hits.closest`
    name, scan   of the rounds (`Pool.scan`)
    """
    mine, theirs = (Groups.by(equal_rows(v), rank) for v, rank in zip((z, base), ranks, strict=True))
    tests, has = base.subset(theirs.first), z.square[mine.first] > 0

    def search(state: State) -> State:
        *old, done = state
        some = np.arange(done[0], min(done[0] + QUERIES, len(mine)))
        found = pairs_within(z.subset(mine.first[some]), tests, floor, device)
        there = ((a, b, cosine, has[some[a]] & (tests.square[b] > 0)) for a, b, cosine in found)
        pairs = gathered(((some[a[hit]], b[hit], -cosine[hit]) for a, b, cosine, hit in there), mine, theirs, most, tuple(old))  # type: ignore[arg-type]
        return *pairs, done + len(some)

    start = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.zeros(len(theirs), bool), np.zeros(1, np.int64)
    u, v, distance, is_cut, _ = scan(name, search, start, -(-len(mine) // QUERIES) if len(theirs) else 0)
    return (u, v, distance, is_cut), mine, theirs
