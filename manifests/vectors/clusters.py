"""Spherical k-means, and clusters whose borders lose no neighbours: the same for every row order, block shape, thread and device.

Centres are rounded to float16 after each step, so that assignments can be decided exactly like every other cosine (see `store`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from manifests.errors import Refusal
from manifests.memory import enough
from manifests.vectors.products import unit
from manifests.vectors.store import Vectors, float32_error, normalised
from manifests.vectors.tiles import near_the_top, to_device

BLOCK = 4096
SOUGHT = 64  # rows a centre among which k-means++ seeks its start
ROUNDED = 2.0**-40  # more than float64 is off by: two rows that are centres lie exactly as far from their border as the reach is
SPLITS = 3  # how often clusters that came out too large are split
LEANING_ROWS = 4096  # rows that say how far differences lean towards a border


def kmeans(
    z: Vectors, k: int, *, uid_rank: np.ndarray, rng: np.random.Generator, rounds: int = 20, sample: int = 256, device: str = "cpu",
    is_sought: bool = False,
) -> Vectors:  # fmt: skip
    """At most k centres, (k, d) unit vectors.

    z          (n, d); an empty cluster gets the row that its centre fits worst
    uid_rank   (n,) int64: rows are drawn, and ties broken, by it
    rng        drawn from once, for the start: different rows
    rounds     steps of assigning and averaging at most; it ends early when nothing moves
    sample     rows a centre that it is fitted on; fewer rows are all used
    is_sought  the start is sought among 64 rows a centre by k-means++ (Arthur, Vassilvitskii 2007): each next one drawn by its distance to those before, so that small
               clusters are not missed; else it is different rows at random

    Cost       rounds * sample * k * k * d multiply-adds; 64 * k * k * d more in float64 where the start is sought
    """
    n = len(z)
    k = min(k, n)
    by_uid = np.argsort(uid_rank, kind="stable")
    drawn = by_uid[np.sort(rng.permutation(n)[: min(n, sample * k)])]  # in uid order: sums do not depend on the row order
    some = Vectors.of(z.stored(drawn))
    start = _far_apart(some, k, rng, SOUGHT * k) if is_sought and k else rng.permutation(len(some))[:k]
    centres = Vectors.of(some.stored(start))
    before = None
    for _ in range(rounds):
        cluster = nearest(some, centres, device)
        if before is not None and (cluster == before).all():
            break
        before = cluster
        centres = Vectors.of(_means(some, cluster, centres))
    return centres


def _far_apart(z: Vectors, k: int, rng: np.random.Generator, among: int) -> np.ndarray:
    """(k,) int64: rows of `z`, the first at random, each further one with a chance in proportion to 1 - cosine (half the squared distance) to the nearest before it.

    Dot products in float64 are exact, and distances are cut to whole steps of 2^-30, so that their sums are exact too: nothing depends on the machine.
    """
    rows = np.sort(rng.permutation(len(z))[:among])
    some, square = z.take64(rows), z.square[rows]
    chosen, apart = [int(rng.integers(len(rows)))], np.full(len(rows), 1 << 31)
    while len(chosen) < k:
        last = chosen[-1]
        apart = np.minimum(apart, np.rint((1 - normalised(some @ some[last], square, square[last])) * 2.0**30).astype(np.int64))
        apart[last] = 0
        reach = np.cumsum(apart)
        if reach[-1]:
            chosen.append(int(np.searchsorted(reach, rng.integers(reach[-1]), side="right")))
        else:  # all others equal one that is chosen
            chosen += np.setdiff1d(np.arange(len(rows)), chosen)[: k - len(chosen)].tolist()
    return rows[chosen]


def nearest(z: Vectors, centres: Vectors, device: str = "cpu") -> np.ndarray:
    """(n,) int64: the centre with the highest cosine to each row, ties to the smaller number."""
    placed = [home for _, home, _, _ in _placed(z, centres, None, device)]
    return np.concatenate(placed) if placed else np.empty(0, np.int64)


def assign(z: Vectors, centres: Vectors, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 the centre with the highest cosine to each row, ties to the smaller number; (n,) float64 that cosine."""
    cluster = nearest(z, centres, device)
    return cluster, z.cosine(np.arange(len(z)), centres, cluster)


def _means(z: Vectors, cluster: np.ndarray, centres: Vectors) -> np.ndarray:
    """(k, d) float64: the mean direction of each cluster. Sums of float16 values are exact in float64, in any order."""
    from scipy.sparse import csr_array

    sums = np.zeros((len(centres), z.dim))
    for start in range(0, len(z), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(z)))
        order = np.argsort(cluster[rows], kind="stable")
        first = np.flatnonzero(np.diff(cluster[rows[order]], prepend=-1))
        members = csr_array((np.ones(len(rows)), order, np.append(first, len(rows))), shape=(len(first), len(rows)))
        sums[cluster[rows[order[first]]]] += members @ z.take64(rows)  # np.add.reduceat takes six times as long
    lost = np.flatnonzero((sums**2).sum(1) < 1e-12)
    if len(lost):
        cosine = z.cosine(np.arange(len(z)), centres, cluster)
        sums[lost] = z.take64(np.lexsort((np.arange(len(z)), cosine))[: len(lost)])
    return sums / np.maximum(np.sqrt((sums**2).sum(1)), 1e-30)[:, None]


def _placed(z: Vectors, centres: Vectors, reach: np.ndarray | None, device: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Block after block: its rows; the home cluster of each; (row, cluster) of the visits: other clusters whose cosine falls short of the home's by at most
    `reach[home, cluster]` (k, k) float64. float32 proposes; rows with two nearly nearest centres, and visits on the brink, are decided by float64."""
    k, slack = len(centres), 3 * float32_error(z.dim)
    base, everyone = to_device(centres.unit(slice(0, k)), device), np.arange(k)
    wide = None if reach is None else to_device((reach + slack).astype(np.float32), device)
    exact_centres = centres.take64(everyone) if k else np.empty((0, z.dim))
    step = max(1, min(BLOCK, (1 << 23) // max(k, 1)))
    for start in range(0, len(z), step):
        rows = np.arange(start, min(start + step, len(z)))
        home, top, r, c, score = near_the_top(unit(z, slice(start, int(rows[-1]) + 1), device), base, slack, wide, device)
        open_ = np.bincount(r[score >= top[r] - slack], minlength=len(rows)) > 1
        short, sure = top[r] - score, ~open_[r] & (c != home[r])
        r, c, short = r[sure], c[sure], short[sure]
        if reach is not None:
            limit = reach[home[r], c]
            visits = short <= limit
            brink = np.flatnonzero(np.abs(short - limit) <= slack)
            at = rows[r[brink]]
            visits[brink] = z.cosine(at, centres, home[r[brink]]) - z.cosine(at, centres, c[brink]) <= limit[brink]
            r, c = r[visits], c[visits]
        hard = np.flatnonzero(open_)
        if len(hard):
            at = rows[hard]
            exact = normalised(z.take64(at) @ exact_centres.T, z.square[at, None], centres.square[None])
            home[hard] = exact.argmax(1)
            if reach is not None:
                near = exact.max(1)[:, None] - exact <= reach[home[hard]]
                near[np.arange(len(hard)), home[hard]] = False
                more = np.nonzero(near)
                r, c = np.concatenate([r, hard[more[0]]]), np.concatenate([c, more[1]])
        yield rows, home, rows[r] if reach is not None else r[:0], c if reach is not None else c[:0]


@dataclass(frozen=True)
class Cells:
    """Which rows are compared with each other. home: (n,) int64 cluster; visitor, visited: (v,) int64 rows that are also compared with the rows at home in another
    cluster; by cluster."""

    home: np.ndarray
    visitor: np.ndarray
    visited: np.ndarray

    def each(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows at home, visitors) of every cluster that has rows at home."""
        order, visits = np.argsort(self.home, kind="stable"), np.argsort(self.visited, kind="stable")
        count = int(self.home.max(initial=-1)) + 2
        at, guests = np.searchsorted(self.home[order], np.arange(count)), np.searchsorted(self.visited[visits], np.arange(count))
        for c in np.flatnonzero(np.diff(at)):
            yield order[at[c] : at[c + 1]], self.visitor[visits[guests[c] : guests[c + 1]]]

    def products(self) -> float:
        """How many pairs are compared."""
        size = np.bincount(self.home).astype(np.float64)
        return float((size * (size - 1)).sum() / 2 + size[self.visited[self.visited < len(size)]].sum())


def cells(
    z: Vectors, k: int, *, uid_rank: np.ndarray, rng: np.random.Generator, floor: float, recall: float, memory: int, device: str = "cpu",
    rounds: int = 6, sample: int = 24, where: str = "",
) -> tuple[Vectors, Cells]:  # fmt: skip
    """Clusters such that pairs of at least `floor` are compared: rows near a border visit the cluster behind it.

    Let u be the normal of the border between the clusters of two rows, of cosine `floor` or more and so at most e = sqrt(2 - 2 floor) apart. The distances of both to the
    border add up to at most e |cos(u, difference)|, so the smaller one is at most half of that. At recall 1 every row within e / 2 of a border visits: no pair is
    lost. Below, within q e / 2, where q is the share `recall` of what |cos(u, ·)| is for rows' differences from their centres: a pair is lost only if its difference
    leans more towards the border than that. Clusters of more than four times the mean (and 1024) are split up to three times.

    Returns the centres and the cells. Raises `Refusal` [does-not-fit] where clusters do not separate the rows and visits outgrow the memory.
    """
    n = len(z)
    centres = kmeans(z, k, uid_rank=uid_rank, rng=rng, rounds=rounds, sample=sample, device=device)
    some, bound = np.argsort(uid_rank, kind="stable"), 4 * n // max(len(centres), 1) + 1024
    some = some[np.sort(rng.permutation(n)[:LEANING_ROWS])]
    for last in [*[False] * SPLITS, True]:
        reach = _reach(z.subset(some), centres, floor, recall)
        home, visitor, visited, count = np.empty(n, np.int64), [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for rows, at, guest, cluster in _placed(z, centres, reach, device):
            home[rows], count = at, count + len(guest)
            visitor.append(guest)
            visited.append(cluster)
            if 64 * count > memory:
                raise Refusal(
                    "does-not-fit", where, f"clusters do not separate these vectors: at recall {recall} rows visit {count / (rows[-1] + 1):.0f} others each",
                    "visits in the memory", f"Give --memory {enough(64 * count * n // (int(rows[-1]) + 1))}, a lower recall, or use dedup.all_pairs",
                )  # fmt: skip
        found = Cells(home, np.concatenate(visitor), np.concatenate(visited))
        large = np.flatnonzero(np.bincount(home, minlength=1) > bound)
        if last or not len(large):
            break
        more = [centres.stored(slice(0, len(centres)))]
        for c in large:
            rows = np.flatnonzero(home == c)
            some_k = -(-2 * len(rows) // bound)
            more.append(
                kmeans(z.subset(rows), some_k, uid_rank=uid_rank[rows], rng=rng, rounds=rounds, sample=sample, device=device).stored(slice(0, some_k))
            )
        centres = Vectors.of(np.concatenate(more))
    return centres, found


def _reach(some: Vectors, centres: Vectors, floor: float, recall: float) -> np.ndarray:
    """(k, k) float64: by how much a row's cosine to a cluster may fall short of that to its home for it to visit; see `cells`."""
    k = len(centres)
    wide = centres.take64(np.arange(k))
    between = normalised(wide @ wide.T, centres.square[:, None], centres.square[None])
    apart = np.sqrt(np.maximum(2 - 2 * between, 0))
    lean = 1.0 if recall == 1 or k < 2 or not len(some) else _leaning(some, centres, between, apart, recall)
    return lean * np.sqrt(2 - 2 * floor) / 2 * apart + ROUNDED


def _leaning(some: Vectors, centres: Vectors, between: np.ndarray, apart: np.ndarray, recall: float) -> float:
    """The share `recall` of |cos| between rows' differences from their centre and the normal of their nearest border, rounded up to 1/1024."""
    cosine = normalised(some.take64(np.arange(len(some))) @ centres.take64(np.arange(len(centres))).T, some.square[:, None], centres.square[None])
    row = np.arange(len(some))
    home = cosine.argmax(1)
    best = cosine[row, home]
    cosine[row, home] = -np.inf
    other = cosine.argmax(1)
    along = best - cosine[row, other] - best * (1 - between[home, other])
    length = np.sqrt(np.maximum(1 - best**2, 0)) * apart[home, other]
    lean = np.sort(np.abs(along) / np.maximum(length, 1e-9))
    at = min(len(lean) - 1, int(np.ceil(recall * len(lean))))
    return min(1.0, float(np.ceil(lean[at] * 1024) / 1024))
