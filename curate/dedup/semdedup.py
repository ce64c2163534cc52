"""SemDeDup to the letter: in each cluster, whatever is too similar to an earlier row goes, also where that row itself goes."""

from typing import Literal

import numpy as np
import pyarrow as pa

from curate.pool import Edges, Pool, State, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.vectors.clusters import Cells, assign, kmeans
from manifests.vectors.copies import limit_of, pairs_inside, rivals, spread, warn_of_many
from manifests.vectors.forecast import Forecast, Size, inside_clusters, require
from manifests.vectors.store import Vectors
from manifests.vectors.tiles import equal_rows

REASONS = ("semantic_duplicate",)
WRITES = {"semdedup_rival": pa.string()}
MOVES = {"min_cosine": "floor_cosine", "keeper": ""}
GROWS = "differs"
PAIRS_OF_ALL_ROWS = True  # clusters are fitted on them
SAMPLE = 256  # rows a centre that k-means is fitted on, as faiss has it


def forecast(size: Size, *, clusters: int | None, iterations: int, **_: object) -> Forecast:
    """The clusters and the pairs inside them."""
    return inside_clusters(size.rows, size.dims[0], clusters or _count(size.rows), iterations, SAMPLE, visits=0)


def semdedup(
    pool: Pool,
    *,
    vectors: VectorName,
    min_cosine: float = 0.97,
    clusters: int | None = None,
    keeper: Literal["farthest", "nearest", "random"] = "farthest",
    iterations: int = 100,
    floor_cosine: float = 0.93,
    max_edges: int = 16,
) -> Verdicts:
    """Drop what is too similar to an earlier row of its cluster, be that row kept or not: SemDeDup to the letter.

    Decides     spherical k-means; in each cluster rows stand in keeper order, the farthest from the centre first; a row is dropped ("semantic_duplicate") when its
                highest cosine to a row before it exceeds `min_cosine` = 1 - epsilon. That row is its rival, kept or not: of A ~ B ~ C only A stays although A and C
                are far apart. `score` is that cosine, `threshold` min_cosine; `witness` is the rival where it is kept, and null where it is itself dropped. Of
                equal cosines the row that comes first is the rival. Protected rows come first in their cluster and are kept
    Guarantee   the paper's rule. Two ways in which no implementation follows from the paper alone: the clusters (faiss's sampling and seeds are its own; k-means here
                is fitted on 256 rows a centre too, and gives the same clusters on every machine), and ties, which go to the smaller uid. Pairs across clusters are
                not compared and chains lose rows that nothing kept stands for: `dedup.semantic` has neither fault
    Source      Abbas et al. 2023, arXiv 2303.09540: rule, order, 100 iterations; "higher epsilon prunes more", as paper and code have it, not the README
    vectors     a vector column, (n, d) float16, unit length
    min_cosine  1 - epsilon of the paper; a row that reaches it and does not exceed it is kept. The default is the paper's epsilon of 0.03,
                which dropped half of LAION-440M by CLIP; it has no one value for all data
    clusters    how many; by default the square root of the rows (the paper: 50,000 for 440 M, 11,000 for C4; it hardly matters there)
    keeper      "farthest" from the centre first (the paper's), "nearest" first, or "random" by the seed
    iterations  of k-means at most
    floor_cosine   pairs down to this cosine are written as edges, so that the threshold can be moved later
    max_edges   pairs a row on average (and a million in all) that are written. Where more exceed the floor each row keeps the one to its rival ("is_complete" is false):
                every min_cosine from the floor up is then still decided exactly, another keeper is not
    Writes      semdedup_rival: string, uid of the row that decided; null where the row is kept
    Cost        (256 iterations k k + n k + n n / 2 k) d multiply-adds in float32; 170 bytes a row, 128 a pair, 512 d a cluster and 30 to 100 MiB at work
    Errors      bad-value, does-not-fit
    """
    where, n = "dedup.semdedup", len(pool)
    if not -1 <= floor_cosine <= min_cosine <= 1 or max_edges < 1 or iterations < 1 or (clusters is not None and clusters < 1):
        given = f"min_cosine {min_cosine}, floor_cosine {floor_cosine}, clusters {clusters}, iterations {iterations}, max_edges {max_edges}"
        allowed = "-1 <= floor_cosine <= min_cosine <= 1, clusters, iterations and max_edges of 1 or more"
        raise Refusal("bad-value", where, given, allowed, "Where min_cosine is lower than the floor, lower floor_cosine too")
    edges = pool.edges(lambda: _find(pool, pool.vectors(vectors), clusters, keeper, iterations, floor_cosine, max_edges))

    cosine = np.zeros(n)
    cosine[edges.a], cosine[edges.b] = edges.columns["a_centre"], edges.columns["b_centre"]
    rival, score = _rivals(_keeper_order(pool, keeper, cosine), edges)
    keep = ~(score > min_cosine) | pool.fixed
    score[keep] = np.nan
    warn_of_many(where, score, min_cosine)
    name = pool.uid[rival].astype("U32").astype(object)
    name[keep] = None
    return Verdicts(
        keep=keep, reason="semantic_duplicate", score=score, threshold=min_cosine, witness=np.where(~keep & keep[rival], rival, -1),
        columns={"semdedup_rival": pa.array(name, pa.string())}, edges=edges,
    )  # fmt: skip


def _count(rows: int) -> int:
    """Of clusters, where nothing is said."""
    return max(1, round(rows**0.5))


def _keeper_order(pool: Pool, keeper: str, centre_cosine: np.ndarray) -> np.ndarray:
    """(n,) int64: the place of each row; only rows of one cluster are ever compared."""
    return pool.keeper_order((), {"farthest": centre_cosine, "nearest": -centre_cosine, "random": pool.lot("keeper")}[keeper])


def _rivals(rank: np.ndarray, edges: Edges) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the earlier one with the highest cosine, ties in keeper order, itself where there is none, and that cosine, -inf where there is none."""
    swap = rank[edges.a] > rank[edges.b]
    better, worse = np.where(swap, edges.b, edges.a), np.where(swap, edges.a, edges.b)
    order = np.lexsort((-rank[better], edges.score, worse))  # the last of each row: highest cosine, then first in keeper order
    rival, score = np.arange(len(rank)), np.full(len(rank), -np.inf)
    rival[worse[order]], score[worse[order]] = better[order], edges.score[order]
    return rival, score


def _find(pool: Pool, z: Vectors, clusters: int | None, keeper: str, iterations: int, floor: float, max_edges: int) -> Edges:
    """All pairs of one cluster down to the floor; of a crowd each row's rival."""
    n, limit = len(pool), limit_of(len(pool), max_edges)
    k = clusters or _count(n)
    needed = forecast(Size(n, [z.dim], pool.memory), clusters=k, iterations=iterations)
    require("dedup.semdedup", needed, pool.memory)

    def cluster() -> State:
        centres = kmeans(z, k, uid_rank=pool.uid_rank, rng=pool.rng("clusters"), rounds=iterations, sample=SAMPLE, device=pool.device)
        return assign(z, centres, pool.device)

    home, cosine = pool.once("clusters", cluster)
    rank = _keeper_order(pool, keeper, cosine)
    order = np.argsort(rank)
    first = np.empty(n, np.int64)
    first[order] = order[equal_rows(z.subset(order))]
    heads = np.flatnonzero(first == np.arange(n))
    heads_z, nothing = z.subset(heads), np.empty(0, np.int64)
    inside = Cells(home[heads], nothing, nothing)
    known = pool.known(first)[heads]  # such rows are kept whoever their rival is
    found = pairs_inside(heads_z, inside, floor, limit, pool.scan, pool.device, known, pool.memory - needed.memory, "dedup.semdedup")

    def of_a_crowd() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b, score = pool.once("rivals", lambda: rivals(heads_z, inside, floor, rank[heads], known))
        return heads[a], heads[b], score

    pairs = None if found is None else (heads[found[0]], heads[found[1]], found[2])
    a, b, score, equal, is_complete = spread(pairs, of_a_crowd, first, rank, limit, pool.memory - needed.memory, "dedup.semdedup")
    return Edges(a, b, score, {"is_equal": equal, "is_complete": np.full(len(a), is_complete), "a_centre": cosine[a], "b_centre": cosine[b]})
