"""Facility location: keep the set that stands best for all live samples."""

import numpy as np
import pyarrow as pa

from curate.pool import Pool, Share, State, VectorName, Verdicts
from manifests.vectors.forecast import Forecast, Size, facility, require, rounded, spare
from manifests.vectors.rounded import Rounded, pieces, right_of
from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import equal_rows

REASONS = ("represented",)
WRITES = {"facility_location_rank": pa.int64(), "facility_location_gain": pa.float64()}
GROWS = "differs"
STRIP, WIDE = 256, 512  # rows and columns of similarities at work, the first no more than the second: both tiles of them lie in a cache
SPARSE = 0.03  # share of similarities that can still add something, from which on only these are held
AT_FIRST = 16  # rows with the highest bounds that are looked at before all others
LISTED = 16  # bytes for each of them while they are listed, a third of it for what a sample of rows cannot tell


def forecast(size: Size, *, keep: Share, **_: object) -> Forecast:
    """With what of the similarities fits into the memory."""
    return facility(size.rows, keep.of(size.rows), size.dims[0], size.memory)


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
    Cost        where n * n bytes fit into a quarter of the memory: half a pass of n * n * d multiply-adds in float32, and a pick reads a byte of each pair that
                has a row it moves; 10 n d bytes beside them. Elsewhere about three passes while a pick still moves many rows; then only the similarities above
                the best of one of their two rows are held (12 bytes each while they are listed, 8 after it, at most a quarter of the memory), and a pick
                costs what it moves; 6 n d bytes beside them
    Errors      does-not-fit
    """
    n, budget = len(pool), max(keep.of(len(pool)), int(pool.fixed.sum()))
    dims, picks = [pool.vectors(vectors).dim], Share(budget)
    require("select.facility_location", forecast(Size(n, dims, pool.memory), keep=picks), pool.memory)
    order = np.lexsort((pool.uid_rank, ~pool.fixed))
    z = pool.vectors(vectors).subset(order)
    first = equal_rows(z)
    heads, place, weight = np.unique(first, return_inverse=True, return_counts=True)  # equal rows stand and fall together
    fixed = int(pool.fixed.sum())
    greedy = _Greedy(z.subset(heads), weight.astype(np.float64), spare(forecast(Size(n, dims, 0), keep=picks), pool.memory))
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
        self.bounds: _Dense | Rounded | _Lists | None = None
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
            self._begin(picked, best)
        elif isinstance(self.bounds, _Dense) and picked.max() % 4 == 0:
            self._hold(self.bounds, picked, best)
        assert self.bounds is not None
        bounds, upper = self.bounds, self.upper
        closer: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of the rows whose bound is their gain: who comes closer, and how close
        while upper[row := bounds.highest(best, upper)] > 0 and row not in closer:
            rows, s = closer[row] = self._closer(row, bounds.rows(row, best), best)
            upper[row] = (self.weight[rows] * (s - best[rows])).sum()
        if upper[row] <= 0:
            return state
        self._take(state, row, *closer[row])
        upper[row] = -np.inf
        bounds.moved(closer[row][0], best, upper)
        return state

    def _begin(self, picked: np.ndarray, best: np.ndarray) -> None:
        """Bounds of a state: from what is held, where it fits already."""
        dense = _Dense(self.z, self.weight)
        if not self._hold(dense, picked, best):
            dense.start(best)
            self.bounds, self.upper = dense, np.where(picked >= 0, -np.inf, dense.gain + dense.slack)

    def _hold(self, dense: "_Dense", picked: np.ndarray, best: np.ndarray) -> bool:
        """Whether lists are few enough by now, or a table of all pairs fits; from then on they serve."""
        share = dense.share_above(best) if best.any() else 1.0
        if share <= SPARSE and LISTED * share * len(best) ** 2 <= self.room:
            self.bounds = _Lists(dense, best)
        elif best.any() and rounded(len(best), self.z.dim) <= self.room:
            self.bounds = Rounded(dense.unit, dense.weight, dense.error, best)
        else:
            return False
        self.upper = np.where(picked >= 0, -np.inf, self.bounds.gain)
        return True

    def _closer(self, row: int, rows: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Who of `rows` comes closer by a pick of `row`, and their similarities to it."""
        s = np.concatenate([self._similarity(row, rows[i : i + 4096]) for i in range(0, max(len(rows), 1), 4096)])
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


class _Dense:
    """Gains while a pick still moves many rows. `gain` (n,) and `slack` together are, at least, those at the time when rows were `heard` of (n,): a cosine that
    may be off counts as too high where it adds, as too low where it is taken away."""

    def __init__(self, z: Vectors, weight: np.ndarray) -> None:
        self.unit = np.empty((z.dim, len(z)), np.float32)  # turned: the product is a fifth faster
        for first in range(0, len(z), 4096):
            self.unit[:, first : first + 4096] = z.unit(slice(first, first + 4096)).T
        self.weight, self.total = weight.astype(np.float32), float(weight.sum())
        self.error = 1.1 * float32_error(z.dim) + 2.0**-22  # of a cosine, and of the float32 limits that it is compared with
        self._room = np.empty((2, STRIP * WIDE), np.float32)
        self.fresh, self.is_lowered = np.zeros(len(z), bool), False  # whose `upper` is a gain of now; whether those of all others were lowered

    def start(self, best: np.ndarray) -> None:
        """Gains from `best` (n,): in closed form where nothing is picked yet, else every pair is multiplied once."""
        n, gain, floor, weight = len(best), np.zeros(len(best)), (2 * best - 1 - self.error).astype(np.float32), self.weight
        self.heard = best.copy()
        if not best.any():
            self.slack = self.total * self.error / 2
            wide = weight.astype(np.float64)
            middle = sum((self.unit[:, j].astype(np.float64) @ wide[j] for j in pieces(n, WIDE)), np.zeros(len(self.unit)))
            self.gain = np.concatenate([(self.total + middle @ self.unit[:, j]) / 2 for j in pieces(n, WIDE)])
            return
        for first in range(0, n, STRIP):
            i = slice(first, min(first + STRIP, n))
            for j in right_of(i, n, WIDE):
                cosine, above = self.tile(self.unit[:, i], self.unit[:, j])
                gain[j] += weight[i] @ np.maximum(cosine, floor[i, None], out=above)
                if j != i:
                    gain[i] += np.maximum(cosine, floor[j], out=above) @ weight[j]
        self.gain = (gain - weight.astype(np.float64) @ floor) / 2
        self.slack = WIDE * 2.0**-24 * (self.gain.max() + float(weight @ abs(floor)))

    def tile(self, block: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The cosines of `block` (d, a) with `other` (d, b), and room of the same shape: both overwritten by the next tile."""
        shape = block.shape[1], other.shape[1]
        cosine, room = (space[: shape[0] * shape[1]].reshape(shape) for space in self._room)
        return np.matmul(block.T, other, out=cosine), room

    def highest(self, best: np.ndarray, upper: np.ndarray) -> int:
        """The row with the highest bound, made from `best`; of equals the first, and rows lie in uid order."""
        while not self.fresh[row := int(upper.argmax())] and upper[row] > 0:
            could = np.flatnonzero((upper >= upper[self.fresh].max(initial=-np.inf)) & ~self.fresh)
            if len(could) > 2 * AT_FIRST and self.fresh.any() and not self.is_lowered:
                self._lower(could, upper[self.fresh].max(), best, upper)
                self.is_lowered = True
                continue
            if len(could) > 2 * AT_FIRST:
                could = could[np.argpartition(-upper[could], AT_FIRST)[:AT_FIRST]]
            upper[could] = np.minimum(upper[could], self._gains(could, best))
            self.fresh[could] = True
        return row

    def moved(self, rows: np.ndarray, best: np.ndarray, upper: np.ndarray) -> None:
        """`rows` came closer: no bound is of now."""
        self.fresh[:], self.is_lowered = False, False

    def _lower(self, could: np.ndarray, most: float, best: np.ndarray, upper: np.ndarray) -> None:
        """Lower `upper` of the rows `could`, each until it is below `most` or made from `best`."""
        behind = np.flatnonzero(best > self.heard)
        many = len(best) // 4
        if len(could) > many and 2 * len(behind) > len(best):
            self.start(best)
            np.minimum(upper, self.gain + self.slack, out=upper)
            return
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
            some, behind = behind[:STRIP], behind[STRIP:]
            fall, error = self._fall(some, best, others)
            gain -= fall
            slack += error
            upper[could] = np.minimum(upper[could], gain + slack)
            left = upper[could] >= most
            if 8 * left.sum() < 7 * len(left):
                could, gain, others = could[left], gain[left], others[:, left]

    def _gains(self, could: np.ndarray, best: np.ndarray) -> np.ndarray:
        """(m,) what each of a few rows `could` would add, at most: off by the error of those alone that may come closer."""
        gain, floor = np.zeros(len(could)), (2 * best - 1 - self.error).astype(np.float32)
        block, width = self.unit[:, could], STRIP * WIDE // len(could)
        for j in pieces(len(best), width):
            cosine, above = self.tile(block, self.unit[:, j])
            np.subtract(cosine, floor[j], out=above)
            gain += np.maximum(above, 0, out=above) @ self.weight[j]
        return gain * (0.5 + width * 2.0**-24)

    def _fall(self, rows: np.ndarray, best: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
        """(m,) what each of `others` (d, m) loses, at least, when at most STRIP `rows` go from what was heard of them to `best`; how far off that may be."""
        low, high = ((2 * s[rows] - 1 + self.error).astype(np.float32) for s in (self.heard, best))
        weight, block, fall = self.weight[rows], self.unit[:, rows], np.empty(others.shape[1])
        for j in pieces(len(fall), WIDE):
            cosine, _ = self.tile(others[:, j], block)
            fall[j] = np.minimum(np.maximum(cosine, low, out=cosine), high, out=cosine) @ weight
        sizes = float(weight @ np.maximum(abs(low), abs(high)))
        return (fall - float(weight.astype(np.float64) @ low)) / 2, float(weight.sum()) * 2.0**-23 + len(rows) * 2.0**-24 * sizes

    def above(self, i: slice, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of the strip `i` with itself and what is right of it whose cosine is above the `floor` (n,) of one of the two: row in the strip, column,
        cosine. Each row is there with itself."""
        found, masks = [], np.empty((2, STRIP * WIDE), bool)
        for j in right_of(i, len(floor), WIDE):
            cosine, _ = self.tile(self.unit[:, i], self.unit[:, j])
            mask, other = (space[: cosine.size].reshape(cosine.shape) for space in masks)
            np.logical_or(np.greater(cosine, floor[j], out=mask), np.greater(cosine, floor[i, None], out=other), out=mask)
            if j == i:
                mask[:] = np.triu(mask, 1) | np.eye(len(mask), dtype=bool)
            held = np.flatnonzero(mask)
            starts = np.arange(len(cosine) + 1) * cosine.shape[1]
            row = np.repeat(np.arange(len(cosine), dtype=np.int16), np.diff(np.searchsorted(held, starts)))
            found.append((row, (held - (starts - j.start)[row]).astype(np.int32), cosine.reshape(-1).take(held)))
        row, column, value = (np.concatenate(part) for part in zip(*found))
        return row, column, value

    def rows(self, row: int, best: np.ndarray) -> np.ndarray:
        """Who may come closer by a pick of `row`."""
        return np.flatnonzero(self.unit[:, row] @ self.unit > 2 * best - 1 - self.error)

    def share_above(self, best: np.ndarray) -> float:
        """The share of similarities above the best of one of their two rows, from one row in 256 and 32 at least."""
        some, floor = np.arange(0, len(best), max(1, min(256, len(best) // 32))), (2 * best - 1 - self.error).astype(np.float32)
        found = [self.unit[:, i].T @ self.unit > np.minimum(floor[i, None], floor) for i in np.array_split(some, -(-len(some) // 32))]
        return float(np.mean([above.mean() for above in found]))


class _Lists:
    """Gains once few similarities are above the best of one of their two rows: only these are held, in two lists a row, with those after it and those before
    it. What falls below both never comes back. `gain` (n,), at most: half of what the lists of a row hold above the `floor` of each other row; every pick
    lowers it."""

    def __init__(self, dense: _Dense, best: np.ndarray) -> None:
        from scipy.sparse import csr_array

        self.weight, self.error, n = dense.weight.astype(np.float64) / 2, dense.error, len(best)
        self.floor = 2 * best - 1 - self.error
        pieces, count = [], np.zeros(n, np.int64)
        for first in range(0, n, STRIP):
            i = slice(first, min(first + STRIP, n))
            row, column, cosine = dense.above(i, (self.floor - 2.0**-23).astype(np.float32))
            order = np.argsort(row, kind="stable")
            count[i] = np.bincount(row, minlength=i.stop - i.start)
            pieces.append((column[order], cosine[order]))
        size = int(count.sum())
        self.row, self.cosine = np.empty(2 * size, np.int32), np.empty(2 * size, np.float32)
        np.concatenate([column for column, _ in pieces], out=self.row[:size])
        np.concatenate([cosine for _, cosine in pieces], out=self.cosine[:size])
        del pieces
        start = np.append(0, count.cumsum())
        narrow = start.astype(np.int32) if size < 1 << 31 else start  # else scipy would widen the columns too
        turned = csr_array((self.cosine[:size], self.row[:size], narrow), shape=(n, n)).tocsc()
        self.row[size:], self.cosine[size:] = turned.indices, turned.data
        self.start = np.concatenate([start[:-1], size + turned.indptr[:-1]])
        self.count = np.concatenate([count, np.diff(turned.indptr) - 1])  # without the row itself, which comes last
        self.gain = self._sums()

    def _lists(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The rows of both lists of `rows`, which lists these are, how long, and where they lie one after the other."""
        twice = np.concatenate([rows, rows])
        lists = twice.copy()
        lists[len(rows) :] += len(self.floor)
        count = self.count[lists]
        ends = count.cumsum()
        return twice, lists, count, np.arange(ends[-1]) + np.repeat(self.start[lists] - ends + count, count)

    def _sums(self) -> np.ndarray:
        """(n,) `gain`, made from the lists."""
        n = len(self.floor)
        gain, step = np.empty(n), max(1, (n << 17) // len(self.row))
        for first in range(0, n, step):
            rows = np.arange(first, min(first + step, n))
            twice, _, count, at = self._lists(rows)
            other = self.row[at]
            above = np.maximum(self.cosine[at] - self.floor[other], 0) * self.weight[other]
            gain[rows] = np.bincount(np.repeat(twice - first, count), above, len(rows))
        return gain

    def highest(self, best: np.ndarray, upper: np.ndarray) -> int:
        """The row with the highest bound; of equals the first, and rows lie in uid order."""
        return int(upper.argmax())

    def moved(self, rows: np.ndarray, best: np.ndarray, upper: np.ndarray) -> None:
        """`rows` came closer: lower `upper` by what others could have brought them, and let go of what they have below `best`."""
        twice, lists, count, at = self._lists(rows)
        other, cosine, low = self.row[at].astype(np.intp), self.cosine[at], np.repeat(self.floor[twice], count)
        self.floor[rows] = 2 * best[rows] - 1 - self.error
        high, fall = np.repeat(self.floor[twice], count), np.maximum(cosine, low)
        np.minimum(fall, high, out=fall)
        fall -= low
        fall *= np.repeat(self.weight[twice], count)
        np.subtract.at(self.gain, other, fall)
        np.minimum(upper, self.gain, out=upper)
        held = np.flatnonzero(cosine > np.minimum(high, self.floor[other]))
        ends = np.searchsorted(held, count.cumsum())
        left = ends.copy()
        left[1:] -= ends[:-1]
        to = np.arange(len(held)) + np.repeat(self.start[lists] - ends + left, left)
        self.count[lists], self.row[to], self.cosine[to] = left, other[held], cosine[held]

    def rows(self, row: int, best: np.ndarray) -> np.ndarray:
        """Who may come closer by a pick of `row`."""
        *_, at = self._lists(np.array([row]))
        other = self.row[at]
        return other[self.cosine[at] > self.floor[other]].astype(np.int64)
