"""Greedy k-centre: keep a set that no live sample is far from."""

import numpy as np
import pyarrow as pa

from curate.pool import Pool, Share, State, VectorName, Verdicts
from manifests.vectors.forecast import Forecast, Size, farthest, require
from manifests.vectors.store import Vectors, normalised
from manifests.vectors.tiles import closest

REASONS = ("covered",)
WRITES = {"kcenter_rank": pa.int64()}
GROWS = "differs"
CANDIDATES = 1024  # farthest rows among which picks are made before the others hear of them


def forecast(size: Size, *, keep: Share, **_: object) -> Forecast:
    """The picks, in passes over all rows."""
    return farthest(size.rows, keep.of(size.rows), size.dims[0])


def kcenter(pool: Pool, *, vectors: VectorName, keep: Share) -> Verdicts:
    """Keep the samples that, picked one by one, are each the farthest from those already kept.

    Decides     dropped ("covered") when not picked; `witness` is the nearest kept sample (of equals the one picked first), `score` the distance
                to it, `threshold` the covering radius that was reached. Distance is chordal, sqrt(2 - 2 cos), in [0, 2]. The first pick is the
                smallest uid; a tie goes to the smaller uid. Protected rows are picked first, in uid order, all of them.
    Guarantee   covering radius at most twice the best possible for this many samples (without protected rows). Picks outliers first: filter before.
    Source      Gonzalez 1985 (rule and bound); Sener and Savarese, ICLR 2018, algorithm 1 (as a coreset).
    vectors     a vector column, (n, d) float16, unit length
    keep        how many to keep: a count (10000) or a fraction of the live rows (0 < 0.3 <= 1)
    Writes      kcenter_rank: int64, order of picking from 0; -1 for dropped rows
    Cost        n * kept * d multiply-adds as matrix products: picks are made among the 1,024 farthest rows as long as nobody else can be farther, then
                all rows hear of them in one pass. 24 n bytes of memory beside two blocks.
    Errors      does-not-fit
    """
    z = pool.vectors(vectors)
    n = len(z)
    budget = max(keep.of(n), int(pool.fixed.sum()))
    require("select.kcenter", forecast(Size(n, [z.dim], pool.memory), keep=Share(budget)), pool.memory)

    def pick_some(state: State) -> State:
        rank, best, nearest = state
        picked = int(rank.max(initial=-1)) + 1
        if picked >= budget:
            return state
        if picked == 0 and pool.fixed.any():
            new = np.flatnonzero(pool.fixed)[np.argsort(pool.uid_rank[pool.fixed])]
        else:
            new = _farthest_in_turn(z, best, rank < 0, pool.uid_rank, budget - picked)
        _hear(z, new, best, nearest)
        rank[new] = np.arange(picked, picked + len(new))
        return rank, best, nearest

    nobody = np.full(n, -1, np.int64)
    rank, best, nearest = pool.scan("picks", pick_some, (nobody, np.full(n, -2.0), nobody), rounds=budget)

    kept = rank >= 0
    distance = np.sqrt(np.maximum(2 - 2 * best, 0))
    return Verdicts(
        keep=kept,
        reason="covered",
        score=np.where(kept, np.nan, distance),
        threshold=float(distance[~kept].max(initial=0.0)),
        witness=np.where(kept, -1, nearest),
        columns={"kcenter_rank": rank},
    )


def _farthest_in_turn(z: Vectors, best: np.ndarray, free: np.ndarray, uid_rank: np.ndarray, count: int) -> np.ndarray:
    """The next picks, in order: as many as are certain when only the farthest CANDIDATES rows know of each other, `count` at most.

    `best` (n,) is each row's highest cosine to a kept row. It only grows, so a candidate that is behind the first row left outside
    (in the order of `best`, then uid) ends the turn.
    """
    rows = np.flatnonzero(free)
    outside: tuple[float, int] = (np.inf, 0)
    if len(rows) > CANDIDATES:
        edge = np.partition(best[rows], CANDIDATES)[CANDIDATES]
        rows = rows[best[rows] <= edge]
        rows = rows[np.lexsort((uid_rank[rows], best[rows]))]
        outside = (best[rows[CANDIDATES]], int(uid_rank[rows[CANDIDATES]]))
        rows = rows[:CANDIDATES]
    rows = rows[np.argsort(uid_rank[rows])]
    near, wide = best[rows], z.take64(rows)
    cosine = normalised(wide @ wide.T, z.square[rows, None], z.square[None, rows])
    new: list[int] = []
    while len(new) < min(count, len(rows)):
        at = int(np.argmin(near))  # the first of equals has the smallest uid
        if (near[at], uid_rank[rows[at]]) > outside:
            break
        new.append(at)
        np.maximum(near, cosine[at], out=near)
        near[new] = np.inf
    return rows[new]


def _hear(z: Vectors, new: np.ndarray, best: np.ndarray, nearest: np.ndarray) -> None:
    """Bring `best` and `nearest` of all rows up to the newly kept rows `new`, in place."""
    for first in range(0, len(new), CANDIDATES):
        some = new[first : first + CANDIDATES]
        unit = z.unit(some)
        for start in range(0, len(z), 4096):
            at = slice(start, min(start + 4096, len(z)))
            settled = best[at] >= 1
            floor = np.where(settled, np.inf, np.nextafter(best[at], 2))  # only a strictly closer one counts
            score, place = closest(z.unit(at) @ unit.T, z, np.arange(at.start, at.stop), z, some, floor)
            closer = place >= 0
            best[at][closer], nearest[at][closer] = score[closer], some[place[closer]]
