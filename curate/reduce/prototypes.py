"""Self-supervised prototypes: keep what lies far from its cluster's centre, or what lies near it."""

from typing import Literal

import numpy as np
import pyarrow as pa

from curate.pool import Column, Pool, Share, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.quotas import GRID, place_inside
from manifests.vectors.forecast import Forecast, Size, clustered, require
from manifests.vectors.partition import partition

REASONS = ("too_easy", "too_hard")
WRITES = {"prototypes_cluster": pa.int64(), "prototypes_distance": pa.float64()}
GROWS = "differs"


def forecast(size: Size, *, clusters: int, **_: object) -> Forecast:
    """The clusters; what follows costs little."""
    return clustered(size.rows, size.dims[0], clusters)


def prototypes(
    pool: Pool,
    *,
    vectors: VectorName,
    keep: Share,
    end: Literal["hard", "easy"] = "hard",
    clusters: int = 100,
    by: Column | None = None,
    floor: float = 0.5,
) -> Verdicts:
    """Keep the samples farthest from the centre of their own cluster (hard) or nearest to it (easy), with a floor for every class or cluster.

    Decides     k-means cuts the pool into clusters; rows are ranked by the cosine distance to their own centre, ties by uid. Protected rows are kept first;
                then of each class (or cluster) the best rows up to floor * budget / classes, rounded down, protected ones counted; then the best of all that
                are left. Where protected rows leave too little for all floors, every class gets its first row, then its second, until the budget ends.
                Dropped ("too_easy" where `end` is hard, else "too_hard"): `score` is the distance, `threshold` the distance that would have been enough: of
                the last row kept by its rank among all, or of the last one kept of its class, whichever asks less. No witness.
    Guarantee   exactly `keep` of the rows that have a vector (more only where more are protected; rows without one stay, unjudged); the same for every order of
                rows
    Source      Sorscher et al., NeurIPS 2022: keep hard ones where data are plentiful, easy ones where they are scarce (after notes; the paper was not at
                hand). Take copies out first, and cluster anew after that (D4, Tirumala et al. 2023): else the distance tells how often a row is repeated. Of
                a web pool the hardest are junk: filter before
    vectors     a vector column, (n, d) float16, unit length
    keep        how many to keep: a count (10000) or a fraction of the live rows (0 < 0.3 <= 1)
    end         which end of the ranking is kept
    clusters    how many, at most the number of rows; about the number of classes, within a factor of ten it matters little
    by          a column of classes that have the floor; null = the clusters have it
    floor       of an even share (budget / classes) that each class or cluster keeps at least, 0 to 1; a smaller class is kept whole
    Writes      prototypes_cluster: int64; prototypes_distance: float64, 0 to 2
    Cost        20 * 256 * clusters^2 * d multiply-adds at most to fit the centres on a sample, and n * clusters * d to assign the rows; 40 n bytes
    Errors      bad-value; does-not-fit
    """
    if clusters < 1 or not 0 <= floor <= 1:
        raise Refusal("bad-value", "reduce.prototypes", f"clusters {clusters}, floor {floor}", "clusters from 1, a floor of 0 to 1")
    n = len(pool)
    require("reduce.prototypes", forecast(Size(n, [pool.vectors(vectors).dim], pool.memory), clusters=clusters), pool.memory)
    order = np.argsort(pool.uid_rank)
    z, fixed = pool.vectors(vectors).subset(order), pool.fixed[order]
    cluster, cosine, _ = pool.once("clusters", lambda: partition(z, clusters, rng=pool.rng("clusters"), device=pool.device))
    group = cluster if by is None else np.unique(pool.column(by)[order], return_inverse=True)[1]
    budget, worth = max(keep.of(n), int(fixed.sum())), cosine if end == "hard" else -cosine  # the smaller, the better

    place = place_inside(group, ~fixed, worth)
    by_floor = place < int(np.rint(floor * budget / (int(group.max(initial=0)) + 1) * GRID) / GRID)  # 0.29 * 100 is 29
    turn = np.lexsort((worth, np.where(by_floor, place, n), ~by_floor, ~fixed))
    kept = np.zeros(n, bool)
    kept[turn[:budget]] = True

    distance = 1 - cosine
    back = pool.uid_rank
    return Verdicts(
        keep=kept[back], reason="too_easy" if end == "hard" else "too_hard", score=np.where(kept, np.nan, distance)[back],
        threshold=_enough(worth, group, kept & ~fixed, by_floor, end)[back],
        columns={"prototypes_cluster": cluster[back], "prototypes_distance": distance[back]},
    )  # fmt: skip


def _enough(worth: np.ndarray, group: np.ndarray, ranked: np.ndarray, by_floor: np.ndarray, end: str) -> np.ndarray:
    """(n,) float64: the distance with which a row of each class would have been kept; NaN where no rank has been kept at all."""
    last = np.full(int(group.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(last, group[ranked], worth[ranked])
    overall = worth[ranked & ~by_floor].max(initial=-np.inf)
    least = np.maximum(last, overall)[group]
    least[np.isinf(least)] = np.nan
    return 1 - least if end == "hard" else 1 + least
