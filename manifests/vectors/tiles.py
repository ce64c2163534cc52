"""What a tile of float32 cosines leaves open, float64 decides: which pairs reach a threshold, and which column is closest to each row.

A tile is `scores` (b, c) float32: the cosines of the rows `rows` (b,) of `z` with the rows `columns` (c,) of `other`.
"""

from collections.abc import Iterator

import numpy as np

from manifests.vectors.store import Vectors, float32_error

AT_ONCE = 1 << 21  # entries of a tile that are looked at together: bounds the memory where all of them are close


def within(scores: np.ndarray, z: Vectors, rows: np.ndarray, other: Vectors, columns: np.ndarray, threshold: float) -> np.ndarray:
    """(b, c) bool: which pairs have a cosine of at least `threshold`, exactly."""
    error = float32_error(z.dim)
    near = np.zeros(scores.shape, bool)
    for hit in _some_rows(scores.max(1, initial=-2.0) >= threshold - error, scores.shape[1]):
        part = scores[hit]
        near[hit] = part > threshold + error
        r, c = np.nonzero(np.abs(part - threshold) <= error)
        near[hit[r], c] = z.cosine(rows[hit[r]], other, columns[c]) >= threshold
    return near


def closest(
    scores: np.ndarray, z: Vectors, rows: np.ndarray, other: Vectors, columns: np.ndarray, floor: "float | np.ndarray"
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's highest cosine (b,) float64 and its place in the tile (b,) int64, the first of equals; -inf and -1 where none reaches `floor`, a number or (b,)."""
    error = float32_error(z.dim)
    best, place = np.full(len(rows), -np.inf), np.full(len(rows), -1, np.int64)
    if not scores.size:
        return best, place
    floor = np.broadcast_to(np.asarray(floor, np.float64), best.shape)
    top = scores.max(1)
    for hit in _some_rows(top >= floor - error, scores.shape[1]):
        r, c = np.nonzero(scores[hit] >= np.maximum(top[hit] - 2 * error, floor[hit] - error)[:, None])
        exact = z.cosine(rows[hit[r]], other, columns[c])
        order = np.lexsort((c, -exact, r))
        first = order[np.flatnonzero(np.diff(r[order], prepend=-1))]  # of each row: the highest, the first of equals
        reached = first[exact[first] >= floor[hit[r[first]]]]
        best[hit[r[reached]]], place[hit[r[reached]]] = exact[reached], c[reached]
    return best, place


def _some_rows(wanted: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """The wanted rows, so many at a time that their entries number about AT_ONCE."""
    hit = np.flatnonzero(wanted)
    step = max(1, AT_ONCE // max(width, 1))
    for start in range(0, len(hit), step):
        yield hit[start : start + step]


def equal_rows(z: Vectors) -> np.ndarray:
    """(n,) int64: for each row the first row with the same bytes (itself where there is none before). A 64-bit sum proposes, the bytes decide."""
    n = len(z)
    factors = np.random.Generator(np.random.Philox(0)).integers(0, 1 << 63, z.dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    sums = np.empty(n, np.uint64)
    for start in range(0, n, 4096):
        at = slice(start, min(start + 4096, n))
        sums[at] = (z.stored(at).view(np.uint16) * factors).sum(1, dtype=np.uint64)
    _, index, inverse = np.unique(sums, return_index=True, return_inverse=True)
    first = index[inverse].astype(np.int64)
    again = np.flatnonzero(first != np.arange(n))
    for start in range(0, len(again), 4096):
        rows = again[start : start + 4096]
        same = (z.stored(rows).view(np.uint16) == z.stored(first[rows]).view(np.uint16)).all(1)
        first[rows[~same]] = rows[~same]
    return first
