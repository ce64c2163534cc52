"""Thin a pool out to a given share: what lies closest to something that stays goes first."""

import builtins

import numpy as np
import pyarrow as pa

from curate.pool import Pool, Preferred, Share, State, VectorName, Verdicts
from manifests.star import first_kept
from manifests.vectors.forecast import Forecast, Size, cover, require
from manifests.vectors.neighbours import knn
from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import closest, equal_rows, within

REASONS = ("redundant",)
WRITES: dict[str, pa.DataType] = {}
GROWS = "differs"
BLOCK = 4096  # rows that are compared with the kept ones at a time
STEPS = 1 << 14  # thresholds that are tried lie at -1 + i / 2^13


def forecast(size: Size, *, keep: Share, **_: object) -> Forecast:
    """The walks of the bisection."""
    return cover(size.rows, keep.of(size.rows), size.dims[0], size.memory)


def redundancy(
    pool: Pool,
    *,
    vectors: VectorName,
    keep: Share,
    prefer: builtins.list[Preferred] = [],  # noqa: B006
) -> Verdicts:
    """Keep a share of the samples such that every other one has a kept sample as close by as this share allows.

    Decides     at a threshold t, in keeper order, a row is kept unless a kept row before it has a cosine of at least t (a star, as in every `dedup.*`).
                t is found by bisection on the grid -1 + i / 8192: it keeps no more than the budget, the next grid value keeps more. What is then missing
                to the budget is taken back from the dropped rows, lowest cosine to a kept row first, ties in keeper order. The rest is dropped
                ("redundant"): `witness` is the kept row with the highest cosine (ties in keeper order), `score` that cosine, `threshold` is t.
                Keeper order: protected rows, then the larger `prefer` columns, then uid; rows with equal vectors stand together, at the place of the first
                of them. Every protected row is kept.
    Guarantee   exactly `keep` rows (more only where more are protected); every dropped row has a kept one with a cosine of at least t
    Source      the greedy walk of Less is More (Wolf et al. 2024) with cosine for Hamming distance, its limit found from the share
    vectors     a vector column, (n, d) float16, unit length
    keep        how many to keep: a count (10000) or a fraction of the live rows (0 < 0.3 <= 1)
    prefer      columns of numbers; the row with the larger value is the one to keep, and null is the least
    Cost        15 walks of at most n * kept * d multiply-adds in float32; a walk ends as soon as it keeps too many. 2 n d bytes and 200 MiB at work
    Errors      does-not-fit
    """
    require("reduce.redundancy", forecast(Size(len(pool), [pool.vectors(vectors).dim], pool.memory), keep=keep), pool.memory)
    order = np.argsort(pool.keeper_order(prefer))
    n, fixed, z = len(pool), pool.fixed[order], pool.vectors(vectors).subset(order)
    if 2 * n * z.dim <= pool.memory // 4:  # rows that are read again and again then lie side by side
        z = Vectors.of(z.stored(slice(0, n)))
    first = equal_rows(z)
    heads, place = np.unique(first, return_inverse=True)
    is_copy = first != np.arange(n)
    budget = max(keep.of(n), int(fixed.sum()))
    limit = budget - int((fixed & is_copy).sum())
    heads_z, heads_fixed = z.subset(heads), fixed[heads]

    def halve(state: State) -> State:
        (low, high), kept = state
        middle = (low + high) // 2
        found = _walk(heads_z, heads_fixed, middle / (STEPS // 2) - 1, limit) if high - low > 1 else None
        return (np.array([low, middle if high - low > 1 else high]), kept) if found is None else (np.array([middle, high]), found)

    start = np.array([0, STEPS + 1]), heads_fixed | (np.arange(len(heads)) == 0)
    (low, _), kept = pool.scan("bisection", halve, start, rounds=int(STEPS).bit_length() if budget < n else 0)
    if budget >= n:
        return Verdicts(keep=np.ones(n, bool), reason="redundant")
    stays, witness, score = _filled(heads_z, kept, place, is_copy, fixed, budget)
    back = np.argsort(order)
    by = np.where(witness >= 0, order[heads[witness]], -1)
    return Verdicts(keep=stays[back], reason="redundant", score=score[back], threshold=float(low / (STEPS // 2) - 1), witness=by[back])


def _walk(z: Vectors, fixed: np.ndarray, threshold: float, limit: int) -> np.ndarray | None:
    """The rows that the star keeps at `threshold`, (n,) bool, rows lying in keeper order; None where they are more than `limit`."""
    keep, error = np.zeros(len(z), bool), float32_error(z.dim)
    for start in range(0, len(z), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(z)))
        alive, kept = np.ones(len(rows), bool), np.flatnonzero(keep)
        for first in range(0, len(kept), BLOCK):
            columns, some = kept[first : first + BLOCK], np.flatnonzero(alive)
            scores = z.unit(rows[some]) @ z.unit(columns).T
            top = scores.max(1, initial=-2)
            alive[some[top > threshold + error]] = False
            open_ = np.flatnonzero(np.abs(top - threshold) <= error)
            alive[some[open_[closest(scores[open_], z, rows[some[open_]], z, columns, threshold)[1] >= 0]]] = False
        some = rows[alive | fixed[rows]]
        unit = z.unit(some)
        near = within(unit @ unit.T, z, some, z, some, threshold)
        keep[some] = first_kept(near, alive[some - start], fixed[some])
        if keep.sum() > limit:
            return None
    return keep


def _filled(
    z: Vectors, kept: np.ndarray, place: np.ndarray, is_copy: np.ndarray, fixed: np.ndarray, budget: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill up to `budget` and name witnesses: stays (n,) bool, witness (n,) int64 head or -1, score (n,) float64, for all rows in keeper order."""
    m = len(z)
    score, witness = np.ones(m), np.arange(m)  # of heads: to the closest kept one, itself where kept
    gone = np.flatnonzero(~kept)
    near, at = knn(z.subset(gone), z.subset(np.flatnonzero(kept)), 1)
    score[gone], witness[gone] = near[:, 0], np.flatnonzero(kept)[at[:, 0]]
    stays = np.where(is_copy, fixed, kept[place])
    free = np.flatnonzero(~stays)
    stays[free[np.lexsort((free, place[free], score[place[free]]))[: budget - int(stays.sum())]]] = True
    added = np.flatnonzero(np.bincount(place[stays & ~is_copy], minlength=m).astype(bool) & ~kept)
    score[added], witness[added] = 1.0, added
    left = np.setdiff1d(gone, added)
    near, at = knn(z.subset(left), z.subset(added), 1)
    closer = (
        (near[:, 0] > score[left]) | ((near[:, 0] == score[left]) & (added[at[:, 0]] < witness[left])) if len(added) else np.zeros(len(left), bool)
    )
    score[left[closer]], witness[left[closer]] = near[closer, 0], added[at[closer, 0]]
    return stays, np.where(stays, -1, witness[place]), np.where(stays, np.nan, score[place])
