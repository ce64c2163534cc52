"""Balanced sampling over hierarchical k-means: long tails keep their share, crowds lose theirs."""

import builtins
from typing import Literal

import numpy as np
import pyarrow as pa

from curate.pool import Pool, Share, State, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.quotas import level_fill, place_inside
from manifests.vectors.clusters import assign, kmeans
from manifests.vectors.forecast import Forecast, Size, clustered, require
from manifests.vectors.partition import at_home
from manifests.vectors.store import Vectors

REASONS = ("crowded",)
WRITES = {"hierarchical_path": pa.string(), "hierarchical_quota": pa.int64()}
GROWS = "differs"


def forecast(size: Size, *, clusters: builtins.list[int], resampling: int, nearest: builtins.list[int], **_: object) -> Forecast:
    """The first level; further ones cost little."""
    return clustered(size.rows, size.dims[0], clusters[0], resampling, nearest[0], is_sought=True)


def hierarchical(
    pool: Pool,
    *,
    vectors: VectorName,
    keep: Share,
    clusters: builtins.list[int] = [1000, 100],  # noqa: B006
    resampling: int = 10,
    nearest: builtins.list[int] = [10, 3],  # noqa: B006
    leaf: Literal["random", "closest"] = "random",
) -> Verdicts:
    """Keep an equal share of every branch of a tree of clusters, so that rare concepts stay and crowded ones are thinned out.

    Decides     the first level clusters the rows by k-means, each further level the centres of the one before. At each level, `resampling` times, k-means is
                fitted anew on the `nearest` rows (centres) of each cluster alone, which moves centres out of the crowd. Then the budget goes down the tree: a
                node gives each child min(c, its rows), with the largest whole c that the node's budget allows; what is left goes, one each, to children drawn
                at random among those that have more. Of a leaf's rows as many are kept, drawn at random or closest to its centre; the rest is dropped
                ("crowded"). A child gets no less than its protected rows, which are kept first. Drawn by one permutation of each level in uid order: no node
                hears of another. With leaf: closest `score` is the cosine distance to the leaf's centre and `threshold` the greatest that was kept there; no
                witness.
    Guarantee   exactly `keep` of the rows that have a vector (more only where more are protected; rows without one stay, unjudged); the same for every order of
                rows
    Source      Vo et al. 2024, arXiv 2405.15613, with cosine for Euclidean distance, and centres of length one. Of it is reported (second-hand) that the
                second level is the large step, random leaves are best and ten resamplings enough. As there, each fit starts by k-means++; there it then runs
                50 rounds on all points, here at most 20 on 256 a cluster, started among 64 a cluster, and `nearest: 1` fits on one point a cluster, where its
                code with sample_size 1 skips that level. It balances what the encoder sees, and so makes rare junk more frequent: filter before
    vectors     a vector column, (n, d) float16, unit length
    keep        how many to keep: a count (10000) or a fraction of the live rows (0 < 0.3 <= 1)
    clusters    of each level from the rows upwards, each fewer than the one before; the source has [5000, 1000] in its example and four levels from 10 M to
                10 k for the web. Never more than there are rows; clusters without rows are left out
    resampling  rounds at each level; 0 = plain k-means
    nearest     rows (or centres) of each cluster that a round fits on, a number for each level
    leaf        which rows of a leaf stay: random, or closest to its centre
    Writes      hierarchical_path: string, the clusters from the top to the leaf ("7/83"); hierarchical_quota: int64, rows that the leaf keeps
    Cost        resampling + 1 times n * clusters * d multiply-adds for the first level, and as many fits of at most 20 * nearest * clusters^2 * d (the first
                one on 256 rows a cluster, with 64 * clusters^2 * d in float64 for its start); further levels cost little. 60 n bytes
    Errors      bad-value; does-not-fit
    """
    if not clusters or (np.diff([*clusters, 0]) >= 0).any() or len(nearest) != len(clusters) or min(nearest) < 1 or resampling < 0:
        given = f"clusters {clusters}, nearest {nearest}, resampling {resampling}"
        raise Refusal("bad-value", "reduce.hierarchical", given, "fewer clusters at each level, as many numbers in nearest, all from 1")
    n = len(pool)
    needed = forecast(Size(n, [pool.vectors(vectors).dim], pool.memory), clusters=clusters, resampling=resampling, nearest=nearest)
    require("reduce.hierarchical", needed, pool.memory)
    order = np.argsort(pool.uid_rank)
    z, fixed = pool.vectors(vectors).subset(order), pool.fixed[order]
    parents, cosine, points = [], np.empty(0), z
    for number, (k, some) in enumerate(zip(clusters, nearest, strict=True)):
        parent, closeness, points = _level(pool, number, points, k, resampling, some)
        parents.append(parent)
        cosine = closeness if number == 0 else cosine
    budget = max(keep.of(n), int(fixed.sum()))
    quota = _quotas(pool, parents, fixed, budget)

    own = parents[0]
    drawn = pool.rng("leaf").permutation(n) if leaf == "random" else -cosine
    kept = place_inside(own, ~fixed, drawn) < quota[own]
    score, threshold = (np.full(n, np.nan), np.full(n, np.nan)) if leaf == "random" else _distances(cosine, own, kept, fixed)
    path = own.astype("U20")
    for parent in _above(parents):
        path = np.char.add(np.char.add(parent.astype("U20"), "/"), path)
    back = pool.uid_rank
    return Verdicts(
        keep=kept[back], reason="crowded", score=score[back], threshold=threshold[back],
        columns={"hierarchical_path": pa.array(path[back]), "hierarchical_quota": quota[own][back]},
    )  # fmt: skip


def _level(pool: Pool, number: int, points: Vectors, k: int, resampling: int, nearest: int) -> tuple[np.ndarray, np.ndarray, Vectors]:
    """(m,) cluster of each point, (m,) cosine to its centre, the centres that have points."""

    def fit(some: Vectors, turn: int) -> np.ndarray:
        centres = kmeans(some, k, uid_rank=np.arange(len(some)), rng=pool.rng(f"level {number}", f"round {turn}"), device=pool.device, is_sought=True)
        return centres.stored(slice(0, len(centres)))

    def resample(state: State) -> State:
        centres, turn = state
        cluster, cosine = assign(points, Vectors.of(centres), pool.device)
        near = np.flatnonzero(place_inside(cluster, -cosine) < nearest)
        return fit(points.subset(near), int(turn[0])), turn + 1

    start = pool.once(f"level-{number}-start", lambda: (fit(points, 0), np.ones(1, np.int64)))
    centres, _ = pool.scan(f"level-{number}", resample, start, rounds=resampling)
    cluster, cosine, centres = at_home(points, Vectors.of(centres), pool.device)
    return cluster, cosine, Vectors.of(centres)


def _above(parents: list[np.ndarray]) -> list[np.ndarray]:
    """For each level over the first the (n,) cluster that each row lies in."""
    found, at = [], parents[0]
    for parent in parents[1:]:
        at = parent[at]
        found.append(at)
    return found


def _quotas(pool: Pool, parents: list[np.ndarray], fixed: np.ndarray, budget: int) -> np.ndarray:
    """(leaves,) int64: rows that each leaf keeps, `budget` together."""
    most, least = [np.bincount(parents[0])], [np.bincount(parents[0], weights=fixed).astype(np.int64)]
    for parent in parents[1:]:
        most.append(np.bincount(parent, weights=most[-1]).astype(np.int64))
        least.append(np.bincount(parent, weights=least[-1]).astype(np.int64))
    quota, above = np.array([budget]), np.zeros(len(most[-1]), np.int64)  # the root over all of the top level
    for level in reversed(range(len(parents))):
        turn = pool.rng("level", str(level)).permutation(len(most[level]))
        by_node = np.argsort(above, kind="stable")
        found = np.zeros(len(above), np.int64)
        for children in np.split(by_node, np.flatnonzero(np.diff(above[by_node])) + 1):
            if len(children):
                found[children] = level_fill(least[level][children], most[level][children], int(quota[above[children[0]]]), turn[children])
        quota, above = found, parents[level]
    return quota


def _distances(cosine: np.ndarray, own: np.ndarray, kept: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the leaf's centre of dropped rows, and the greatest that was kept there by it; NaN where none was."""
    greatest = np.full(int(own.max(initial=-1)) + 1, -1.0)
    np.maximum.at(greatest, own[kept & ~fixed], 1 - cosine[kept & ~fixed])
    return np.where(kept, np.nan, 1 - cosine), np.where(greatest < 0, np.nan, greatest)[own]
