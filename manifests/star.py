"""The one rule by which copies leave: a star, not a chain. Every `dedup.*` and every replay of its edges uses it."""

from collections.abc import Iterable

import numpy as np

Pairs = Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]


def star(rank: np.ndarray, pairs: Pairs, *, fixed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Walk the rows in keeper order; a row is kept unless a *kept* row of better rank stands in a pair with it.

    rank     (n,) int64, all different: 0 = first in keeper order
    pairs    blocks (a, b, score) of the pairs within the threshold: row numbers int64 in any order, score float64, higher = closer. A pair may come twice.
    fixed    (n,) bool: rows that are never dropped (protected); they should be first in rank

    Returns keep (n,) bool; witness (n,) int64, -1 where kept: of the kept rows of better rank in a pair with the row the one with the
    highest score, ties to the better rank; score (n,) float64 of that pair, NaN where kept.
    Cost     32 bytes and a sort for each pair, one step a row that has worse neighbours
    """
    rank = np.asarray(rank, np.int64)
    n = len(rank)
    better, worse, score = _ordered(rank, pairs)
    keep = np.ones(n, bool)
    never = np.zeros(n, bool) if fixed is None else np.asarray(fixed, bool)
    starts = np.flatnonzero(np.diff(better, prepend=-1))
    ends = np.append(starts[1:], len(better))[: len(starts)]
    for row, start, end in zip(better[starts].tolist(), starts.tolist(), ends.tolist(), strict=True):  # in keeper order
        if keep[row]:
            near = worse[start:end]
            keep[near] &= never[near]
    witness, best = np.full(n, -1, np.int64), np.full(n, np.nan)
    decides = keep[better] & ~keep[worse]
    better, worse, score = better[decides], worse[decides], score[decides]
    order = np.lexsort((-rank[better], score, worse))  # the last of each row: highest score, then best rank
    witness[worse[order]], best[worse[order]] = better[order], score[order]
    return keep, witness, best


def first_kept(near: np.ndarray, alive: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The same walk over m rows that lie in keeper order: `near[row, earlier]` (m, m) bool, of which the lower half is read, `alive` (m,) those that rows before
    these have left, `fixed` (m,); the kept ones (m,) bool."""
    keep = alive | fixed
    for row in np.flatnonzero(near.any(1) & alive & ~fixed):
        keep[row] = not (near[row, :row] & keep[:row]).any()
    return keep


def _ordered(rank: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs as (better, worse, score), in the keeper order of the better row."""
    blocks = [(np.asarray(a, np.int64), np.asarray(b, np.int64), np.asarray(s, np.float64)) for a, b, s in pairs]
    if not blocks:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    a, b, score = (np.concatenate(column) for column in zip(*blocks, strict=True))
    a, b, score = a[a != b], b[a != b], score[a != b]
    swap = rank[a] > rank[b]
    better, worse = np.where(swap, b, a), np.where(swap, a, b)
    order = np.argsort(rank[better], kind="stable")
    return better[order], worse[order], score[order]
