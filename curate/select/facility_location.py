"""Facility location: keep the set that stands best for all live samples."""

import numpy as np
import pyarrow as pa

from curate.pool import Pool, Share, State, VectorName, Verdicts
from manifests.vectors.forecast import facility, require
from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import equal_rows

REASONS = ("represented",)
WRITES = {"facility_location_rank": pa.int64(), "facility_location_gain": pa.float64()}
STRIP = 512  # rows of similarities at work
SPARSE = 1 / 20  # share of similarities that can still add something, from which on only these are held


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
    Errors      does-not-fit
    """
    n, budget = len(pool), max(keep.of(len(pool)), int(pool.fixed.sum()))
    require("select.facility_location", facility(n, budget, pool.vectors(vectors).dim, pool.memory), pool.memory)
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
    when, added = np.full(n, n, np.int64), np.zeros(n)
    when[heads[picked >= 0]], added[heads[picked >= 0]] = picked[picked >= 0], gain[picked >= 0]
    turn = np.lexsort((np.arange(n), when, np.arange(n) >= fixed))
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

    `bounds` are upper bounds of all gains by float32, made anew from a state after a crash; float64 evaluates those who could be the next.
    """

    def __init__(self, z: Vectors, weight: np.ndarray, memory: int) -> None:
        self.z, self.weight, self.memory = z, weight, memory
        self.scale = 1 / np.sqrt(np.maximum(z.square, 1e-30))
        self.magic = 1.5 * 2.0 ** int(np.ceil(np.log2(max(weight.sum(), 2))))  # adding it rounds to the grid on which sums of all rows are exact
        self.bounds: _Dense | _Sparse | None = None

    def protected(self, count: int) -> State:
        """The state after the first `count` rows were picked in order."""
        n = len(self.z)
        state = np.full(n, -1, np.int64), np.full(n, np.nan), np.zeros(n), np.full(n, -1, np.int64)
        for row in range(count):
            self._take(state, row, np.arange(n))
        return state

    def pick(self, state: State) -> State:
        """The row with the highest gain joins; nobody where nobody adds anything."""
        picked, _, best, _ = state
        if self.bounds is None:
            self.bounds = self._begin(picked, best)
        bounds, seen, most = self.bounds, np.zeros(len(best), bool), 0.0
        could = np.array([np.argmax(bounds.upper)])
        while len(could) and bounds.upper[could[0]] > 0:
            bounds.upper[could] = self._gains(could, best, bounds)
            seen[could] = True
            most = max(most, float(bounds.upper[could].max()))
            could = np.flatnonzero((bounds.upper >= most) & ~seen)
            could = could[np.argsort(-bounds.upper[could], kind="stable")[:32]]
        winners = np.flatnonzero(seen & (bounds.upper == most))
        if most <= 0 or not len(winners):
            return state
        row = int(winners[0])  # rows lie in uid order
        moved, before = self._take(state, row, bounds.rows(row, best))
        bounds.upper[row] = -np.inf
        bounds.lower(moved, before, best)
        self.bounds = self._next_bounds(bounds, picked, best)
        return state

    def _take(self, state: State, row: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pick `row`; nobody but `rows` comes closer by that. Returns those who do, and their best before."""
        picked, gain, best, nearest = state
        s = np.concatenate([self._similarity(np.array([row]), rows[i : i + 4096])[0] for i in range(0, len(rows), 4096)])
        closer = s > best[rows]
        rows, s = rows[closer], s[closer]
        before = best[rows]
        picked[row], gain[row] = picked.max(initial=-1) + 1, (self.weight[rows] * (s - before)).sum()
        best[rows], nearest[rows] = s, row
        nearest[nearest < 0] = row  # opposite to the first pick: similarity 0, but no other is nearer
        return rows, before

    def _similarity(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(a, b) float64 on the grid: (1 + cos) / 2; the same number whoever asks."""
        s = self.z.take64(rows) @ self.z.take64(columns).T
        s *= self.scale[rows, None] * self.scale[None, columns]
        s *= 0.5
        s += 0.5 + self.magic
        s -= self.magic
        return np.clip(s, 0, 1, out=s)

    def _gains(self, could: np.ndarray, best: np.ndarray, bounds: "_Dense | _Sparse") -> np.ndarray:
        """(m,) float64: what each of `could` would add, exactly."""
        if isinstance(bounds, _Sparse):
            rows = [bounds.rows(int(j), best) for j in could]
            return np.array([(self.weight[r] * np.maximum(self._similarity(could[i : i + 1], r)[0] - best[r], 0)).sum() for i, r in enumerate(rows)])
        gains = np.zeros(len(could))
        for start in range(0, len(best), 4096):
            columns = np.arange(start, min(start + 4096, len(best)))
            s = self._similarity(could, columns)
            s -= best[columns]
            gains += np.maximum(s, 0, out=s) @ self.weight[columns]
        return gains

    def _begin(self, picked: np.ndarray, best: np.ndarray) -> "_Dense | _Sparse":
        bounds = _Dense(self.z, self.weight)
        bounds.start(best, nothing_picked=bool((picked < 0).all()))
        bounds.upper[picked >= 0] = -np.inf
        return self._next_bounds(bounds, picked, best)

    def _next_bounds(self, bounds: "_Dense | _Sparse", picked: np.ndarray, best: np.ndarray) -> "_Dense | _Sparse":
        """`bounds`, or sparse ones once they fit (and again, smaller, whenever the number of picks has doubled)."""
        count = int(picked.max(initial=-1)) + 1
        if isinstance(bounds, _Sparse):
            if count >= 2 * bounds.made_at:
                bounds.compact(best, count)
            return bounds
        share = bounds.share_above(best) if count > 2 else 1.0
        if share > SPARSE or 16 * share * len(best) ** 2 > self.memory / 4:
            return bounds
        return _Sparse(bounds, best, count)


class _Dense:
    """Upper bounds that hear of a pick from every row that came closer: (moved rows) * n * d multiply-adds."""

    def __init__(self, z: Vectors, weight: np.ndarray) -> None:
        self.unit, self.weight = z.unit(slice(0, len(z))), weight
        self.error = 1.1 * float32_error(z.dim) + 2.0**-22  # of a cosine, and of the float32 limits that it is compared with
        self.gain, self.slack, self.upper = np.zeros(len(z)), 0.0, np.zeros(len(z))
        self._room = np.empty((2, 2 * STRIP * STRIP), np.float32)

    def start(self, best: np.ndarray, nothing_picked: bool) -> None:
        """Gains from `best` (n,): in closed form where nothing is picked yet, else by a pass over all pairs, each seen once."""
        total = self.weight.sum()
        if nothing_picked:
            self.gain = (total + self.unit.astype(np.float64) @ (self.weight @ self.unit.astype(np.float64))) / 2
        else:
            self.gain = self._all_gains((2 * best - 1).astype(np.float32), self.weight.astype(np.float32)) / 2
        self.slack = total * self.error / 2 + STRIP * 2.0**-23 * self.gain.max()
        self.upper = self.gain + self.slack

    def _all_gains(self, floor: np.ndarray, weight: np.ndarray) -> np.ndarray:
        n, gain = len(floor), np.zeros(len(floor))
        for first in range(0, n, STRIP):
            i = slice(first, min(first + STRIP, n))
            for second in range(first, n, STRIP):
                j = slice(second, min(second + STRIP, n))
                cosine, above = self.tile(self.unit[i], j)
                np.subtract(cosine, floor[i, None], out=above)
                gain[j] += weight[i] @ np.maximum(above, 0, out=above)
                if second > first:
                    np.subtract(cosine, floor[None, j], out=above)
                    gain[i] += np.maximum(above, 0, out=above) @ weight[j]
        return gain

    def tile(self, block: np.ndarray, j: slice) -> tuple[np.ndarray, np.ndarray]:
        """The cosines of `block` with the rows `j`, and room of the same shape; both are overwritten by the next tile (fresh memory costs as much as the product)."""
        shape = len(block), j.stop - j.start
        if shape[0] * shape[1] > self._room.shape[1]:
            self._room = np.empty((2, shape[0] * shape[1]), np.float32)
        cosine, room = (space[: shape[0] * shape[1]].reshape(shape) for space in self._room)
        return np.matmul(block, self.unit[j].T, out=cosine), room

    def lower(self, moved: np.ndarray, before: np.ndarray, best: np.ndarray) -> None:
        """The rows `moved` went from `before` to `best`."""
        if 2 * len(moved) > len(best):
            gone = self.upper == -np.inf
            stale = self.upper
            self.start(best, nothing_picked=False)
            self.upper = np.where(gone, -np.inf, np.minimum(stale, self.upper))
            return
        low, high = (2 * before - 1).astype(np.float32), (2 * best[moved] - 1).astype(np.float32)
        weight, fall = self.weight.astype(np.float32)[moved], np.zeros(len(best))
        for first in range(0, len(moved), STRIP):
            some = slice(first, first + STRIP)
            block = self.unit[moved[some]]
            for second in range(0, len(best), 2 * STRIP):
                j = slice(second, min(second + 2 * STRIP, len(best)))
                cosine, _ = self.tile(block, j)
                np.maximum(cosine, low[some, None], out=cosine)
                np.minimum(cosine, high[some, None], out=cosine)
                cosine -= low[some, None]
                fall[j] += weight[some] @ cosine
        self.gain -= fall / 2
        self.slack += self.weight[moved].sum() * self.error / 2 + STRIP * 2.0**-24 * fall.max()
        np.minimum(self.upper, self.gain + self.slack, out=self.upper)

    def rows(self, row: int, best: np.ndarray) -> np.ndarray:
        """Who may come closer by a pick of `row`: anybody."""
        return np.arange(len(best))

    def share_above(self, best: np.ndarray) -> float:
        """The share of similarities above their row's best, from 64 rows."""
        some = np.arange(0, len(best), max(1, len(best) // 64))
        return float(((self.unit[some] @ self.unit.T) > (2 * best[some] - 1 - self.error)[:, None].astype(np.float32)).mean())


class _Sparse:
    """Upper bounds that hold only the cosines above each row's best; what is lower can never add anything again."""

    def __init__(self, dense: _Dense, best: np.ndarray, made_at: int) -> None:
        self.weight, self.error, self.upper = dense.weight, dense.error, dense.upper
        floor, n, strip = (2 * best - 1 - self.error).astype(np.float32), len(best), max(8, min(STRIP // 4, (1 << 21) // len(best)))
        columns, cosines, count, self.gain = [], [], np.zeros(n, np.int64), np.zeros(n)
        for first in range(0, n, strip):
            i = slice(first, min(first + strip, n))
            cosine, _ = dense.tile(dense.unit[i], slice(0, n))
            held = np.flatnonzero(cosine > floor[i, None])
            count[i] = np.diff(np.searchsorted(held, np.arange(i.stop - first + 1) * n))
            columns.append((held - np.repeat(np.arange(i.stop - first) * n, count[i])).astype(np.int32))
            cosines.append(cosine.reshape(-1)[held])
            above = cosines[-1] - np.repeat(floor[i], count[i])  # too high by the error: an upper bound
            self.gain += np.bincount(columns[-1], np.repeat(self.weight[i] / 2, count[i]) * above, n)
        self._hold(np.concatenate(columns), np.concatenate(cosines), count, made_at)
        np.minimum(self.upper, self.gain, out=self.upper)

    def _hold(self, column: np.ndarray, cosine: np.ndarray, count: np.ndarray, made_at: int) -> None:
        from scipy.sparse import csr_array

        self.column, self.cosine, self.made_at = column, cosine, made_at
        self.start = np.concatenate([[0], np.cumsum(count)])
        fits = np.int32 if self.start[-1] < 1 << 31 else np.int64
        turned = csr_array((cosine, column, self.start.astype(fits)), shape=(len(count), len(count))).tocsc()
        self.turned_start, self.turned_row, self.turned_cosine = turned.indptr, turned.indices, turned.data

    def compact(self, best: np.ndarray, made_at: int) -> None:
        """Let go of what is no longer above its row's best."""
        held = np.flatnonzero(self.cosine > np.repeat((2 * best - 1 - self.error).astype(np.float32), np.diff(self.start)))
        self._hold(self.column[held], self.cosine[held], np.diff(np.searchsorted(held, self.start)), made_at)

    def rows(self, row: int, best: np.ndarray) -> np.ndarray:
        """Who may come closer by a pick of `row`."""
        at = slice(self.turned_start[row], self.turned_start[row + 1])
        found = self.turned_row[at]
        return found[self.turned_cosine[at] > 2 * best[found] - 1 - self.error].astype(np.int64)

    def lower(self, moved: np.ndarray, before: np.ndarray, best: np.ndarray) -> None:
        """The rows `moved` went from `before` to `best`."""
        start, count = self.start[moved], self.start[moved + 1] - self.start[moved]
        at = np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count)
        low, high = np.repeat(2 * before - 1, count), np.repeat(2 * best[moved] - 1, count)
        fall = np.clip(self.cosine[at], low, high) - low
        self.gain -= np.bincount(self.column[at], np.repeat(self.weight[moved] / 2, count) * fall, len(best))
        np.minimum(self.upper, self.gain, out=self.upper)
