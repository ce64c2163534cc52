"""Facility location: keep the set that stands best for all live samples."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from curate.pool import Pool, Share, State, VectorName, Verdicts
from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import equal_rows

REASONS = ("represented",)
WRITES = {"facility_location_rank": pa.int64(), "facility_location_gain": pa.float64()}
STRIP = 512  # rows of similarities at work
SPARSE = 1 / 12  # share of similarities that can still add something, from which on only these are held


def facility_location(pool: Pool, *, vectors: VectorName, keep: Share) -> Verdicts:
    """Keep the samples that, picked one by one, each add most to how well the kept ones stand for all.

    Decides     the objective is the sum over all rows of the highest similarity (1 + cos) / 2 to a kept row. Each pick is the row with the highest
                gain, ties to the smaller uid. Dropped ("represented") when not picked; `witness` is the most similar kept row (of equals the one
                picked first), `score` the cosine to it. Protected rows are picked first, in uid order, all of them.
    Guarantee   at least 1 - 1/e of the best objective for this many rows; the picks of plain greedy, whatever blocks, threads and row order are:
                similarities are rounded to a binary grid (2^-36 for 50,000 rows), so that their sums are exact
    Source      Nemhauser, Wolsey, Fisher 1978 (bound); Minoux 1978 (lazy evaluation)
    vectors     a vector column, (n, d) float16, unit length
    keep        how many to keep: a count (10000) or a fraction of the live rows (0 < 0.3 <= 1)
    Writes      facility_location_rank: int64, order of picking from 0, -1 for dropped rows; facility_location_gain: float64, what the pick added, null
                for dropped rows
    Cost        three to five passes of n * n * d multiply-adds in float32 while a pick still moves many rows; then only the similarities above
                each row's best are held (16 bytes each, at most a quarter of the memory), and a pick costs what it moves. 4 n d bytes.
    Errors      none of its own
    """
    n, budget = len(pool), max(keep.of(len(pool)), int(pool.fixed.sum()))
    order = np.lexsort((pool.uid_rank, ~pool.fixed))
    z = pool.vectors(vectors).subset(order)
    first = equal_rows(z)
    heads, place, weight = np.unique(first, return_inverse=True, return_counts=True)  # equal rows stand and fall together
    fixed = int(pool.fixed.sum())
    greedy = _Greedy(z.subset(heads), weight.astype(np.float64), pool.memory)
    start = pool.once("protected", lambda: greedy.protected(int(np.searchsorted(heads, fixed))))
    picked, gain, best, nearest = pool.scan("picks", greedy.pick, start, rounds=min(budget, fixed + len(heads)) - fixed)
    return _verdicts(pool, z, order, heads, place, budget, (picked, gain, best, nearest))


def _verdicts(pool: Pool, z: Vectors, order: np.ndarray, heads: np.ndarray, place: np.ndarray, budget: int, state: State) -> Verdicts:
    """From the picks among heads to all rows: protected copies follow the protected, other copies come last, both with no gain."""
    picked, gain, _, nearest = state
    n, fixed = len(order), int(pool.fixed.sum())
    rank, added = np.full(n, n, np.int64), np.zeros(n)
    rank[heads], added[heads] = np.where(picked >= 0, picked + n, 3 * n), gain
    turn = np.lexsort((np.arange(n), np.where(rank == n, 3 * n, rank), np.arange(n) >= fixed))
    turn[:fixed] = np.arange(fixed)
    kept = np.zeros(n, bool)
    kept[turn[:budget]] = True
    final = np.full(n, -1, np.int64)
    final[turn[:budget]] = np.arange(budget)
    witness = np.where(kept, -1, heads[nearest[place]])
    score = np.full(n, np.nan)
    score[~kept] = z.cosine(np.flatnonzero(~kept), z, witness[~kept])
    back = np.empty(n, np.int64)
    back[order] = np.arange(n)
    return Verdicts(
        keep=kept[back], reason="represented", score=score[back], witness=np.where(witness >= 0, order[witness], -1)[back],
        columns={"facility_location_rank": final[back], "facility_location_gain": np.where(kept, added, np.nan)[back]},
    )  # fmt: skip


class _Greedy:
    """Greedy picking. State: picked (n,) int64 order or -1; gain (n,) float64; best (n,) float64 similarity to a kept row; nearest (n,) int64.

    `work` holds upper bounds of all gains by float32 and is made anew from a state after a crash; float64 evaluates who could be the next.
    """

    def __init__(self, z: Vectors, weight: np.ndarray, memory: int) -> None:
        self.z, self.weight, self.memory = z, weight, memory
        self.scale = 1 / np.sqrt(np.maximum(z.square, 1e-30))
        self.magic = 1.5 * 2.0 ** int(np.ceil(np.log2(max(weight.sum(), 2))))  # adding it rounds to the grid on which sums of all rows are exact
        self.work: _Dense | _Sparse | None = None

    def protected(self, count: int) -> State:
        """The state after the first `count` rows were picked in order."""
        n = len(self.z)
        state = np.full(n, -1, np.int64), np.full(n, np.nan), np.zeros(n), np.full(n, -1, np.int64)
        for row in range(count):
            self._take(state, row, np.arange(n), self.similarity(np.array([row]), slice(0, n))[0])
        return state

    def similarity(self, rows: np.ndarray, columns: "np.ndarray | slice") -> np.ndarray:
        """(a, b) float64 on the grid: (1 + cos) / 2; the same number whoever asks."""
        s = self.z.take64(rows) @ self.z.stored(columns).astype(np.float64).T
        s *= self.scale[rows, None] * self.scale[None, columns]
        s *= 0.5
        s += 0.5 + self.magic
        s -= self.magic
        return np.clip(s, 0, 1, out=s)

    def _take(self, state: State, row: int, rows: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pick `row`, whose similarities to `rows` are `s`: (rows that come closer, their best before, and now)."""
        picked, gain, best, nearest = state
        closer = s > best[rows]
        rows, s = rows[closer], s[closer]
        before = best[rows]
        picked[row], gain[row] = picked.max(initial=-1) + 1, np.dot(self.weight[rows], s - before)
        best[rows], nearest[rows] = s, row
        return rows, before, s

    def pick(self, state: State) -> State:
        """The row with the highest gain joins; nobody where nobody adds anything."""
        picked, _, best, _ = state
        if self.work is None:
            self.work = self._begin(state)
        work = self.work
        upper = work.upper
        upper[picked >= 0] = -np.inf
        top = int(np.argmax(upper))
        if upper[top] <= 0:
            return state
        upper[top] = work.exact(np.array([top]), best)[0]
        winner, most, evaluated = top, upper[top], 1
        while True:
            could = np.flatnonzero(upper >= most)
            could = could[work.stale[could]]
            if not len(could):
                break
            could = could[np.argsort(-upper[could], kind="stable")][: 16 * evaluated]
            upper[could] = work.exact(could, best)
            evaluated += len(could)
            most = upper[could].max(initial=most)
        raise NotImplementedError
