"""Facility location: keep the set that stands best for all live samples."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from curate.pool import Pool, Share, State, VectorName, Verdicts
from manifests.vectors.forecast import facility, require, spare
from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import equal_rows

REASONS = ("represented",)
WRITES = {"facility_location_rank": pa.int64(), "facility_location_gain": pa.float64()}
STRIP = 128  # rows of similarities at work
WIDE = 12_288  # columns of them
NARROW = 3_000  # columns below which np.clip takes four times as long
SPARSE = 0.03  # share of similarities that can still add something, from which on only these are held


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
    Cost        about three passes of n * n * d multiply-adds in float32 while a pick still moves many rows; then only the similarities above
                each row's best are held (8 bytes each, at most a quarter of the memory), and a pick costs what it looks at. 6 n d bytes.
    Errors      does-not-fit
    """
    n, budget = len(pool), max(keep.of(len(pool)), int(pool.fixed.sum()))
    forecast = facility(n, budget, pool.vectors(vectors).dim, 0)
    require("select.facility_location", forecast, pool.memory)
    order = np.lexsort((pool.uid_rank, ~pool.fixed))
    z = pool.vectors(vectors).subset(order)
    first = equal_rows(z)
    heads, place, weight = np.unique(first, return_inverse=True, return_counts=True)  # equal rows stand and fall together
    fixed = int(pool.fixed.sum())
    greedy = _Greedy(z.subset(heads), weight.astype(np.float64), spare(forecast, pool.memory))
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

    `upper` are upper bounds of all gains, made anew from a state after a crash. float32 lowers those of the rows that could be the next (`bounds`),
    float64 decides among them.
    """

    def __init__(self, z: Vectors, weight: np.ndarray, room: int) -> None:
        self.z, self.weight, self.room = z, weight, room
        self.scale = 1 / np.sqrt(np.maximum(z.square, 1e-30))
        self.magic = 1.5 * 2.0 ** int(np.ceil(np.log2(max(weight.sum(), 2))))  # adding it rounds to the grid on which sums of all rows are exact
        self.bounds: _Dense | _Lists | None = None
        self.upper = np.empty(0)

    def protected(self, count: int) -> State:
        """The state after the first `count` rows were picked in order."""
        n = len(self.z)
        state = np.full(n, -1, np.int64), np.full(n, np.nan), np.zeros(n), np.full(n, -1, np.int64)
        for row in range(count):
            self._take(state, row, *self._closer(row, np.arange(n), state[2]))
        return state

    def pick(self, state: State) -> State:
        """The row with the highest gain joins; nobody where nobody adds anything."""
        picked, _, best, _ = state
        if self.bounds is None:
            self.bounds = _Dense(self.z, self.weight, best)
            self.upper = np.where(picked >= 0, -np.inf, self.bounds.gain + self.bounds.slack)
        bounds, upper, fresh = self.bounds, self.upper, np.zeros(len(best), bool)
        refreshed: list[np.ndarray] = []
        closer: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of the rows whose bound is their gain: who comes closer, and how close
        while upper[row := int(upper.argmax())] > 0:  # of equals the first, and rows lie in uid order
            if row in closer:
                break
            if fresh[row]:
                rows, s = closer[row] = self._closer(row, bounds.rows(row, best), best)
                upper[row] = (self.weight[rows] * (s - best[rows])).sum()
                continue
            most = max((upper[rows].max(initial=-np.inf) for rows in refreshed), default=-np.inf)
            could = np.flatnonzero(upper >= most) if refreshed else bounds.first(row, upper)
            refreshed.append(bounds.refresh(could[~fresh[could]], most, best, upper))
            fresh[refreshed[-1]] = True
        else:
            return state
        self._take(state, row, *closer[row])
        upper[row] = -np.inf
        self._next_bounds(int(picked[row]) + 1, best)
        return state

    def _closer(self, row: int, rows: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who of `rows` comes closer by a pick of `row`, and their similarities to it."""
        s = np.concatenate([self._similarity(row, rows[i : i + 4096]) for i in range(0, len(rows), 4096)])
        at = np.flatnonzero(s > best[rows])
        return rows[at], s[at]

    def _take(self, state: State, row: int, rows: np.ndarray, s: np.ndarray) -> None:
        """Pick `row`; `rows` come closer by that, to the similarities `s`."""
        picked, gain, best, nearest = state
        picked[row], gain[row] = picked.max(initial=-1) + 1, (self.weight[rows] * (s - best[rows])).sum()
        best[rows], nearest[rows] = s, row
        if picked[row] == 0:
            nearest[nearest < 0] = row  # opposite to the first pick: similarity 0, but no other is nearer

    def _similarity(self, row: int, columns: np.ndarray) -> np.ndarray:
        """(m,) float64 on the grid: (1 + cos) / 2; the same number whoever asks."""
        s = self.z.take64(columns) @ self.z.take64(np.array([row]))[0]
        s *= self.scale[row] * self.scale[columns]
        s *= 0.5
        s += 0.5 + self.magic
        s -= self.magic
        return np.clip(s, 0, 1, out=s)

    def _next_bounds(self, count: int, best: np.ndarray) -> None:
        """After `count` picks: lists once they fit (and again, smaller, whenever the number of picks has grown by half)."""
        bounds = self.bounds
        if isinstance(bounds, _Lists):
            if count >= 1.5 * bounds.made_at:
                bounds.compact(best, count, self.upper)
        elif bounds is not None and count % 4 == 0:
            share = bounds.share_above(best)
            if share <= SPARSE and 20 * share * len(best) ** 2 <= self.room:
                self.bounds = _Lists(bounds, best, count, self.upper)


class _Dense:
    """Gains while a pick still moves many rows. `gain` (n,) are those at the time when rows were `heard` of (n,), off by at most `slack`."""

    def __init__(self, z: Vectors, weight: np.ndarray, best: np.ndarray) -> None:
        """Gains from `best` (n,): in closed form where nothing is picked yet, else by a pass."""
        self.unit = np.empty((z.dim, len(z)), np.float32)  # turned: the product is a fifth faster
        for first in range(0, len(z), 4096):
            self.unit[:, first : first + 4096] = z.unit(slice(first, first + 4096)).T
        self.weight, self.total = weight.astype(np.float32), float(weight.sum())
        self.error = 1.1 * float32_error(z.dim) + 2.0**-22  # of a cosine, and of the float32 limits that it is compared with
        self._room = np.empty((2, STRIP * min(len(z), WIDE)), np.float32)
        if best.any():
            self.start(best)
        else:
            middle = sum((self.unit[:, j].astype(np.float64) @ weight[j] for j in _pieces(len(z))), np.zeros(z.dim))
            self.heard, self.slack = best.copy(), self.total * self.error / 2
            self.gain = np.concatenate([(self.total + middle @ self.unit[:, j]) / 2 for j in _pieces(len(z))])

    def start(self, best: np.ndarray) -> None:
        """Hear of all rows: every pair is multiplied once."""
        n, gain, floor, weight = len(best), np.zeros(len(best)), (2 * best - 1).astype(np.float32), self.weight
        for first in range(0, n, STRIP):
            i = slice(first, min(first + STRIP, n))
            for j in _pieces(n, first):
                cosine, above = self.tile(self.unit[:, i], self.unit[:, j])
                gain[j] += weight[i] @ np.maximum(cosine, floor[i, None], out=above)
                np.maximum(cosine, floor[j], out=above)
                for past in range(max(0, i.stop - j.start), j.stop - j.start, 4 * STRIP):  # without the corner that was seen as rows
                    gain[i] += above[:, past : past + 4 * STRIP] @ weight[j][past : past + 4 * STRIP]
        below = float(self.weight @ np.maximum(-floor, 0))
        self.heard, self.gain = best.copy(), (gain - self.weight.astype(np.float64) @ floor) / 2
        self.slack = self.total * self.error / 2 + 4 * STRIP * 2.0**-24 * (self.gain.max() + below + self.total * max(float(floor.max()), 0))

    def tile(self, block: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cosines of `block` (d, a) with `other` (d, b), and room of the same shape: overwritten by the next tile, for fresh memory costs as much
        as the product."""
        shape = block.shape[1], other.shape[1]
        if shape[0] * shape[1] > self._room.shape[1]:
            self._room = np.empty((2, shape[0] * shape[1]), np.float32)
        cosine, room = (space[: shape[0] * shape[1]].reshape(shape) for space in self._room)
        return np.matmul(block.T, other, out=cosine), room

    def first(self, row: int, upper: np.ndarray) -> np.ndarray:
        """Whom to refresh first."""
        return np.argpartition(-upper, 16)[:16] if len(upper) > 16 else np.array([row])

    def refresh(self, could: np.ndarray, most: float, best: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Lower `upper` of the rows `could`, each until it is below `most` or fresh, that is, made from `best`. Returns the fresh ones."""
        if len(could) <= 32:
            upper[could] = np.minimum(upper[could], self._gains(could, best))
            return could
        behind = np.flatnonzero(best > self.heard)
        many = len(best) // 4
        if len(could) > many and 2 * len(behind) > len(best):
            self.start(best)
            np.minimum(upper, self.gain + self.slack, out=upper)
            return could
        behind = behind[np.argsort(self.heard[behind] - best[behind], kind="stable")]  # who moved most tells most
        while len(could) > many and len(behind):
            some, behind = behind[:STRIP], behind[STRIP:]
            fall, error = self._fall(some, best, self.unit)
            self.gain -= fall
            self.slack += error
            self.heard[some] = best[some]
            np.minimum(upper, self.gain + self.slack, out=upper)
            could = could[upper[could] >= most]
        gain, slack, others = self.gain[could], self.slack, self.unit[:, could]
        while len(could) and len(behind):
            step = STRIP if 4 * len(could) > WIDE else 4 * STRIP
            some, behind = behind[:step], behind[step:]
            fall, error = self._fall(some, best, others)
            gain -= fall
            slack += error
            upper[could] = np.minimum(upper[could], gain + slack)
            left = upper[could] >= most
            could, gain, others = could[left], gain[left], others if left.all() else others[:, left]
        return could

    def _gains(self, could: np.ndarray, best: np.ndarray) -> np.ndarray:
        """(m,) what each of `could` would add, at most."""
        gain, floor = np.zeros(len(could)), (2 * best - 1).astype(np.float32)
        block = self.unit[:, could]
        for j in _pieces(len(best)):
            cosine, above = self.tile(block, self.unit[:, j])
            np.subtract(cosine, floor[j], out=above)
            gain += np.maximum(above, 0, out=above) @ self.weight[j]
        return gain * (0.5 + WIDE * 2.0**-24) + self.total * self.error / 2

    def _fall(self, rows: np.ndarray, best: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
        """(m,) what each of `others` (d, m) loses when `rows` go from what was heard of them to `best`, and how far off that is."""
        low, high = (2 * self.heard[rows] - 1).astype(np.float32)[:, None], (2 * best[rows] - 1).astype(np.float32)[:, None]
        weight, block, fall = self.weight[rows], self.unit[:, rows], np.empty(others.shape[1])
        for j in _pieces(len(fall)):
            cosine, _ = self.tile(block, others[:, j])
            if len(fall) < NARROW:
                fall[j] = weight @ np.minimum(np.maximum(cosine, low, out=cosine), high, out=cosine)
            else:
                fall[j] = weight @ np.clip(cosine, low, high, out=cosine)
        sizes = float(weight @ np.maximum(abs(low), abs(high))[:, 0])
        return (fall - float(weight.astype(np.float64) @ low[:, 0])) / 2, float(weight.sum()) * self.error / 2 + len(rows) * 2.0**-24 * sizes

    def rows(self, row: int, best: np.ndarray) -> np.ndarray:
        """Who may come closer by a pick of `row`."""
        return np.flatnonzero(self.unit[:, row] @ self.unit > 2 * best - 1 - self.error)

    def share_above(self, best: np.ndarray) -> float:
        """The share of similarities above their row's best, from 32 rows."""
        some = np.arange(0, len(best), max(1, len(best) // 32))
        return float((self.unit[:, some].T @ self.unit > (2 * best[some] - 1 - self.error)[:, None].astype(np.float32)).mean())


class _Lists:
    """Gains once few similarities are above their row's best: each row has the list of those whom it can still bring closer. Others never will be."""

    def __init__(self, dense: _Dense, best: np.ndarray, made_at: int, upper: np.ndarray) -> None:
        self.weight, self.error, self.even = dense.weight, dense.error, bool((dense.weight == 1).all())
        n, strip, floor = len(best), max(8, STRIP * WIDE // max(len(best), WIDE)), self._floor(best)
        rows, cosines, count = [], [], np.zeros(n + 1, np.int64)
        for first in range(0, n, strip):
            i = slice(first, min(first + strip, n))
            cosine, room = dense.tile(dense.unit[:, i], dense.unit)
            held = np.flatnonzero(np.greater(cosine, floor, out=room.reshape(-1).view(bool)[: cosine.size].reshape(cosine.shape)))
            ends = np.searchsorted(held, np.arange(i.stop - first + 1) * n)
            count[first + 1 : i.stop + 1] = np.diff(ends)
            rows.append((held - np.repeat(np.arange(i.stop - first) * n, np.diff(ends))).astype(np.int32))
            cosines.append(cosine.reshape(-1).take(held))
        self.start = np.cumsum(count)
        self.row, self.cosine = np.concatenate(rows), np.concatenate(cosines)
        del rows, cosines
        self.compact(best, made_at, upper)

    def _floor(self, best: np.ndarray) -> np.ndarray:
        return (2 * best - 1 - self.error).astype(np.float32)

    def compact(self, best: np.ndarray, made_at: int, upper: np.ndarray) -> None:
        """Let go of what is no longer above its row's best, and lower `upper` to that."""
        self.made_at, n, floor, end = made_at, len(best), self._floor(best), 0
        step, start = max(1, (n << 17) // max(len(self.row), 1)), np.zeros(n + 1, np.int64)
        for first in range(0, n, step):
            cuts = self.start[first : min(first + step, n) + 1]
            row, cosine = self.row[cuts[0] : cuts[-1]], self.cosine[cuts[0] : cuts[-1]]
            above = cosine - floor[row]
            held = np.flatnonzero(above > 0)
            count = np.diff(np.searchsorted(held, cuts - cuts[0]))
            row, above, i = row[held], above[held], slice(first, first + len(count))
            upper[i] = np.minimum(upper[i], self._sums(row, above, count))
            here = slice(end, end := end + len(held))
            self.row[here], self.cosine[here] = row, cosine[held]  # never past what is still to be read
            start[first + 1 : first + len(count) + 1] = start[first] + np.cumsum(count)
        self.start, self.row, self.cosine = start, self.row[:end].copy(), self.cosine[:end].copy()

    def _sums(self, row: np.ndarray, above: np.ndarray, count: np.ndarray) -> np.ndarray:
        """(m,) gains of m lists of `count` entries each, at most: `above` is too high by the error."""
        return np.bincount(np.repeat(np.arange(len(count)), count), above if self.even else above * self.weight[row], len(count)) / 2

    def first(self, row: int, upper: np.ndarray) -> np.ndarray:
        """Whom to refresh first."""
        return np.array([row])

    def refresh(self, could: np.ndarray, most: float, best: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Lower `upper` of some of the rows `could`, the highest, to what `best` makes of them. Returns these."""
        if len(could) > 64:
            could = could[np.argpartition(-upper[could], 64)[:64]]
        start, count = self.start[could], self.start[could + 1] - self.start[could]
        at = np.arange(count.sum()) + np.repeat(start - np.cumsum(count) + count, count)
        row = self.row[at]
        above = self.cosine[at] - self._floor(best[row])
        upper[could] = np.minimum(upper[could], self._sums(row, np.maximum(above, 0, out=above), count))
        return could

    def rows(self, row: int, best: np.ndarray) -> np.ndarray:
        """Who may come closer by a pick of `row`."""
        at = slice(self.start[row], self.start[row + 1])
        return self.row[at][self.cosine[at] > 2 * best[self.row[at]] - 1 - self.error].astype(np.int64)


def _pieces(stop: int, start: int = 0) -> Iterator[slice]:
    """`start` to `stop` in pieces of WIDE at most, all of about the same length."""
    count = -(-(stop - start) // WIDE)
    for piece in range(count):
        yield slice(start + piece * (stop - start) // count, start + (piece + 1) * (stop - start) // count)
